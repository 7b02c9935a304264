"""Keeps a recording within ``max_disk_mb``: old segments are thinned out, new ones stay as they are.

Where a recording grows too large, the oldest four segments in a row that have been thinned equally often are replaced
by one with a quarter of their detail, see ``thinner.py``. So the detail falls with age, and there are never more than a
few segments of each level: a recording of any length fits in, and about the newest two thirds are whole.

At every moment the folder is a readable recording: the new segment gets its name when it is complete and on the disk,
and from then on stands for the old ones (``segment_names.py``), which are removed after that.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from dgm_tb import framing
from dgm_tb.callback.thinner import Layout, Thinner
from dgm_tb.records import Record, encode
from dgm_tb.resync import find_header
from dgm_tb.segment_names import SEGMENT_SUFFIX, current_segments, segment_name, segment_span

RUN = 4
"""Segments that become one."""
STEP_BYTES = 4 << 20
RESYNC_BYTES = 1 << 20
RETRY_SECONDS = 60.0
UNFINISHED_NAME = "thinned.part"

_DONE = object()


class Retention:
    """Thins out the segments of one recording, a few megabytes at a time; for the writer's thread.

    Args:
        folder: The recording's folder. What an earlier attempt left unfinished in it is removed.
        max_bytes: What the folder may hold.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._layout: Layout = {}
        self._work: Generator[None, None, None] | None = None
        self._not_before = 0.0
        self._sizes: dict[str, int] = {}
        self._last_sealed = -1
        self._remove(UNFINISHED_NAME)
        self._is_noted = any(_n_segments(name) > 1 for name in self._names())

    @property
    def n_bytes(self) -> int:
        """Bytes of all segments that are in the folder now; looks there at each call."""
        return sum(map(self._size, self._names()))

    def step(self, last_sealed: int) -> bool:
        """Do a bounded part of the work: about four megabytes are read.

        Whatever fails, the recording stays as it was, and nothing is tried for a minute.

        Args:
            last_sealed: Number of the last segment that does not change any more; -1 if there is none.

        Returns:
            Whether there may be more to do.
        """
        self._last_sealed = last_sealed
        if time.monotonic() < self._not_before:
            return False
        try:
            if self._work is None:
                run = self._next_run()
                if not run:
                    return False
                self._work = self._thin(run)
            if next(self._work, _DONE) is _DONE:
                self._work = None
        except Exception:
            self._work = None
            self._not_before = time.monotonic() + RETRY_SECONDS
            return False
        return True

    def close(self) -> None:
        """Leave off; what is unfinished is removed."""
        if self._work is not None:
            self._work.close()
            self._work = None

    # -- which segments ------------------------------------------------------------------------------------------------

    def _next_run(self) -> list[str]:
        """The segments to be thinned next; none if the folder is small enough, or there are too few.

        There is room left for the new segment beside the old ones, and for what comes while it is made.
        """
        names = self._names()
        current = current_segments(names)
        for name in names:
            if name not in current and _n_segments(name):
                self._remove(name)
        sealed = [name for name in current if (segment_span(name) or (0, 0))[1] <= self._last_sealed]
        runs = (sealed[first : first + RUN] for first in range(len(sealed) - RUN + 1))
        run = next((run for run in runs if _are_alike(run)), [])
        room = self._max_bytes - sum(map(self._size, run)) // 2
        return run if self.n_bytes > room else []

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._folder) if name.endswith(SEGMENT_SUFFIX)]
        except OSError:
            return []

    def _size(self, name: str) -> int:
        if name not in self._sizes:
            try:
                size = os.stat(self._folder / name).st_size
            except OSError:
                return 0
            span = segment_span(name)
            if span is None or span[1] > self._last_sealed:
                return size
            self._sizes[name] = size
        return self._sizes[name]

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):  # later, then: somebody may have it open
            os.unlink(self._folder / name)

    # -- thinning them -------------------------------------------------------------------------------------------------

    def _thin(self, run: list[str]) -> Generator[None, None, None]:
        """Replace the segments by one; hands over now and then."""
        spans = [segment_span(name) or (0, 0) for name in run]
        thinner = Thinner(_level(run[0]) + 1, self._layout)
        unfinished = self._folder / UNFINISHED_NAME
        try:
            with open(unfinished, "wb") as file:
                n_read = n_damaged = 0
                for found in itertools.chain.from_iterable(_records(self._folder / name) for name in run):
                    if isinstance(found, int):
                        n_damaged += found
                    _write(file, thinner.rest() if isinstance(found, int) else thinner.take(found))
                    n_read += found if isinstance(found, int) else len(found)
                    if n_read >= STEP_BYTES:
                        n_read = 0
                        yield
                _write(file, [*thinner.rest(), *self._notes(thinner.last_step, n_damaged)])
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self._folder / segment_name(spans[0][0], spans[-1][1]))
        except BaseException:
            self._remove(UNFINISHED_NAME)
            raise
        self._is_noted = True
        _sync(self._folder)
        for name in run:
            self._remove(name)

    def _notes(self, step: int, n_damaged: int) -> list[bytes]:
        texts = []
        if not self._is_noted:
            texts.append(
                "older windows are kept at a quarter of their detail, the oldest at less, to stay within "
                f"max_disk_mb={self._max_bytes / 2**20:g}; smallest and largest values are kept"
            )
        if n_damaged:
            texts.append(f"{n_damaged} damaged bytes were left out when older windows were thinned")
        return [encode(Record("note", step, step, {"text": text}, wall_time=time.time())) for text in texts]


def _n_segments(name: str) -> int:
    """For how many segments a file stands; 0 if it is none."""
    span = segment_span(name)
    return 0 if span is None else span[1] - span[0] + 1


def _level(name: str) -> int:
    """How often a segment has been thinned."""
    return (_n_segments(name).bit_length() - 1) // (RUN.bit_length() - 1)


def _are_alike(run: list[str]) -> bool:
    """Whether the segments follow each other and have been thinned equally often."""
    spans = [segment_span(name) or (0, 0) for name in run]
    follow = all(after[0] == before[1] + 1 for before, after in itertools.pairwise(spans))
    return follow and len({_n_segments(name) for name in run}) == 1


def _records(path: Path) -> Iterator[bytes | int]:
    """The payloads of a segment in order, and in between how many bytes were damaged."""
    size = os.stat(path).st_size
    at = 0
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            length = framing.payload_length(file.read(framing.HEADER_BYTES))
            n_bytes = framing.OVERHEAD_BYTES + (length or 0)
            if length is not None and n_bytes <= size - at:
                payload, footer = file.read(length), file.read(framing.FOOTER_BYTES)
                yield payload if framing.is_intact(payload, footer) else n_bytes
            else:
                file.seek(at + 1)
                header = find_header(file.read(RESYNC_BYTES + framing.HEADER_BYTES - 1), size - at - 1)
                n_bytes = min(1 + (RESYNC_BYTES if header is None else header), size - at)
                yield n_bytes
            at += n_bytes


def _write(file: BinaryIO, payloads: list[bytes]) -> None:
    for payload in payloads:
        file.write(framing.frame(payload))


def _sync(folder: Path) -> None:
    """See to it that a new name is on the disk before old ones are removed; not every system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
