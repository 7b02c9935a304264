"""Healthy trainings in varied styles: nothing may be found in them."""

import copy

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adversarial import GAN, Discriminator, Generator, critic, hinge
from .cases import Built, Task, adam, healthy, loader, sgd
from .classifiers import cnn, mlp
from .data import digits, moons, tokens, vectors, waves
from .generative import VAE, Diffusion, Flow
from .sequences import LanguageModel, Recurrent


def plays_on(probe) -> bool:
    """A GAN in which nobody has won."""
    return 0.1 < probe.late("d_loss") < 3 and probe.outputs["generator"][-1].diversity > 0.1


@healthy(quick=True)
def ok_mlp() -> Built:
    L.seed_everything(101)
    return Task(mlp(64, 48, 32, 10, flat=True), F.cross_entropy), loader(*digits(2400)), {"max_epochs": 1}


@healthy()
def ok_cnn_norm_weight_decay() -> Built:
    L.seed_everything(102)
    model = Task(cnn(8, norm=True), F.cross_entropy, lambda p: torch.optim.AdamW(p, 2e-3, weight_decay=0.1))
    return model, loader(*digits(2400), shuffle=True), {"max_epochs": 1}


@healthy(quick=True)
def ok_vae() -> Built:
    L.seed_everything(103)
    return VAE(), loader(*digits(3200), shuffle=True), {"max_epochs": 1}


@healthy(held_out=True)
def ok_vae_warm_up() -> Built:
    L.seed_everything(104)

    class Annealed(VAE):
        """Beta rises from zero; the learning rate, too."""

        def training_step(self, batch, batch_idx):
            self.beta = min(1.0, batch_idx / 100)
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), 3e-3)
            warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / 50))
            return [optimizer], [{"scheduler": warm_up, "interval": "step"}]

    return Annealed(chunk=True), loader(*digits(3200), shuffle=True), {"max_epochs": 1}


@healthy(check=plays_on, quick=True)
def ok_gan() -> Built:
    L.seed_everything(105)
    model = GAN(Generator(), Discriminator(dropout=0.3), (1e-3, 3e-4))
    return model, loader(*digits(4800, signed=True), batch_size=32, shuffle=True), {"max_epochs": 1}


@healthy(check=lambda p: abs(p.late("d_loss")) < 5 and p.outputs["generator"][-1].diversity > 0.1)
def ok_wgan() -> Built:
    L.seed_everything(106)
    model = GAN(Generator(), Discriminator(), (5e-4, 5e-4), critic, lambda fake: -fake.mean(), d_steps=3, clip=0.05)
    return model, loader(*digits(3200, signed=True), batch_size=32, shuffle=True), {"max_epochs": 1}


@healthy(check=plays_on, held_out=True)
def ok_gan_hinge_conv() -> Built:
    L.seed_everything(107)
    model = GAN(
        Generator(convolutional=True),
        Discriminator(convolutional=True),
        (1e-3, 3e-4),
        hinge,
        lambda fake: -fake.mean(),
        no_grad=True,
    )
    return model, loader(*digits(4800, signed=True), batch_size=32, shuffle=True), {"max_epochs": 1}


@healthy()
def ok_diffusion() -> Built:
    L.seed_everything(108)
    return Diffusion(), loader(*digits(3200, signed=True), shuffle=True), {"max_epochs": 1}


@healthy(quick=True)
def ok_flow() -> Built:
    L.seed_everything(109)
    return Flow(), loader(moons(6400), batch_size=64), {"max_epochs": 2}


@healthy(held_out=True, check=lambda p: p.late() < p.early() - 0.3)
def ok_flow_zero_start() -> Built:
    L.seed_everything(110)
    model = Flow(bounded=True, lr=5e-3, depth=8)
    for coupling in model.couplings:
        nn.init.zeros_(coupling.net[2].weight)
        nn.init.zeros_(coupling.net[2].bias)
    return model, loader(moons(6400), batch_size=64), {"max_epochs": 2}


@healthy()
def ok_lstm() -> Built:
    L.seed_everything(111)
    return Task(Recurrent(), F.mse_loss, adam(5e-3)), loader(*waves(2400)), {"max_epochs": 1, "gradient_clip_val": 1.0}


@healthy(held_out=True)
def ok_gru_long() -> Built:
    L.seed_everything(112)
    return Task(Recurrent(nn.GRU, 32), F.mse_loss, adam(3e-3)), loader(*waves(1600, 60)), {"max_epochs": 1}


@healthy(quick=True)
def ok_transformer_schedule() -> Built:
    L.seed_everything(113)

    class Scheduled(LanguageModel):
        """Warm-up, then a cosine down to nothing."""

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), 3e-3)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=200)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    return Scheduled(), loader(*tokens(3200)), {"max_epochs": 1}


class FrozenEncoder(L.LightningModule):
    """A head on an encoder that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten())
        self.encoder.requires_grad_(False)
        self.head = nn.Linear(1024, 10)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.head(self.encoder(batch[0])), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


@healthy(quick=True)
def ok_frozen_encoder() -> Built:
    L.seed_everything(114)
    return FrozenEncoder(), loader(*digits(1920)), {"max_epochs": 1}


@healthy(held_out=True)
def ok_fine_tuning() -> Built:
    L.seed_everything(115)

    class FineTuned(FrozenEncoder):
        """The encoder runs without gradients, and in evaluation mode; the optimizer has the head only."""

        def training_step(self, batch, batch_idx):
            self.encoder.eval()
            with torch.no_grad():
                h = self.encoder(batch[0])
            return F.cross_entropy(self.head(h), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), 0.05)

    return FineTuned(), loader(*digits(1920)), {"max_epochs": 1}


@healthy()
def ok_ema_copy() -> Built:
    L.seed_everything(116)

    class Averaged(Task):
        """Keeps a moving average of its network, which also gives targets."""

        def __init__(self, *args) -> None:
            super().__init__(*args)
            self.average = copy.deepcopy(self.net)

        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                target = self.average(batch[0]).softmax(1)
            out = self.net(batch[0])
            return F.cross_entropy(out, batch[1]) + 0.1 * F.cross_entropy(out, target)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            with torch.no_grad():
                for a, p in zip(self.average.parameters(), self.net.parameters(), strict=True):
                    a.lerp_(p, 0.02)

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameters(), 1e-3)

    return Averaged(mlp(64, 48, 32, 10, flat=True), F.cross_entropy), loader(*digits(2400)), {"max_epochs": 1}


@healthy()
def ok_bf16() -> Built:
    L.seed_everything(117)
    return Task(cnn(), F.cross_entropy, adam(3e-3)), loader(*digits(1920)), {"max_epochs": 1, "precision": "bf16-mixed"}


@healthy()
def ok_accumulating() -> Built:
    L.seed_everything(118)
    options = {"max_epochs": 1, "accumulate_grad_batches": 4}
    return Task(mlp(64, 64, 10, flat=True), F.cross_entropy, adam(3e-3)), loader(*digits(2400)), options


@healthy(held_out=True)
def ok_heavy_dropout() -> Built:
    L.seed_everything(119)
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 96),
        nn.ReLU(),
        nn.Dropout(0.6),
        nn.Linear(96, 64),
        nn.ReLU(),
        nn.Dropout(0.6),
        nn.Linear(64, 10),
    )
    return Task(net, F.cross_entropy, adam(2e-3)), loader(*digits(3200)), {"max_epochs": 1}


@healthy()
def ok_sparse_embedding() -> Built:
    L.seed_everything(120)

    class Bag(L.LightningModule):
        """Few rows of a large table are used in a step."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.EmbeddingBag(200, 16, sparse=True), nn.Linear(16, 2)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.head(self.table(batch[0])), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 2.0)

    ids = torch.randint(0, 200, (2400, 6))
    return Bag(), loader(ids, (ids < 100).float().mean(1).gt(0.5).long()), {"max_epochs": 3}


@healthy(check=lambda p: max(p.losses) > 4 * sorted(map(abs, p.losses))[len(p.losses) // 2], quick=True)
def ok_policy_gradient() -> Built:
    L.seed_everything(121)

    class Policy(L.LightningModule):
        """REINFORCE on a bandit: its loss is no measure of progress, and leaps."""

        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(16, 32, 4)

        def training_step(self, batch, batch_idx):
            choice = torch.distributions.Categorical(logits=self.net(batch[0]))
            action = choice.sample()
            prize = torch.exp(2.0 * torch.randn(len(action)))
            reward = (action == batch[1]).float() * prize
            loss = -(choice.log_prob(action) * (reward - 1.5)).mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    return Policy(), loader(*vectors(3200)), {"max_epochs": 1}


@healthy(check=lambda p: p.late() < 0.01)
def ok_overfit_one_batch() -> Built:
    L.seed_everything(122)
    x, y = digits(16)
    return Task(cnn(), F.cross_entropy, adam(3e-3)), loader(x.repeat(200, 1, 1, 1), y.repeat(200)), {"max_epochs": 1}


@healthy(held_out=True)
def ok_tiny_batch() -> Built:
    L.seed_everything(123)
    model = Task(mlp(64, 32, 10, flat=True), F.cross_entropy, sgd(0.05))
    return model, loader(*digits(600), batch_size=2, shuffle=True), {"max_epochs": 1}


@healthy()
def ok_very_deep() -> Built:
    L.seed_everything(124)

    class Deep(nn.Module):
        """Thirty residual blocks with normalisation."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU()) for _ in range(30)
            )

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x.flatten(1))
            for block in self.blocks:
                h = h + 0.2 * block(h)
            return self.head(h)

    return Task(Deep(), F.cross_entropy), loader(*digits(1600)), {"max_epochs": 1}


@healthy(held_out=True)
def ok_plain_deep() -> Built:
    L.seed_everything(125)
    net = mlp(64, *[64] * 8, 10, flat=True)
    for module in net:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return Task(net, F.cross_entropy), loader(*digits(2400)), {"max_epochs": 1}


@healthy(check=lambda p: p.late() < 0.3 * p.early())
def ok_large_lr() -> Built:
    L.seed_everything(126)
    return Task(cnn(8, norm=True), F.cross_entropy, sgd(0.3)), loader(*digits(2400)), {"max_epochs": 1}


@healthy()
def ok_autoencoder_bernoulli() -> Built:
    L.seed_everything(127)
    x, _ = digits(2400)
    net = nn.Sequential(*mlp(64, 48, 16, 48, 64, act=nn.Tanh, flat=True), nn.Sigmoid())
    return Task(net, F.binary_cross_entropy, adam(3e-3)), loader(x, (x > 0.5).float().flatten(1)), {"max_epochs": 1}


@healthy(held_out=True)
def ok_regression_large_targets() -> Built:
    L.seed_everything(128)
    x, _ = vectors(2400)
    y = 500 + 300 * x[:, :1]
    return Task(mlp(16, 64, 64, 1), F.mse_loss, adam(1e-2)), loader(x, y), {"max_epochs": 1}


@healthy(held_out=True)
def ok_contrastive() -> Built:
    L.seed_everything(129)

    class Contrastive(L.LightningModule):
        """Two noisy views of an image are to meet."""

        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(64, 64, 16, flat=True)

        def training_step(self, batch, batch_idx):
            x = batch[0]
            a, b = (F.normalize(self.net(x + 0.1 * torch.randn_like(x)), dim=1) for _ in range(2))
            return F.cross_entropy(a @ b.T / 0.1, torch.arange(len(x)))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 2e-3)

    return Contrastive(), loader(*digits(4800), batch_size=32), {"max_epochs": 1}


@healthy()
def ok_linear_regression() -> Built:
    L.seed_everything(130)
    x, _ = vectors(1600)
    return Task(nn.Linear(16, 1), F.mse_loss, sgd(0.05)), loader(x, x @ torch.ones(16, 1)), {"max_epochs": 1}
