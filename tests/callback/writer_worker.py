"""Forks processes that write records as fast as the disk takes them; see ``processes.py``. Without torch."""

import time
from io import FileIO
from itertools import count
from pathlib import Path

import numpy as np
from processes import Progress, serve

from dgm_tb.callback import output, segment_files
from dgm_tb.callback.options import Options
from dgm_tb.callback.output import Output
from dgm_tb.records import PLUGIN_NAME, Record

SEGMENT_BYTES = 1 << 16
N_STEPS = 20


def write(folder: Path, ends: str, progress: Progress, *, first: int = 0) -> None:
    """Write a loss and an array of every step, and live records; confirm every fourth step.

    Args:
        folder: The run folder.
        ends: ``finished`` after some steps; ``forgotten``: then, but nobody closes it, and the disk is slow;
            ``killed``: never.
        progress: Is told of every step.
        first: The first step.
    """
    if ends == "forgotten":
        segment_files._write = _write_slowly
    to = Output(folder / "plugins" / PLUGIN_NAME, Options(), first, {"model": "", "resume_step": first})
    values = np.random.default_rng(first).normal(size=(1 << 16, 1, 1)).astype(np.float32)
    for number in count() if ends == "killed" else range(N_STEPS):
        step = first + number
        steps = np.array([step])
        arrays = {"steps": steps, "global_steps": steps, "values": np.array([[float(step)]])}
        arrays["present"] = np.ones((1, 1), np.uint8)
        to.put(Record("loss", step, step, {"names": ["number"]}, arrays))
        size = 1 << (8 + number * 5 % 9)  # 1 KB to 256 KB
        arrays = {"windows": np.array([[step, step]]), "values": values[:size]}
        body = {"quantity": "weight", "aggregates": ["norm/mean"]}
        to.put(Record("dynamics", step, step, body, arrays))
        to.put_live([Record("dynamics", step, step, body, arrays | {"values": values[:10]})])
        progress.note(number)
        if ends == "killed" and number % 4 == 3:
            to.sync()
            progress.confirm(step + 1)
    if ends == "forgotten":
        return
    to.put(Record("end", step, step, {"reason": "finished", "last_step": step}))
    to.close()


def _write_slowly(file: FileIO, content: bytes) -> None:
    time.sleep(0.01)
    file.write(content)


if __name__ == "__main__":
    output.SEGMENT_BYTES = SEGMENT_BYTES
    work = serve()
    if work is not None:
        task, noted = work
        write(Path(task.pop("folder")), progress=noted, **task)
