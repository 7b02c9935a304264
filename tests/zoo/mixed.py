"""More failing trainings, to be looked at only when thresholds are chosen: all but one are held out."""

import math

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adversarial import GAN_MODULES, Discriminator, Generator, Z
from .cases import Built, Task, adam, case, loader
from .classifiers import cnn, mlp
from .data import digits, photographs, tokens, vectors, waves
from .sequences import LanguageModel, Recurrent
from .styles import ConvVAE, dcgan


class Overwritten(Task):
    """A layer is scaled by somebody else's code before a step."""

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 64:
            with torch.no_grad():
                self.net[3].weight.mul_(25.0)


@case(
    kind="corrupt_weight",
    also=("exploding_activation", "loss_spike", "exploding_gradient"),
    modules=("net.3",),
    step=(64, 64),
    check=lambda p: p.weights["net.3.weight"][64] > 10 * p.weights["net.3.weight"][63],
)
def cnn_layer_overwritten() -> Built:
    L.seed_everything(301)
    return Overwritten(cnn(), F.cross_entropy), loader(*digits(1920)), {"max_epochs": 1}


@case(
    kind="lr_too_high",
    also=("exploding_activation", "loss_divergence", "dead_units", "loss_stalled"),
    step=(80, 82),
    check=lambda p: p.late() > 1.5 * sum(p.losses[60:80]) / 20 and max(p.changes["net.3.weight"][80:84]) > 0.3,
    held_out=True,
)
def cnn_schedule_leaps() -> Built:
    L.seed_everything(302)

    class Scheduled(Task):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), 5e-3)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 200.0 if n >= 80 else 1.0)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    return Scheduled(cnn(), F.cross_entropy), loader(*digits(2400)), {"max_epochs": 1}


@case(kind="posterior_collapse", modules=("mu", "logvar"), check=lambda p: p.late("kl") < 0.05, held_out=True)
def conv_vae_collapsed() -> Built:
    L.seed_everything(303)

    class Heavy(ConvVAE):
        def training_step(self, batch, batch_idx):
            h = self.encoder(batch[0])
            posterior = torch.distributions.Normal(self.mu(h), F.softplus(self.logvar(h)) + 0.3)
            out = self.decoder(posterior.rsample())
            kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
            self.log("kl", kl)
            return F.mse_loss(out, batch[0]) + kl

    return Heavy(lr=3e-3), loader(*photographs(4800), batch_size=32), {"max_epochs": 1}


@case(
    kind="gan_imbalance",
    also=("vanishing_gradient", "saturated"),
    modules=GAN_MODULES,
    check=lambda p: p.late("d_real") < 0.02 and p.late("d_fake") < 0.02,
    held_out=True,
)
def gan_separate_losses() -> Built:
    L.seed_everything(304)

    class Separate(L.LightningModule):
        """Binary cross entropies of real and generated images, each with its own backward pass."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.discriminator = Generator(), nn.Sequential(Discriminator(256), nn.Sigmoid())

        def training_step(self, batch, batch_idx):
            real = batch[0]
            g_opt, d_opt = self.optimizers()
            one, zero = torch.ones(len(real), 1), torch.zeros(len(real), 1)
            fake = self.generator(torch.randn(len(real), Z))
            d_opt.zero_grad()
            d_real = F.binary_cross_entropy(self.discriminator(real), one)
            self.manual_backward(d_real)
            d_fake = F.binary_cross_entropy(self.discriminator(fake.detach()), zero)
            self.manual_backward(d_fake)
            d_opt.step()
            g_opt.zero_grad()
            g_loss = -F.binary_cross_entropy(self.discriminator(fake), zero)
            self.manual_backward(g_loss)
            g_opt.step()
            self.log_dict({"d_real": d_real, "d_fake": d_fake, "g_loss": g_loss})

        def configure_optimizers(self):
            g = torch.optim.Adam(self.generator.parameters(), 1e-5)
            return g, torch.optim.Adam(self.discriminator.parameters(), 3e-3)

    return Separate(), loader(*digits(3840, signed=True), batch_size=32), {"max_epochs": 1}


@case(
    kind="dead_units",
    also=("norm_degenerate",),
    modules=("2.*", "net.2.*", "net.2"),
    check=lambda p: len(p.dead("net.2.act")) == 16,
    held_out=True,
)
def resnet_dead_block() -> Built:
    L.seed_everything(305)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv2(self.act(self.conv1(x)))

    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6)
    )
    with torch.no_grad():
        net[2].conv1.bias.fill_(-15.0)
    return Task(net, F.cross_entropy, adam(3e-3)), loader(*photographs(2400)), {"max_epochs": 1}


@case(
    kind="not_training",
    modules=("net.rnn",),
    check=lambda p: p.is_unchanged("net.rnn.weight_ih_l0") and p.gradient("net.rnn.weight_ih_l0") > 0,
    held_out=True,
)
def gru_not_optimized() -> Built:
    L.seed_everything(306)

    class HeadOnly(Task):
        def configure_optimizers(self):
            return torch.optim.Adam(self.net.head.parameters(), 5e-3)

    return HeadOnly(Recurrent(nn.GRU), F.mse_loss), loader(*waves(1600)), {"max_epochs": 1}


@case(
    kind="saturated",
    also=("bad_init", "vanishing_gradient", "exploding_activation"),
    modules=("net.3", "net.4", "net.*"),
    check=lambda p: p.outputs["net.4"][-1].second_moment > 0.97,
    held_out=True,
)
def ae_saturated_bottleneck() -> Built:
    L.seed_everything(307)
    net = mlp(64, 48, 12, 48, 64, act=nn.Tanh, flat=True)
    nn.init.normal_(net[3].weight, std=20.0)
    x, _ = digits(1920)
    return Task(net, F.mse_loss), loader(x, x.flatten(1)), {"max_epochs": 1}


@case(
    kind="loss_divergence",
    also=("exploding_activation", "gan_imbalance", "lr_too_high"),
    modules=("discriminator", "discriminator.*", "", "generator", "generator.*"),
    check=lambda p: abs(p.late("d_loss")) > 300,
    held_out=True,
)
def wgan_conv_without_clipping() -> Built:
    L.seed_everything(308)
    from .adversarial import GAN, critic

    model = GAN(*dcgan(norm=False), (1e-4, 8e-3), critic, lambda fake: -fake.mean())
    return model, loader(*photographs(4800, signed=True), batch_size=32), {"max_epochs": 1}


@case(
    kind="nonfinite",
    also=("outlier_sample",),
    modules=("", "net", "net.*"),
    step=(72, 72),
    samples=(1160,),
    check=lambda p: p.first_nonfinite() == 72,
    held_out=True,
)
def regression_missing_target() -> Built:
    L.seed_everything(309)
    x, _ = vectors(1920)
    y = x[:, :1].clone()
    y[1160] = math.nan
    return Task(mlp(16, 32, 1), F.mse_loss), loader(x, y), {"max_epochs": 1}


@case(
    kind="nonfinite",
    modules=("net.*", "net", ""),
    also=("vanishing_gradient", "outlier_sample"),
    step=(48, 48),
    samples=(770,),
    check=lambda p: any(v != v for g in p.gradients.values() for v in g[48:50]),
    held_out=True,
)
def distance_gradient_of_zero() -> Built:
    L.seed_everything(310)
    x, _ = vectors(1440)
    x[770] = 0.0

    class Distance(Task):
        def training_step(self, batch, batch_idx):
            norm = self.net(batch[0]).pow(2).sum(1).sqrt()
            return (norm - batch[0].pow(2).sum(1).sqrt()).pow(2).mean()

    net = nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 16, bias=False))
    return Distance(net, F.mse_loss), loader(x, x), {"max_epochs": 1}


@case(
    kind="lr_too_low",
    also=("loss_stalled",),
    check=lambda p: max(p.changes["head.weight"]) < 1e-5,
    held_out=True,
)
def transformer_lr_too_low() -> Built:
    L.seed_everything(311)
    return LanguageModel(lr=3e-8), loader(*tokens(1600)), {"max_epochs": 1}


@case(
    kind="bad_init",
    also=("loss_stalled", "vanishing_gradient"),
    modules=("blocks.*", "blocks.0.mlp.0", "blocks.0.attention.*"),
    check=lambda p: float(p.outputs["blocks.0.mlp.0"][-1].std.std()) < 1e-4,
    held_out=True,
)
def transformer_constant_weights() -> Built:
    L.seed_everything(312)
    model = LanguageModel()
    for block in model.blocks:
        for module in (block.mlp[0], block.mlp[2]):
            nn.init.constant_(module.weight, 0.02)
            nn.init.zeros_(module.bias)
    return model, loader(*tokens(1600)), {"max_epochs": 1}
