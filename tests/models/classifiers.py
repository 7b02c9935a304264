"""Classifiers of images: what modules may do with their inputs, outputs and modes."""

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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


class ResNet(Classifier):
    """Two residual blocks with BatchNorm that add in place, the second one with a convolution in its shortcut."""

    class Block(nn.Module):
        def __init__(self, channels: int, out: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
            self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
            self.relu = nn.ReLU(inplace=True)
            is_same = channels == out and stride == 1
            self.shortcut = nn.Sequential() if is_same else nn.Conv2d(channels, out, 1, stride, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            y += self.shortcut(x)
            return self.relu(y)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(self.Block(4, 4, 1), self.Block(4, 6, 2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


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


class DataclassOutputs(Classifier):
    """Modules that give dataclasses."""

    @dataclass
    class Features:
        low: Tensor
        high: Tensor
        name: str = "features"

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> "DataclassOutputs.Features":
            low, high = (x * self.scale).chunk(2, 1)
            return DataclassOutputs.Features(low, high)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh())
        self.split = self.Split()
        self.low, self.high = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.split(self.first(x))
        return self.low(features.low) + self.high(features.high)


class FrozenBatchNorm(CNN):
    """BatchNorm in evaluation mode while the rest is trained."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class KeywordsOnly(Classifier):
    """Modules called with keyword arguments."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(96, 3)

        def forward(self, *, features: Tensor, scale: float) -> Tensor:
            return self.linear(input=features * scale)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.head = self.Head()

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(input=self.relu(input=self.conv(input=x)))
        return self.head(features=h.flatten(1), scale=0.5)


class Blocks(Classifier):
    """Many identical blocks."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 12), nn.Linear(12, width)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(F.gelu(self.up(self.norm(x))))

    def __init__(self, n: int = 12) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(self.Block(8) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h)
        return self.head(h)


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


class Compiled(CNN):
    """A network compiled by ``torch.compile``, as a module of its own or in place; no C++ compiler is needed."""

    def __init__(self, in_place: bool, backend: str = "aot_eager") -> None:
        super().__init__(inplace=False, dropout=0.0)
        if in_place:
            self.net.compile(backend=backend)
        else:
            self.net = torch.compile(self.net, backend=backend)
