"""A plain loop under DistributedDataParallel makes one recording of all ranks."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_worker import ABNORMAL

import dgm_tb

WORKER = Path(__file__).with_name("plain_worker.py")


def _run(folder: Path, scale: float) -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, str(WORKER), str(folder), str(rank), str(scale)] for rank in (0, 1)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert not any("dgm_tb: " in error for error in errors), errors
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_ranks_make_one_recording_without_the_wrappers_names(tmp_path: Path) -> None:
    ranks = _run(tmp_path, 1.0)
    run = dgm_tb.open_run(tmp_path / "run")
    assert len(run.recordings) == 1
    assert {key: run.recordings[0].facts[key] for key in ("rank", "world_size")} == {"rank": 0, "world_size": 2}
    assert run.layers == ["0", "1", "2"]
    assert run.findings == []
    np.testing.assert_allclose(run.losses["loss"].values, np.mean([rank["losses"] for rank in ranks], 0), 1e-6)
    for rank in ranks:
        np.testing.assert_allclose(rank["recorded"], rank["norms"], 1e-5, err_msg="reduced, and not yet clipped")


def test_a_nan_on_any_rank_is_found_with_rank_and_example(tmp_path: Path) -> None:
    ranks = _run(tmp_path, float("nan"))
    bad = [np.flatnonzero(np.isnan(rank["losses"])) for rank in ranks]
    step = int(min(steps[0] for steps in bad if len(steps)))
    (finding,) = [finding for finding in dgm_tb.open_run(tmp_path / "run").findings if finding.kind == "nonfinite"]
    assert (finding.step, finding.module, finding.samples) == (step, "0", [ABNORMAL])
    assert finding.evidence["sample_index"] == "dataset"
    assert step in bad[finding.evidence["rank"]]
