"""Odd trainers and models, failing disks, errors: each is handled, what was known is kept, training goes on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from models import CASES, CNN, GAN, VAE, Classifier, images
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader
from training import Collected, Recording, fit, loader, recordings

from dgm_tb import DGMTrackerCallback
from dgm_tb.callback.capture import Capture
from dgm_tb.callback.examples import SamplerObserver
from dgm_tb.callback.recorder import Recorder
from dgm_tb.callback.segment_files import SegmentFiles
from dgm_tb.callback.windows import Windows
from dgm_tb.records import MARKER_TAG, PLUGIN_NAME


@contextmanager
def _our_warnings() -> Iterator[list[str]]:
    """The texts of the warnings of dgm_tb."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(warning.message) for warning in caught if "dgm_tb" in str(warning.message)]


def _losses(folder: Path, callback: Any = None, make: Any = CNN, **options: Any) -> list[Any]:
    torch.manual_seed(1)
    collected = Collected()
    fit(make(), loader(images()), folder, callback, others=(collected,), **options)
    return [float(loss) if loss is not None else None for loss in collected.losses]


# -- where it writes ---------------------------------------------------------------------------------------------------


def test_fast_dev_run_writes_nothing_but_runs(tmp_path: Path) -> None:
    callback = DGMTrackerCallback()
    with _our_warnings() as texts:
        fit(CNN(), loader(images()), tmp_path, callback, fast_dev_run=2, val=loader(images(), shuffle=False))
    assert recordings(tmp_path) == []
    assert texts == []


def test_without_a_logger_the_recording_is_in_the_root_folder(tmp_path: Path) -> None:
    fit(CNN(), loader(images()), tmp_path, DGMTrackerCallback(), logger=False)
    (recording,) = recordings(tmp_path)
    assert recording.parent == tmp_path / "plugins" / PLUGIN_NAME
    assert _marker_files(tmp_path), "TensorBoard must find the run"


def test_with_a_csv_logger_the_recording_is_beside_its_file(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="csv", version=0)
    fit(CNN(), loader(images()), tmp_path, DGMTrackerCallback(), logger=logger)
    (recording,) = recordings(tmp_path)
    assert recording.parent == Path(logger.log_dir) / "plugins" / PLUGIN_NAME
    assert _marker_files(Path(logger.log_dir))


def test_the_tensorboard_logger_is_chosen_even_if_it_is_not_the_first(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path / "board", name="", version="v")
    fit(CNN(), loader(images()), tmp_path, DGMTrackerCallback(), logger=[CSVLogger(tmp_path / "csv"), board])
    (recording,) = recordings(tmp_path)
    assert recording.parent == Path(board.log_dir) / "plugins" / PLUGIN_NAME


def test_the_marker_goes_through_the_users_own_event_file(tmp_path: Path) -> None:
    fit(CNN(), loader(images()), tmp_path, DGMTrackerCallback())
    (events,) = [path for path in tmp_path.rglob("*tfevents*")]
    tags = {value.tag for event in EventFileLoader(str(events)).Load() for value in event.summary.value}
    assert MARKER_TAG in tags
    assert "train_loss" in tags


def test_logdir_is_where_the_recording_goes(tmp_path: Path) -> None:
    fit(CNN(), loader(images()), tmp_path / "lightning", DGMTrackerCallback(logdir=str(tmp_path / "mine")))
    (recording,) = recordings(tmp_path)
    assert recording.parent == tmp_path / "mine" / "plugins" / PLUGIN_NAME


@pytest.mark.parametrize("has_logger", [True, False])
def test_a_folder_that_cannot_be_written_warns_once_and_findings_still_come(has_logger: bool, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, where a folder should be")
    callback = DGMTrackerCallback(logdir=blocked / "run", on_finding="ignore")
    options = {} if has_logger else {"logger": False}
    data = images()
    data.tensors[0][3] = float("nan")
    model = CNN()
    with _our_warnings() as texts:
        fit(model, loader(data), tmp_path / "lightning", callback, **options)
    assert len(texts) == 1
    assert "blocked" in texts[0]
    assert [finding.kind for finding in callback.findings][:1] == ["nonfinite"]
    assert "log" not in vars(model)
    assert all(not module._forward_hooks for module in model.modules())


def test_a_full_disk_warns_once_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = _losses(tmp_path / "bare")
    append, n_written = SegmentFiles.append, 0

    def failing(self: SegmentFiles, framed: bytes) -> None:
        nonlocal n_written
        n_written += 1
        if n_written > 3:
            raise OSError(28, "No space left on device")
        append(self, framed)

    monkeypatch.setattr(SegmentFiles, "append", failing)
    with _our_warnings() as texts:
        assert _losses(tmp_path / "watched", DGMTrackerCallback()) == bare
    assert len(texts) == 1
    assert "No space left" in texts[0]
    assert len(Recording.of(tmp_path / "watched").records) == 3


def test_beyond_max_disk_mb_only_the_small_records_go_on(tmp_path: Path) -> None:
    class Wide(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4000), nn.ReLU(), nn.Linear(4000, 3))

    callback = DGMTrackerCallback(max_disk_mb=1, window_steps=1, max_overhead=None)
    fit(Wide(), loader(images()), tmp_path, callback, max_epochs=30)
    recording = Recording.of(tmp_path)
    assert any("max_disk_mb=1" in note for note in recording.notes)
    assert len(recording.steps()) == 180
    assert len(recording.windows()) < 180
    assert recording.end["reason"] == "finished"


# -- which batches count -----------------------------------------------------------------------------------------------


def test_sanity_check_and_validation_batches_are_not_recorded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    options: dict[str, Any] = {"val_check_interval": 2, "max_epochs": 2, "num_sanity_val_steps": 2}
    callback = DGMTrackerCallback(window_steps=1, max_overhead=None)
    model = CNN(dropout=0.0)
    fit(model, loader(images()), tmp_path, callback, val=loader(images(), shuffle=False), **options)
    recording = Recording.of(tmp_path)
    assert [step for step, _ in recording.steps()] == list(range(12))
    assert set(recording.losses()) == {"loss", "train_loss"}
    assert [layer.name for layer in recording.graph.layers if "@" in layer.name] == []
    assert len(recording.windows()) == 12


# -- odd models --------------------------------------------------------------------------------------------------------


class _NoParameters(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.act(batch[0]).mean().requires_grad_()

    def configure_optimizers(self) -> None:
        return None


class _NoLayers(L.LightningModule):
    """One parameter, no module."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (batch[0] * self.scale).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class _Growing(Classifier):
    """Uses another branch from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Linear(64, 3), nn.Linear(64, 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.late_is_on = batch_idx >= 2
        return super().training_step(batch, batch_idx)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        y = self.early(x.flatten(1))
        return y + self.late(x.flatten(1)) if self.late_is_on else y


@pytest.mark.parametrize("make", [_NoParameters, _NoLayers])
def test_models_without_parameters_or_layers_give_a_recording_of_losses(make: Any, tmp_path: Path) -> None:
    with _our_warnings() as texts:
        fit(make(), loader(images()), tmp_path, DGMTrackerCallback())
    recording = Recording.of(tmp_path)
    assert texts == []
    assert list(recording.losses()["loss"]) == list(range(6))
    assert recording.end["reason"] == "finished"


def test_a_branch_that_comes_later_gets_its_neurons_appended(tmp_path: Path) -> None:
    fit(_Growing(), loader(images()), tmp_path, DGMTrackerCallback(window_steps=1, max_overhead=None))
    recording = Recording.of(tmp_path)
    first, last = recording.kind("graph")[0].body, recording.kind("graph")[-1].body
    assert [layer["name"] for layer in first["layers"]] == ["early"]
    assert last["layers"][:1] == first["layers"]
    assert [layer["name"] for layer in last["layers"]] == ["early", "late"]
    assert "late" in {node["id"] for node in last["nodes"]}, "the DAG is traced again"
    late = recording.kind("dynamics")[-1].arrays["values"][3:6]
    assert late.shape[0] == 3


@pytest.mark.parametrize("case", ["several_outputs", "recurrent"])
def test_further_outputs_are_layers_of_their_own(case: str, tmp_path: Path) -> None:
    chosen = CASES[case]
    fit(chosen.make(), loader(chosen.data()), tmp_path, DGMTrackerCallback())
    names = {layer.name for layer in Recording.of(tmp_path).graph.layers}
    expected = {
        "several_outputs": {"pair", "pair[2][0]", "named", "named[down]"},
        "recurrent": {"embedding", "lstm", "head"},
    }
    assert expected[case] <= names


# -- errors ------------------------------------------------------------------------------------------------------------


class _Raising(CNN):
    """Raises in the middle of its fourth step."""

    error: BaseException = RuntimeError("the data base is gone")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx)
        if batch_idx == 3:
            raise self.error
        return loss


class _Interrupted(_Raising):
    error = KeyboardInterrupt()


@pytest.mark.parametrize(("make", "reason"), [(_Raising, "exception"), (_Interrupted, "interrupted")])
def test_when_training_raises_everything_is_written(make: Any, reason: str, tmp_path: Path) -> None:
    original = DataLoader._index_sampler
    model = make()
    with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
        fit(model, loader(images()), tmp_path, DGMTrackerCallback(window_steps=16, max_overhead=None))
    recording = Recording.of(tmp_path)
    assert recording.end["reason"] == reason
    assert type(make.error).__name__ in recording.end["exception"]
    assert recording.end["last_step"] == 2
    assert recording.windows() == [(0, 2)]
    assert [step for step, _ in recording.steps()] == [0, 1, 2, 3], "of the last one, what was logged"
    assert list(recording.kind("ring")[-1].arrays["steps"]) == [0, 1, 2, 3]
    assert recording.findings == []
    assert DataLoader._index_sampler is original
    assert "log" not in vars(model)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_the_last_step_of_a_training_that_raises_has_lightnings_global_step(tmp_path: Path) -> None:
    class Failing(GAN):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            if batch_idx == 3:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        fit(Failing(), loader(images()), tmp_path, DGMTrackerCallback())
    assert Recording.of(tmp_path).steps() == [(0, 2), (1, 4), (2, 6), (3, 8)]


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (Capture, "begin"),
        (Capture, "_observe"),
        (Capture, "end"),
        (Windows, "add"),
        (Windows, "take"),
        (SamplerObserver, "next_batch"),
        (SamplerObserver, "install"),
        (Recorder, "write"),
        (Recorder, "__init__"),
    ],
    ids=lambda item: getattr(item, "__name__", item),
)
def test_an_error_of_ours_warns_and_training_goes_on(
    owner: Any, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = _losses(tmp_path / "bare")

    def failing(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(owner, method, failing)
    with _our_warnings() as texts:
        assert _losses(tmp_path / "watched", DGMTrackerCallback()) == bare
    assert texts
    assert len(texts) == len(set(texts)), "each part that is lost is told of once"
    assert all("a bug" in text for text in texts)


def test_an_error_in_the_users_own_on_finding_does_not_stop_training(tmp_path: Path) -> None:
    def on_finding(finding: Any) -> None:
        raise LookupError("no mail server")

    data = images()
    data.tensors[0][3] = float("nan")
    callback = DGMTrackerCallback(on_finding=on_finding)
    with _our_warnings() as texts:
        trainer = fit(CNN(), loader(data), tmp_path, callback)
    assert trainer.global_step == 6
    assert any("no mail server" in text for text in texts)
    assert Recording.of(tmp_path).end["reason"] == "finished"


def test_on_finding_stop_stops_and_a_function_gets_every_finding(tmp_path: Path) -> None:
    data = images()
    data.tensors[0][:] = float("nan")
    with _our_warnings() as texts:
        trainer = fit(CNN(), loader(data), tmp_path / "stop", DGMTrackerCallback(on_finding="stop"), max_epochs=3)
    assert trainer.global_step < 18
    assert texts
    got: list[Any] = []
    callback = DGMTrackerCallback(on_finding=got.append)
    fit(CNN(), loader(data), tmp_path / "function", callback)
    assert got == callback.findings
    assert got


# -- wrong use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "accepted"),
    [
        ({"every_n_steps": 0}, "at least 1"),
        ({"window_steps": 2.5}, "whole number"),
        ({"ring_steps": True}, "whole number"),
        ({"snapshot_steps": "50"}, "whole number"),
        ({"max_disk_mb": -1}, "at least 1"),
        ({"max_overhead": 0}, "0.05"),
        ({"max_overhead": -0.1}, "None"),
        ({"max_overhead": "much"}, "0.05"),
        ({"max_overhead": float("nan")}, "0.05"),
        ({"on_finding": "shout"}, "'warn', 'stop', 'ignore'"),
        ({"rules": [nn.Linear]}, "rules"),
        ({"roles": "generator"}, "roles"),
        ({"exact_snapshots": "yes"}, "True or False"),
        ({"logdir": "s3://bucket/run"}, "copy it"),
    ],
    ids=lambda item: str(item) if isinstance(item, dict) else "",
)
def test_wrong_arguments_raise_and_say_what_is_accepted(arguments: dict[str, Any], accepted: str) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))) as raised:
        DGMTrackerCallback(**arguments)
    assert accepted in str(raised.value)


def test_arguments_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        DGMTrackerCallback("logs")  # type: ignore[misc]


# -- several trainings -------------------------------------------------------------------------------------------------


def test_one_callback_object_serves_two_trainings(tmp_path: Path) -> None:
    callback = DGMTrackerCallback(on_finding="ignore")
    fit(CNN(), loader(images()), tmp_path / "one", callback)
    fit(VAE(), loader(images()), tmp_path / "two", callback)
    one, two = Recording.of(tmp_path / "one"), Recording.of(tmp_path / "two")
    assert [step for step, _ in one.steps()] == [step for step, _ in two.steps()] == list(range(6))
    assert two.graph.modules["mean1"] == "Linear"


def test_a_second_fit_of_the_same_trainer_goes_on_counting(tmp_path: Path) -> None:
    model, callback = CNN(), DGMTrackerCallback()
    trainer = fit(model, loader(images()), tmp_path, callback)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, loader(images()))
    first, second = (Recording.read(folder) for folder in recordings(tmp_path))
    assert [step for step, _ in first.steps()] == list(range(6))
    assert [step for step, _ in second.steps()] == list(range(6, 12))


def test_resuming_goes_on_counting_in_a_new_recording(tmp_path: Path) -> None:
    model = GAN()
    trainer = fit(model, loader(images()), tmp_path / "one", DGMTrackerCallback())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(
        GAN(),
        loader(images()),
        tmp_path / "two",
        DGMTrackerCallback(),
        ckpt_path=str(tmp_path / "last.ckpt"),
        max_epochs=2,
    )
    recording = Recording.of(tmp_path / "two")
    assert recording.kind("recording")[0].body["resume_step"] == 6
    assert recording.steps()[0] == (6, 14)
    assert [step for step, _ in recording.steps()] == list(range(6, 12))


def test_training_needs_no_callback_to_load_its_checkpoint(tmp_path: Path) -> None:
    trainer = fit(CNN(), loader(images()), tmp_path / "one", DGMTrackerCallback())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(CNN(), loader(images()), tmp_path / "two", None, ckpt_path=str(tmp_path / "last.ckpt"), max_epochs=2)


def _marker_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if "tfevents" in path.name]


def test_a_remote_run_folder_is_refused_in_a_sentence_and_training_goes_on(tmp_path: Path) -> None:
    callback = DGMTrackerCallback(max_overhead=None)
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    logger.__class__ = type("TensorBoardLogger", (TensorBoardLogger,), {"log_dir": "memory://bucket/run"})
    with _our_warnings() as texts:
        trainer = fit(CNN(), loader(images()), tmp_path, callback, logger=logger)
    assert trainer.global_step > 0
    assert [text for text in texts if "recordings are written to local folders; got 'memory://bucket/run'" in text]
    assert not Path("memory:").exists()
