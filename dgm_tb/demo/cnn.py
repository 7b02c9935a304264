"""A residual classifier of digits with a dead block.

The bias of one block's convolution is still initialised for the sigmoid gate that stood there before the activation
became a ReLU. At -6 no input reaches the ReLU's positive side: the block outputs zeros, gets no gradient and never
recovers. The skip connection carries the digits around it, so that loss and accuracy look fine.
"""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from dgm_tb.demo.digits import digits
from dgm_tb.demo.training import Training

DEAD_BLOCK = 1
GATE_BIAS = -6.0


class ResidualBlock(nn.Module):
    """``x + relu(conv(x))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape."""
        output: Tensor = features + self.activation(self.conv(features))
        return output


class ResidualClassifier(L.LightningModule):
    """Stem, four residual blocks, mean over positions, linear."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.ReLU())
        self.blocks = nn.Sequential(*[ResidualBlock(channels) for _ in range(4)])
        self.head = nn.Linear(channels, 10)
        bias = self.blocks.get_submodule(f"{DEAD_BLOCK}.conv").get_parameter("bias")
        nn.init.constant_(bias, GATE_BIAS)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[examples, 10]``."""
        logits: Tensor = self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy on digits that were held out."""
        images, labels = batch
        self.log("val_accuracy", (self(images).argmax(dim=1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with a learning rate that suits a small model."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def build() -> Training:
    """The model, sixteen epochs of 1397 digits, and 400 digits to validate on."""
    L.seed_everything(0, verbose=False)
    order = torch.Generator().manual_seed(0)
    dataset = TensorDataset(*digits(is_augmented=False))
    train, validation = random_split(dataset, [len(dataset) - 400, 400], generator=order)
    batches = DataLoader(train, 32, shuffle=True, drop_last=True, generator=order)
    return Training(ResidualClassifier(), batches, max_epochs=16, validation=DataLoader(validation, 200))
