"""Windows that have not ended are on the disk after some seconds, too: seen live, and kept when the process dies."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dgm_tb
from dgm_tb.callback import recorder as recorder_module
from dgm_tb.segment_names import LIVE_NAME

STEPS, WINDOW = 20, 8


def _train(folder: Path, look: object = None) -> list[float]:
    """Mean activation of neuron 0 in every step; ``look`` is called after each with its number."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    means = []
    with dgm_tb.record(model, folder, window_steps=WINDOW, max_overhead=None, on_finding="ignore") as recorder:
        for step in range(STEPS):
            output = model[0](x := torch.randn(3, 4))
            means.append(float(output[:, 0].mean()))
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(loss)
            if callable(look):
                recorder._recorder.output.sync()
                look(step)
    return means


@pytest.fixture
def flushes_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_SECONDS", 0.0)


@pytest.mark.usefixtures("flushes_always")
def test_every_step_is_in_the_dynamics_at_once_and_none_twice(tmp_path: Path) -> None:
    seen = {}

    def look(step: int) -> None:
        found = dgm_tb.open_run(tmp_path).dynamics("0", "activation", "mean")
        seen[step] = found.first_steps.tolist(), found.steps.tolist(), found.values[0].tolist()

    means = _train(tmp_path, look)
    for step, (firsts, lasts, values) in seen.items():
        if step == 0:
            continue  # the model is traced
        starts = list(range(0, step + 1, WINDOW))
        assert firsts == starts, f"after step {step}"
        assert lasts == [min(start + WINDOW - 1, step) for start in starts]
        wanted = [np.mean(means[a : b + 1]) for a, b in zip(firsts, lasts, strict=True)]
        np.testing.assert_allclose(values, wanted, rtol=2e-3, atol=1e-4)


@pytest.mark.usefixtures("flushes_always")
def test_sampled_neurons_of_the_unfinished_window_are_at_full_resolution(tmp_path: Path) -> None:
    def look(step: int) -> None:
        if step == WINDOW + 3:
            found = dgm_tb.open_run(tmp_path).polylines("0", "activation")
            assert found.steps.tolist() == list(range(step + 1))
            assert len(np.unique(found.values[0, WINDOW:])) == 4, "a value of its own in every step"

    _train(tmp_path, look)


@pytest.mark.usefixtures("flushes_always")
def test_the_live_file_is_gone_when_the_training_has_ended(tmp_path: Path) -> None:
    there = []
    _train(tmp_path, lambda step: there.append(any(tmp_path.rglob(LIVE_NAME))))
    assert any(there)
    assert not any(tmp_path.rglob(LIVE_NAME))
    assert dgm_tb.open_run(tmp_path).dynamics("0").steps.tolist() == [7, 15, 19]


def test_windows_that_end_within_seconds_need_no_live_file(tmp_path: Path) -> None:
    there = []
    _train(tmp_path, lambda step: there.append(any(tmp_path.rglob(LIVE_NAME))))
    assert not any(there)
