"""Training loops in plain PyTorch, each with what it is trained on; recorded if a folder is given."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from models import images
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset
from training import loader

import dgm_tb


class VAE(nn.Module):
    """One Gaussian sampling layer, variance = exp(log-variance), all in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 16), nn.ReLU(inplace=True))
        self.mean, self.log_variance = nn.Linear(16, 4), nn.Linear(16, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        return self.decoder(mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)), mean, log_variance


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(checkpoint(self.block, x, use_reentrant=False))


@dataclass
class Outcome:
    """What a loop leaves behind.

    Attributes:
        recorder: The recorder, or None.
        losses: Of every step.
        norms: Per step and optimizer: norm of all gradients before they were clipped.
        state: Weights, buffers, and the random state.
        facts: What else a loop wants to tell.
    """

    recorder: Any = None
    losses: list[dict[str, float]] = field(default_factory=list)
    norms: list[list[float]] = field(default_factory=list)
    state: list[Tensor] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


Step = Callable[[Any, dict[str, nn.Module], dict[str, torch.optim.Optimizer], Outcome], dict[str, Tensor]]


def norm_of(optimizer: torch.optim.Optimizer) -> float:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return float(torch.stack([gradient.double().norm() for gradient in gradients]).norm())


def update(loss: Tensor, optimizer: torch.optim.Optimizer, outcome: Outcome, clip: float | None = None) -> None:
    """Backward pass, clipping and optimizer step."""
    optimizer.zero_grad()
    loss.backward()
    outcome.norms[-1].append(norm_of(optimizer))
    if clip is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()


def vae_step(batch: Any, models: Any, optimizers: Any, outcome: Outcome) -> dict[str, Tensor]:
    x = batch[0].view(-1, 64)
    y, mean, log_variance = models[""](x)
    divergence = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(1).mean()
    loss = F.mse_loss(y, x, reduction="sum") / len(x) + 0.1 * divergence
    update(loss, optimizers[""], outcome, clip=0.5)
    return {"loss": loss}


def parts_step(batch: Any, models: Any, optimizers: Any, outcome: Outcome) -> dict[str, Tensor]:
    """The same by calls of the model's parts: it has no ``forward`` of its own that is called."""
    vae, x = models[""], batch[0].view(-1, 64)
    h = vae.encoder(x)
    mean, log_variance = vae.mean(h), vae.log_variance(h)
    y = vae.decoder(mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean))
    loss = F.mse_loss(y, x, reduction="sum") / len(x) + 0.05 * (mean**2 + log_variance.exp()).sum(1).mean()
    update(loss, optimizers[""], outcome)
    return {"loss": loss}


def gan_step(batch: Any, models: Any, optimizers: Any, outcome: Outcome) -> dict[str, Tensor]:
    generator, discriminator = models["generator"], models["discriminator"]
    real, loss_of = batch[0] * 2 - 1, F.binary_cross_entropy_with_logits
    fake, ones = generator(torch.randn(len(real), 4)), torch.ones(len(real), 1)
    d_loss = loss_of(discriminator(real), ones) + loss_of(discriminator(fake.detach()), 0 * ones)
    update(d_loss, optimizers["discriminator"], outcome)
    g_loss = loss_of(discriminator(fake), ones)
    update(g_loss, optimizers["generator"], outcome)
    return {"d_loss": d_loss, "g_loss": g_loss}


def classifier_step(batch: Any, models: Any, optimizers: Any, outcome: Outcome) -> dict[str, Tensor]:
    loss = F.cross_entropy(models[""](batch[0]), batch[1])
    update(loss, optimizers[""], outcome)
    return {"loss": loss}


def flat_step(batch: Any, models: Any, optimizers: Any, outcome: Outcome) -> dict[str, Tensor]:
    return classifier_step([batch[0].flatten(1), batch[1]], models, optimizers, outcome)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(), nn.Linear(256, 3)
    )


def gan() -> dict[str, nn.Module]:
    return {
        "generator": nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8))),
        "discriminator": nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True), nn.Flatten(), nn.Linear(64, 1)
        ),
    }


LOOPS: dict[str, tuple[Callable[[], Any], Step]] = {
    "vae": (VAE, vae_step),
    "parts": (VAE, parts_step),
    "gan": (gan, gan_step),
    "cnn": (cnn, classifier_step),
    "checkpointed": (Checkpointed, flat_step),
}


def batches(data: TensorDataset | None = None, **options: Any) -> Any:
    return loader(data if data is not None else images(), **options)


def run(
    name: str,
    folder: Path | None = None,
    train: Any = None,
    *,
    epochs: int = 2,
    around: Callable[[int, Any, Any], None] = lambda step, models, recorder: None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    **options: Any,
) -> Outcome:
    """Train a loop from a fixed seed.

    Args:
        name: A key of ``LOOPS``.
        folder: Run folder; None records nothing.
        train: The batches.
        epochs: Passes over them.
        around: Called between two steps with the number of the next, the models and the recorder.
        wrap: What is done to each model before it is trained and recorded.
        options: Of ``dgm_tb.record``.
    """
    make, step = LOOPS[name]
    torch.manual_seed(1)
    made = make()
    models = {n: wrap(model) for n, model in (made if isinstance(made, dict) else {"": made}).items()}
    optimizers = {n: torch.optim.Adam(model.parameters(), 2e-3) for n, model in models.items()}
    train, outcome = batches() if train is None else train, Outcome()
    options = {"max_overhead": None, "on_finding": "ignore", "window_steps": 1, **options}
    recording = dgm_tb.record(models if isinstance(made, dict) else models[""], folder, **options) if folder else None
    torch.manual_seed(2)
    with recording or nullcontext() as outcome.recorder:
        for number, batch in enumerate(_repeated(train, epochs)):
            around(number, models, outcome.recorder)
            outcome.norms.append([])
            losses = step(batch, models, optimizers, outcome)
            outcome.losses.append({key: float(loss.detach()) for key, loss in losses.items()})
            if outcome.recorder is not None:
                outcome.recorder.step(losses if len(losses) > 1 else losses["loss"])
    outcome.state = [value.clone() for model in models.values() for value in model.state_dict().values()]
    outcome.state.append(torch.get_rng_state().double())
    return outcome


def _repeated(train: Any, epochs: int) -> Iterator[Any]:
    for _ in range(epochs):
        yield from train


@contextmanager
def our_warnings() -> Iterator[list[str]]:
    """The texts of all our warnings inside, to look at afterwards."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        texts: list[str] = []
        yield texts
        texts += [str(w.message) for w in caught if str(w.message).startswith("dgm_tb: ")]
