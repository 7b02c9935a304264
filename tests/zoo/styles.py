"""More healthy trainings, of photographs and in the styles of published models: nothing may be found in them."""

import copy
import math

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adversarial import GAN, Z, hinge, logistic
from .cases import Built, Task, adam, healthy, loader, sgd
from .classifiers import mlp
from .data import digits, photographs, tokens, vectors, waves


def down(i: int, o: int, norm: type[nn.Module] | None = None, act: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    """A convolution that halves images."""
    return [nn.Conv2d(i, o, 4, 2, 1), *([norm(o)] if norm else []), act()]


def up(i: int, o: int, norm: type[nn.Module] | None = None, act: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    """A transposed convolution that doubles them."""
    return [nn.ConvTranspose2d(i, o, 4, 2, 1), *([norm(o)] if norm else []), act()]


class ConvVAE(L.LightningModule):
    """A convolutional VAE.

    Args:
        reduce: Of the errors: ``sum`` over pixels, or ``mean`` (with the KL term weighed down likewise).
        lr: Of Adam.
    """

    def __init__(self, reduce: str = "sum", lr: float = 1e-3, z: int = 16) -> None:
        super().__init__()
        self.reduce, self.lr = reduce, lr
        self.encoder = nn.Sequential(*down(3, 16), *down(16, 32), nn.Flatten())
        self.mu, self.logvar = nn.Linear(512, z), nn.Linear(512, z)
        self.decoder = nn.Sequential(
            nn.Linear(z, 512), nn.ReLU(), nn.Unflatten(1, (32, 4, 4)), *up(32, 16), *up(16, 3, act=nn.Sigmoid)
        )

    def training_step(self, batch, batch_idx):
        h = self.encoder(batch[0])
        posterior = torch.distributions.Normal(self.mu(h), torch.exp(0.5 * self.logvar(h)))
        out = self.decoder(posterior.rsample())
        prior = torch.distributions.Normal(0.0, 1.0)
        kl = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
        if self.reduce == "sum":
            reconstruction = F.mse_loss(out, batch[0], reduction="sum") / len(out) / 0.04
            self.log_dict({"reconstruction": reconstruction, "kl": kl})
            return reconstruction + kl
        reconstruction = F.binary_cross_entropy(out, batch[0])
        self.log_dict({"reconstruction": reconstruction, "kl": kl})
        return reconstruction + 1e-4 * kl

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


@healthy()
def ok_conv_vae_sum() -> Built:
    L.seed_everything(201)
    return ConvVAE(), loader(*photographs(4800), batch_size=32), {"max_epochs": 1}


@healthy(check=lambda p: p.late() < p.early() - 0.02)
def ok_conv_vae_mean() -> Built:
    L.seed_everything(202)
    return ConvVAE("mean", 3e-3), loader(*photographs(4800), batch_size=32), {"max_epochs": 1}


def dcgan(norm: bool = True) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator of a small DCGAN, initialised as usual."""
    batch_norm = nn.BatchNorm2d if norm else None
    generator = nn.Sequential(
        nn.Linear(Z, 512),
        nn.Unflatten(1, (32, 4, 4)),
        *([nn.BatchNorm2d(32)] if norm else []),
        nn.ReLU(),
        *up(32, 16, batch_norm),
        *up(16, 3, act=nn.Tanh),
    )
    discriminator = nn.Sequential(
        *down(3, 16, act=lambda: nn.LeakyReLU(0.2)),
        *down(16, 32, batch_norm, act=lambda: nn.LeakyReLU(0.2)),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(512, 1),
    )
    for module in (*generator.modules(), *discriminator.modules()):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0, 0.02)
    return generator, discriminator


def plays(probe) -> bool:
    """Nobody has won, and images differ."""
    return 0.05 < abs(probe.late("d_loss")) < 5 and probe.outputs["generator"][-1].diversity > 0.05


@healthy(check=plays)
def ok_dcgan() -> Built:
    L.seed_everything(203)
    model = GAN(*dcgan(), (4e-4, 1e-4), logistic)
    return model, loader(*photographs(4800, signed=True), batch_size=32), {"max_epochs": 1}


@healthy(check=plays, held_out=True)
def ok_gan_spectral_norm() -> Built:
    L.seed_everything(204)
    generator, discriminator = dcgan(norm=False)
    for number, module in enumerate(discriminator):
        if hasattr(module, "weight"):
            discriminator[number] = nn.utils.parametrizations.spectral_norm(module)
    model = GAN(generator, discriminator, (6e-4, 1e-4), hinge, lambda fake: -fake.mean())
    return model, loader(*photographs(3200, signed=True), batch_size=32), {"max_epochs": 1}


@healthy(check=lambda p: p.outputs["generator"][-1].diversity > 0.05)
def ok_wgan_gradient_penalty() -> Built:
    L.seed_everything(205)

    class Penalized(GAN):
        """Its critic's loss has a penalty on gradients, and goes far below zero."""

        def training_step(self, batch, batch_idx):
            real = batch[0]
            g_opt, d_opt = self.optimizers()
            fake = self.generator(torch.randn(len(real), Z)).detach()
            mix = torch.rand(len(real), 1, 1, 1)
            between = (mix * real + (1 - mix) * fake).requires_grad_(True)
            slope = torch.autograd.grad(self.discriminator(between).sum(), between, create_graph=True)[0]
            penalty = (slope.flatten(1).norm(dim=1) - 1).pow(2).mean()
            d_loss = self.discriminator(fake).mean() - self.discriminator(real).mean() + 10 * penalty
            d_opt.zero_grad()
            self.manual_backward(d_loss)
            d_opt.step()
            if batch_idx % 3 == 0:
                g_loss = -self.discriminator(self.generator(torch.randn(len(real), Z))).mean()
                g_opt.zero_grad()
                self.manual_backward(g_loss)
                g_opt.step()
                self.log("g_loss", g_loss)
            self.log("d_loss", d_loss)

    model = Penalized(*dcgan(norm=False), (2e-4, 2e-4))
    return model, loader(*photographs(4800, signed=True), batch_size=32), {"max_epochs": 1}


class Residual(nn.Module):
    """A residual block whose last normalisation begins with a gain of zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


@healthy()
def ok_resnet_sgd() -> Built:
    L.seed_everything(206)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        *[Residual(16) for _ in range(3)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 6),
    )
    optimizer = lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=5e-4)  # noqa: E731
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return Task(net, loss, optimizer), loader(*photographs(3200), batch_size=32), {"max_epochs": 1}


class UNet(L.LightningModule):
    """A small denoising U-Net with a zero-initialised output, conditioned on the time."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.inner, self.down = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 4, 2, 1)
        self.middle, self.norm = nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(4, 32)
        self.up, self.outer = nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.Conv2d(32, 3, 3, padding=1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.exp(-torch.arange(8) / 2.0)
        when = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        first = F.silu(self.inner(x))
        h = F.silu(self.down(first)) + when[:, :, None, None]
        h = h + F.silu(self.norm(self.middle(h)))
        return self.outer(torch.cat([F.silu(self.up(h)), first], 1))

    def training_step(self, batch, batch_idx):
        x = batch[0]
        t = torch.randint(0, 100, (len(x),)).float()
        a = torch.cos(t / 100 * math.pi / 2).pow(2).clamp(1e-3, 0.999)[:, None, None, None]
        noise = torch.randn_like(x)
        loss = F.mse_loss(self(a.sqrt() * x + (1 - a).sqrt() * noise, t), noise)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 2e-3)


@healthy()
def ok_unet_diffusion() -> Built:
    L.seed_everything(207)
    return UNet(), loader(*photographs(3200, signed=True), batch_size=32), {"max_epochs": 1}


@healthy(held_out=True)
def ok_vision_transformer() -> Built:
    L.seed_everything(208)

    class Patches(nn.Module):
        """A vision transformer of PyTorch's own layers."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 32, 4, 4)
            self.place = nn.Parameter(0.02 * torch.randn(1, 17, 32))
            self.token = nn.Parameter(torch.zeros(1, 1, 32))
            layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, "gelu", batch_first=True, norm_first=True)
            self.body, self.head = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(32, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x).flatten(2).transpose(1, 2)
            h = torch.cat([self.token.expand(len(x), 1, 32), h], 1) + self.place
            return self.head(self.body(h)[:, 0])

    return Task(Patches(), F.cross_entropy), loader(*photographs(3200), batch_size=32), {"max_epochs": 1}


@healthy(held_out=True)
def ok_vector_quantized() -> Built:
    L.seed_everything(209)

    class VQVAE(L.LightningModule):
        """Codes are looked up; gradients go straight through."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(*down(3, 16), nn.Conv2d(16, 8, 3, padding=1))
            self.codes = nn.Embedding(32, 8)
            nn.init.uniform_(self.codes.weight, -1 / 32, 1 / 32)
            self.decoder = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), *up(16, 3, act=nn.Sigmoid))

        def training_step(self, batch, batch_idx):
            h = self.encoder(batch[0]).movedim(1, -1)
            nearest = torch.cdist(h.flatten(0, 2), self.codes.weight).argmin(1).view(h.shape[:3])
            q = self.codes(nearest)
            commitment = F.mse_loss(q, h.detach()) + 0.25 * F.mse_loss(h, q.detach())
            out = self.decoder((h + (q - h).detach()).movedim(-1, 1))
            return F.mse_loss(out, batch[0]) + commitment

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 2e-3)

    return VQVAE(), loader(*photographs(3200), batch_size=32), {"max_epochs": 1}


@healthy(check=lambda p: p.late() < p.early() - 0.1)
def ok_simsiam() -> Built:
    L.seed_everything(210)

    class SimSiam(L.LightningModule):
        """Two views predict each other; one side is detached, and the loss is below zero."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))
            self.predictor = mlp(32, 16, 32)

        def training_step(self, batch, batch_idx):
            a, b = (self.net(batch[0] + 0.2 * torch.randn_like(batch[0])) for _ in range(2))
            p, q = self.predictor(a), self.predictor(b)
            near = F.cosine_similarity(p, b.detach()).mean() + F.cosine_similarity(q, a.detach()).mean()
            return -0.5 * near

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1, 0.9)

    return SimSiam(), loader(*digits(3200), batch_size=32), {"max_epochs": 1}


@healthy(held_out=True)
def ok_momentum_target() -> Built:
    L.seed_everything(211)

    class Bootstrap(L.LightningModule):
        """A target network that follows, copied as it is: its parameters still require gradients."""

        def __init__(self) -> None:
            super().__init__()
            self.online = mlp(64, 48, 16, flat=True)
            self.predictor = mlp(16, 32, 16)
            self.target = copy.deepcopy(self.online)

        def training_step(self, batch, batch_idx):
            x = batch[0]
            with torch.no_grad():
                wanted = self.target(x + 0.1 * torch.randn_like(x))
                for a, p in zip(self.target.parameters(), self.online.parameters(), strict=True):
                    a.lerp_(p, 0.05)
            got = self.predictor(self.online(x + 0.1 * torch.randn_like(x)))
            return F.mse_loss(F.normalize(got), F.normalize(wanted))

        def configure_optimizers(self):
            return torch.optim.Adam([*self.online.parameters(), *self.predictor.parameters()], 1e-3)

    return Bootstrap(), loader(*digits(2400)), {"max_epochs": 1}


@healthy(check=lambda p: max(p.losses) > 3 * min(p.losses))
def ok_deep_q_learning() -> Built:
    L.seed_everything(212)

    class Q(L.LightningModule):
        """Temporal differences against a target that is copied every forty steps: the loss leaps and is noisy."""

        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(16, 48, 48, 4)
            self.target = copy.deepcopy(self.net).requires_grad_(False)

        def training_step(self, batch, batch_idx):
            if batch_idx % 40 == 0:
                self.target.load_state_dict(self.net.state_dict())
            x, best = batch
            action = torch.randint(0, 4, (len(x),))
            reward = (action == best).float() + (torch.rand(len(x)) < 0.02).float() * 5
            wanted = reward + 0.9 * self.target(x.roll(1, 0)).amax(1)
            got = self.net(x).gather(1, action[:, None])[:, 0]
            loss = F.smooth_l1_loss(got, wanted)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    return Q(), loader(*vectors(3200)), {"max_epochs": 1}


@healthy()
def ok_low_rank_adaptation() -> Built:
    L.seed_everything(213)

    class Adapted(nn.Module):
        """A frozen layer and a low-rank change of it that begins at zero."""

        def __init__(self, i: int, o: int) -> None:
            super().__init__()
            self.base = nn.Linear(i, o).requires_grad_(False)
            self.down, self.up = nn.Linear(i, 4, bias=False), nn.Linear(4, o, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x))

    net = nn.Sequential(nn.Flatten(), Adapted(64, 64), nn.ReLU(), Adapted(64, 10))
    return Task(net, F.cross_entropy, adam(5e-3)), loader(*digits(2400)), {"max_epochs": 1}


@healthy(held_out=True)
def ok_sequence_to_sequence() -> Built:
    L.seed_everything(214)

    class Translator(L.LightningModule):
        """A GRU that reads, one that writes, with teacher forcing."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 24)
            self.reader, self.writer = nn.GRU(24, 32, batch_first=True), nn.GRU(24, 32, batch_first=True)
            self.head = nn.Linear(32, 20)

        def training_step(self, batch, batch_idx):
            x, y = batch
            _, state = self.reader(self.embed(x))
            out, _ = self.writer(self.embed(x.flip(1)), state)
            return F.cross_entropy(self.head(out).flatten(0, 1), y.flip(1).flatten())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 4e-3)

    return Translator(), loader(*tokens(3200)), {"max_epochs": 1, "gradient_clip_val": 1.0}


@healthy(check=lambda p: p.late() < p.early() - 5)
def ok_density_of_images() -> Built:
    L.seed_everything(215)

    class Density(L.LightningModule):
        """Affine couplings on dequantised digits; its negative log-likelihood goes far below zero."""

        def __init__(self) -> None:
            super().__init__()
            self.nets = nn.ModuleList(mlp(32, 64, 64) for _ in range(4))
            for net in self.nets:
                nn.init.zeros_(net[-1].weight)
                nn.init.zeros_(net[-1].bias)

        def training_step(self, batch, batch_idx):
            x = batch[0].flatten(1) + 0.06 * torch.rand(len(batch[0]), 64)
            x, total = (x - 0.3) * 3, 0.0
            for n, net in enumerate(self.nets):
                a, b = (x[:, ::2], x[:, 1::2]) if n % 2 else (x[:, 1::2], x[:, ::2])
                s, t = net(a).chunk(2, 1)
                s = torch.tanh(s)
                x = torch.stack([a, b * torch.exp(s) + t], 2).flatten(1)
                total = total + s.sum(1)
            return (0.5 * x.pow(2).sum(1) - total).mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    return Density(), loader(*digits(3200)), {"max_epochs": 1}


@healthy(held_out=True)
def ok_energy_based() -> Built:
    L.seed_everything(216)

    class ScoreMatching(L.LightningModule):
        """Denoising score matching with noise of many scales."""

        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(65, 128, 128, 64, act=nn.SiLU)

        def training_step(self, batch, batch_idx):
            x = batch[0].flatten(1)
            sigma = torch.exp(torch.empty(len(x), 1).uniform_(-3, 0.5))
            noise = torch.randn_like(x)
            score = self.net(torch.cat([x + sigma * noise, sigma.log()], 1)) / sigma
            return (sigma * score + noise).pow(2).mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    return ScoreMatching(), loader(*digits(3200), batch_size=32), {"max_epochs": 1}


@healthy()
def ok_mixture_density() -> Built:
    L.seed_everything(217)

    class Gaussian(nn.Module):
        """Predicts mean and log-variance."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.out = mlp(16, 64, 64), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.body(x)))

    def nll(out: Tensor, target: Tensor) -> Tensor:
        mean, logvar = out.chunk(2, 1)
        return 0.5 * (logvar + (target - mean).pow(2) * torch.exp(-logvar)).mean()

    x, _ = vectors(2400)
    y = x[:, :1] * 2 + 0.1 * torch.randn(2400, 1)
    return Task(Gaussian(), nll, adam(2e-3)), loader(x, y), {"max_epochs": 1}


@healthy(held_out=True)
def ok_heavy_tailed_features() -> Built:
    L.seed_everything(218)
    x, y = vectors(3200)
    return (
        Task(mlp(16, 64, 32, 4), F.cross_entropy),
        loader(torch.sign(x) * x.abs().mul(1.2).exp(), y),
        {"max_epochs": 1},
    )


@healthy()
def ok_recurrent_orthogonal() -> Built:
    L.seed_everything(219)

    class Plain(nn.Module):
        """A tanh RNN with orthogonal weights."""

        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.RNN(1, 32, batch_first=True), nn.Linear(32, 1)
            nn.init.orthogonal_(self.rnn.weight_hh_l0)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    return Task(Plain(), F.mse_loss), loader(*waves(2400)), {"max_epochs": 1, "gradient_clip_val": 1.0}


@healthy(held_out=True)
def ok_step_decay() -> Built:
    L.seed_everything(220)

    class Decayed(Task):
        """The learning rate falls to a hundredth, then to almost nothing."""

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.2, 0.9)
            schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 100, 120], 1e-2)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    net = nn.Sequential(*down(3, 16, nn.BatchNorm2d), *down(16, 16, nn.BatchNorm2d), nn.Flatten(), nn.Linear(256, 6))
    return Decayed(net, F.cross_entropy, sgd(0.2)), loader(*photographs(4800), batch_size=32), {"max_epochs": 1}
