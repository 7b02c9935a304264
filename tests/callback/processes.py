"""Processes that record and end in some way, forked from one that has loaded everything: loading torch takes seconds.

A test asks with ``Processes``; a worker script answers with ``serve``.
"""

import gc
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_STEPS = 4000


@dataclass
class Ended:
    """A process that has ended.

    Attributes:
        status: Exit status; negative: the signal that killed it.
        n_confirmed: Steps before this one were on the disk, as it knew.
        step_times: When each of its steps ended.
        killed: When it was killed.
        log: What it and those before it in the same folder printed.
    """

    status: int
    n_confirmed: int
    step_times: list[float]
    killed: float
    log: str


class Processes:
    """Asks a worker script for processes.

    Args:
        worker: Name of the script, beside this one.
    """

    def __init__(self, worker: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name(worker))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(
        self, folder: Path, ends: str, *, after_steps: int = 0, kill_after: float | None = None, **how: Any
    ) -> Ended:
        """Run one process to its end.

        Args:
            folder: The run folder.
            ends: How it ends; see the worker.
            after_steps: Steps of the process after which the time of ``kill_after`` begins.
            kill_after: Seconds after which it is killed.
            **how: What else the worker is told.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {"after_steps": after_steps, "kill_after": kill_after}
        self._server.stdin.write(json.dumps([request, {"folder": str(folder), "ends": ends, **how}]) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return Ended(**answer, log=_log(folder).read_text())

    def close(self) -> None:
        """End the script."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)


class Progress:
    """What a process tells until it is killed."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * (MAX_STEPS + 2))

    @property
    def n_steps(self) -> int:
        """Steps that have ended."""
        return int(struct.unpack_from("<d", self._memory, 8)[0])

    def confirm(self, n_steps: int) -> None:
        """All steps before this one are on the disk."""
        struct.pack_into("<d", self._memory, 0, n_steps)

    def note(self, number: int) -> None:
        """The step of this number, counted from the start of the process, has ended just now."""
        struct.pack_into("<d", self._memory, 8 * (number + 2), time.monotonic())
        struct.pack_into("<d", self._memory, 8, number + 1)

    def read(self) -> dict[str, Any]:
        """As ``Ended`` has it."""
        confirmed, n_steps, *times = struct.unpack(f"<{MAX_STEPS + 2}d", self._memory)
        return {"n_confirmed": int(confirmed), "step_times": times[: int(n_steps)]}


def serve() -> tuple[dict[str, Any], Progress] | None:
    """Answer requests until there are no more; in a forked process, return what it is to do."""
    gc.freeze()  # else each process collects, at its exit, what it shares with this one
    for line in sys.stdin:
        request, task = json.loads(line)
        progress = Progress()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(_log(Path(task["folder"])), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            os.dup2(1, 2)
            return task, progress
        status = None
        while status is None and progress.n_steps < request["after_steps"]:
            time.sleep(0.001)
            found, code = os.waitpid(child, os.WNOHANG)
            status = code if found else None
        if status is None:
            if request["kill_after"] is not None:
                time.sleep(request["kill_after"])
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        ended = {"status": os.waitstatus_to_exitcode(status), "killed": time.monotonic(), **progress.read()}
        print(json.dumps(ended), flush=True)
    return None


def _log(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")
