"""VAEs, flows and diffusion models with one fault each."""

import math

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Built, case, loader
from .classifiers import mlp
from .data import digits, moons


class VAE(L.LightningModule):
    """A VAE on digits.

    Args:
        beta: Weight of the KL term.
        chunk: Mean and log-variance come of one layer.
        skip: The decoder sees the encoder's features, too.
        lr: Of Adam.
    """

    def __init__(
        self, beta: float = 1.0, *, chunk: bool = False, skip: bool = False, lr: float = 2e-3, z: int = 8
    ) -> None:
        super().__init__()
        self.beta, self.chunk, self.skip, self.lr = beta, chunk, skip, lr
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        if chunk:
            self.to_latent = nn.Linear(64, 2 * z)
        else:
            self.mu, self.logvar = nn.Linear(64, z), nn.Linear(64, z)
        self.decoder = nn.Sequential(nn.Linear(z + (64 if skip else 0), 64), nn.ReLU(), nn.Linear(64, 64))

    def latent(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_latent(h).chunk(2, 1) if self.chunk else (self.mu(h), self.logvar(h))

    def training_step(self, batch, batch_idx):
        x = batch[0]
        h = self.encoder(x)
        mu, logvar = self.latent(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        out = self.decoder(torch.cat([z, h], 1) if self.skip else z)
        reconstruction = 8 * (out - x.flatten(1)).pow(2).sum(1).mean()
        kl = 0.5 * (mu.pow(2) + logvar.exp() - 1 - logvar).sum(1).mean()
        self.log_dict({"reconstruction": reconstruction, "kl": kl})
        return reconstruction + self.beta * kl

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


@case(
    kind="posterior_collapse",
    modules=("mu", "logvar"),
    check=lambda p: p.late("kl") < 0.02,
    quick=True,
)
def vae_collapsed_beta() -> Built:
    L.seed_everything(31)
    return VAE(60.0), loader(*digits(3200)), {"max_epochs": 1}


@case(kind="posterior_collapse", modules=("to_latent",), check=lambda p: p.late("kl") < 0.05)
def vae_collapsed_chunk() -> Built:
    L.seed_everything(32)
    return VAE(40.0, chunk=True), loader(*digits(3200)), {"max_epochs": 1}


@case(kind="posterior_collapse", modules=("mu", "logvar"), check=lambda p: p.late("kl") < 0.1, held_out=True)
def vae_collapsed_skip() -> Built:
    L.seed_everything(33)
    return VAE(4.0, skip=True, lr=4e-3), loader(*digits(4800)), {"max_epochs": 1}


@case(
    kind="nonfinite",
    also=("outlier_sample", "exploding_activation"),
    modules=("logvar", ""),
    step=(60, 60),
    samples=(970, 971),
    check=lambda p: p.first_nonfinite() in (60, 61),
)
def vae_exp_overflow() -> Built:
    L.seed_everything(34)
    x, y = digits(1600)
    x[970] *= 3000
    x[971] *= -3000
    return VAE(lr=1e-3), loader(x, y), {"max_epochs": 1}


@case(
    kind="loss_divergence",
    also=("exploding_activation",),
    check=lambda p: p.late() < -50 and p.late("kl") > 20 * p.early("kl"),
    held_out=True,
)
def vae_wrong_sign() -> Built:
    L.seed_everything(35)
    return VAE(-2.0, lr=4e-3), loader(*digits(1600)), {"max_epochs": 1}


@case(
    kind="not_training",
    modules=("encoder", "encoder.*"),
    check=lambda p: p.is_unchanged("encoder.1.weight"),
)
def vae_encoder_not_optimized() -> Built:
    L.seed_everything(36)

    class Partial(VAE):
        def configure_optimizers(self):
            parts = [self.mu, self.logvar, self.decoder]
            return torch.optim.Adam([p for part in parts for p in part.parameters()], 2e-3)

    return Partial(), loader(*digits(1600)), {"max_epochs": 1}


@case(kind="lr_too_low", also=("loss_stalled",), check=lambda p: max(p.changes["mu.weight"]) < 1e-5, held_out=True)
def vae_lr_too_low() -> Built:
    L.seed_everything(37)
    return VAE(lr=1e-7), loader(*digits(1600)), {"max_epochs": 1}


# -- flows -------------------------------------------------------------------------------------------------------------


class Coupling(nn.Module):
    """An affine coupling of two coordinates."""

    def __init__(self, flip: bool, bounded: bool = True) -> None:
        super().__init__()
        self.flip, self.bounded = flip, bounded
        self.net = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1)
        a, b = (b, a) if self.flip else (a, b)
        s, t = self.net(a).chunk(2, 1)
        s = torch.tanh(s) if self.bounded else s
        b = b * torch.exp(s) + t
        return torch.cat([b, a] if self.flip else [a, b], 1), s.sum(1)


class Flow(L.LightningModule):
    """A normalising flow of points."""

    def __init__(self, bounded: bool = True, lr: float = 3e-3, depth: int = 4) -> None:
        super().__init__()
        self.lr = lr
        self.couplings = nn.ModuleList(Coupling(n % 2 == 1, bounded) for n in range(depth))

    def nll(self, x: Tensor) -> Tensor:
        total = 0
        for coupling in self.couplings:
            x, log_det = coupling(x)
            total = total + log_det
        return (0.5 * x.pow(2).sum(1) + math.log(2 * math.pi) - total).mean()

    def training_step(self, batch, batch_idx):
        loss = self.nll(batch[0])
        self.log("nll", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


@case(
    kind="nonfinite",
    also=("outlier_sample", "exploding_activation"),
    modules=("couplings.*", ""),
    step=(45, 45),
    samples=(1450,),
    check=lambda p: 45 <= p.first_nonfinite() <= 46,
    held_out=True,
)
def flow_far_point() -> Built:
    L.seed_everything(38)
    x = moons(3200)
    x[1450] = 900.0
    return Flow(bounded=False), loader(x, batch_size=32), {"max_epochs": 1}


@case(
    kind="exploding_activation",
    also=("loss_divergence", "bad_init", "exploding_gradient"),
    modules=("couplings.*",),
    check=lambda p: p.first_nonfinite() < 0 and p.largest("couplings.2.net.0")[0] > 300,
)
def flow_unbounded_scale() -> Built:
    L.seed_everything(39)
    model = Flow(lr=1e-5)
    model.couplings[0].bounded = model.couplings[1].bounded = False
    with torch.no_grad():
        model.couplings[0].net[2].bias[0] = model.couplings[1].net[2].bias[0] = 7.0
        model.couplings[1].net[0].weight.mul_(1e-3)
    return model, loader(moons(3200), batch_size=32), {"max_epochs": 1}


@case(
    kind="lr_too_high",
    also=("nonfinite", "loss_divergence", "exploding_activation", "loss_stalled"),
    check=lambda p: p.changes["couplings.1.net.0.weight"][3] > 0.2 and not p.late() < p.early(n=2),
    held_out=True,
)
def flow_lr_too_high() -> Built:
    L.seed_everything(40)
    return Flow(lr=0.6), loader(moons(3200), batch_size=32), {"max_epochs": 1}


# -- diffusion ---------------------------------------------------------------------------------------------------------


class Diffusion(L.LightningModule):
    """Predicts the noise in digits.

    Args:
        alphas: Share of the signal's variance at each time; may be wrong.
    """

    def __init__(self, alphas: Tensor | None = None, lr: float = 2e-3, weighted: bool = False) -> None:
        super().__init__()
        self.lr, self.weighted = lr, weighted
        good = torch.cos(torch.linspace(0, 1, 50) * 1.5).pow(2)
        self.register_buffer("alphas", good if alphas is None else alphas)
        self.time = nn.Embedding(50, 16)
        self.body = nn.Sequential(nn.Linear(64 + 16, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU())
        self.out = nn.Linear(96, 64)

    def training_step(self, batch, batch_idx):
        x = batch[0].flatten(1)
        t = torch.randint(0, 50, (len(x),))
        noise = torch.randn_like(x)
        a = self.alphas[t][:, None]
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        guess = self.out(self.body(torch.cat([noisy, self.time(t)], 1)))
        error = (guess - noise).pow(2).mean(1)
        loss = (error * (a / (1 - a))[:, 0]).mean() if self.weighted else error.mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


@case(
    kind="nonfinite",
    modules=("", "body", "body.*", "time"),
    check=lambda p: 0 <= p.first_nonfinite() <= 20,
)
def diffusion_negative_alpha() -> Built:
    L.seed_everything(41)
    model = Diffusion(torch.linspace(1.0, -0.004, 50))
    return model, loader(*digits(1600, signed=True)), {"max_epochs": 1}


@case(
    kind="nonfinite",
    modules=("",),
    check=lambda p: 0 <= p.first_nonfinite() <= 20,
    held_out=True,
)
def diffusion_divided_by_zero() -> Built:
    L.seed_everything(42)
    return Diffusion(weighted=True), loader(*digits(1600, signed=True)), {"max_epochs": 1}


@case(
    kind="corrupt_weight",
    also=("exploding_activation", "loss_spike", "exploding_gradient"),
    modules=("body.2", "body.3"),
    step=(64, 64),
    neurons=(40,),
    check=lambda p: p.weights["body.2.weight"][64] > 50 > 5 > p.weights["body.2.weight"][63],
)
def diffusion_bit_flip() -> Built:
    L.seed_everything(43)

    class Flipped(Diffusion):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 64:
                with torch.no_grad():
                    self.body[2].weight[40, 3] = 128.0

    return Flipped(), loader(*digits(1920, signed=True)), {"max_epochs": 1}


@case(
    kind="exploding_activation",
    also=("bad_init", "exploding_gradient"),
    modules=("net.body", "net.blocks*", "blocks.*"),
    check=lambda p: p.largest("blocks.23")[0] > 1e4,
    held_out=True,
)
def residual_without_scale() -> Built:
    L.seed_everything(44)

    class Residual(L.LightningModule):
        """Blocks that each double the stream."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(64, 32), nn.Linear(32, 64)
            self.blocks = nn.ModuleList(mlp(32, 32, 32, act=nn.SiLU) for _ in range(24))
            for block in self.blocks:
                nn.init.normal_(block[0].weight, std=0.3)
                nn.init.normal_(block[2].weight, std=0.3)

        def training_step(self, batch, batch_idx):
            h = self.stem(batch[0].flatten(1))
            for block in self.blocks:
                h = h + block(h)
            return F.mse_loss(self.head(h), batch[0].flatten(1))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-30)

    return Residual(), loader(*digits(1280)), {"max_epochs": 1}
