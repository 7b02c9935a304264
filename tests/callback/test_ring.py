"""The flight recorder keeps whole steps for a while, the numbers of neurons for longer, and both within bounds."""

from contextlib import nullcontext
from pathlib import Path

import lightning as L
import pytest
import torch
from models import VAE, images
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback
from dgm_tb.callback import ring
from dgm_tb.records import expand


class _Ends(L.Callback):
    """Raises after the last batch."""

    def on_train_epoch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.current_epoch == 2:
            raise RuntimeError("the end")


def _recorded(folder: Path, *, raises: bool, **options: int) -> Recording:
    torch.manual_seed(1)
    callback = DGMTrackerCallback(max_overhead=None, window_steps=1, **options)
    with pytest.raises(RuntimeError, match="the end") if raises else nullcontext():
        fit(VAE(), loader(images()), folder, callback, others=(_Ends(),) if raises else (), max_epochs=3)
    return Recording.of(folder)


def test_numbers_are_kept_for_eight_times_as_many_steps_as_batches(tmp_path: Path) -> None:
    recording = _recorded(tmp_path, raises=True, ring_steps=2)
    (record,) = recording.kind("ring")
    assert list(record.arrays["steps"]) == list(range(2, 18)), "18 steps, of which the last 16 are kept"
    name = recording.graph.layers[0].name
    kept = expand("activation", record.arrays["activation"], record.body)[:, 0, recording.rows(name, "activation")]
    every = recording.dynamics(name, "activation", "mean/mean")[2:]
    torch.testing.assert_close(torch.tensor(kept).double(), torch.tensor(every), rtol=2**-11, atol=1e-7)
    assert (record.arrays["indices"] >= 0).all(), "the data set index of every example"


def test_of_a_training_that_went_well_only_the_last_steps_are_written(tmp_path: Path) -> None:
    (record,) = _recorded(tmp_path, raises=False, ring_steps=2).kind("ring")
    assert list(record.arrays["steps"]) == [16, 17]


def test_large_models_keep_fewer_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "MAX_BYTES", 20_000)
    (record,) = _recorded(tmp_path, raises=True, ring_steps=2).kind("ring")
    size = record.arrays["activation"].nbytes + record.arrays["gradient"].nbytes + record.arrays["examples"].nbytes
    assert 2 <= len(record.arrays["steps"]) < 16
    assert size <= 20_000
