"""Small generative networks that tests of relevance share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOAT = torch.float64


def images(n: int = 4, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=FLOAT)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double()


class ConvolutionalVAE(nn.Module):
    """Functional sampling, a dense layer reshaped into feature maps, a residual sum, a skip joined to it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.conv3 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 6, 3, stride=2)
        self.dense, self.norm2 = nn.Linear(6, 5), nn.LayerNorm(5)
        self.mu, self.lv = nn.Linear(5, 3), nn.Linear(5, 3)
        self.decode, self.deconv = nn.Linear(3, 32), nn.ConvTranspose2d(2, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)), inplace=True)
        h = h + F.relu_(self.conv2(h))
        h = torch.cat([h, self.conv2(h)], 1)
        h = F.avg_pool2d(F.max_pool2d(self.conv3(h), 2), 1)
        h = self.norm2(self.dense(h.flatten(1)))
        mu, lv = self.mu(h), self.lv(h)
        z = mu + torch.exp(lv / 2) * torch.randn_like(mu)
        return torch.sigmoid(self.deconv(F.leaky_relu(self.decode(z), 0.2).view(-1, 2, 4, 4)))


def generator() -> nn.Module:
    blocks = [nn.ConvTranspose2d(6, 8, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(True)]
    return seeded(lambda: nn.Sequential(*blocks, nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh()))


def discriminator() -> nn.Module:
    blocks = [nn.Conv2d(3, 4, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True), nn.Conv2d(4, 6, 4, 2, 1, bias=False)]
    return seeded(lambda: nn.Sequential(*blocks, nn.BatchNorm2d(6), nn.LeakyReLU(0.2, True), nn.Conv2d(6, 1, 2)))


class Residual(nn.Module):
    """A residual block that halves the resolution, with normalisation and a projected shortcut; dropout; a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.conv1, self.norm1 = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.shortcut = nn.Sequential(nn.Conv2d(4, 6, 1, 2, bias=False), nn.BatchNorm2d(6))
        self.conv3, self.dropout, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Dropout(0.3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        h += self.shortcut(x)
        h = F.relu(h)
        h = F.relu(h + self.conv3(h))
        return self.head(self.dropout(F.adaptive_avg_pool2d(h, 1).flatten(1)))


class UNet(nn.Module):
    """Two resolutions joined by ``cat``, GroupNorm, a gate, interpolation; told a time by sines."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.enter, self.down = nn.Linear(4, 4), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.norm, self.gate, self.up = nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 3, padding=1)
        self.leave = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(len(x), dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype)
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        high = F.silu(self.enter(x) + time[:, :, None, None])
        low = F.silu(self.norm(self.down(high)))
        low = low * torch.sigmoid(self.gate(low))
        low = self.up(F.interpolate(low, scale_factor=2, mode="bilinear"))
        return self.leave(torch.cat([low, high], 1))


class Transformer(nn.Module):
    """Embedded tokens with learned positions, two of torch's encoder layers, one before its norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(7, 6), nn.Parameter(torch.randn(5, 6))
        layers = [
            nn.TransformerEncoderLayer(6, 2, 8, 0.1, batch_first=True, norm_first=first) for first in (False, True)
        ]
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens) + self.positions
        for layer in self.layers:
            h = layer(h)
        return self.head(h[:, 0])


class Recurrent(nn.Module):
    """An LSTM over embedded tokens, whose last state a cell goes on with."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(7, 6), nn.LSTM(6, 4, batch_first=True, bidirectional=True)
        self.cell, self.head = nn.GRUCell(8, 5), nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens))
        h = self.cell(states[:, 0])
        h = self.cell(states[:, -1], h)
        return self.head(h)


def tokens() -> Tensor:
    return torch.randint(0, 7, (4, 5), generator=torch.Generator().manual_seed(3))
