"""What tests of the writer write, and read back; a disk that is slow, full or fails."""

import errno
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training import Recording, payloads

from dgm_tb.callback import segment_files, writer
from dgm_tb.framing import frame
from dgm_tb.records import Record
from dgm_tb.segment_names import LIVE_NAME

KB = 1 << 10
SOON = 0.01


def loss_of(step: int) -> Record:
    steps = np.array([step])
    arrays = {
        "steps": steps,
        "global_steps": steps,
        "values": np.array([[float(step)]]),
        "present": np.ones((1, 1), "u1"),
    }
    return Record("loss", step, step, {"names": ["loss"]}, arrays, 1.0)


def dynamics_of(step: int, n_bytes: int = 64 * KB) -> Record:
    body = {"quantity": "weight", "aggregates": ["norm/mean"]}
    values = np.full((n_bytes // 4, 1, 1), step, np.float32)
    return Record("dynamics", step, step, body, {"windows": np.array([[step, step]]), "values": values}, 1.0)


def steps_in(recording: Recording, kind: str) -> list[int]:
    return [record.last_step for record in recording.kind(kind)]


def segments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.dgm") if path.name != LIVE_NAME)


def is_whole(segment: Path) -> bool:
    """Whether a segment consists of whole records to its last byte."""
    return b"".join(frame(payload) for payload in payloads(segment)) == segment.read_bytes() != b""


@contextmanager
def our_warnings() -> Iterator[list[str]]:
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(warning.message) for warning in caught if "dgm_tb" in str(warning.message)]


class Disk:
    """A disk with room for so many bytes, that takes a few at a time and then fails.

    Attributes:
        room: Bytes left.
        max_bytes: Size of the largest record that it takes.
        is_open: While it is not set, writing waits.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        room: float = float("inf"),
        number: int = errno.ENOSPC,
        max_bytes: float = float("inf"),
    ) -> None:
        self.room, self.max_bytes = room, max_bytes
        self.is_open = threading.Event()
        self.is_open.set()
        disk = self

        class File(FileIO):
            def write(self, content: Any) -> int:
                assert disk.is_open.wait(30)
                n_bytes = min(len(content), 1000, disk.room)
                if not n_bytes or len(content) > disk.max_bytes:
                    raise OSError(number, os.strerror(number))
                disk.room -= n_bytes
                return super().write(content[: int(n_bytes)])

        monkeypatch.setattr(segment_files, "open", lambda path, mode, buffering: File(path, mode), raising=False)
        monkeypatch.setattr(writer, "RETRY_SECONDS", SOON)


def eventually(is_true: Callable[[], bool]) -> None:
    """Wait for the writer's thread."""
    for _ in range(3000):
        if is_true():
            return
        time.sleep(0.01)
    raise AssertionError("it never became so")
