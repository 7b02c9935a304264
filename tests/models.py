"""Small LightningModules of every kind that a recording must cope with, each with the data it trains on.

``CASES`` is the table: a test over all of it holds for a new entry without a new test. Images are 8 x 8, one channel.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset, TensorDataset

N_EXAMPLES = 48
BATCH_SIZE = 8


def images(n: int = N_EXAMPLES) -> TensorDataset:
    """Images in [0, 1] ``[n, 1, 8, 8]`` and labels 0 to 2; the same in every call."""
    rng = torch.Generator().manual_seed(11)
    return TensorDataset(torch.rand(n, 1, 8, 8, generator=rng), torch.randint(0, 3, (n,), generator=rng))


def images_with(index: int, scale: float) -> TensorDataset:
    """``images`` of which one is ``scale`` times too large."""
    data = images()
    data.tensors[0][index] *= scale
    return data


def tokens() -> TensorDataset:
    """Sequences of 5 whole numbers below 12, and labels 0 to 2."""
    rng = torch.Generator().manual_seed(12)
    return TensorDataset(
        torch.randint(0, 12, (N_EXAMPLES, 5), generator=rng), torch.randint(0, 3, (N_EXAMPLES,), generator=rng)
    )


class VAE(L.LightningModule):
    """Two Gaussian sampling layers, variance = exp(log-variance): the paper's case."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam, lr: float = 1e-3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU()
        )
        self.flatten = nn.Flatten()
        self.mean1, self.log_variance1 = nn.Linear(32, 6), nn.Linear(32, 6)
        self.between = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.mean2, self.log_variance2 = nn.Linear(8, 4), nn.Linear(8, 4)
        self.decoder = nn.Sequential(
            nn.Linear(4, 32),
            nn.ReLU(),
            nn.Unflatten(1, (8, 2, 2)),
            nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )
        self.optimizer, self.lr = optimizer, lr

    def sample(self, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        variance = torch.exp(log_variance)
        divergence = 0.5 * (mean**2 + variance - log_variance - 1).sum(1).mean()
        return mean + torch.sqrt(variance) * torch.randn_like(mean), divergence

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0]
        h = self.flatten(self.encoder(x))
        z1, divergence1 = self.sample(self.mean1(h), self.log_variance1(h))
        h = self.between(z1)
        z2, divergence2 = self.sample(self.mean2(h), self.log_variance2(h))
        reconstruction = F.mse_loss(self.decoder(z2), x, reduction="sum") / len(x)
        loss = reconstruction + 0.1 * (divergence1 + divergence2)
        self.log("train_loss", loss)
        self.log_dict({"reconstruction": reconstruction, "divergence": divergence1 + divergence2})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=self.lr)


class DistributionVAE(VAE):
    """The same with ``torch.distributions``, which raise on NaN."""

    def sample(self, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        q = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance), validate_args=True)
        p = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        return q.rsample(), torch.distributions.kl_divergence(q, p).sum(1).mean()


class GAN(L.LightningModule):
    """Manual optimization, two optimizers, three calls of the discriminator per step: real, detached fake, fake."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(4, 32), nn.ReLU(), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
        )
        self.to_image = nn.Sequential(
            nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1), nn.Tanh()
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True), nn.Flatten(), nn.Linear(64, 1)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer_g, optimizer_d = self.optimizers()
        real = batch[0] * 2 - 1
        fake = self.to_image(self.generator(torch.randn(len(real), 4, device=self.device)))
        ones = torch.ones(len(real), 1, device=self.device)

        loss_real = F.binary_cross_entropy_with_logits(self.discriminator(real), ones)
        loss_fake = F.binary_cross_entropy_with_logits(self.discriminator(fake.detach()), 1 - ones)
        loss_d = (loss_real + loss_fake) / 2
        optimizer_d.zero_grad()
        self.manual_backward(loss_d)
        optimizer_d.step()

        loss_g = F.binary_cross_entropy_with_logits(self.discriminator(fake), ones)
        optimizer_g.zero_grad()
        self.manual_backward(loss_g)
        optimizer_g.step()
        self.log_dict({"d_loss": loss_d, "g_loss": loss_g})

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        of_generator = [*self.generator.parameters(), *self.to_image.parameters()]
        return [
            torch.optim.Adam(of_generator, lr=2e-3, betas=(0.5, 0.999)),
            torch.optim.Adam(self.discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999)),
        ]


class Classifier(L.LightningModule):
    """Base of the classifiers: subclasses make ``self.net`` or override ``forward``."""

    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__()
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class CNN(Classifier):
    """In-place ReLU, BatchNorm, pooling and dropout."""

    def __init__(self, inplace: bool = True, dropout: float = 0.25) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(96, 3),
        )


class Residual(Classifier):
    """Skip connections by ``+`` and by ``cat``, functional activations, a shared module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.join = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(x + self.block(x))
        return self.head(self.join(torch.cat([x, y], 1)).mean((2, 3)))


class Forked(nn.Module):
    """A leaf with weights of its own and two outputs."""

    def __init__(self, as_dict: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 96).reshape(6, 16))
        self.as_dict = as_dict

    def forward(self, x: Tensor) -> Any:
        y = x @ self.weight.T
        mask = y > 0
        return {"mask": mask, "up": y, "down": -y} if self.as_dict else (y, mask, (-y,))


class SeveralOutputs(Classifier):
    """Modules that give tuples and dicts; the step gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
        self.pair, self.named = Forked(False), Forked(True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        up, mask, (down,) = self.pair(h)
        named = self.named(h)
        return self.head(torch.cat([up * mask + down, named["up"] + named["down"] * named["mask"]], 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self(batch[0]), batch[1]), "batch_idx": torch.tensor(batch_idx)}


class Recurrent(Classifier):
    """Embedding and LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.lstm = nn.LSTM(6, 7, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(x))
        return self.head(states[:, -1])


class Attentive(Classifier):
    """A transformer block on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        h = self.norm(h + self.attention(h, h, h)[0])
        return self.head(h.mean(1))


class Checkpointed(Classifier):
    """Activation checkpointing: the block runs a second time during the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(256, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant))


class Stateful(Classifier):
    """Keeps counters, lists and tensors of its own, draws from every generator, and skips each third step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        self.register_buffer("average", torch.zeros(3))
        self.history: list[float] = []
        self.n_steps = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        import random

        import numpy as np

        self.n_steps += 1
        if self.n_steps % 3 == 0:
            return None
        noise = random.random() + np.random.rand()  # noqa: NPY002 - the global generators are the point
        logits = self(batch[0] + 0.01 * noise)
        self.average = 0.9 * self.average + 0.1 * logits.detach().mean(0)
        loss = F.cross_entropy(logits - self.average, batch[1]) * (1 + 0.01 * len(self.history))
        self.history.append(float(loss.detach()))
        self.log("train_loss", loss)
        return loss


@dataclass(frozen=True)
class Case:
    """A model with its data.

    Attributes:
        make: Makes the model.
        data: Makes the map-style data set.
        trainer: Further arguments of the Trainer.
    """

    make: Callable[[], L.LightningModule]
    data: Callable[[], Dataset[Any]] = images
    trainer: Mapping[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "vae": Case(VAE),
    "distribution_vae": Case(DistributionVAE),
    "gan": Case(GAN),
    "cnn": Case(CNN),
    "residual": Case(Residual),
    "several_outputs": Case(SeveralOutputs),
    "recurrent": Case(Recurrent, tokens),
    "attentive": Case(Attentive, tokens),
    "checkpointed": Case(lambda: Checkpointed(reentrant=False)),
    "checkpointed_reentrant": Case(lambda: Checkpointed(reentrant=True)),
    "stateful": Case(Stateful),
    "accumulating": Case(CNN, trainer={"accumulate_grad_batches": 2}),
    "clipping": Case(VAE, trainer={"gradient_clip_val": 0.5}),
}
