"""Losses, weights and random state are those without the callback, bit for bit, whatever it has to do."""

import copy
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from models import CASES, CNN, GAN, VAE, Classifier, Stateful, images, images_with
from torch import Tensor, nn
from torch.utils.data import DataLoader
from training import Collected, Recording, fit, loader

from dgm_tb import DGMTrackerCallback
from dgm_tb.callback.examples import RandomState

ABNORMAL = 21


def _outcome(model: L.LightningModule, train: Any, folder: Path, callback: Any, **options: Any) -> dict[str, Any]:
    """Everything that a training leaves behind."""
    collected = Collected()
    trainer = fit(model, train, folder, callback, others=(collected,), **options)
    return {
        "losses": collected.losses,
        "weights": dict(model.state_dict()),
        "gradients": [parameter.grad for parameter in model.parameters()],
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "logged": dict(trainer.logged_metrics),
        "global_step": trainer.global_step,
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1],  # noqa: NPY002
        "attributes": {key: value for key, value in vars(model).items() if type(value) in (int, float, list)},
    }


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one.nan_to_num(nan=1.5e30), other.nan_to_num(nan=1.5e30))
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one == other or (one != one and other != other)


def _assert_unchanged(make: Any, train: Any, folder: Path, callback: Any = None, **options: Any) -> Recording:
    torch.manual_seed(1)
    bare = _outcome(make(), train(), folder / "bare", None, **options)
    torch.manual_seed(1)
    callback = callback or DGMTrackerCallback(max_overhead=None, on_finding="ignore", snapshot_steps=2)
    watched = _outcome(make(), train(), folder / "watched", callback, **options)
    for key, value in bare.items():
        assert _is_same(value, watched[key]), f"{key}: {value} without the callback, {watched[key]} with it"
    return Recording.of(folder / "watched")


@pytest.mark.parametrize("case", CASES)
def test_every_model_trains_the_same(case: str, tmp_path: Path) -> None:
    chosen = CASES[case]
    recording = _assert_unchanged(
        chosen.make, lambda: loader(chosen.data()), tmp_path, max_epochs=2, **dict(chosen.trainer)
    )
    assert recording.kind("dynamics")
    assert recording.end["reason"] == "finished"
    assert recording.notes == []


@pytest.mark.parametrize("case", CASES)
def test_a_healthy_training_yields_no_finding(case: str, tmp_path: Path) -> None:
    chosen = CASES[case]
    callback = DGMTrackerCallback()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="dgm_tb")
        fit(chosen.make(), loader(chosen.data()), tmp_path, callback, max_epochs=6, **chosen.trainer)
    assert callback.findings == []
    assert Recording.of(tmp_path).findings == []


@pytest.mark.parametrize(
    ("make", "scale", "workers"), [(VAE, 1e6, 0), (VAE, 1e6, 2), (GAN, np.nan, 0), (Stateful, np.nan, 0)]
)
def test_a_finding_with_its_replay_changes_nothing(make: Any, scale: float, workers: int, tmp_path: Path) -> None:
    data = images_with(ABNORMAL, scale)
    recording = _assert_unchanged(make, lambda: loader(data, num_workers=workers), tmp_path, max_epochs=2)
    assert recording.findings, "the case is meant to trigger a replay"
    assert recording.kind("contribution")


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value", "accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"limit_train_batches": 3, "check_val_every_n_epoch": 1},
    ],
    ids=lambda options: "-".join(f"{key}={value}" for key, value in options.items()),
)
def test_trainer_options_change_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    _assert_unchanged(CNN, lambda: loader(images()), tmp_path, max_epochs=2, **options)


def test_replay_during_accumulation_keeps_the_accumulated_gradients(tmp_path: Path) -> None:
    data = images_with(ABNORMAL, 1e18)
    train = lambda: loader(data, sampler=range(24), batch_size=8)  # noqa: E731
    recording = _assert_unchanged(
        lambda: VAE(torch.optim.SGD, 1e-9), train, tmp_path, accumulate_grad_batches=3, max_epochs=1
    )
    assert recording.findings


def test_workers_change_nothing(tmp_path: Path) -> None:
    train = lambda: loader(images(), num_workers=2, persistent_workers=True)  # noqa: E731
    _assert_unchanged(CNN, train, tmp_path, max_epochs=2)


class _LBFGS(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class _Tied(Classifier):
    """Shared and normalised weights, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 64)
        )
        self.net.append(nn.Linear(64, 64))
        self.net[4].weight = self.net[3].weight
        self.net[3].bias.requires_grad_(False)
        self.net.append(nn.utils.parametrizations.spectral_norm(nn.Linear(64, 3)))


@pytest.mark.parametrize("make", [_LBFGS, _Tied])
def test_unusual_training_is_unchanged(make: Any, tmp_path: Path) -> None:
    _assert_unchanged(make, lambda: loader(images()), tmp_path, max_epochs=1)


class _Curious(CNN):
    """Looks into itself while it is trained: copies and pickles its network."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.teacher: list[nn.Module] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if batch_idx in (0, 1):
            self.teacher.append(copy.deepcopy(self.net))
            self.teacher.append(pickle.loads(pickle.dumps(self)).net)
        loss: Tensor = super().training_step(batch, batch_idx)
        for teacher in self.teacher:
            loss = loss + 0 * teacher(batch[0]).sum().detach()
        return loss


def test_a_model_can_be_copied_and_pickled_while_it_is_recorded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    fit(_Curious(), loader(images()), tmp_path, DGMTrackerCallback())
    recording = Recording.of(tmp_path)
    assert not [layer.name for layer in recording.graph.layers if "@" in layer.name], "copies are other models"
    assert recording.end["last_step"] == 5


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    original = DataLoader._index_sampler
    model = CNN()
    fit(model, loader(images()), tmp_path, DGMTrackerCallback())
    assert DataLoader._index_sampler is original
    assert "log" not in vars(model)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_random_states_are_restored_whatever_was_drawn_between() -> None:
    def draw() -> list[float]:
        rows = [np.random.randn() for _ in range(3)]  # noqa: NPY002
        return [*rows, random.gauss(0, 1), random.random(), float(torch.rand(()))]

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    states, drawn = [], []
    for _ in range(4):  # an odd number of normal ones: every other time half a pair is left over
        states.append(RandomState())
        drawn.append(draw())
    states.append(RandomState())
    for state, values in reversed(list(zip(states, drawn, strict=False))):
        state.restore()
        assert draw() == values
