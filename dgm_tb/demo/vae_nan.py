"""The paper's case: one abnormal record, a variance that is the exponential of a layer's output, and a loss of NaN.

The data set has 8985 digits. One of them, ``ABNORMAL_INDEX``, comes from a 12-bit scanner and nobody scaled it: its
pixels run from 0 to 4095 instead of 0 to 1. When its batch comes, after almost 500 healthy steps, the first sampling
layer's log-variance is in the thousands for it, and its exponential is infinite in float32 (that happens above 88.7).
The loss is not finite, its gradient neither, and Adam writes NaN into every weight.
"""

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dgm_tb.demo.digits import digits
from dgm_tb.demo.training import Training

ABNORMAL_INDEX = 349
ABNORMAL_SCALE = 4095.0
BATCH_SIZE = 16
MODEL_SEED = 0
ORDER_SEED = 0


class GaussianLayer(nn.Module):
    """Samples from a normal distribution whose mean and log-variance are linear in the features."""

    def __init__(self, n_features: int, n_latent: int) -> None:
        super().__init__()
        self.mean = nn.Linear(n_features, n_latent)
        self.log_variance = nn.Linear(n_features, n_latent)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The sample ``[examples, latent]`` and its divergence from the standard normal ``[examples]``."""
        mean, log_variance = self.mean(features), self.log_variance(features)
        variance = torch.exp(log_variance)
        sample = mean + torch.sqrt(variance) * torch.randn_like(mean)
        divergence = 0.5 * (mean**2 + variance - log_variance - 1).sum(dim=1)
        return sample, divergence


class TwoLevelVAE(L.LightningModule):
    """Image -> encoder -> z1 ~ gaussian1 -> between -> z2 ~ gaussian2 -> decoder -> image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.gaussian1 = GaussianLayer(32 * 3 * 3, 32)
        self.between = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
        self.gaussian2 = GaussianLayer(64, 16)
        self.decoder = nn.Sequential(
            nn.Linear(16, 32 * 3 * 3),
            nn.ReLU(),
            nn.Unflatten(1, (32, 3, 3)),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Negative evidence lower bound, with a Gaussian likelihood of standard deviation 0.1."""
        images, _ = batch
        z1, divergence1 = self.gaussian1(self.encoder(images))
        z2, divergence2 = self.gaussian2(self.between(z1))
        reconstruction = ((self.decoder(z2) - images) ** 2).sum(dim=(1, 2, 3)).mean() / (2 * 0.1**2)
        divergence = (divergence1 + divergence2).mean()
        loss: Tensor = reconstruction + divergence
        self.log_dict({"train_loss": loss, "reconstruction": reconstruction, "divergence": divergence})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam at its usual learning rate."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def build() -> Training:
    """The model, and one epoch of digits of which one is abnormal."""
    L.seed_everything(MODEL_SEED, verbose=False)
    images, labels = digits()
    images[ABNORMAL_INDEX] *= ABNORMAL_SCALE
    order = torch.Generator().manual_seed(ORDER_SEED)
    dataset = TensorDataset(images, labels)
    batches = DataLoader(dataset, BATCH_SIZE, shuffle=True, drop_last=True, generator=order)
    return Training(TwoLevelVAE(), batches, max_epochs=1)
