"""What the callback wrote is what ``open_run`` gives back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from models import CASES, VAE, images_with
from training import Recording, fit, loader

import dgm_tb
from dgm_tb import DGMTrackerCallback
from dgm_tb.records import STATISTICS


@pytest.mark.parametrize("window_steps", [1, 4])
@pytest.mark.parametrize("case", ["vae", "gan", "several_outputs"])
def test_open_run_gives_back_what_was_recorded(case: str, window_steps: int, tmp_path: Path) -> None:
    chosen = CASES[case]
    torch.manual_seed(1)
    callback = DGMTrackerCallback(window_steps=window_steps, max_overhead=None)
    fit(chosen.make(), loader(chosen.data()), tmp_path, callback)
    recording, run = Recording.of(tmp_path), dgm_tb.open_run(tmp_path)
    assert list(run.layers) == [layer.name for layer in recording.graph.flow_order()]
    for name, series in recording.losses().items():
        assert dict(zip(run.losses[name].steps, run.losses[name].values, strict=True)) == series
        assert list(run.losses[name].global_steps) == [g for step, g in recording.steps() if step in series]
    for layer in run.layers:
        for quantity in ("activation", "gradient"):
            for statistic in STATISTICS[quantity]:
                dynamics = run.dynamics(layer, quantity, statistic.name)
                want = recording.dynamics(layer, quantity, f"{statistic.name}/{statistic.windows[0]}").T
                np.testing.assert_array_equal(dynamics.values, want)
                of_layer = run.layer_statistics(layer, quantity)[statistic.name]
                np.testing.assert_array_equal(
                    of_layer.values, recording.layer_statistic(layer, quantity, statistic.name)
                )


def test_open_run_gives_back_findings_and_their_contributions(tmp_path: Path) -> None:
    torch.manual_seed(1)
    callback = DGMTrackerCallback(on_finding="ignore")
    fit(VAE(), loader(images_with(21, 1e4)), tmp_path, callback)
    run = dgm_tb.open_run(tmp_path)
    assert [f.summary for f in run.findings] == [f.summary for f in callback.findings]
    step = callback.findings[0].step
    for samples in ("batch", "abnormal", "normal"):
        matrix = run.contribution("encoder.3", "log_variance1", step, samples=samples)
        assert np.asarray(matrix).shape == (6, 8)
    assert np.abs(run.contribution("encoder.0", "encoder.2", 0).scaled).max() <= 1
