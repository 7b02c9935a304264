"""The flight recorder keeps whole steps for a while, the numbers of neurons for longer, and both within bounds."""

from pathlib import Path

import pytest
import torch
from models import VAE, images
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback
from dgm_tb.callback import ring


def _recorded(folder: Path, **options: int) -> tuple[Recording, DGMTrackerCallback]:
    torch.manual_seed(1)
    callback = DGMTrackerCallback(max_overhead=None, window_steps=1, **options)
    fit(VAE(), loader(images()), folder, callback, max_epochs=3)
    return Recording.of(folder), callback


def test_numbers_are_kept_for_eight_times_as_many_steps_as_batches(tmp_path: Path) -> None:
    recording, _ = _recorded(tmp_path, ring_steps=2)
    (record,) = recording.kind("ring")
    assert list(record.arrays["steps"]) == list(range(2, 18)), "18 steps, of which the last 16 are kept"
    name = recording.graph.layers[0].name
    kept = record.arrays["activation"][:, 0, recording.rows(name, "activation")]
    every = recording.dynamics(name, "activation", "mean/mean")[2:]
    torch.testing.assert_close(torch.tensor(kept).double(), torch.tensor(every), rtol=1e-6, atol=1e-7)
    assert (record.arrays["indices"] >= 0).all(), "the data set index of every example"


def test_large_models_keep_fewer_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "MAX_BYTES", 20_000)
    recording, _ = _recorded(tmp_path, ring_steps=2)
    (record,) = recording.kind("ring")
    size = record.arrays["activation"].nbytes + record.arrays["gradient"].nbytes + record.arrays["examples"].nbytes
    assert 2 <= len(record.arrays["steps"]) < 16
    assert size <= 20_000
