"""Data of the zoo: handwritten digits, photographs, made sequences, points."""

import functools
import os

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)


def digits(n: int, *, signed: bool = False) -> tuple[Tensor, Tensor]:
    """Images ``[n, 1, 8, 8]`` in [0, 1], or [-1, 1], slightly noisy copies beyond the first 1797; and labels."""
    images, labels = _digits()
    generator = torch.Generator().manual_seed(n)
    order = torch.arange(n) % len(images)
    noise = 0.02 * torch.randn(n, 1, 8, 8, generator=generator)
    images = (images[order] + noise).clamp(0, 1)
    return images * 2 - 1 if signed else images, labels[order]


def vectors(n: int, size: int = 16, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Standard normal vectors ``[n, size]`` and the class of a fixed linear rule."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, size, generator=generator)
    return x, (x @ torch.randn(size, classes, generator=generator)).argmax(1)


def tokens(n: int, length: int = 12, vocabulary: int = 20) -> tuple[Tensor, Tensor]:
    """Sequences that count upwards from a random start, and the same shifted by one ``[n, length]``."""
    generator = torch.Generator().manual_seed(5)
    start = torch.randint(0, vocabulary, (n, 1), generator=generator)
    stride = torch.randint(1, 3, (n, 1), generator=generator)
    rows = (start + stride * torch.arange(length + 1)) % vocabulary
    return rows[:, :-1], rows[:, 1:]


def waves(n: int, length: int = 24) -> tuple[Tensor, Tensor]:
    """Noisy sines ``[n, length, 1]`` and their next values."""
    generator = torch.Generator().manual_seed(7)
    phase = 6.28 * torch.rand(n, 1, generator=generator)
    speed = 0.2 + 0.3 * torch.rand(n, 1, generator=generator)
    rows = torch.sin(phase + speed * torch.arange(length + 1))[..., None]
    rows = rows + 0.05 * torch.randn(rows.shape, generator=generator)
    return rows[:, :-1], rows[:, 1:]


def moons(n: int) -> Tensor:
    """Points ``[n, 2]`` on two half circles."""
    generator = torch.Generator().manual_seed(9)
    angle = 3.1416 * torch.rand(n, generator=generator)
    side = torch.randint(0, 2, (n,), generator=generator)
    x = torch.stack([torch.cos(angle) + side - 0.5, torch.sin(angle) * (1 - 2 * side) + 0.4 * side - 0.2], 1)
    return x + 0.07 * torch.randn(n, 2, generator=generator)


@functools.cache
def _photographs() -> Tensor:
    """CIFAR-10 where it is at hand (``DGM_TB_CIFAR`` names it), else digits in three colours ``[n, 3, 16, 16]``."""
    place = os.environ.get("DGM_TB_CIFAR", "")
    if os.path.exists(place):
        found = torch.from_numpy(np.load(place)["x_train"]).permute(0, 3, 1, 2).float() / 255
        return F.avg_pool2d(found, 2)
    images, _ = _digits()
    large = F.interpolate(images, scale_factor=2, mode="bilinear")
    generator = torch.Generator().manual_seed(11)
    return large * torch.rand(len(large), 3, 1, 1, generator=generator)


def photographs(n: int, *, signed: bool = False) -> tuple[Tensor, Tensor]:
    """Images ``[n, 3, 16, 16]`` in [0, 1], or [-1, 1], and a label of each that can be learnt from its colours."""
    images = _photographs()
    images = images[torch.arange(n) % len(images)]
    tint = images.mean((2, 3))
    labels = tint.argmax(1) * 2 + (tint.mean(1) > tint.mean()).long()
    return (images * 2 - 1 if signed else images), labels
