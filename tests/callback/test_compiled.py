"""Compiled models are observed as eager ones are: same numbers, no graph breaks, nothing compiled again."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch._dynamo
from models import CNN, GAN, VAE, images
from torch import nn
from torch._dynamo.utils import counters
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback
from dgm_tb.callback.capture import Capture
from dgm_tb.callback.step_row import StepRow

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


class _Quiet(L.LightningModule):
    """Lightning's ``log`` can't be compiled."""

    def log(self, *_: Any, **__: Any) -> None: ...

    def log_dict(self, *_: Any, **__: Any) -> None: ...


class _VAE(_Quiet, VAE):
    pass


class _CNN(_Quiet, CNN):
    pass


class _GAN(_Quiet, GAN):
    pass


def _compile_parts(model: L.LightningModule) -> L.LightningModule:
    for name, part in list(model.named_children()):
        if isinstance(part, nn.Sequential):
            setattr(model, name, torch.compile(part, backend="aot_eager", fullgraph=True))
    return model


def _compile_whole(model: L.LightningModule) -> Any:
    return torch.compile(model, backend="aot_eager", fullgraph=True)


class _Graphs(L.Callback):
    """Number of graphs compiled after each step."""

    def __init__(self) -> None:
        self.n_graphs: list[int] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.n_graphs.append(counters["stats"]["unique_graphs"])


def _train(make: Callable[[], Any], folder: Path) -> tuple[Recording, list[int], dict[str, torch.Tensor]]:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(1)
    model, graphs = make(), _Graphs()
    callback = DGMTrackerCallback(window_steps=1, max_overhead=None, snapshot_steps=2)
    fit(model, loader(images()), folder, callback, others=(graphs,), max_epochs=1)
    weights = {name.replace("_orig_mod.", ""): value for name, value in model.state_dict().items()}
    return Recording.of(folder), graphs.n_graphs, weights


def _numbers(recording: Recording) -> dict[tuple[str, str, str], np.ndarray[Any, Any]]:
    kinds = [("activation", s) for s in ("mean/mean", "std/mean", "min/min", "max/max", "zero_fraction/mean")]
    return {
        (layer.name.replace("_orig_mod.", ""), quantity, aggregate): recording.dynamics(layer.name, quantity, aggregate)
        for layer in recording.graph.layers
        for quantity, aggregate in [*kinds, ("gradient", "rms/mean")]
    }


@pytest.mark.parametrize(
    ("make", "compile_it"),
    [
        (_VAE, _compile_parts),
        (_CNN, _compile_parts),
        (_GAN, _compile_parts),
        (_VAE, _compile_whole),
        (_CNN, _compile_whole),
    ],
)
def test_compiled_models_give_the_numbers_of_eager_ones(make: Any, compile_it: Any, tmp_path: Path) -> None:
    eager, _, eager_weights = _train(make, tmp_path / "eager")
    recording, n_graphs, weights = _train(lambda: compile_it(make()), tmp_path / "compiled")
    assert counters["graph_break"] == {}
    assert n_graphs[1] > 0, "nothing was compiled"
    assert n_graphs[1:] == n_graphs[1:2] * (len(n_graphs) - 1), f"compiled again: {n_graphs}"
    expected, got = _numbers(eager), _numbers(recording)
    assert expected.keys() == got.keys()
    for key, values in expected.items():
        np.testing.assert_array_equal(got[key], values, err_msg=str(key))
    assert all(torch.equal(weights[name], value) for name, value in eager_weights.items())
    assert [n.id.replace("_orig_mod.", "") for n in recording.graph.nodes] == [n.id for n in eager.graph.nodes]
    assert len(recording.kind("contribution")) == len(eager.kind("contribution"))


class _Block(nn.Module):
    """In-place activation after a layer whose output is observed, and a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.twice = nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.first(x))
        return torch.sigmoid(self.twice(torch.tanh(self.twice(x))))


def _rows(block: nn.Module, run: Callable[[torch.Tensor], torch.Tensor], n_steps: int = 3) -> list[StepRow]:
    capture, rows = Capture(block), []
    rng = torch.Generator().manual_seed(0)
    for _ in range(n_steps):
        capture.begin(5)
        (run(torch.randn(5, 6, generator=rng)).sum() - run(torch.randn(5, 6, generator=rng)).mean()).backward()
        row = capture.end()
        assert row is not None
        rows.append(row)
    capture.close()
    return rows


@needs_compiler
def test_graphs_that_inductor_made_are_observed(tmp_path: Path) -> None:
    torch._dynamo.reset()
    torch.manual_seed(2)
    block = _Block()
    eager = _rows(block, block)
    for parameter in block.parameters():
        parameter.grad = None
    compiled = _rows(block, torch.compile(block, fullgraph=True))
    for one, other in zip(compiled, eager, strict=True):
        assert one.counts == other.counts == [5] * 8, "two calls of first and relu, four of twice"
        assert one.gradient_counts == other.gradient_counts == [5] * 8
        torch.testing.assert_close(one.activation, other.activation)
        torch.testing.assert_close(one.gradient, other.gradient)
        for slot, largest in other.examples.items():
            torch.testing.assert_close(one.examples[slot], largest)


def test_a_second_recording_observes_graphs_compiled_for_the_first() -> None:
    torch._dynamo.reset()
    block = _Block()
    run = torch.compile(block, backend="aot_eager", fullgraph=True)
    _rows(block, run, 1)
    counters.clear()
    (row,) = _rows(block, run, 1)
    assert counters["stats"]["unique_graphs"] == 0
    assert row.counts == [5] * 8


def test_compiled_graphs_are_silent_once_the_recording_is_closed() -> None:
    torch._dynamo.reset()
    block = _Block()
    run = torch.compile(block, backend="aot_eager", fullgraph=True)
    capture = Capture(block)
    capture.begin(5)
    run(torch.randn(5, 6)).sum().backward()
    assert capture.end() is not None
    capture.close()
    run(torch.randn(5, 6)).sum().backward()


def test_a_model_compiled_before_the_recording_is_told_of(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = CNN()
    model.net = torch.compile(model.net, backend="aot_eager")
    model.net(torch.rand(8, 1, 8, 8)).sum().backward()
    with pytest.warns(UserWarning, match=r"compiled before the recording began.*torch\.compiler\.reset"):
        fit(model, loader(images()), tmp_path, DGMTrackerCallback(max_overhead=None))
    assert any("torch.compiler.reset" in note for note in Recording.of(tmp_path).notes)
    assert len(Recording.of(tmp_path).steps()) == 6
