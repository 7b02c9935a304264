"""One record in the index: what it tells of, and where its arrays lie in its file."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from dgm_tb.errors import RecordError, StaleIndexError
from dgm_tb.plugin import storage
from dgm_tb.plugin.cache import Array
from dgm_tb.plugin.layout import ArrayPlace, HeadReader, load_body
from dgm_tb.plugin.storage import Openable, OpenFile, Place
from dgm_tb.records import expand
from dgm_tb.segment_names import LIVE_NAME


class Entry(NamedTuple):
    """One record in the index. A tuple, since it is made in half the time of a frozen dataclass (measured).

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
    path: Place | Openable
    offset: int
    length: int
    base: int
    arrays: Mapping[str, ArrayPlace]
    serial: int
    kept: Mapping[str, Any] | None

    @property
    def is_live(self) -> bool:
        """Whether it tells of a window that has not ended yet."""
        return self.path.name == LIVE_NAME

    @property
    def body(self) -> Mapping[str, Any]:
        """The body, read again from its file if it is large.

        Raises:
            RecordError: If it can't be read.
        """
        if self.kept is not None:
            return self.kept
        with opened(self.path) as file:
            content = self._read(file, self.offset, self.length)
        return load_body(self.kind, HeadReader().read(content).content)

    def n_rows(self, name: str) -> int:
        """Length of the first axis of an array; 0 if the record has none of that name."""
        place = self.arrays.get(name)
        return place.shape[0] if place is not None and place.shape else 0

    def read(self, name: str, first: int = 0, stop: int | None = None, file: OpenFile | None = None) -> Array:
        """An array of the record, or its rows ``first`` to ``stop - 1``; the bytes come straight from the file.

        Args:
            name: As in ``records.KINDS``.
            first: First row.
            stop: Row to stop before; all by default.
            file: The segment, if it is open already.

        Raises:
            RecordError: If the record has no such array, or can't be read.
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
            content = self._read(file, at, wanted)
        else:
            with opened(self.path) as own:
                content = self._read(own, at, wanted)
        values = np.frombuffer(content, place.dtype).reshape((stop - first, *place.shape[1:]) if place.shape else ())
        if values.dtype == np.int32:  # smaller on disk; sums and products of steps need more
            return values.astype(np.int64)
        return expand(name, values, self.body) if values.dtype == np.float16 else values

    def _read(self, file: OpenFile, offset: int, n_bytes: int) -> bytes:
        content = file.read_at(offset, n_bytes) if n_bytes else b""
        if len(content) != n_bytes:
            raise StaleIndexError(f"{self.path.name} has shrunk: {n_bytes} bytes wanted, {len(content)} came")
        return content


@contextmanager
def opened(path: Place | Openable) -> Iterator[OpenFile]:
    """A segment, open for reading; also what is raised while it is read becomes an error of ours.

    Raises:
        StaleIndexError: If it is gone.
        RecordError: If it can't be read.
    """
    try:
        with storage.opened(path) as file:
            yield file
    except FileNotFoundError as error:
        raise StaleIndexError(f"{path.name} is gone; ask again") from error
    except OSError as error:
        raise RecordError(f"{path.name} can't be read: {storage.reason(error)}") from error
