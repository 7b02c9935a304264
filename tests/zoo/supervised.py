"""MLPs and CNNs whose weights, learning rates, losses or examples are at fault."""

import math

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Built, Task, adam, case, loader
from .classifiers import cnn, mlp
from .data import digits, vectors

# -- weights -----------------------------------------------------------------------------------------------------------


class Corrupted(Task):
    """One weight changes by itself before a step."""

    def __init__(self, *args, where: str, index: tuple[int, ...], factor: float, step: int) -> None:
        super().__init__(*args)
        self.damage = where, index, factor, step

    def on_train_batch_start(self, batch, batch_idx):
        where, index, factor, step = self.damage
        if batch_idx == step:
            with torch.no_grad():
                self.get_parameter(where)[index] += factor


@case(
    kind="corrupt_weight",
    also=("exploding_activation", "loss_spike", "exploding_gradient"),
    modules=("net.3", "net.4"),
    step=(70, 70),
    neurons=(5,),
    check=lambda p: p.weights["net.3.weight"][70] > 100 > 10 > p.weights["net.3.weight"][69],
)
def cnn_bit_flip() -> Built:
    L.seed_everything(12)
    model = Corrupted(cnn(), F.cross_entropy, where="net.3.weight", index=(5, 2, 1, 1), factor=200.0, step=70)
    return model, loader(*digits(1920)), {"max_epochs": 1}


@case(
    kind="corrupt_weight",
    also=("exploding_activation", "loss_spike", "exploding_gradient", "bad_init"),
    modules=("net.3", "net.4"),
    neurons=(7,),
    check=lambda p: float(p.outputs["net.3"][0].std[7]) > 20 * float(p.outputs["net.3"][0].std.median()),
    held_out=True,
)
def mlp_corrupt_from_start() -> Built:
    L.seed_everything(13)
    net = mlp(64, 48, 32, 10, flat=True)
    with torch.no_grad():
        net[3].weight[7] *= 60
    return Task(net, F.cross_entropy), loader(*digits(1600)), {"max_epochs": 1}


@case(
    kind="bad_init",
    also=("loss_stalled",),
    modules=("net.1", "net.3", "net"),
    check=lambda p: float(p.outputs["net.1"][-1].std.std() / p.outputs["net.1"][-1].std.mean()) < 1e-3,
    quick=True,
)
def mlp_constant_weights() -> Built:
    L.seed_everything(14)
    net = mlp(64, 48, 32, 10, flat=True)
    for module in (net[1], net[3]):
        nn.init.constant_(module.weight, 0.03)
        nn.init.zeros_(module.bias)
    return Task(net, F.cross_entropy), loader(*digits(1600)), {"max_epochs": 1}


@case(
    kind="bad_init",
    also=("dead_units", "vanishing_gradient", "loss_stalled", "not_training"),
    modules=("net.*",),
    check=lambda p: p.is_unchanged("net.0.weight"),
)
def cnn_zero_weights() -> Built:
    L.seed_everything(15)
    net = cnn()
    for p in net.parameters():
        nn.init.zeros_(p)
    return Task(net, F.cross_entropy), loader(*digits(1600)), {"max_epochs": 1}


@case(
    kind="bad_init",
    also=("exploding_activation", "exploding_gradient", "lr_too_low"),
    modules=("net.*",),
    check=lambda p: p.largest("net.7")[0] > 1000,
    held_out=True,
)
def mlp_unit_normal_weights() -> Built:
    L.seed_everything(16)
    net = mlp(64, 64, 64, 64, 10, flat=True)
    for module in net:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    return Task(net, F.cross_entropy), loader(*digits(1600)), {"max_epochs": 1}


# -- normalisation -----------------------------------------------------------------------------------------------------


@case(
    kind="norm_degenerate",
    modules=("net.5", "net.4"),
    neurons=(2, 3, 11),
    check=lambda p: float(p.outputs["net.4"][10].std[[2, 3, 11]].max()) < 1e-6,
)
def cnn_norm_of_constant() -> Built:
    L.seed_everything(17)
    net = cnn(8, norm=True)
    with torch.no_grad():
        net[4].weight[[2, 3, 11]] = 0.0

    class Frozen(Task):
        def on_after_backward(self):
            self.net[4].weight.grad[[2, 3, 11]] = 0.0

    return Frozen(net, F.cross_entropy), loader(*digits(1600)), {"max_epochs": 1}


@case(
    kind="norm_degenerate",
    modules=("norm", "body.0"),
    check=lambda p: float(p.outputs["norm"][-1].std.max()) < 1e-3,
    also=("loss_stalled", "dead_units"),
    held_out=True,
)
def mlp_norm_of_one() -> Built:
    L.seed_everything(18)

    class Gated(L.LightningModule):
        """Normalises over an axis of one element."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mlp(64, 32, flat=True), nn.Linear(32, 10)
            self.norm = nn.LayerNorm(1)

        def training_step(self, batch, batch_idx):
            h = self.norm(self.body(batch[0])[..., None])[..., 0]
            return F.cross_entropy(self.head(F.relu(h)), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    return Gated(), loader(*digits(1600)), {"max_epochs": 1}


# -- learning rates and losses -----------------------------------------------------------------------------------------


@case(
    kind="lr_too_high",
    also=("loss_divergence", "exploding_activation", "dead_units", "loss_stalled", "exploding_gradient"),
    check=lambda p: p.late() > p.early(n=1) * 0.95 and p.changes["net.0.weight"][0] > 0.3,
    quick=True,
)
def cnn_lr_too_high() -> Built:
    L.seed_everything(19)
    return Task(cnn(), F.cross_entropy, adam(0.7)), loader(*digits(1600)), {"max_epochs": 1}


@case(
    kind="lr_too_low",
    also=("loss_stalled",),
    check=lambda p: max(p.changes["net.1.weight"]) < 1e-6 and p.late() > 0.98 * p.early(),
    quick=True,
)
def mlp_lr_too_low() -> Built:
    L.seed_everything(20)
    return Task(mlp(64, 48, 10, flat=True), F.cross_entropy, adam(1e-8)), loader(*digits(1600)), {"max_epochs": 1}


@case(
    kind="loss_stalled",
    check=lambda p: abs(p.late() - math.log(10)) < 0.1,
)
def cnn_random_labels() -> Built:
    L.seed_everything(21)
    x, y = digits(2400)
    return Task(cnn(), F.cross_entropy), loader(x, y[torch.randperm(len(y))]), {"max_epochs": 1}


@case(kind="loss_stalled", check=lambda p: abs(p.late() - math.log(4)) < 0.1, held_out=True)
def mlp_blank_inputs() -> Built:
    L.seed_everything(22)
    x, y = vectors(2400)
    return Task(mlp(16, 32, 32, 4), F.cross_entropy), loader(x * 1e-4, y.roll(1)), {"max_epochs": 1}


@case(kind="loss_divergence", check=lambda p: p.late() < -100 and p.late() < 20 * p.losses[40] < 0)
def mlp_unbounded_reward() -> Built:
    L.seed_everything(23)
    x, y = vectors(1920)

    def loss(out: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(out, target) - 0.05 * out.pow(2).mean()

    return Task(mlp(16, 32, 4), loss, adam(0.02)), loader(x, y), {"max_epochs": 1}


# -- examples ----------------------------------------------------------------------------------------------------------


@case(
    kind="outlier_sample",
    also=("loss_spike", "exploding_activation", "exploding_gradient"),
    modules=("net.0", "net.*", "net"),
    step=(55, 55),
    samples=(887,),
    check=lambda p: p.largest("net.0")[55] > 50 * max(p.largest("net.0")[:55]),
    quick=True,
)
def cnn_outlier_image() -> Built:
    L.seed_everything(24)
    x, y = digits(1600)
    x[887] *= 255
    return Task(cnn(), F.cross_entropy, adam(5e-3)), loader(x, y), {"max_epochs": 1}


@case(
    kind="outlier_sample",
    also=("loss_spike", "exploding_gradient"),
    step=(62, 62),
    samples=(1000,),
    check=lambda p: p.losses[62] > 50 * max(p.losses[:62]),
    held_out=True,
)
def mlp_outlier_target() -> Built:
    L.seed_everything(25)
    x, _ = vectors(1920)
    y = x[:, :2].sum(1, keepdim=True)
    y[1000] = 5e3
    return Task(mlp(16, 48, 48, 1), F.mse_loss), loader(x, y), {"max_epochs": 1}


@case(
    kind="loss_spike",
    also=("outlier_sample", "exploding_gradient"),
    step=(90, 90),
    samples=tuple(range(90 * 16, 91 * 16)),
    check=lambda p: p.losses[90] > 5 * max(p.losses[60:90]) and p.losses[93] < p.losses[90] / 3,
)
def cnn_wrong_labels() -> Built:
    L.seed_everything(26)
    x, y = digits(1920)
    y[90 * 16 : 91 * 16] = (y[90 * 16 : 91 * 16] + 5) % 10
    return Task(cnn(16), F.cross_entropy, adam(3e-3)), loader(x, y), {"max_epochs": 1}


@case(
    kind="loss_spike",
    also=("outlier_sample", "exploding_gradient", "exploding_activation"),
    step=(80, 80),
    samples=tuple(range(80 * 16, 81 * 16)),
    check=lambda p: p.losses[80] > 5 * max(p.losses[50:80]),
    held_out=True,
)
def ae_scaled_batch() -> Built:
    L.seed_everything(27)
    x, _ = digits(1760)
    x[80 * 16 : 81 * 16] *= 8
    return (
        Task(mlp(64, 32, 8, 32, 64, flat=True), lambda o, t: F.mse_loss(o, t)),
        loader(x, x.flatten(1)),
        {"max_epochs": 1},
    )


# -- not finite --------------------------------------------------------------------------------------------------------


@case(
    kind="nonfinite",
    also=("outlier_sample",),
    modules=("", "net.*", "net"),
    step=(40, 40),
    samples=(650,),
    check=lambda p: p.first_nonfinite() == 40,
    quick=True,
)
def mlp_log_of_zero() -> Built:
    L.seed_everything(28)
    x, _ = vectors(1440)
    y = x[:, :1].abs() + 0.1
    y[650] = 0.0
    loss = lambda out, target: (out - target.log()).pow(2).mean()  # noqa: E731
    return Task(mlp(16, 32, 1), loss), loader(x, y), {"max_epochs": 1}


@case(
    kind="nonfinite",
    also=("norm_degenerate", "outlier_sample"),
    modules=("", "net", "net.*"),
    step=(51, 51),
    samples=(820,),
    check=lambda p: p.first_nonfinite() == 51,
    held_out=True,
)
def cnn_standardised_blank() -> Built:
    L.seed_everything(29)
    x, y = digits(1440)
    x[820] = 0.25

    class Standardised(Task):
        def training_step(self, batch, batch_idx):
            x = batch[0]
            x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
            return F.cross_entropy(self.net(x), batch[1])

    return Standardised(cnn(), F.cross_entropy), loader(x, y), {"max_epochs": 1}
