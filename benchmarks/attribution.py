"""What a snapshot's contribution matrices and one relevance pass cost, in training steps of the same model.

DCGAN (ngf = ndf = 64, 64x64 images, batch 16), one thread, process CPU time, all contenders interleaved in every round;
medians over rounds. A training step is a discriminator step on real and fake images and a generator step.

    python benchmarks/attribution.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from models import discriminator, generator
from torch import Tensor, nn

from dgm_tb.algorithms.contribution import contribution_matrix, gradient_matrix
from dgm_tb.algorithms.edges import edge_contributions
from dgm_tb.algorithms.relevance import RelevanceMode, relevance

LINEAR = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class Gan:
    """Both networks, their optimizers, and what their linear layers were given in the last step."""

    def __init__(self, batch: int) -> None:
        self.generator, self.discriminator = generator(), discriminator()
        self.optimizers = [torch.optim.Adam(n.parameters(), 2e-4) for n in (self.generator, self.discriminator)]
        self.real, self.noise = torch.rand(batch, 3, 64, 64) * 2 - 1, torch.randn(batch, 100, 1, 1)

    def step(self) -> None:
        """Train the discriminator, then the generator, once."""
        of_generator, of_discriminator = self.optimizers
        fake = self.generator(self.noise)
        of_discriminator.zero_grad()
        for images, label in ((self.real, 1.0), (fake.detach(), 0.0)):
            logits = self.discriminator(images)
            F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label)).backward()
        of_discriminator.step()
        of_generator.zero_grad()
        logits = self.discriminator(fake)
        F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()
        of_generator.step()

    def layer_inputs(self) -> list[tuple[nn.Module, Tensor, Tensor]]:
        """Module, input and output of every linear layer of one generator and one discriminator call."""
        found: list[tuple[nn.Module, Tensor, Tensor]] = []
        handles = [
            module.register_forward_hook(lambda m, given, z: found.append((m, given[0].clone(), z.clone())))
            for network in (self.generator, self.discriminator)
            for module in network
            if isinstance(module, LINEAR)
        ]
        with torch.no_grad():
            self.discriminator(self.generator(self.noise))
        for handle in handles:
            handle.remove()
        return found

    def snapshot_through_the_tape(self) -> None:
        """Replay both networks and make the matrix of every edge."""
        for network, x in ((self.generator, self.noise), (self.discriminator, self.real)):
            with torch.no_grad(), RelevanceMode(network, x) as mode:
                network(x)
            for name, module in network.named_children():
                if isinstance(module, LINEAR):
                    edge_contributions(mode, name)


def contenders(gan: Gan) -> dict[str, Callable[[], object]]:
    gan.step()
    layers = gan.layer_inputs()
    return {
        "training step": gan.step,
        "all epsilon matrices (forward)": lambda: [contribution_matrix(m, x) for m, x, _ in layers],
        "all epsilon matrices, other relevance": lambda: [
            contribution_matrix(m, x, output_relevance=z) for m, x, z in layers
        ],
        "all z+ matrices": lambda: [contribution_matrix(m, x, rule="z_plus") for m, x, _ in layers],
        "all backward matrices from .grad": lambda: [gradient_matrix(m, m.weight.grad) for m, _, _ in layers],
        "replay and the matrix of every edge": gan.snapshot_through_the_tape,
        "relevance pass, discriminator to image": lambda: relevance(gan.discriminator, "11", 0, gan.real),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    runs = contenders(Gan(options.batch))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    step = statistics.median(seconds["training step"])
    for name, times in seconds.items():
        ratios = [t / s for t, s in zip(times, seconds["training step"], strict=True)]
        median = statistics.median(times)
        print(f"{name:42s} {median * 1e3:8.1f} ms   {median / step:6.3f} steps (worst {max(ratios):.3f})")


if __name__ == "__main__":
    main()
