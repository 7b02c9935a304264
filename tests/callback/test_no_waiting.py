"""What happens on a GPU: nothing of a step is read before the next one has ended. Here the CPU is treated as one."""

from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from models import CASES, CNN, GAN, VAE, images, images_with
from torch.utils._python_dispatch import TorchDispatchMode
from training import Collected, Recording, fit, loader

from dgm_tb import DGMTrackerCallback
from dgm_tb.callback import passage
from dgm_tb.callback.passage import Departure
from dgm_tb.callback.recorder import Recorder

WAITING = ("_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "allclose", "masked_select", "unique")
"""Operators that a GPU can't answer before all work queued on it is done."""


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Recorder.__init__

    def init(self: Recorder, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.look_late()

    monkeypatch.setattr(Recorder, "__init__", init)
    monkeypatch.setattr(passage, "_is_here", lambda _: False)


class _Waits(TorchDispatchMode):
    """Counts operators that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class _Profiled(L.Callback):
    """Counts the operators that wait in all steps but those that trace, from before our callback to after it."""

    def __init__(self) -> None:
        self.mode: _Waits | None = None
        self.counts: Counter[str] = Counter()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= 2:
            self.mode = _Waits()
            self.mode.__enter__()

    def leave(self) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.counts += self.mode.counts
            self.mode = None


def _waits(case: str, folder: Path, callback: DGMTrackerCallback | None, monkeypatch: Any) -> Counter[str]:
    profiled = _Profiled()
    arrive = Departure.arrive

    def outside(self: Departure) -> Departure:
        """The numbers of the step before are known by now."""
        profiled.leave()
        return arrive(self)

    class _Last(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            profiled.leave()

    with monkeypatch.context() as patched:
        patched.setattr(Departure, "arrive", outside)
        others = (profiled, *([callback] if callback else []), _Last())
        torch.manual_seed(1)
        chosen = CASES[case]
        fit(chosen.make(), loader(chosen.data()), folder, None, others=others, **chosen.trainer)
    return profiled.counts


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("case", ["vae", "gan", "cnn", "recurrent", "attentive", "accumulating"])
def test_no_operator_in_a_step_waits_for_the_device(case: str, tmp_path: Path, monkeypatch: Any) -> None:
    bare = _waits(case, tmp_path / "bare", None, monkeypatch)
    callback = DGMTrackerCallback(max_overhead=None, snapshot_steps=3)
    assert _waits(case, tmp_path / "recorded", callback, monkeypatch) == bare


def test_the_check_for_waiting_operators_sees_them(tmp_path: Path, monkeypatch: Any) -> None:
    """On the CPU, pivots are chosen and losses are read within the step: the check must say so."""
    bare = _waits("cnn", tmp_path / "bare", None, monkeypatch)
    assert _waits("cnn", tmp_path / "recorded", DGMTrackerCallback(max_overhead=None), monkeypatch) != bare


def _numbers(recording: Recording) -> dict[Any, np.ndarray[Any, Any]]:
    found = {}
    for number, record in enumerate(recording.records):
        if record.kind in ("dynamics", "loss", "layer_statistics", "contribution"):
            key = record.kind, record.body.get("quantity"), record.first_step
            found |= {(*key, number, name): array for name, array in record.arrays.items()}
    return found


def _record(make: Any, data: Any, folder: Path) -> tuple[Recording, list[Any], Any]:
    torch.manual_seed(1)
    collected, model = Collected(), make()
    callback = DGMTrackerCallback(window_steps=1, max_overhead=None, snapshot_steps=2, on_finding="ignore")
    fit(model, loader(data), folder, callback, others=(collected,), max_epochs=1)
    return Recording.of(folder), callback.findings, (collected.losses, model.state_dict())


@pytest.mark.parametrize(("make", "scale"), [(VAE, 1.0), (GAN, 1.0), (CNN, 1.0), (VAE, 1e6), (GAN, float("nan"))])
def test_a_step_looked_into_late_gives_the_same(
    make: Any, scale: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    now, findings, outcome = _record(make, images_with(21, scale), tmp_path / "now")
    request.getfixturevalue("like_a_gpu")
    late, late_findings, late_outcome = _record(make, images_with(21, scale), tmp_path / "late")
    assert [f.to_json() for f in late_findings] == [f.to_json() for f in findings]
    assert bool(findings) == (scale != 1.0)
    for one, other in zip(outcome[0], late_outcome[0], strict=True):
        assert one is other is None or torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
    for name, value in outcome[1].items():
        assert torch.equal(value.nan_to_num(7.0), late_outcome[1][name].nan_to_num(7.0)), name
    expected, got = _numbers(now), _numbers(late)
    if scale == 1.0:
        assert expected.keys() == got.keys()
        for key, values in expected.items():
            # pivots, which save digits of some standard deviations, are chosen one step later
            np.testing.assert_allclose(got[key], values, rtol=1e-3, atol=1e-5, err_msg=str(key))


@pytest.mark.usefixtures("like_a_gpu")
def test_a_training_that_raises_loses_no_step(tmp_path: Path) -> None:
    class _Raising(CNN):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 4:
                raise RuntimeError("stop here")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="stop here"):
        fit(_Raising(), loader(images()), tmp_path, DGMTrackerCallback(window_steps=1, max_overhead=None))
    recording = Recording.of(tmp_path)
    assert [first for first, _ in recording.windows()] == [0, 1, 2, 3]
    assert [step for step, _ in recording.steps()] == [0, 1, 2, 3, 4]
