"""A GAN whose discriminator overpowers the generator.

The generator's learning rate lost two digits on its way from another configuration. The discriminator soon tells real
from generated digits without error; its loss falls to zero and what the generator learns from it fades. Uses manual
optimization with two optimizers, and the discriminator runs three times a step: on real digits, on detached generated
ones, and on generated ones for the generator's own step.
"""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dgm_tb.demo.digits import digits
from dgm_tb.demo.training import Training

N_LATENT = 32
DISCRIMINATOR_LR = 1e-3
GENERATOR_LR = 2e-6


class DigitsGAN(L.LightningModule):
    """A DCGAN for images of 12x12 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(N_LATENT, 64, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 32, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 1, 3),
            nn.Flatten(),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """One step of the discriminator, then one of the generator."""
        real, _ = batch
        optimizer_g, optimizer_d = self.optimizers()  # type: ignore[attr-defined]
        fake = self.generator(torch.randn(len(real), N_LATENT, 1, 1, device=self.device))

        loss_d = _loss(self.discriminator(real), 1.0) + _loss(self.discriminator(fake.detach()), 0.0)
        optimizer_d.zero_grad()
        self.manual_backward(loss_d)
        optimizer_d.step()

        loss_g = _loss(self.discriminator(fake), 1.0)
        optimizer_g.zero_grad()
        self.manual_backward(loss_g)
        optimizer_g.step()
        self.log_dict({"loss_d": loss_d, "loss_g": loss_g}, prog_bar=True)

    def configure_optimizers(self) -> list[Any]:
        """Two Adams, with learning rates that do not fit each other."""
        return [
            torch.optim.Adam(self.generator.parameters(), lr=GENERATOR_LR, betas=(0.5, 0.999)),
            torch.optim.Adam(self.discriminator.parameters(), lr=DISCRIMINATOR_LR, betas=(0.5, 0.999)),
        ]


def _loss(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def build() -> Training:
    """The model and two epochs of digits."""
    L.seed_everything(0, verbose=False)
    order = torch.Generator().manual_seed(0)
    batches = DataLoader(TensorDataset(*digits()), 64, shuffle=True, drop_last=True, generator=order)
    return Training(DigitsGAN(), batches, max_epochs=2)
