"""One record in the index: what it tells of, and where its arrays lie on disk."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dgm_tb.errors import RecordError
from dgm_tb.plugin.cache import Array
from dgm_tb.plugin.layout import ArrayPlace, HeadReader, load_body
from dgm_tb.records import expand


@dataclass(frozen=True, slots=True)
class Entry:
    """One record in the index.

    Attributes:
        kind: A key of ``records.KINDS``.
        first_step: First step it tells of.
        last_step: Last one.
        wall_time: Seconds since 1970.
        path: Its segment.
        offset: Where its payload begins.
        length: Bytes of the payload.
        base: Byte of the payload from which the offsets of ``arrays`` count.
        arrays: Array name -> where it is; shared by all records of the same layout.
        serial: Ascending in the order indexed, never used twice.
        kept: Its body, if it is small; shared by all records with the same one.
    """

    kind: str
    first_step: int
    last_step: int
    wall_time: float
    path: Path
    offset: int
    length: int
    base: int
    arrays: Mapping[str, ArrayPlace]
    serial: int
    kept: Mapping[str, Any] | None

    @property
    def body(self) -> Mapping[str, Any]:
        """The body, read again from disk if it is large.

        Raises:
            RecordError: If the file has changed.
        """
        if self.kept is not None:
            return self.kept
        with opened(self.path) as file:
            head = HeadReader().read(pread(file, self.offset, self.length))
        return load_body(self.kind, head.content)

    def n_rows(self, name: str) -> int:
        """Length of the first axis of an array; 0 if the record has none of that name."""
        place = self.arrays.get(name)
        return place.shape[0] if place is not None and place.shape else 0

    def read(self, name: str, first: int = 0, stop: int | None = None, file: int | None = None) -> Array:
        """An array of the record, or its rows ``first`` to ``stop - 1``; the bytes come straight from the file.

        Args:
            name: As in ``records.KINDS``.
            first: First row.
            stop: Row to stop before; all by default.
            file: The segment, if it is open already.

        Raises:
            RecordError: If the record has no such array, or the file has shrunk.
        """
        place = self.arrays.get(name)
        if place is None:
            raise RecordError(f"the {self.kind} record of step {self.last_step} has no array {name!r}")
        rows = place.shape[0] if place.shape else 1
        stop = rows if stop is None else min(stop, rows)
        first = min(first, stop)
        row_bytes = math.prod(place.shape[1:]) * place.dtype.itemsize
        at, wanted = self.offset + self.base + place.offset + first * row_bytes, (stop - first) * row_bytes
        if file is not None:
            content = pread(file, at, wanted)
        else:
            with opened(self.path) as own:
                content = pread(own, at, wanted)
        if len(content) != wanted:
            raise RecordError(f"{self.path.name} has shrunk: {wanted} bytes wanted, {len(content)} came")
        values = np.frombuffer(content, place.dtype).reshape((stop - first, *place.shape[1:]) if place.shape else ())
        return expand(name, values, self.body) if values.dtype == np.float16 else values


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A segment, open for reading.

    Raises:
        RecordError: If it can't be opened.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise RecordError(f"{path.name} can't be read: {error.strerror}") from error
    try:
        yield file
    finally:
        os.close(file)


def pread(file: int, offset: int, length: int) -> bytes:
    """Bytes of an open file; fewer only where it ends."""
    content = os.pread(file, length, offset)
    while len(content) < length and (more := os.pread(file, length - len(content), offset + len(content))):
        content += more
    return content
