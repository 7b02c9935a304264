"""What is recorded of every neuron and step equals a slow replica in float64 with hooks of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from models import CASES, CNN, GAN, images
from torch import Tensor, nn
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback
from dgm_tb.records import STATISTICS

Values = dict[str, np.ndarray[Any, Any]]


class Oracle(L.Callback):
    """Statistics of every neuron, step by step, the naive way.

    Attributes:
        steps: Per step: (slot or module, quantity) -> statistic -> ``[neurons]``; under ``"layer"`` the same for all
            values of the layer together.
    """

    def __init__(self) -> None:
        self.steps: list[dict[tuple[str, str], Values]] = []
        self.layers: list[dict[tuple[str, str], dict[str, float]]] = []
        self._calls: dict[str, int] = {}
        self._before: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for name, module in pl_module.named_modules():
            if name and not list(module.children()):
                module.register_forward_hook(self._hook(name))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append({})
        self.layers.append({})
        self._calls = {}
        self._before = {name: w.detach().double().clone() for name, w, _ in _weights(pl_module)}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for name, weight, axis in _weights(pl_module):
            before, after = self._before[name], weight.detach().double()
            ratio = _norms(after - before, axis) / _norms(before, axis)
            self.steps[-1][name, "weight"] = {"norm": _norms(after, axis).numpy()}
            self.steps[-1][name, "update"] = {"ratio": ratio.numpy()}
            self.layers[-1][name, "weight"] = {"norm": float(after.norm())}
            self.layers[-1][name, "update"] = {"ratio": float((after - before).norm() / before.norm())}

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not self.steps:
                return
            call = self._calls[name] = self._calls.get(name, -1) + 1
            slot = f"{name}@{call}" if call else name
            x = _by_neuron(output)
            statistics: dict[str, Callable[[Tensor], Tensor]] = {
                "mean": lambda v: v.mean(-1),
                "std": lambda v: v.std(-1, correction=0),
                "min": lambda v: v.amin(-1),
                "max": lambda v: v.amax(-1),
                "zero_fraction": lambda v: (v == 0).double().mean(-1),
            }
            self.steps[-1][slot, "activation"] = {key: f(x).numpy() for key, f in statistics.items()}
            self.layers[-1][slot, "activation"] = {key: float(f(x.flatten())) for key, f in statistics.items()}
            if output.requires_grad:
                here, layers = self.steps[-1], self.layers[-1]

                def on_gradient(gradient: Tensor) -> None:
                    g = _by_neuron(gradient)
                    here[slot, "gradient"] = {"rms": g.square().mean(-1).sqrt().numpy()}
                    layers[slot, "gradient"] = {"rms": float(g.square().mean().sqrt())}

                output.register_hook(on_gradient)

        return hook


def _by_neuron(x: Tensor) -> Tensor:
    """``[neurons, values]``, a copy in float64: channels are axis 1, units the last axis."""
    axis = 1 if x.dim() == 4 else -1
    return x.detach().double().clone().movedim(axis, 0).flatten(1)


def _weights(module: nn.Module) -> list[tuple[str, Tensor, int]]:
    """Name, incoming weights and axis of the neurons of each module."""
    found = [(name, m) for name, m in module.named_modules() if isinstance(getattr(m, "weight", None), nn.Parameter)]
    return [(name, m.weight, 1 if isinstance(m, nn.ConvTranspose2d) else 0) for name, m in found]


def _norms(weight: Tensor, axis: int) -> Tensor:
    return weight.movedim(axis, 0).reshape(weight.shape[axis], -1).norm(dim=1)


def _recorded(case: str, folder: Path, **options: Any) -> tuple[Oracle, Recording]:
    chosen = CASES[case]
    torch.manual_seed(1)
    oracle = Oracle()
    callback = DGMTrackerCallback(max_overhead=None, **options)
    fit(chosen.make(), loader(chosen.data()), folder, callback, others=(oracle,), max_epochs=1, **chosen.trainer)
    return oracle, Recording.of(folder)


def _stacked(steps: list[Any], key: tuple[str, str], statistic: str) -> np.ndarray[Any, Any]:
    return np.stack([step[key][statistic] for step in steps])


def _assert_equal(got: np.ndarray[Any, Any], steps: list[Any], key: tuple[str, str], statistic: str) -> None:
    """Equal but for a few float32 roundings of the largest value that went into the sums."""
    want = _stacked(steps, key, statistic)
    scale = np.abs(_stacked(steps, key, "max" if key[1] == "activation" else statistic)).max()
    tolerance = 2e-6 * scale
    if statistic == "std":  # comes from sums of squares: the variance is known to roundings of the squared mean
        got, want = got**2, want**2
        tolerance = 1e-7 * _stacked(steps, key, "mean") ** 2 + 1e-12
    error = np.abs(got - want)
    worst = np.unravel_index(np.argmax(error - tolerance), error.shape)
    assert (error <= 1e-4 * np.abs(want) + tolerance).all(), f"{key} {statistic}: {got[worst]} is not {want[worst]}"


@pytest.mark.parametrize("case", ["vae", "gan", "cnn", "residual", "distribution_vae"])
def test_every_statistic_of_every_neuron_and_step_equals_the_oracle(case: str, tmp_path: Path) -> None:
    oracle, recording = _recorded(case, tmp_path, window_steps=1)
    keys = set(oracle.steps[0])
    recorded = {(layer.name, "activation") for layer in recording.graph.layers}
    shape_only = {key for key in keys if CASES[case].make().get_submodule(key[0].split("@")[0]).__class__ in _SHAPE}
    assert recorded == {key for key in keys - shape_only if key[1] == "activation"}
    assert {(w.module, "weight") for w in recording.graph.weights} == {key for key in keys if key[1] == "weight"}
    for name, quantity in keys - shape_only:
        for statistic in STATISTICS[quantity]:
            got = recording.dynamics(name, quantity, f"{statistic.name}/{statistic.windows[0]}")
            _assert_equal(got, oracle.steps, (name, quantity), statistic.name)


_SHAPE = (nn.Flatten, nn.Unflatten, nn.Identity)


@pytest.mark.parametrize("case", ["vae", "gan", "cnn"])
def test_every_layer_statistic_equals_the_oracle(case: str, tmp_path: Path) -> None:
    oracle, recording = _recorded(case, tmp_path, window_steps=4)
    names = {layer.name for layer in recording.graph.layers} | {weight.module for weight in recording.graph.weights}
    for name, quantity in set(oracle.layers[0]):
        if name not in names:
            continue
        for statistic in STATISTICS[quantity]:
            got = recording.layer_statistic(name, quantity, statistic.name)
            _assert_equal(got, oracle.layers, (name, quantity), statistic.name)


@pytest.mark.parametrize("case", ["vae", "gan"])
def test_windows_hold_mean_min_and_max_of_their_steps(case: str, tmp_path: Path) -> None:
    oracle, recording = _recorded(case, tmp_path, window_steps=4)
    assert recording.windows() == [(0, 3), (4, 5)]
    aggregates = {"mean": np.mean, "min": np.min, "max": np.max}
    for name, quantity in set(oracle.steps[0]):
        if quantity != "update" and name not in {layer.name for layer in recording.graph.layers}:
            continue
        for statistic in STATISTICS[quantity]:
            steps = _stacked(oracle.steps, (name, quantity), statistic.name)
            for aggregate in statistic.windows:
                got = recording.dynamics(name, quantity, f"{statistic.name}/{aggregate}")
                want = np.stack([aggregates[aggregate](part, 0) for part in (steps[:4], steps[4:])])
                np.testing.assert_allclose(
                    got, want, rtol=2e-3, atol=1e-3 * np.abs(want).max(), err_msg=f"{name} {quantity} {statistic.name}"
                )


def test_the_discriminator_has_a_slot_for_real_for_detached_and_for_fake(tmp_path: Path) -> None:
    _, recording = _recorded("gan", tmp_path, window_steps=1)
    names = [layer.name for layer in recording.graph.layers]
    for call in ("", "@1", "@2"):
        assert f"discriminator.0{call}" in names
    real, detached, fake = (
        recording.dynamics(f"discriminator.0{c}", "activation", "mean/mean") for c in ("", "@1", "@2")
    )
    assert not np.allclose(real, detached)
    assert not np.array_equal(detached, fake), "the discriminator has made a step between the two"


def test_in_place_activations_change_no_recorded_gradient(tmp_path: Path) -> None:
    gradients = []
    for inplace in (True, False):
        torch.manual_seed(1)
        folder = tmp_path / str(inplace)
        fit(CNN(inplace), loader(images()), folder, DGMTrackerCallback(window_steps=1, max_overhead=None))
        recording = Recording.of(folder)
        gradients.append([recording.dynamics(layer.name, "gradient", "rms/mean") for layer in recording.graph.layers])
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-9)


def test_every_nth_step_is_observed_and_every_loss_recorded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    callback = DGMTrackerCallback(window_steps=1, every_n_steps=3, max_overhead=None)
    fit(GAN(), loader(images()), tmp_path, callback)
    recording = Recording.of(tmp_path)
    assert [first for first, _ in recording.windows()] == [0, 3]
    assert [step for step, _ in recording.steps()] == [0, 1, 2, 3, 4, 5]


def test_polylines_are_the_neurons_at_full_step_resolution(tmp_path: Path) -> None:
    oracle, recording = _recorded("vae", tmp_path, window_steps=2)
    layers = [(layer.name, recording.rows(layer.name, "activation")) for layer in recording.graph.layers]
    polylines = [record for record in recording.kind("polylines") if record.body["quantity"] == "activation"]
    assert polylines
    for record in polylines:
        for column, neuron in enumerate(record.arrays["neurons"]):
            name, rows = next((n, r) for n, r in layers if r.start <= neuron < r.stop)
            want = _stacked(oracle.steps, (name, "activation"), "mean")[record.arrays["steps"], neuron - rows.start]
            np.testing.assert_allclose(record.arrays["values"][:, column], want, rtol=2e-3, atol=1e-4)


class _Sometimes(CNN):
    """Calls one of its layers in every third step only."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.extra = nn.Linear(3, 3)
        self.n_steps = 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        self.n_steps += 1
        return self.extra(y) if self.n_steps % 3 == 1 else y


def test_windows_of_a_layer_not_called_in_every_step_are_of_the_steps_with_it(tmp_path: Path) -> None:
    every, windows = tmp_path / "every", tmp_path / "windows"
    for folder, window_steps in ((every, 1), (windows, 4)):
        torch.manual_seed(1)
        fit(_Sometimes(), loader(images()), folder, DGMTrackerCallback(window_steps=window_steps, max_overhead=None))
    steps = Recording.of(every).dynamics("extra", "activation", "mean/mean")
    assert np.isnan(steps[1]).all()
    got = Recording.of(windows).dynamics("extra", "activation", "mean/mean")
    np.testing.assert_allclose(got, [(steps[0] + steps[3]) / 2, np.full(3, np.nan)], rtol=2e-3)


def test_long_windows_measure_weights_in_four_of_their_steps(tmp_path: Path) -> None:
    torch.manual_seed(1)
    oracle = Oracle()
    callback = DGMTrackerCallback(window_steps=8, max_overhead=None)
    fit(CNN(), loader(images()), tmp_path, callback, others=(oracle,), max_epochs=2)
    recording = Recording.of(tmp_path)
    steps = {
        quantity: [
            int(step)
            for record in recording.kind("layer_statistics")
            if record.body["quantity"] == quantity
            for step in record.arrays["steps"]
        ]
        for quantity in STATISTICS
    }
    assert steps["activation"] == steps["gradient"] == list(range(12))
    assert steps["weight"] == steps["update"] == [0, 2, 4, 6, 8, 10]
    for quantity, statistic in (("weight", "norm"), ("update", "ratio")):
        exact = _stacked(oracle.steps, ("net.9", quantity), statistic)
        got = recording.dynamics("net.9", quantity, f"{statistic}/mean")
        want = [exact[[0, 2, 4, 6]].mean(0), exact[[8, 10]].mean(0)]
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=1e-6, err_msg=quantity)
