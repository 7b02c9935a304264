"""MLPs and CNNs with one fault each."""

import itertools
import math

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn

from .cases import Built, Task, adam, case, loader, sgd
from .data import digits, vectors


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU, flat: bool = False) -> nn.Sequential:
    """Linear layers with an activation in between."""
    layers: list[nn.Module] = [nn.Flatten()] if flat else []
    for n, (i, o) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(i, o), *([act()] if n + 2 < len(sizes) else [])]
    return nn.Sequential(*layers)


def cnn(width: int = 8, norm: bool = False) -> nn.Sequential:
    """Two convolutions and a head for digits."""
    block = lambda i, o: [nn.Conv2d(i, o, 3, padding=1), *([nn.BatchNorm2d(o)] if norm else []), nn.ReLU()]  # noqa: E731
    return nn.Sequential(
        *block(1, width),
        nn.MaxPool2d(2),
        *block(width, 2 * width),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


# -- dead units --------------------------------------------------------------------------------------------------------


@case(
    kind="dead_units",
    also=("vanishing_gradient", "loss_stalled"),
    modules=("net.4", "net.3"),
    check=lambda p: len(p.dead("net.4")) == 32,
    quick=True,
)
def mlp_dead_layer() -> Built:
    L.seed_everything(1)
    x, y = digits(1600)
    net = mlp(64, 48, 32, 10, flat=True)
    with torch.no_grad():
        net[3].bias.fill_(-25.0)
    return Task(net, F.cross_entropy), loader(x, y), {"max_epochs": 1}


class FunctionalCNN(L.LightningModule):
    """A CNN whose activations are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        x = F.max_pool2d(F.relu(self.c1(batch[0])), 2)
        x = F.max_pool2d(torch.relu(self.c2(x)), 2)
        loss = F.cross_entropy(self.head(x.flatten(1)), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


@case(
    kind="dead_units",
    modules=("c2",),
    neurons=(1, 4, 5, 9),
    check=lambda p: set(p.dead("c2")) >= {1, 4, 5, 9},
)
def cnn_dead_functional() -> Built:
    L.seed_everything(2)
    x, y = digits(1760)
    model = FunctionalCNN()
    with torch.no_grad():
        model.c2.bias[[1, 4, 5, 9]] = -12.0
    return model, loader(x, y), {"max_epochs": 1}


@case(kind="dead_units", modules=("net.0", "net.1"), check=lambda p: len(p.dead("net.1")) >= 6, held_out=True)
def cnn_dead_first_block() -> Built:
    L.seed_everything(3)
    x, y = digits(1760)
    net = cnn(16)
    with torch.no_grad():
        net[0].weight[:6] = -net[0].weight[:6].abs() * 3
        net[0].bias[:6] = -3.0
    return Task(net, F.cross_entropy), loader(x, y), {"max_epochs": 1}


# -- vanishing and exploding gradients, saturation ---------------------------------------------------------------------


@case(
    kind="vanishing_gradient",
    also=("loss_stalled", "saturated"),
    modules=tuple(f"net.{n}" for n in range(9)),
    check=lambda p: p.gradient("net.1.weight") < 1e-4 * p.gradient("net.23.weight"),
    quick=True,
)
def mlp_sigmoid_vanishing() -> Built:
    L.seed_everything(4)
    x, y = digits(1920)
    return (
        Task(mlp(64, *[32] * 11, 10, act=nn.Sigmoid, flat=True), F.cross_entropy, sgd(0.1)),
        loader(x, y),
        {"max_epochs": 1},
    )


@case(
    kind="vanishing_gradient",
    also=("bad_init", "loss_stalled"),
    modules=("net.*",),
    check=lambda p: p.gradient("net.0.weight") < 1e-5 * p.gradient("net.18.1.weight"),
    held_out=True,
)
def cnn_tanh_vanishing() -> Built:
    L.seed_everything(5)
    x, y = digits(1280)
    layers: list[nn.Module] = []
    for n in range(9):
        conv = nn.Conv2d(8 if n else 1, 8, 3, padding=1)
        nn.init.normal_(conv.weight, std=0.01)
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.Tanh()]
    net = nn.Sequential(*layers, nn.Sequential(nn.Flatten(), nn.Linear(512, 10)))
    return Task(net, F.cross_entropy), loader(x, y), {"max_epochs": 1}


@case(
    kind="saturated",
    also=("exploding_activation", "bad_init", "vanishing_gradient", "loss_stalled"),
    modules=("net.1", "net.2", "net"),
    check=lambda p: p.largest("net.1")[-1] > 100,
)
def mlp_saturated_inputs() -> Built:
    L.seed_everything(6)
    x, y = digits(1600, signed=True)
    return Task(mlp(64, 64, 32, 10, act=nn.Tanh, flat=True), F.cross_entropy), loader(x * 400, y), {"max_epochs": 1}


@case(
    kind="saturated",
    also=("bad_init", "vanishing_gradient", "loss_stalled"),
    modules=("net.3", "net.4"),
    check=lambda p: float(p.outputs["net.4"][-1].low.min()) > 0.99,
    held_out=True,
)
def mlp_saturated_sigmoid() -> Built:
    L.seed_everything(7)
    x, y = digits(1600)
    net = mlp(64, 48, 32, 10, act=nn.Sigmoid, flat=True)
    with torch.no_grad():
        net[3].bias.fill_(25.0)
    return Task(net, F.cross_entropy, adam(2e-3)), loader(x, y), {"max_epochs": 1}


@case(
    kind="exploding_gradient",
    also=("bad_init", "exploding_activation", "lr_too_high"),
    modules=("net.*",),
    check=lambda p: p.gradients["net.0.weight"][0] > 1e4,
)
def mlp_exploding_depth() -> Built:
    L.seed_everything(8)
    x, y = vectors(1600, 32)
    net = mlp(32, *[48] * 14, 4)
    for module in net:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=3.2 / math.sqrt(module.in_features))
    return Task(net, F.cross_entropy, sgd(1e-9)), loader(x, y), {"max_epochs": 1}


# -- not training ------------------------------------------------------------------------------------------------------


class Detached(L.LightningModule):
    """An encoder cut off from the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.head(self.encoder(batch[0]).detach()), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


@case(
    kind="not_training",
    modules=("encoder", "encoder.*"),
    check=lambda p: "encoder.1.weight" not in p.gradients and p.is_unchanged("encoder.1.weight"),
    quick=True,
)
def mlp_detached_encoder() -> Built:
    L.seed_everything(9)
    return Detached(), loader(*digits(1600)), {"max_epochs": 1}


class MissingInOptimizer(Task):
    """A CNN whose second convolution no optimizer has."""

    def configure_optimizers(self):
        kept = [p for name, p in self.named_parameters() if not name.startswith("net.3.")]
        return torch.optim.Adam(kept, 2e-3)


@case(
    kind="not_training",
    modules=("net.3",),
    check=lambda p: p.is_unchanged("net.3.weight") and p.gradient("net.3.weight") > 0,
)
def cnn_missing_in_optimizer() -> Built:
    L.seed_everything(10)
    return MissingInOptimizer(cnn(), F.cross_entropy), loader(*digits(1760)), {"max_epochs": 1}


class Unused(Task):
    """Its auxiliary head is never called."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.aux = nn.Linear(64, 3)


@case(
    kind="not_training",
    modules=("aux",),
    check=lambda p: "aux.weight" not in p.gradients,
    held_out=True,
)
def cnn_unused_head() -> Built:
    L.seed_everything(11)
    return Unused(cnn(), F.cross_entropy), loader(*digits(1600)), {"max_epochs": 1}
