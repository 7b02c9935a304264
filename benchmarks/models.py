"""The models that capture is measured on, as Lightning modules; each has ``batch()``, one batch of random examples."""
# ruff: noqa: D102  (Lightning's hooks)

import itertools
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def generator(width: int = 64, latent: int = 100) -> nn.Sequential:
    """DCGAN's generator of 64x64 images."""
    layers: list[nn.Module] = []
    sizes = [latent, width * 8, width * 4, width * 2, width]
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        stride, padding = (1, 0) if i == 0 else (2, 1)
        layers.append(nn.ConvTranspose2d(n_in, n_out, 4, stride, padding, bias=False))
        layers += [nn.BatchNorm2d(n_out), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())


def discriminator(width: int = 64) -> nn.Sequential:
    """DCGAN's discriminator of 64x64 images."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for factor in (1, 2, 4):
        layers += [nn.Conv2d(width * factor, width * factor * 2, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(width * factor * 2), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(width * 8, 1, 4, bias=False))


class DCGAN(L.LightningModule):
    """Discriminator and generator step by manual optimization; images of 64x64, 64 to a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = generator(), discriminator()

    def batch(self) -> Tensor:
        return torch.rand(64, 3, 64, 64) * 2 - 1

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        of_generator, of_discriminator = self.optimizers()  # type: ignore[attr-defined]
        fake = self.generator(torch.randn(len(batch), 100, 1, 1))
        loss_d = self._loss(batch, 1.0) + self._loss(fake.detach(), 0.0)
        of_discriminator.zero_grad()
        self.manual_backward(loss_d)
        of_discriminator.step()
        loss_g = self._loss(fake, 1.0)
        of_generator.zero_grad()
        self.manual_backward(loss_g)
        of_generator.step()
        self.log_dict({"loss_d": loss_d, "loss_g": loss_g})

    def configure_optimizers(self) -> list[Any]:
        return [torch.optim.Adam(n.parameters(), 2e-4, (0.5, 0.999)) for n in (self.generator, self.discriminator)]

    def _loss(self, images: Tensor, label: float) -> Tensor:
        logits = self.discriminator(images)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


class BasicBlock(nn.Module):
    """Two convolutions and a skip connection."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu2 = nn.ReLU(inplace=True)
        shortcut = [nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)]
        self.shortcut = nn.Sequential(*(shortcut if stride != 1 or n_in != n_out else []))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        output: Tensor = self.relu2(h + self.shortcut(x))
        return output


class ResNet18(L.LightningModule):
    """ResNet-18 for images of 32x32, 64 to a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        sizes = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
        self.blocks = nn.Sequential(*[BasicBlock(*size) for size in [*sizes, (512, 512, 1)]])
        self.head = nn.Linear(512, 10)

    def batch(self) -> list[Tensor]:
        return [torch.rand(64, 3, 32, 32), torch.randint(10, (64,))]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.head(self.blocks(self.stem(images)).mean((2, 3))), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


class MLPVAE(L.LightningModule):
    """The classic 784-400-20 VAE, 128 examples to a batch: steps so short that every hook shows."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(400, 20), nn.Linear(400, 20)
        self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid())

    def batch(self) -> Tensor:
        return torch.rand(128, 784)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        h = self.encoder(batch)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        reconstruction = F.binary_cross_entropy(self.decoder(z), batch, reduction="sum")
        loss = (reconstruction - 0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()) / len(batch)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


MODELS: dict[str, type[L.LightningModule]] = {"DCGAN": DCGAN, "ResNet-18": ResNet18, "MLP-VAE": MLPVAE}
