"""Record a plain PyTorch loop, without Lightning: a GAN with two optimizers, one line per step.

    python examples/plain_pytorch.py
    tensorboard --logdir runs

Several models go in by name. What runs under ``torch.no_grad`` between two steps is no training and is left out.
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

import dgm_tb

FOLDER = Path("runs/plain")
EPOCHS = 6


def main() -> None:
    torch.manual_seed(0)
    images = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)
    loader = DataLoader(images[:1600], batch_size=32, shuffle=True)
    generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh())
    discriminator = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    optimizer_g = torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), 1e-3, betas=(0.5, 0.999))

    with dgm_tb.record({"generator": generator, "discriminator": discriminator}, FOLDER) as recorder:
        for _ in range(EPOCHS):
            for real in loader:
                fake = generator(torch.randn(len(real), 8))
                d_loss = loss_of(discriminator(real), 1.0) + loss_of(discriminator(fake.detach()), 0.0)
                update(d_loss, optimizer_d)
                g_loss = loss_of(discriminator(fake), 1.0)
                update(g_loss, optimizer_g)
                recorder.step({"d_loss": d_loss, "g_loss": g_loss})
            with torch.no_grad():
                score = discriminator(generator(torch.randn(256, 8))).sigmoid().mean()
            print(f"step {recorder.n_steps}: {score:.0%} of the generated images pass")
    print(f"recorded {recorder.n_steps} steps in {FOLDER}, {len(recorder.findings)} findings")


def loss_of(logits: Tensor, label: float) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def update(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


if __name__ == "__main__":
    main()
