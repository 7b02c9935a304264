"""GANs with one fault each."""

from collections.abc import Callable

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Built, case, loader
from .data import digits

Z = 12


class Generator(nn.Module):
    """Points of the latent space to digits."""

    def __init__(self, *, convolutional: bool = False) -> None:
        super().__init__()
        if convolutional:
            self.net = nn.Sequential(
                nn.Linear(Z, 128),
                nn.Unflatten(1, (32, 2, 2)),
                nn.ReLU(),
                nn.ConvTranspose2d(32, 16, 4, 2, 1),
                nn.ReLU(),
                nn.ConvTranspose2d(16, 1, 4, 2, 1),
                nn.Tanh(),
            )
        else:
            self.net = nn.Sequential(
                nn.Linear(Z, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8))
            )

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


class Discriminator(nn.Module):
    """Digits to logits."""

    def __init__(self, width: int = 64, *, convolutional: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        if convolutional:
            body = [nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.2)]
            self.net = nn.Sequential(*body, nn.Flatten(), nn.Linear(128, 1))
        else:
            body = [nn.Flatten(), nn.Linear(64, width), nn.LeakyReLU(0.2), nn.Dropout(dropout)]
            self.net = nn.Sequential(*body, nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def logistic(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def critic(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean()


class GAN(L.LightningModule):
    """A GAN with manual optimization.

    Args:
        generator: Latent to image.
        discriminator: Image to logit.
        lrs: Learning rates of the generator and the discriminator.
        d_loss: Of the logits of real and generated images.
        g_loss: Of the logits of generated images.
        d_steps: Steps of the discriminator for each of the generator.
        clip: Largest magnitude of the discriminator's weights.
        no_grad: Generated images for the discriminator are made without gradients, not detached.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        lrs: tuple[float, float] = (1e-3, 1e-3),
        d_loss: Callable[[Tensor, Tensor], Tensor] = logistic,
        g_loss: Callable[[Tensor], Tensor] = lambda fake: F.softplus(-fake).mean(),
        d_steps: int = 1,
        clip: float = 0.0,
        no_grad: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = generator, discriminator
        self.lrs, self.d_loss, self.g_loss, self.d_steps, self.clip, self.no_grad = (
            lrs,
            d_loss,
            g_loss,
            d_steps,
            clip,
            no_grad,
        )

    def training_step(self, batch, batch_idx):
        real = batch[0]
        g_opt, d_opt = self.optimizers()
        for _ in range(self.d_steps):
            if self.no_grad:
                with torch.no_grad():
                    fake = self.generator(torch.randn(len(real), Z))
            else:
                fake = self.generator(torch.randn(len(real), Z)).detach()
            d_loss = self.d_loss(self.discriminator(real), self.discriminator(fake))
            d_opt.zero_grad()
            self.manual_backward(d_loss)
            d_opt.step()
            if self.clip:
                with torch.no_grad():
                    for p in self.discriminator.parameters():
                        p.clamp_(-self.clip, self.clip)
        self.toggle_optimizer(g_opt)
        g_loss = self.g_loss(self.discriminator(self.generator(torch.randn(len(real), Z))))
        g_opt.zero_grad()
        self.manual_backward(g_loss)
        g_opt.step()
        self.untoggle_optimizer(g_opt)
        self.log_dict({"d_loss": d_loss, "g_loss": g_loss})

    def configure_optimizers(self):
        g = torch.optim.Adam(self.generator.parameters(), self.lrs[0], (0.5, 0.99))
        d = torch.optim.Adam(self.discriminator.parameters(), self.lrs[1], (0.5, 0.99))
        return g, d


GAN_MODULES = ("generator", "generator.*", "discriminator", "discriminator.*")


@case(
    kind="gan_imbalance",
    also=("vanishing_gradient", "saturated"),
    modules=GAN_MODULES,
    check=lambda p: p.late("d_loss") < 0.02,
    quick=True,
)
def gan_saturating_conv() -> Built:
    L.seed_everything(51)
    model = GAN(
        Generator(convolutional=True),
        Discriminator(convolutional=True),
        (1e-5, 4e-3),
        g_loss=lambda fake: -F.softplus(fake).mean(),
        d_steps=2,
    )
    return model, loader(*digits(3840, signed=True), batch_size=32), {"max_epochs": 1}


@case(
    kind="gan_imbalance",
    also=("vanishing_gradient", "saturated"),
    modules=GAN_MODULES,
    check=lambda p: p.late("d_loss") < 0.02,
    held_out=True,
)
def gan_hinge_no_grad() -> Built:
    L.seed_everything(52)
    model = GAN(Generator(), Discriminator(256), (1e-5, 3e-3), hinge, lambda fake: -fake.mean(), no_grad=True)
    return model, loader(*digits(3840, signed=True), batch_size=32), {"max_epochs": 1}


class BlindGenerator(Generator):
    """Its first layer hardly sees the latent."""

    def forward(self, z: Tensor) -> Tensor:
        return self.net(1e-4 * z)


@case(
    kind="mode_collapse",
    also=("gan_imbalance",),
    modules=("generator", "generator.*"),
    check=lambda p: p.outputs["generator"][-1].diversity < 0.01,
    quick=True,
)
def gan_blind_generator() -> Built:
    L.seed_everything(53)
    model = GAN(BlindGenerator(), Discriminator(dropout=0.3), (1e-3, 5e-4))
    return model, loader(*digits(3840, signed=True), batch_size=32), {"max_epochs": 1}


@case(
    kind="mode_collapse",
    also=("gan_imbalance", "saturated"),
    modules=("generator", "generator.*"),
    check=lambda p: p.outputs["generator"][-1].diversity < 0.02 < 0.1 < p.outputs["generator"][0].diversity,
    held_out=True,
)
def gan_collapsing_conv() -> Built:
    L.seed_everything(54)

    class Shrinking(GAN):
        """The latent is scaled down step by step: a schedule that goes the wrong way."""

        def training_step(self, batch, batch_idx):
            self.generator.net[0].weight.data.mul_(0.9)
            return super().training_step(batch, batch_idx)

    model = Shrinking(Generator(convolutional=True), Discriminator(convolutional=True), (1e-4, 5e-4))
    return model, loader(*digits(4800, signed=True), batch_size=32), {"max_epochs": 1}


@case(
    kind="loss_divergence",
    also=("exploding_activation", "gan_imbalance", "lr_too_high"),
    modules=("discriminator", "discriminator.*", "", "generator", "generator.*"),
    check=lambda p: abs(p.late("d_loss")) > 300,
)
def wgan_without_clipping() -> Built:
    L.seed_everything(55)
    model = GAN(Generator(), Discriminator(256), (1e-4, 2e-2), critic, lambda fake: -fake.mean())
    return model, loader(*digits(4800, signed=True), batch_size=32), {"max_epochs": 1}


@case(
    kind="not_training",
    modules=("generator", "generator.*"),
    check=lambda p: p.is_unchanged("generator.net.0.weight"),
    held_out=True,
    also=("gan_imbalance",),
)
def gan_generator_detached() -> Built:
    L.seed_everything(56)

    class Cut(GAN):
        """Generated images are detached where the generator should learn."""

        def training_step(self, batch, batch_idx):
            real = batch[0]
            g_opt, d_opt = self.optimizers()
            fake = self.generator(torch.randn(len(real), Z)).detach()
            d_loss = self.d_loss(self.discriminator(real), self.discriminator(fake))
            d_opt.zero_grad()
            self.manual_backward(d_loss)
            d_opt.step()
            g_loss = self.g_loss(self.discriminator(fake))
            g_opt.zero_grad()
            self.manual_backward(g_loss)
            g_opt.step()
            self.log_dict({"d_loss": d_loss, "g_loss": g_loss})

    model = Cut(Generator(), Discriminator(dropout=0.5), (1e-3, 1e-4))
    return model, loader(*digits(2560, signed=True), batch_size=32), {"max_epochs": 1}


@case(
    kind="saturated",
    also=("mode_collapse", "gan_imbalance", "bad_init", "vanishing_gradient", "exploding_activation"),
    modules=("generator.net.2", "generator.net.3", "generator", "generator.net"),
    check=lambda p: (
        float(p.outputs["generator.net.3"][-1].std.square().add(p.outputs["generator.net.3"][-1].mean.square()).mean())
        > 0.97
    ),
)
def gan_saturated_output() -> Built:
    L.seed_everything(57)
    generator = Generator()
    nn.init.normal_(generator.net[2].weight, std=25.0)
    model = GAN(generator, Discriminator(dropout=0.3), (1e-4, 2e-4))
    return model, loader(*digits(2560, signed=True), batch_size=32), {"max_epochs": 1}
