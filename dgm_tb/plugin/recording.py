"""One recording on disk: an index of its records in memory, their arrays read when asked for."""

import math
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dgm_tb.errors import RecordError
from dgm_tb.graph import Graph
from dgm_tb.plugin.layout import ArrayPlace, Head, check_axes, load_body, read_head
from dgm_tb.plugin.segments import Gap, Segment
from dgm_tb.records import KINDS, SEGMENT_SUFFIX

Array = np.ndarray[Any, np.dtype[Any]]

MAX_KEPT_BODY = 4096
CACHE_BYTES = 128 << 20


@dataclass(frozen=True)
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
        arrays: Array name -> where it is.
        scalars: The short texts and the numbers of its body.
        kept: Its whole body, if it is small.
    """

    kind: str
    first_step: int
    last_step: int
    wall_time: float
    path: Path
    offset: int
    length: int
    arrays: dict[str, ArrayPlace]
    scalars: dict[str, Any]
    kept: dict[str, Any] | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The body, read again from disk if it is large."""
        if self.kept is not None:
            return self.kept
        return read_head(_pread(self.path, self.offset, self.length)).body()

    def n_rows(self, name: str) -> int:
        """Length of the first axis of an array; 0 if the record has none of that name."""
        place = self.arrays.get(name)
        return place.shape[0] if place is not None and place.shape else 0

    def read(self, name: str, first: int = 0, stop: int | None = None) -> Array:
        """An array of the record, or its rows ``first`` to ``stop - 1``; the bytes come straight from the file.

        Raises:
            RecordError: If the record has no such array, or the file has shrunk.
        """
        place = self.arrays.get(name)
        if place is None:
            raise RecordError(f"the {self.kind} record of step {self.last_step} has no array {name!r}")
        rows = place.shape[0] if place.shape else 1
        stop = rows if stop is None else min(stop, rows)
        first = min(first, stop)
        return _CACHE.get((str(self.path), self.offset, name, first, stop), lambda: self._read(place, first, stop))

    def _read(self, place: ArrayPlace, first: int, stop: int) -> Array:
        row_bytes = math.prod(place.shape[1:]) * place.dtype.itemsize
        wanted = (stop - first) * row_bytes if place.shape else place.nbytes
        content = _pread(self.path, self.offset + place.offset + first * row_bytes, wanted)
        if len(content) != wanted:
            raise RecordError(f"{self.path.name} has shrunk: {wanted} bytes wanted, {len(content)} came")
        shape = (stop - first, *place.shape[1:]) if place.shape else ()
        return np.frombuffer(content, place.dtype).reshape(shape)


class _Cache:
    """Arrays read lately, up to ``CACHE_BYTES``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrays: OrderedDict[Any, Array] = OrderedDict()
        self._n_bytes = 0

    def get(self, key: Any, load: Any) -> Array:
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array: Array = load()
        with self._lock:
            if key not in self._arrays and array.nbytes <= CACHE_BYTES // 4:
                self._arrays[key] = array
                self._n_bytes += array.nbytes
            while self._n_bytes > CACHE_BYTES:
                _, dropped = self._arrays.popitem(last=False)
                self._n_bytes -= dropped.nbytes
        return array

    def clear(self) -> None:
        with self._lock:
            self._arrays.clear()
            self._n_bytes = 0


_CACHE = _Cache()


@dataclass
class _State:
    """What the index knows; replaced as a whole when a file turns out to be another one."""

    segments: dict[str, Segment] = field(default_factory=dict)
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    bad: list[tuple[str, Gap, int | None]] = field(default_factory=list)
    n_bytes: int = 0


class Recording:
    """The records of one start of a training.

    Args:
        folder: Holds the segments.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._state = _State()
        self._graph: tuple[Entry, Graph] | None = None

    def refresh(self) -> None:
        """Index what has been appended since."""
        with self._lock:
            try:
                names = sorted(name for name in os.listdir(self.folder) if name.endswith(SEGMENT_SUFFIX))
            except OSError:
                return
            if any(segment.was_replaced() for segment in self._state.segments.values()):
                _CACHE.clear()
                self._state, self._graph = _State(), None
            for number, name in enumerate(names):
                segment = self._state.segments.setdefault(name, Segment(self.folder / name))
                self._follow(segment, is_sealed=number + 1 < len(names))

    def entries(self, kind: str, **wanted: Any) -> list[Entry]:
        """Records of a kind in the order written, whose body has the wanted texts and numbers."""
        found = self._state.entries.get(kind, [])[:]
        return [entry for entry in found if all(entry.scalars.get(key) == value for key, value in wanted.items())]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @property
    def facts(self) -> dict[str, Any]:
        """Body of its ``recording`` record; empty if that is lost."""
        found = self.entries("recording")
        return found[0].body if found else {}

    @property
    def started(self) -> float:
        """When it began, in seconds since 1970."""
        found = self.entries("recording")
        started = self.facts.get("started", found[0].wall_time if found else 0.0)
        return float(started) if isinstance(started, (int, float)) else 0.0

    @property
    def resume_step(self) -> int:
        """Its first step; it supersedes earlier recordings from there."""
        step = self.facts.get("resume_step", 0)
        return step if isinstance(step, int) else 0

    @property
    def graph(self) -> Graph:
        """Its newest graph; an empty one if none is recorded."""
        found = self.entries("graph")
        if not found:
            return Graph()
        if self._graph is None or self._graph[0] is not found[-1]:
            self._graph = found[-1], Graph.from_json(found[-1].body)
        return self._graph[1]

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """Bytes that could not be read."""
        state = self._state
        found = [(name, gap, None) for name, segment in state.segments.items() for gap in segment.gaps] + state.bad[:]
        return [
            {
                "recording": self.name,
                "segment": name,
                "offset": gap.offset,
                "bytes": gap.n_bytes,
                "reason": gap.reason,
                "after_step": after,
            }
            for name, gap, after in found
        ]

    @property
    def unknown_kinds(self) -> dict[str, int]:
        """Kinds of a newer version, and how many records of them were skipped."""
        return dict(self._state.unknown)

    @property
    def revision(self) -> int:
        """Grows whenever something new was indexed."""
        return self._state.n_bytes

    def sizes(self) -> dict[str, int]:
        """Bytes on disk by kind of record."""
        return {kind: sum(entry.length for entry in found) for kind, found in self._state.entries.items()}

    def _follow(self, segment: Segment, *, is_sealed: bool) -> None:
        state = self._state
        for payload in segment.read(is_sealed=is_sealed):
            state.n_bytes += len(payload.content)
            try:
                head = read_head(payload.content)
                if head.kind not in KINDS:
                    state.unknown[head.kind[:40]] = state.unknown.get(head.kind[:40], 0) + 1
                    continue
                entry = _entry(segment.path, payload.offset, len(payload.content), head)
            except RecordError as error:
                gap = Gap(payload.offset, len(payload.content), str(error)[:200])
                after = max((found[-1].last_step for found in state.entries.values() if found), default=None)
                state.bad.append((segment.path.name, gap, after))
                continue
            state.entries.setdefault(entry.kind, []).append(entry)


def _entry(path: Path, offset: int, length: int, head: Head) -> Entry:
    check_axes(head.kind, head.arrays)
    body = load_body(head.kind, head.content)
    missing = [key for key in KINDS[head.kind].body if key not in body]
    if missing:
        raise RecordError(f"a {head.kind} record without {', '.join(missing)}")
    first_step = body.get("first_step", head.last_step)
    if not isinstance(first_step, int):
        raise RecordError(f"first_step of a {head.kind} record is a whole number; got {str(first_step)[:40]!r}")
    arrays = {place.name: place for place in head.arrays}
    scalars = {k: v for k, v in body.items() if isinstance(v, (int, float)) or (isinstance(v, str) and len(v) < 300)}
    kept = body if len(head.content) <= MAX_KEPT_BODY else None
    return Entry(head.kind, first_step, head.last_step, head.wall_time, path, offset, length, arrays, scalars, kept)


def _pread(path: Path, offset: int, length: int) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise RecordError(f"{path.name} can't be read: {error.strerror}") from error
    try:
        parts, missing = [], length
        while missing and (part := os.pread(file, missing, offset)):
            parts.append(part)
            offset, missing = offset + len(part), missing - len(part)
        return b"".join(parts)
    finally:
        os.close(file)
