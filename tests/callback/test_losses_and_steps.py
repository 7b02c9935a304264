"""Every loss is recorded by its name, for every step, beside Lightning's own counter."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from models import CASES, CNN, GAN, VAE, SeveralOutputs, Stateful, images
from torch import Tensor
from training import Collected, Recording, fit, loader

from dgm_tb import DGMTrackerCallback


class Logged(L.Callback):
    """Keeps what Lightning logged in each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def _train(make: Any, folder: Path, **options: Any) -> tuple[Collected, Logged, Recording]:
    torch.manual_seed(1)
    collected, logged = Collected(), Logged()
    fit(make(), loader(images()), folder, DGMTrackerCallback(), others=(collected, logged), **options)
    return collected, logged, Recording.of(folder)


@pytest.mark.parametrize("make", [VAE, CNN, SeveralOutputs])
def test_the_returned_loss_is_recorded_as_loss(make: Any, tmp_path: Path) -> None:
    collected, _, recording = _train(make, tmp_path)
    assert recording.losses()["loss"] == {
        step: float(loss) for step, loss in enumerate(collected.losses) if loss is not None
    }


def test_losses_logged_by_log_and_log_dict_are_recorded_by_their_names(tmp_path: Path) -> None:
    _, logged, recording = _train(VAE, tmp_path)
    for name in ("train_loss", "reconstruction", "divergence"):
        assert recording.losses()[name] == {step: values[name] for step, values in enumerate(logged.steps)}


def test_the_loss_of_every_manual_backward_is_recorded(tmp_path: Path) -> None:
    _, logged, recording = _train(GAN, tmp_path)
    losses = recording.losses()
    assert set(losses) == {"backward.0", "backward.1", "d_loss", "g_loss"}
    assert (
        losses["backward.0"] == losses["d_loss"] == {step: values["d_loss"] for step, values in enumerate(logged.steps)}
    )
    assert losses["backward.1"] == losses["g_loss"]


class _LogsMuch(CNN):
    """Logs under several names, with every option, and things that are no losses."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx)
        self.log("on_epoch", loss * 2, on_step=False, on_epoch=True)
        self.log("both", loss * 3, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(batch[0]))
        self.log("number", 4.5)
        self.log("count", torch.tensor(batch_idx), reduce_fx="max")
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("of_the_epoch", 1.0)


def test_every_logged_number_is_recorded_once_per_step_under_its_own_name(tmp_path: Path) -> None:
    collected, _, recording = _train(_LogsMuch, tmp_path, max_epochs=2)
    losses = recording.losses()
    assert set(losses) == {"loss", "train_loss", "on_epoch", "both", "number", "count"}
    for step, loss in enumerate(collected.losses):
        assert losses["on_epoch"][step] == pytest.approx(2 * float(loss))
        assert losses["both"][step] == pytest.approx(3 * float(loss))
        assert losses["count"][step] == step % 6


def test_a_step_without_a_loss_has_none(tmp_path: Path) -> None:
    collected, _, recording = _train(Stateful, tmp_path)
    skipped = {step for step, loss in enumerate(collected.losses) if loss is None}
    assert skipped == {2, 5}
    assert set(recording.losses()["loss"]) == set(range(6)) - skipped
    assert [step for step, _ in recording.steps()] == list(range(6))


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("cnn", [1, 2, 3, 4, 5, 6]),
        ("gan", [2, 4, 6, 8, 10, 12]),
        ("accumulating", [0, 1, 1, 2, 2, 3]),
    ],
)
def test_lightnings_global_step_stands_beside_the_own_counter(case: str, expected: list[int], tmp_path: Path) -> None:
    chosen = CASES[case]
    fit(chosen.make(), loader(chosen.data()), tmp_path, DGMTrackerCallback(), **chosen.trainer)
    assert Recording.of(tmp_path).steps() == list(enumerate(expected))


def test_losses_are_not_divided_by_the_accumulated_batches(tmp_path: Path) -> None:
    _, logged, recording = _train(CNN, tmp_path, accumulate_grad_batches=4)
    for step, values in enumerate(logged.steps):
        assert recording.losses()["loss"][step] == pytest.approx(values["train_loss"], rel=1e-6)
