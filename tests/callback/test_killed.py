"""``kill -9`` at random moments: what was on the disk is readable, nothing is damaged, and the next start works."""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Ended, Processes
from training import recordings

import dgm_tb
from dgm_tb.errors import NoRecordingError

KILLS = 200
STARTS_PER_RUN = 10
LOSS_SECONDS = 5.0


@pytest.fixture(scope="module")
def writers() -> Iterator[Processes]:
    server = Processes("writer_worker.py")
    yield server
    server.close()


@pytest.mark.parametrize("seed", range(KILLS // STARTS_PER_RUN))
def test_what_was_on_the_disk_is_readable_and_the_next_start_works(
    seed: int, writers: Processes, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    folder = tmp_path / "run"
    n_steps = 0
    for _ in range(STARTS_PER_RUN):
        first = rng.randint(0, n_steps)
        moment = {"after_steps": rng.randint(0, 20), "kill_after": rng.uniform(0, 0.01)}
        n_steps = _checked(folder, writers.run(folder, "killed", first=first, **moment), first)
    assert n_steps
    assert writers.run(folder, "finished", first=n_steps).status == 0
    run = dgm_tb.open_run(folder)
    assert run.ended == "finished"
    assert run.losses["number"].steps.tolist() == list(range(n_steps + 20))


def test_what_is_queued_is_written_when_the_process_exits(writers: Processes, tmp_path: Path) -> None:
    assert writers.run(tmp_path / "run", "forgotten").status == 0
    assert dgm_tb.open_run(tmp_path / "run").losses["number"].steps.tolist() == list(range(20))


def _checked(folder: Path, ended: Ended, first: int) -> int:
    """The number of steps of a run, all whole, after the process that wrote the last ones was killed."""
    assert ended.status == -signal.SIGKILL, ended.log
    for recording in recordings(folder):
        for segment in recording.glob("*.dgm"):
            os.utime(segment, (1, 1))  # so old that the reader does not wait for the rest of a torn record
    try:
        run = dgm_tb.open_run(folder)
        steps, values = run.losses["number"].steps, run.losses["number"].values
    except (NoRecordingError, KeyError):  # killed before it wrote anything
        assert max(ended.n_confirmed, first) == 0
        return 0
    assert {gap["reason"] for gap in run.gaps} <= {"incomplete record"}
    assert steps.tolist() == values.tolist() == list(range(len(steps)))
    assert len(steps) >= max(ended.n_confirmed, first)
    return len(steps)


def test_a_training_that_is_killed_loses_five_seconds_at_most(loops: Processes, tmp_path: Path) -> None:
    ended = loops.run(tmp_path / "run", "killed", window_steps=5000, after_steps=20, kill_after=6.5)
    assert ended.status == -signal.SIGKILL, ended.log
    n_old = sum(time <= ended.killed - LOSS_SECONDS for time in ended.step_times)
    assert n_old > 50
    run = dgm_tb.open_run(tmp_path / "run")
    n_steps = len(run.losses["number"].steps)
    assert run.losses["number"].steps.tolist() == list(range(n_steps))
    assert n_steps >= n_old
    assert run.layer_statistics("0")["mean"].steps.tolist() == list(range(n_steps))
    assert run.dynamics("0").steps[-1] >= n_old - 1, "of a window that has not ended"
    assert run.gaps == []
