"""RNNs and transformers with one fault each."""

import math

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Built, Task, adam, case, loader, sgd
from .data import tokens, waves


class Recurrent(nn.Module):
    """A recurrent layer and a linear one on all its outputs.

    Args:
        kind: Of the layer.
        hidden: Its units.
    """

    def __init__(self, kind: type[nn.Module] = nn.LSTM, hidden: int = 24, inputs: int = 1) -> None:
        super().__init__()
        self.rnn = kind(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class Attention(nn.Module):
    """Self-attention of one head, with its softmax as a module."""

    def __init__(self, size: int, scaled: bool = True, masked: bool = True) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.softmax = nn.Softmax(-1)
        self.scale = 1 / math.sqrt(size) if scaled else 1.0
        self.masked = masked

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) * self.scale
        if self.masked:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        if mask is not None:
            scores = scores.masked_fill(mask[:, None], -math.inf)
        return self.softmax(scores) @ self.value(x)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, size: int, scaled: bool = True) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(size), Attention(size, scaled)
        self.norm2, self.mlp = (
            nn.LayerNorm(size),
            nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size)),
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class LanguageModel(L.LightningModule):
    """A small transformer that counts.

    Args:
        lr: Of Adam.
        scaled: Whether attention scores are divided by the root of the size.
        depth: Blocks.
    """

    def __init__(self, lr: float = 2e-3, scaled: bool = True, depth: int = 2, size: int = 32) -> None:
        super().__init__()
        self.lr = lr
        self.embed, self.position = nn.Embedding(20, size), nn.Embedding(12, size)
        self.blocks = nn.ModuleList(Block(size, scaled) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, 20)

    def logits(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.embed(x) + self.position(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h, mask)
        return self.head(self.norm(h))

    def training_step(self, batch, batch_idx):
        mask = batch[2] if len(batch) > 2 else None
        loss = F.cross_entropy(self.logits(batch[0], mask).flatten(0, 1), batch[1].flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


@case(
    kind="exploding_gradient",
    also=("exploding_activation", "bad_init", "lr_too_high"),
    modules=("rnn", "cell", "net.cell"),
    check=lambda p: max(p.gradients["cell.weight_hh"][:5]) > 1e4,
)
def rnn_linear_exploding() -> Built:
    L.seed_everything(61)

    class Loop(L.LightningModule):
        """A cell without a bounded activation, whose state grows."""

        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.RNNCell(1, 16, nonlinearity="relu"), nn.Linear(16, 1)
            nn.init.eye_(self.cell.weight_hh)
            self.cell.weight_hh.data.mul_(1.5)

        def training_step(self, batch, batch_idx):
            x, y = batch
            h = x.new_zeros(len(x), 16)
            for t in range(x.shape[1]):
                h = self.cell(x[:, t], h)
            return F.mse_loss(self.head(h), y[:, -1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-14)

    return Loop(), loader(*waves(1600)), {"max_epochs": 1}


@case(
    kind="vanishing_gradient",
    also=("loss_stalled", "bad_init", "saturated"),
    modules=("early", "early.*"),
    check=lambda p: p.gradient("early.weight") < 1e-6 * p.gradient("head.weight"),
)
def rnn_vanishing_through_time() -> Built:
    L.seed_everything(62)

    class Remember(L.LightningModule):
        """The answer depends on a first token that forty steps of a contracting RNN have to keep."""

        def __init__(self) -> None:
            super().__init__()
            self.early = nn.Linear(4, 16)
            self.rnn, self.head = nn.RNN(1, 16, batch_first=True), nn.Linear(16, 4)
            self.rnn.weight_hh_l0.data.mul_(0.3)

        def training_step(self, batch, batch_idx):
            start = torch.tanh(self.early(batch[0]))
            out, _ = self.rnn(batch[1], start[None])
            return F.cross_entropy(self.head(out[:, -1]), batch[2])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    y = torch.arange(1600) % 4
    return Remember(), loader(F.one_hot(y, 4).float(), 0.1 * torch.randn(1600, 40, 1), y), {"max_epochs": 1}


@case(
    kind="exploding_gradient",
    also=("exploding_activation", "lr_too_high", "bad_init"),
    modules=("net.rnn",),
    check=lambda p: p.gradients["net.rnn.weight_hh_l0"][0] > 1e3,
    held_out=True,
)
def rnn_layer_exploding() -> Built:
    L.seed_everything(63)
    net = Recurrent(lambda i, h, batch_first: nn.RNN(i, h, batch_first=batch_first, nonlinearity="relu"))
    nn.init.eye_(net.rnn.weight_hh_l0)
    net.rnn.weight_hh_l0.data.mul_(1.6)
    return Task(net, F.mse_loss, sgd(1e-14)), loader(*waves(1600)), {"max_epochs": 1}


@case(
    kind="saturated",
    also=("exploding_activation", "bad_init"),
    modules=("blocks.*.attention*", "blocks.*"),
    check=lambda p: (
        float(p.outputs["blocks.0.attention.softmax"][-1].std.mean()) > 0.2
        and p.largest("blocks.0.attention.query")[-1] > 20
    ),
)
def transformer_attention_saturated() -> Built:
    L.seed_everything(64)
    model = LanguageModel(scaled=False, lr=1e-4)
    for block in model.blocks:
        nn.init.normal_(block.attention.query.weight, std=2.0)
        nn.init.normal_(block.attention.key.weight, std=2.0)
    return model, loader(*tokens(1600)), {"max_epochs": 1}


@case(
    kind="nonfinite",
    also=("outlier_sample",),
    modules=("blocks.0.*", "blocks.0"),
    step=(33, 33),
    samples=(530,),
    check=lambda p: p.first_nonfinite() == 33,
)
def transformer_all_masked() -> Built:
    L.seed_everything(65)
    x, y = tokens(1280)
    mask = torch.zeros(1280, 12, dtype=torch.bool)
    mask[530] = True
    return LanguageModel(), loader(x, y, mask), {"max_epochs": 1}


@case(
    kind="lr_too_high",
    also=("loss_stalled", "loss_divergence", "exploding_activation"),
    check=lambda p: p.late() > p.early(n=1) * 0.8 and p.changes["blocks.0.attention.query.weight"][1] > 0.3,
    held_out=True,
)
def transformer_lr_too_high() -> Built:
    L.seed_everything(66)
    return LanguageModel(lr=1.0), loader(*tokens(1600)), {"max_epochs": 1}


@case(
    kind="corrupt_weight",
    also=("exploding_activation", "loss_spike"),
    modules=("blocks.1.mlp.0", "blocks.1.mlp.*"),
    step=(50, 50),
    neurons=(17,),
    check=lambda p: p.weights["blocks.1.mlp.0.weight"][50] > 50 > 5 > p.weights["blocks.1.mlp.0.weight"][49],
    held_out=True,
)
def transformer_bit_flip() -> Built:
    L.seed_everything(67)

    class Flipped(LanguageModel):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 50:
                with torch.no_grad():
                    self.blocks[1].mlp[0].weight[17, 4] = -96.0

    return Flipped(), loader(*tokens(1760)), {"max_epochs": 1}


@case(
    kind="bad_init",
    also=("loss_stalled", "vanishing_gradient", "lr_too_low"),
    modules=("net.rnn",),
    check=lambda p: float(p.outputs["net.rnn"][-1].std.std() / p.outputs["net.rnn"][-1].std.mean()) < 1e-3,
)
def rnn_constant_weights() -> Built:
    L.seed_everything(68)
    net = Recurrent(nn.GRU)
    for p in net.rnn.parameters():
        nn.init.constant_(p, 0.05)
    nn.init.constant_(net.head.weight, 0.05)
    return Task(net, F.mse_loss), loader(*waves(1600)), {"max_epochs": 1}


@case(
    kind="lr_too_low",
    also=("loss_stalled",),
    check=lambda p: max(p.changes["net.rnn.weight_ih_l0"]) < 1e-5 and p.late() > 0.95 * p.early(),
)
def rnn_lr_too_low() -> Built:
    L.seed_everything(69)
    return Task(Recurrent(), F.mse_loss, sgd(1e-7)), loader(*waves(1600)), {"max_epochs": 1}


@case(
    kind="loss_spike",
    also=("outlier_sample", "exploding_gradient"),
    step=(75, 75),
    samples=tuple(range(75 * 16, 76 * 16)),
    check=lambda p: p.losses[75] > 5 * max(p.losses[45:75]),
)
def rnn_wrong_targets() -> Built:
    L.seed_everything(70)
    x, y = waves(1600)
    y[75 * 16 : 76 * 16] *= -4
    return Task(Recurrent(nn.GRU), F.mse_loss, adam(5e-3)), loader(x, y), {"max_epochs": 1}


@case(
    kind="outlier_sample",
    also=("loss_spike", "exploding_gradient", "exploding_activation"),
    step=(58, 58),
    samples=(940,),
    modules=("net.rnn", "net.*", "net", ""),
    check=lambda p: p.losses[58] > 5 * max(p.losses[30:58]),
)
def rnn_outlier_sequence() -> Built:
    L.seed_everything(71)
    x, y = waves(1440)
    x[940] *= 1000
    y[940] *= 1000
    return Task(Recurrent(nn.GRU), F.mse_loss), loader(x, y), {"max_epochs": 1}


@case(
    kind="norm_degenerate",
    modules=("net.0", "net"),
    neurons=(3,),
    check=lambda p: float(p.outputs["net.0"][-1].std[3]) < 0.5,
    held_out=True,
)
def mlp_norm_of_constant_feature() -> Built:
    L.seed_everything(72)
    from .data import vectors

    x, y = vectors(1600)
    x[:, 3] = 2.0 + 1e-4 * x[:, 3]
    net = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    return Task(net, F.cross_entropy), loader(x, y), {"max_epochs": 1}
