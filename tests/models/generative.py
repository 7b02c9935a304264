"""Generative models: the kinds that the paper and its readers train."""

import math
from collections.abc import Callable

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm


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


class VQVAE(L.LightningModule):
    """A vector-quantized autoencoder: nearest codes by argmin, gradients passed straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
        self.codes = nn.Embedding(16, 6)
        nn.init.uniform_(self.codes.weight, -0.5, 0.5)
        self.decoder = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        z = self.encoder(batch[0])
        flat = z.permute(0, 2, 3, 1).reshape(-1, 6)
        distances = (flat**2).sum(1, keepdim=True) - 2 * flat @ self.codes.weight.T + (self.codes.weight**2).sum(1)
        q = self.codes(distances.argmin(1)).reshape(len(z), *z.shape[2:], 6).permute(0, 3, 1, 2)
        commitment = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        loss = F.mse_loss(self.decoder(z + (q - z).detach()), batch[0]) + commitment
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Flow(L.LightningModule):
    """Affine coupling layers (RealNVP) with their log-determinants."""

    class Coupling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 64))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            kept, changed = x.chunk(2, 1)
            scale, shift = self.net(kept).split(32, 1)
            scale = torch.tanh(scale)
            return torch.cat([changed * torch.exp(scale) + shift, kept], 1), scale.sum(1)

    def __init__(self) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(self.Coupling() for _ in range(3))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        z = batch[0].flatten(1) - 0.5
        log_determinant = torch.zeros(len(z), device=z.device)
        for coupling in self.couplings:
            z, change = coupling(z)
            log_determinant = log_determinant + change
        log_density = -0.5 * (z**2 + math.log(2 * math.pi)).sum(1)
        loss = -(log_density + log_determinant).mean() / 64
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class UNet(nn.Module):
    """Two resolutions with skip connections by ``cat``, told the time by sines and cosines."""

    class Block(nn.Module):
        def __init__(self, channels: int, out: int) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(2, out)
            self.time = nn.Linear(8, out)

        def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
            return F.silu(self.norm(self.conv(x)) + self.time(embedding)[:, :, None, None])

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(8, 8), nn.SiLU())
        self.enter, self.down = self.Block(1, 4), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.middle, self.up = self.Block(6, 6), nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.leave, self.out = self.Block(8, 4), nn.Conv2d(5, 1, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * torch.exp(-torch.arange(4, device=x.device))
        embedding = self.embed(torch.cat([angles.sin(), angles.cos()], 1))
        high = self.enter(x, embedding)
        low = self.middle(self.down(high), embedding)
        joined = self.leave(torch.cat([self.up(low), high], 1), embedding)
        return self.out(torch.cat([joined, x], 1))


class Diffusion(L.LightningModule):
    """A denoising diffusion step: random times, random noise, which the U-Net predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.net = UNet()
        self.register_buffer("kept", torch.cumprod(1 - torch.linspace(1e-3, 0.1, 50), 0))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0] * 2 - 1
        time = torch.randint(0, 50, (len(x),), device=x.device)
        noise = torch.randn_like(x)
        kept = self.kept[time][:, None, None, None]
        noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
        loss = F.mse_loss(self.net(noisy, time.float()), noise)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


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


class NormalizedGAN(GAN):
    """The same with weight normalisation in the generator and spectral normalisation in the discriminator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator[0], self.generator[3] = weight_norm(self.generator[0]), weight_norm(self.generator[3], dim=1)
        self.discriminator[0] = spectral_norm(self.discriminator[0])
        self.discriminator[3] = spectral_norm(self.discriminator[3])


class PenalizedGAN(GAN):
    """A Wasserstein GAN whose critic's loss holds the norm of the critic's own gradient: derived twice."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer_g, optimizer_d = self.optimizers()
        real = batch[0] * 2 - 1
        fake = self.to_image(self.generator(torch.randn(len(real), 4, device=self.device)))

        share = torch.rand(len(real), 1, 1, 1, device=self.device)
        between = (share * real + (1 - share) * fake.detach()).requires_grad_()
        (gradient,) = torch.autograd.grad(self.discriminator(between).sum(), between, create_graph=True)
        penalty = ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()
        loss_d = self.discriminator(fake.detach()).mean() - self.discriminator(real).mean() + 10 * penalty
        optimizer_d.zero_grad()
        self.manual_backward(loss_d)
        optimizer_d.step()

        loss_g = -self.discriminator(fake).mean()
        optimizer_g.zero_grad()
        self.manual_backward(loss_g)
        optimizer_g.step()
        self.log_dict({"d_loss": loss_d, "g_loss": loss_g, "penalty": penalty})


class Alternating(L.LightningModule):
    """An autoencoder and a critic of its codes: three optimizers, of which two step in every second and third batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 4))
        self.decoder = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 64))
        self.critic = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.1), nn.Linear(8, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        encoder, decoder, critic = self.optimizers()
        codes = self.encoder(batch[0])
        reconstruction = F.mse_loss(self.decoder(codes), batch[0].flatten(1))
        fooling = F.softplus(-self.critic(codes)).mean()
        encoder.zero_grad()
        decoder.zero_grad()
        self.manual_backward(reconstruction + 0.1 * fooling)
        encoder.step()
        if batch_idx % 2 == 0:
            decoder.step()
        if batch_idx % 3 == 0:
            drawn = torch.randn_like(codes)
            judged = F.softplus(self.critic(codes.detach())).mean() + F.softplus(-self.critic(drawn)).mean()
            critic.zero_grad()
            self.manual_backward(judged)
            critic.step()
            self.log("critic", judged)
        self.log_dict({"reconstruction": reconstruction, "fooling": fooling})

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (self.encoder, self.decoder, self.critic)]
