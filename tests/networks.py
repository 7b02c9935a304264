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
