"""The contribution matrices of a snapshot are those of its own batch and weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import CASES, GAN, VAE, images
from torch import Tensor, nn
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback
from dgm_tb.algorithms.contribution import contribution_by_position, contribution_matrix
from dgm_tb.records import Record, expand

TYPES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class Calls(L.Callback):
    """Each call of a layer in one step: a copy of the layer, its input, and the gradient of its output."""

    def __init__(self, step: int = 0) -> None:
        self.step = step
        self.calls: dict[str, tuple[nn.Module, Tensor]] = {}
        self.gradients: dict[str, Tensor] = {}
        self._n_steps = -1
        self._n_calls: dict[str, int] = {}

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        for name, module in pl_module.named_modules():
            if isinstance(module, TYPES):
                module.register_forward_hook(self._hook(name), with_kwargs=True)

    def on_train_batch_start(self, *_: Any) -> None:
        self._n_steps += 1

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor], named: dict[str, Tensor], output: Tensor) -> None:
            if self._n_steps != self.step:
                return
            call = self._n_calls[name] = self._n_calls.get(name, -1) + 1
            slot = f"{name}@{call}" if call else name
            twin = type(module).__new__(type(module))
            twin.__dict__ = {k: copy.copy(v) if k.startswith("_") else v for k, v in module.__dict__.items()}
            twin._forward_hooks = type(module._forward_hooks)()
            twin._parameters = {
                key: None if value is None else nn.Parameter(value.detach().clone())
                for key, value in module._parameters.items()
            }
            self.calls[slot] = (twin, (*inputs, *named.values())[0].detach().clone())
            if output.requires_grad:
                output.register_hook(lambda gradient: self.gradients.__setitem__(slot, gradient.clone()))

        return hook


def _recorded(case: str, folder: Path, step: int = 0, **options: Any) -> tuple[Calls, Recording]:
    chosen, calls = CASES[case], Calls(step)
    torch.manual_seed(1)
    callback = DGMTrackerCallback(**options)
    fit(chosen.make(), loader(chosen.data()), folder, callback, others=(calls,), **chosen.trainer)
    return calls, Recording.of(folder)


def _matrices(recording: Recording, step: int, columns: str = "channel") -> dict[tuple[str, str], Record]:
    of_step = [r for r in recording.kind("contribution") if r.body["step"] == step and not r.body["finding"]]
    found = [record for record in of_step if record.body["columns"] == columns]
    assert len({(r.body["target"], r.body["direction"], r.body["samples"]) for r in found}) == len(found)
    return {(record.body["target"], record.body["direction"]): record for record in found}


def _values(record: Record) -> np.ndarray[Any, Any]:
    return expand("values", record.arrays["values"], record.body)


def _assert_close(record: Record, want: Tensor) -> None:
    got, expected = _values(record), want.detach().double().numpy()
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("case", ["vae", "gan", "cnn", "residual", "attentive", "keywords_only"])
def test_matrices_of_the_first_step_are_those_of_its_batch_and_weights(case: str, tmp_path: Path) -> None:
    calls, recording = _recorded(case, tmp_path)
    recorded = _matrices(recording, 0)
    assert {target for target, direction in recorded if direction == "forward"} == set(calls.calls)
    assert {target for target, direction in recorded if direction == "backward"} == set(calls.gradients)
    for slot, (module, x) in calls.calls.items():
        _assert_close(recorded[slot, "forward"], contribution_matrix(module, x))
        if slot in calls.gradients:
            gradient = contribution_matrix(module, x, rule="gradient", output_relevance=calls.gradients[slot])
            _assert_close(recorded[slot, "backward"], gradient)


@pytest.mark.parametrize("case", ["vae", "gan"])
def test_forward_contributions_equal_the_layer_run_on_one_channel_at_a_time(case: str, tmp_path: Path) -> None:
    calls, recording = _recorded(case, tmp_path)
    recorded = _matrices(recording, 0)
    for slot, (module, x) in calls.calls.items():
        columns = []
        for channel in range(x.shape[1]):
            alone = torch.zeros_like(x, dtype=torch.float64)
            alone[:, channel] = x[:, channel].double()
            output = _run(module, alone)
            columns.append(output.transpose(0, 1).flatten(1).sum(1))
        _assert_close(recorded[slot, "forward"], torch.stack(columns, 1))


def _run(module: nn.Module, x: Tensor) -> Tensor:
    """The layer without its bias, in float64."""
    weight = module.weight.detach().double()
    if isinstance(module, nn.Linear):
        return F.linear(x, weight)
    if isinstance(module, nn.ConvTranspose2d):
        return F.conv_transpose2d(x, weight, None, module.stride, module.padding)
    return F.conv2d(x, weight, None, module.stride, module.padding)


def test_a_dense_layer_reshaped_into_maps_gets_a_matrix_by_position(tmp_path: Path) -> None:
    calls, recording = _recorded("vae", tmp_path, step=1)
    recorded = _matrices(recording, 1, "position")
    module, x = calls.calls["decoder.3"]
    record = recorded["decoder.3", "forward"]
    assert record.arrays["values"].shape == (4, 32), "one column per unit of decoder.1"
    _assert_close(record, contribution_by_position(module, x).flatten(1))


def test_snapshots_are_taken_at_the_first_step_and_at_1_2_5_times_snapshot_steps(tmp_path: Path) -> None:
    callback = DGMTrackerCallback(snapshot_steps=2)
    fit(GAN(), loader(images()), tmp_path, callback, max_epochs=4)
    steps = {record.body["step"] for record in Recording.of(tmp_path).kind("contribution")}
    assert steps == {0, 1, 2, 4, 10, 20}


def test_matrices_survive_their_way_to_the_disk_at_any_scale(tmp_path: Path) -> None:
    class Large(VAE):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step([batch[0] * 1e6], batch_idx)

    calls = Calls()
    callback = DGMTrackerCallback(on_finding="ignore")
    fit(Large(lr=0.0), loader(images()), tmp_path, callback, others=(calls,), max_steps=1)
    record, (module, x) = _matrices(Recording.of(tmp_path), 0)["encoder.2", "forward"], calls.calls["encoder.2"]
    assert np.abs(_values(record)).max() > 65504, "more than half precision holds"
    _assert_close(record, contribution_matrix(module, x))
