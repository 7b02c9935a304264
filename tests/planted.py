"""Networks in which one kernel, or one kernel and one image, is known to be the cause: contributions must name it.

Networks of two convolutions and two dense layers. The target is the output that moved most; the 768 kernels of the
second convolution are the candidates; its matrix under the target's exact relevance ranks them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgm_tb.algorithms.contribution import contribution_matrix
from dgm_tb.algorithms.relevance import RelevanceMode
from dgm_tb.algorithms.rules import decomposed
from dgm_tb.algorithms.rules.affine import z_plus_groups

RULES = {
    "epsilon": {},
    "z_plus": {function: decomposed(z_plus_groups) for function in (F.linear, F.conv2d)},
}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 32, 3, padding=1)
        self.dense, self.out = nn.Linear(32 * 16, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.conv1(x)), 2)
        h = F.max_pool2d(F.relu(self.conv2(h)), 2)
        return self.out(F.relu(self.dense(h.flatten(1))))


def matrix(network: Network, x: Tensor, target: int, rule: str) -> Tensor:
    """What each kernel of the second convolution handed on of the relevance of one output ``[32, 24]``."""
    with torch.no_grad(), RelevanceMode(network, x, rules=RULES[rule]) as mode:
        network(x)
    relevance = mode.propagate("out", target).layers["conv2"]
    given = mode.slots["conv2"].inputs[0].tensor
    return contribution_matrix(network.conv2, given, rule=rule, output_relevance=relevance)


Trial = tuple[Network, Tensor, Network, Tensor, tuple[int, int]]
"""A network and an image in which a kernel is at work; the same where it is not; the kernel."""


def corrupted(rng: torch.Generator, network: Network) -> tuple[int, int]:
    """One kernel, 1.5 larger."""
    place = int(torch.randint(32, (), generator=rng)), int(torch.randint(24, (), generator=rng))
    with torch.no_grad():
        network.conv2.weight[place] += 1.5
    return place


def another_network(rng: torch.Generator) -> Trial:
    """The ideal reference: the same network without the change."""
    network, reference, x = Network(), Network(), torch.rand(2, 3, 16, 16, generator=rng)
    reference.load_state_dict(network.state_dict())
    return network, x, reference, x, corrupted(rng, network)


def an_earlier_snapshot(rng: torch.Generator, n_steps: int = 20) -> Trial:
    """The network some training steps ago: all of its weights were others."""
    network, reference = Network(), Network()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for step in range(20 + n_steps):
        if step == 20:
            reference.load_state_dict(network.state_dict())
        images = torch.rand(8, 3, 16, 16, generator=rng)
        labels = (images.mean((1, 2, 3)) * 1e4).long() % 10
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    x = torch.rand(8, 3, 16, 16, generator=rng)
    return network, x, reference, x, corrupted(rng, network)


def a_normal_image(rng: torch.Generator) -> Trial:
    """The same network on another image: only the abnormal one has the pattern that the kernel answers to."""
    network = Network()
    place = corrupted(rng, network)
    normal = torch.rand(1, 3, 16, 16, generator=rng)
    pattern = network.conv1.weight[place[1]].detach()
    abnormal = normal.clone()
    abnormal[0, :, 4:12, 4:12] += 3 * pattern.repeat(1, 3, 3)[:, :8, :8] / pattern.abs().max()
    return network, abnormal, network, normal, place


def shares_of_hits(make: Callable[[torch.Generator], Trial], rules: list[str], n: int) -> tuple[int, dict[str, float]]:
    """Trials in which the kernel has an effect; and how often its |contribution| (or the difference) is the largest."""
    hits: dict[str, int] = {}
    n_live = 0
    for trial in range(n):
        torch.manual_seed(trial)
        network, x, reference, normal, place = make(torch.Generator().manual_seed(trial))
        with torch.no_grad():
            moved = network(x).mean(0) - reference(normal).mean(0)
        if float(moved.abs().max()) < 1e-3:
            continue  # the kernel's channel is dead
        n_live += 1
        target = int(moved.abs().argmax())
        for rule in rules:
            now, before = (matrix(*case, target, rule) for case in ((network, x), (reference, normal)))
            for kind, score in (("plain", now), ("difference", now - before)):
                key = f"{rule} {kind}"
                hits[key] = hits.get(key, 0) + (divmod(int(score.abs().argmax()), 24) == place)
    return n_live, {key: count / n_live for key, count in hits.items()}
