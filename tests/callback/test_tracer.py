"""What is part of the DAG and what is not: the model's own functions, and nothing of what goes on around them."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from models import CASES, CNN, COMPILED_CASES, Classifier, images
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback
from dgm_tb.graph import Graph

Edges = set[tuple[str, str]]


def _graph(model: L.LightningModule, folder: Path, **options: Any) -> Graph:
    torch.manual_seed(1)
    fit(model, loader(images()), folder, DGMTrackerCallback(max_overhead=None), **{"max_steps": 2, **options})
    recording = Recording.of(folder)
    assert recording.notes == []
    return recording.graph


def _edges(graph: Graph) -> Edges:
    return {(edge.source, edge.target) for edge in graph.edges}


def _dag(graph: Graph) -> tuple[list[str], Edges]:
    return [node.id for node in graph.nodes], _edges(graph)


# -- what the trainer does ---------------------------------------------------------------------------------------------


class _Small(Classifier):
    """A network whose optimizer is given."""

    def __init__(self, optimizer: Callable[..., Any] = torch.optim.SGD, **options: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))
        self.optimizer, self.options = optimizer, options

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), lr=0.01, **self.options)


class _Plain(_Small):
    """Optimizes by hand, with gradient scaling, clipping, and whatever else users write."""

    def __init__(self, step: Callable[["_Plain", Tensor], None]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.step = step

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.optimizers().zero_grad()
        self.step(self, F.cross_entropy(self(batch[0]), batch[1]))
        self.optimizers().step()


def _scaled(model: _Plain, loss: Tensor) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(loss).backward()
    scaler.unscale_(model.optimizers().optimizer)
    scaler.step(model.optimizers().optimizer)
    scaler.update()


def _clipped(model: _Plain, loss: Tensor) -> None:
    model.manual_backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    nn.utils.clip_grad_value_(model.parameters(), 0.5)


def _naked(_: _Plain, loss: Tensor) -> None:
    torch.autograd.backward([loss])


def _decayed(model: _Plain, loss: Tensor) -> None:
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.99)
            parameter.data.clamp_(-1, 1)


AROUND: dict[str, tuple[Callable[[], L.LightningModule], dict[str, Any]]] = {
    "momentum": (lambda: _Small(momentum=0.9, weight_decay=0.1, foreach=False), {}),
    "adam": (lambda: _Small(torch.optim.Adam, foreach=False), {}),
    "foreach": (lambda: _Small(torch.optim.AdamW, foreach=True), {}),
    "fused": (lambda: _Small(torch.optim.Adam, fused=True), {}),
    "closures": (lambda: _Small(torch.optim.LBFGS, max_iter=3), {}),
    "accumulation": (_Small, {"accumulate_grad_batches": 2}),
    "clipping": (_Small, {"gradient_clip_val": 0.5}),
    "clipping values": (_Small, {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}),
    "mixed precision": (_Small, {"precision": "bf16-mixed"}),
    "manual scaler": (lambda: _Plain(_scaled), {}),
    "manual clipping": (lambda: _Plain(_clipped), {}),
    "naked backward": (lambda: _Plain(_naked), {}),
    "changed weights": (lambda: _Plain(_decayed), {}),
}


@pytest.mark.parametrize("name", AROUND)
def test_what_is_done_around_the_model_is_no_part_of_it(name: str, tmp_path: Path) -> None:
    make, options = AROUND[name]
    names, edges = _dag(_graph(make(), tmp_path, **options))
    chain = ["batch[0]", *(f"net.{n}" for n in range(4)), "batch[1]", "cross_entropy", "loss"]
    assert names == chain
    expected = {*pairwise(chain[:5]), ("net.3", "cross_entropy"), ("batch[1]", "cross_entropy")}
    assert edges == {*expected, ("cross_entropy", "loss")}


class _Watched(_Small):
    """Computes metrics, keeps an average of its outputs, and logs."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.register_buffer("usual", torch.zeros(3))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0])
        self.log("accuracy", self.accuracy(logits, batch[1]))
        self.usual.mul_(0.9).add_(0.1 * logits.detach().mean(0))
        self.log("norm", sum(p.detach().square().sum() for p in self.parameters()).sqrt())
        return F.cross_entropy(logits, batch[1])


class _Averaging(L.Callback):
    """Two ways to keep an average of the weights."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.average = AveragedModel(pl_module.net)
        self.own = [parameter.detach().clone() for parameter in pl_module.parameters()]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.average.update_parameters(pl_module.net)
        with torch.no_grad():
            for own, parameter in zip(self.own, pl_module.parameters(), strict=True):
                own.mul_(0.9).add_(parameter, alpha=0.1)


def test_metrics_averages_and_validation_are_no_part_of_it(tmp_path: Path) -> None:
    callback = DGMTrackerCallback(max_overhead=None)
    options = {"val": loader(images()), "val_check_interval": 1, "max_steps": 2, "num_sanity_val_steps": 1}
    fit(_Watched(), loader(images()), tmp_path, callback, others=(_Averaging(),), **options)
    names, _ = _dag(Recording.of(tmp_path).graph)
    assert names == ["batch[0]", *(f"net.{n}" for n in range(4)), "batch[1]", "cross_entropy", "loss"]


@pytest.mark.parametrize("case", ["checkpointed", "checkpointed_reentrant", "checkpointed_transformer"])
def test_what_checkpointing_computes_again_is_no_part_of_it(case: str, tmp_path: Path) -> None:
    chosen = CASES[case]
    fit(chosen.make(), loader(chosen.data()), tmp_path, DGMTrackerCallback(), max_steps=2)
    names, edges = _dag(Recording.of(tmp_path).graph)
    assert not [name for name in names if "@" in name]
    assert {name for name in names if not any(name == source for source, _ in edges)} == {"loss"}


@pytest.mark.parametrize("case", COMPILED_CASES)
def test_a_compiled_model_has_the_dag_of_the_eager_one(case: str, tmp_path: Path) -> None:
    compiled = _graph(COMPILED_CASES[case].make(), tmp_path / "compiled")
    eager = _graph(CNN(inplace=False, dropout=0.0), tmp_path / "eager")
    names, edges = _dag(compiled)
    assert [name.replace("_orig_mod.", "") for name in names] == _dag(eager)[0]
    assert {tuple(name.replace("_orig_mod.", "") for name in edge) for edge in edges} == _edges(eager)
    assert [layer.neurons for layer in compiled.layers] == [layer.neurons for layer in eager.layers]


# -- what the model's own functions do ---------------------------------------------------------------------------------


class _Step(Classifier):
    """A training step given as a function, with a layer before and one after it."""

    def __init__(self, function: Callable[[Tensor, Any], Tensor], features: int = 8) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(64, 8), nn.Linear(features, 3), function
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x.flatten(1)), self))


def _in_views(h: Tensor, _: Any) -> Tensor:
    padded = torch.zeros(len(h), 8)
    padded[:, :4] = h[:, :4].tanh()
    padded[:, 4:].add_(1.0)
    return padded


def _into_given(h: Tensor, _: Any) -> Tensor:
    result = torch.empty(len(h), 8)
    with torch.no_grad():
        torch.add(h, 1.0, out=result)
    return result


def _several(h: Tensor, _: Any) -> Tensor:
    left, right = h.chunk(2, 1)
    return torch.cat([torch.where(left > right, left, right), torch.maximum(left, right)], 1)


def _data(h: Tensor, _: Any) -> Tensor:
    return h + h.data.T.T


def _kept_in_place(h: Tensor, _: Any) -> Tensor:
    y = h * 1.5
    y += h
    y *= 2.0
    return 1 - y / 3


def _with_weights(h: Tensor, model: Any) -> Tensor:
    return torch.einsum("bi,i->bi", h, model.scale) + F.linear(h, model.first.weight[:, :8])


def _attention(h: Tensor, _: Any) -> Tensor:
    q = h.view(-1, 2, 4)
    return F.scaled_dot_product_attention(q, q, q).reshape(-1, 8)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


FUNCTIONS: dict[str, tuple[Callable[[Tensor, Any], Tensor], Edges]] = {
    "into a view": (
        _in_views,
        {("first", "getitem"), ("tanh", "setitem"), ("setitem", "getitem:1"), ("getitem:1", "add"), ("add", "last")},
    ),
    "into a given tensor": (_into_given, {("first", "add"), ("add", "last")}),
    "several outputs": (
        _several,
        {("chunk", "gt"), ("gt", "where"), ("chunk", "where"), ("chunk", "maximum"), ("where", "cat"), ("cat", "last")},
    ),
    "data": (_data, {("first", "detach"), ("detach", "T"), ("T", "T:1"), ("T:1", "add"), ("first", "add")}),
    "in place": (
        _kept_in_place,
        {("mul", "add"), ("first", "add"), ("add", "mul:1"), ("mul:1", "div"), ("div", "sub"), ("sub", "last")},
    ),
    "weights by themselves": (
        _with_weights,
        {("scale", "einsum"), ("first.weight", "getitem"), ("getitem", "linear"), ("linear", "add")},
    ),
    "attention": (
        _attention,
        {("view", "scaled_dot_product_attention"), ("scaled_dot_product_attention", "reshape"), ("reshape", "last")},
    ),
    "autograd function": (lambda h, _: _Rounded.apply(h), {("first", "round"), ("round", "last")}),
    "random": (
        lambda h, _: torch.bernoulli(h.sigmoid()) + torch.empty_like(h).normal_(),
        {("sigmoid", "bernoulli"), ("bernoulli", "add"), ("normal", "add")},
    ),
    "split and stack": (
        lambda h, _: torch.stack(h.split(4, 1), 1).sum(1),
        {("split", "stack"), ("stack", "sum"), ("first", "split")},
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_what_flows_between_them(name: str, tmp_path: Path) -> None:
    function, expected = FUNCTIONS[name]
    graph = _graph(_Step(function, 4 if name == "split and stack" else 8), tmp_path)
    edges = _edges(graph)
    assert expected <= edges, sorted(edges)
    ops = {node.id for node in graph.nodes if node.kind in ("op", "random", "detach")}
    assert {name for edge in expected for name in edge} >= ops - {"flatten"}, "and nothing else"


def test_kinds_of_nodes(tmp_path: Path) -> None:
    def function(h: Tensor, model: Any) -> Tensor:
        return h.detach() * model.scale + torch.randn_like(h) + h.data

    kinds = {node.id: node.kind for node in _graph(_Step(function), tmp_path).nodes}
    assert kinds["detach"] == kinds["detach:1"] == "detach"
    assert (kinds["scale"], kinds["randn_like"], kinds["mul"]) == ("parameter", "random", "op")
    assert (kinds["batch[0]"], kinds["cross_entropy"], kinds["loss"]) == ("input", "loss", "loss")


# -- other branches later ----------------------------------------------------------------------------------------------


class _Branching(Classifier):
    """Other functions of the same name in the branch that is taken from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.early, self.late = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        h = torch.tanh(self.stem(batch[0].flatten(1)))
        if batch_idx < 2:
            h = torch.relu(self.early(h * 2))
        else:
            h = torch.relu(torch.sigmoid(self.late(h * 3)))
        return F.cross_entropy(self.head(torch.tanh(h)), batch[1])


def test_a_new_branch_is_added_and_the_old_one_keeps_its_place(tmp_path: Path) -> None:
    graph = _graph(_Branching(), tmp_path, max_steps=5)
    edges = _edges(graph)
    early = [("stem", "tanh"), ("tanh", "mul"), ("mul", "early"), ("early", "relu"), ("relu", "tanh:1")]
    assert set(early) <= edges
    ((_, scaled), (late, squashed)) = (
        next(edge for edge in edges if edge[0] == "tanh" and edge[1] != "mul"),
        next(edge for edge in edges if edge[0] == "late"),
    )
    assert (scaled, late) in edges, "another multiplication"
    (again,) = [target for source, target in edges if source == squashed]
    assert again != "relu"
    assert {(again, "tanh:1"), ("tanh:1", "head"), ("head", "cross_entropy"), ("cross_entropy", "loss")} <= edges
    order = {node.id: number for number, node in enumerate(graph.nodes)}
    assert all(order[edge.source] < order[edge.target] for edge in graph.edges)
    assert len(order) == 16


class _Shuffling(Classifier):
    """Takes its layers in another order in every other step, and one more later: no order of them all is right."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.more = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        h, layers = batch[0].flatten(1), [self.one, self.other]
        layers = layers if batch_idx < 2 else [self.other, self.more, self.one]
        for layer in layers:
            h = layer(h)
        return F.cross_entropy(self.head(h), batch[1])


def test_branches_that_contradict_each_other_make_no_cycle(tmp_path: Path) -> None:
    graph = _graph(_Shuffling(), tmp_path, max_steps=5)
    order = {node.id: number for number, node in enumerate(graph.nodes)}
    assert all(order[edge.source] < order[edge.target] for edge in graph.edges)
    assert {("other", "more"), ("more", "one"), ("one", "head")} <= _edges(graph)


# -- bad luck ----------------------------------------------------------------------------------------------------------


def test_an_error_of_ours_ends_the_trace_and_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, *_: Any) -> None:
        if name == "sigmoid":
            raise ZeroDivisionError("no such axis")

    monkeypatch.setattr("dgm_tb.callback.tracer.kept_axes", fails)
    fit(_Step(lambda h, _: h.sigmoid().tanh()), loader(images()), tmp_path, DGMTrackerCallback(), max_steps=3)
    recording = Recording.of(tmp_path)
    assert recording.notes == ["the model could not be traced to its end: ZeroDivisionError: no such axis"]
    assert recording.end["last_step"] == 2
    assert recording.end["reason"] == "finished"
    assert [layer.name for layer in recording.graph.layers] == ["first", "last"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_modules_are_not_seen(tmp_path: Path) -> None:
    class Scripted(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.jit.script(nn.Sequential(nn.Linear(64, 8), nn.ReLU()))
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x.flatten(1)))

    fit(Scripted(), loader(images()), tmp_path, DGMTrackerCallback(), max_steps=2)
    recording = Recording.of(tmp_path)
    assert recording.end["reason"] == "finished"
    assert "head" in {node.id for node in recording.graph.nodes}
    assert recording.graph.unrecorded["inner.0"] == "a scripted module runs no hooks"
    assert recording.graph.no_contribution["head"] == "its input was not seen by the tracer"
