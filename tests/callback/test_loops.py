"""Loops in the code: a module called again and again on its own last output is one layer and one node of the DAG."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import CASES, CellLoop, Classifier, images, sequences
from torch import Tensor, nn
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback
from dgm_tb.graph import Graph, Node


def _recorded(model: L.LightningModule, folder: Path, data: Any = images, **options: Any) -> Recording:
    torch.manual_seed(1)
    callback = DGMTrackerCallback(max_overhead=None, window_steps=1)
    fit(model, loader(data()), folder, callback, **{"max_steps": 3, **options})
    recording = Recording.of(folder)
    assert recording.notes == []
    return recording


def _node(graph: Graph, name: str) -> Node:
    return next(node for node in graph.nodes if node.id == name)


def _edges(graph: Graph) -> set[tuple[str, str]]:
    return {(edge.source, edge.target) for edge in graph.edges}


def _repeats(graph: Graph) -> dict[str, int]:
    return {node.id: node.repeats for node in graph.nodes if node.repeats > 1}


def test_a_loop_over_time_is_one_node_with_its_turns(tmp_path: Path) -> None:
    graph = _recorded(CellLoop(), tmp_path, sequences).graph
    assert _repeats(graph) == dict.fromkeys(("getitem", "cell", "out", "tanh"), 12)
    chain = [("embedding", "getitem"), ("getitem", "cell"), ("cell", "out"), ("out", "tanh"), ("tanh", "stack")]
    assert set(chain) | {("stack", "mean"), ("mean", "head")} <= _edges(graph)
    assert [layer.name for layer in graph.layers] == ["embedding", "cell", "cell[1]", "out", "head"]
    assert graph.unrecorded == {}


class _Turns(L.Callback):
    """Outputs of a module, and their gradients, of every call in every step."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.outputs: list[list[Tensor]] = []
        self.gradients: list[list[Tensor]] = []

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        pl_module.get_submodule(self.name).register_forward_hook(self._hook)

    def on_train_batch_start(self, *_: Any) -> None:
        self.outputs.append([])
        self.gradients.append([])

    def _hook(self, module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        self.outputs[-1].append(first.detach().double())
        first.register_hook(lambda gradient, into=self.gradients[-1]: into.append(gradient.double()))


@pytest.mark.parametrize("name", ["cell", "out"])
def test_the_statistics_of_a_loop_run_over_all_its_turns(name: str, tmp_path: Path) -> None:
    turns = _Turns(name)
    torch.manual_seed(1)
    callback = DGMTrackerCallback(max_overhead=None, window_steps=1)
    fit(CellLoop(), loader(sequences()), tmp_path, callback, others=(turns,), max_steps=3)
    recording = Recording.of(tmp_path)
    for step in range(3):
        assert len(turns.outputs[step]) == len(turns.gradients[step]) == 12
        x, g = torch.cat(turns.outputs[step]), torch.cat(turns.gradients[step])
        want = {
            ("activation", "mean/mean"): x.mean(0),
            ("activation", "std/mean"): x.std(0, correction=0),
            ("activation", "min/min"): x.amin(0),
            ("activation", "max/max"): x.amax(0),
            ("gradient", "rms/mean"): g.square().mean(0).sqrt(),
        }
        for (quantity, aggregate), expected in want.items():
            got = recording.dynamics(name, quantity, aggregate)[step]
            np.testing.assert_allclose(got, expected.numpy(), rtol=2e-3, atol=2e-4 * float(expected.abs().max()))


def test_the_examples_of_a_loop_are_judged_by_their_largest_turn(tmp_path: Path) -> None:
    turns = _Turns("out")
    fit(CellLoop(), loader(sequences()), tmp_path, DGMTrackerCallback(), others=(turns,), max_steps=2)
    recording = Recording.of(tmp_path)
    (ring,) = recording.kind("ring")
    number = [layer.name for layer in recording.graph.layers].index("out")
    want = torch.stack([torch.stack(step).abs().amax((0, 2)) for step in turns.outputs])
    np.testing.assert_allclose(ring.arrays["examples"][:, number], want.numpy(), rtol=2**-11)  # float16


class _Twice(Classifier):
    """The same module twice in a row, from two places in the code: no loop."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(torch.tanh(self.shared(self.stem(x.flatten(1))))))


class _InParallel(_Twice):
    """The same module called in a loop, but never on what came out of it."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1))
        total = torch.zeros_like(h)
        for scale in (1.0, 2.0, 3.0):
            total = total + self.shared(h * scale)
        return self.head(total)


class _Sliding(_Twice):
    """A shared module between modules of which each runs once."""

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1))
        for module in self.between:
            h = torch.relu(h + module(h))
        return self.head(h)


@pytest.mark.parametrize("make", [_Twice, _InParallel, _Sliding])
def test_other_calls_stay_apart(make: Any, tmp_path: Path) -> None:
    graph = _recorded(make(), tmp_path).graph
    assert _repeats(graph) == {}
    nodes = {node.id for node in graph.nodes}
    expected = {
        _Twice: {"shared", "shared@1"},
        _InParallel: {"shared", "shared@1", "shared@2"},
        _Sliding: {"relu", "relu:1", "relu:2", "between.2"},
    }
    assert expected[make] <= nodes
    assert {layer.name for layer in graph.layers} <= nodes


class _Refining(Classifier):
    """A loop with a sequence inside, a branch in its first turn, an inner loop, and a loss in every turn."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        h = self.enter(batch[0].flatten(1))
        loss = torch.zeros(())
        for turn in range(5):
            if turn:
                h = F.layer_norm(h, (8,))
            h = h + self.body(h)
            for _ in range(2):
                h = torch.sigmoid(self.inner(h))
            loss = loss + F.cross_entropy(self.head(h), batch[1])
        return loss


def test_loops_may_hold_branches_sequences_losses_and_loops(tmp_path: Path) -> None:
    graph = _recorded(_Refining(), tmp_path).graph
    repeats = _repeats(graph)
    assert {repeats[f"body.{n}"] for n in range(3)} == {5}
    assert repeats["inner"] == repeats["sigmoid"] == 10
    assert repeats["layer_norm"] == 4
    assert repeats["cross_entropy"] == 5
    order = {node.id: number for number, node in enumerate(graph.nodes)}
    assert all(order[edge.source] < order[edge.target] for edge in graph.edges), "no cycle"
    assert ("inner", "sigmoid") in _edges(graph)
    assert {layer.name for layer in graph.layers} <= set(order)
    assert len(graph.nodes) < 20


class _Sampling(Classifier):
    """Draws from its own last sample in a loop without gradients, then learns."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.Tanh())
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)
        with torch.no_grad():
            for _ in range(20):
                z = z + 0.1 * self.net(z) + 0.01 * torch.randn_like(z)
        return self.head(self.net(z))


def test_a_call_after_the_loop_is_not_lost(tmp_path: Path) -> None:
    graph = _recorded(_Sampling(), tmp_path).graph
    assert _repeats(graph)["net.0"] == _repeats(graph)["randn_like"] == 20
    assert "net.0@20" in {node.id for node in graph.nodes}, "called from elsewhere"
    assert ("net.1@20", "head") in _edges(graph)


@pytest.mark.parametrize(
    ("case", "name", "steps"),
    [("recurrent", "lstm", {5}), ("bidirectional", "lstm", {12}), ("packed_gru", "gru", set(range(3, 13)))],
)
def test_a_recurrent_layer_tells_its_time_steps(case: str, name: str, steps: set[int], tmp_path: Path) -> None:
    chosen = CASES[case]
    assert _node(_recorded(chosen.make(), tmp_path, chosen.data).graph, name).repeats in steps


class _LBFGS(_Twice):
    """An optimizer that evaluates the training step up to four times in one step of its own."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)


def test_a_step_evaluated_again_counts_as_its_last_evaluation(tmp_path: Path) -> None:
    turns = _Turns("stem")
    torch.manual_seed(1)
    callback = DGMTrackerCallback(max_overhead=None, window_steps=1)
    fit(_LBFGS(), loader(images()), tmp_path, callback, others=(turns,), max_steps=3)
    recording = Recording.of(tmp_path)
    assert [layer.name for layer in recording.graph.layers] == ["stem", "shared", "shared@1", "head"]
    assert {layer.name for layer in recording.graph.layers} <= {node.id for node in recording.graph.nodes}
    assert _repeats(recording.graph) == {}
    assert min(map(len, turns.outputs)) > 1
    for quantity, aggregate, values, statistic in (
        ("activation", "mean/mean", turns.outputs, lambda x: x.mean(0)),
        ("gradient", "rms/mean", turns.gradients, lambda g: g.square().mean(0).sqrt()),
    ):
        got = recording.dynamics("stem", quantity, aggregate)
        want = torch.stack([statistic(calls[-1]) for calls in values]).numpy()
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-4 * np.abs(want).max())
    contributions = [(record.body["target"], record.body["direction"]) for record in recording.kind("contribution")]
    assert len(contributions) == len(set(contributions)), "once each, at the first step"


def test_repeats_are_written_only_where_there_are_any_and_older_records_are_read() -> None:
    graph = Graph(nodes=[Node("a", "module", "Linear"), Node("b", "module", "LSTM", repeats=7)])
    body = graph.to_json()
    assert [node.get("repeats") for node in body["nodes"]] == [None, 7]
    assert Graph.from_json(body) == graph
