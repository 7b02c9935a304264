"""One recording on disk: an index of its records in memory, their arrays read when asked for."""

import os
import re
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from dgm_tb.errors import RecordError
from dgm_tb.graph import Graph
from dgm_tb.plugin.cache import CACHE, Array, Arrays
from dgm_tb.plugin.checks import check_arrays, check_body, check_steps
from dgm_tb.plugin.entry import Entry, opened
from dgm_tb.plugin.layout import ArrayPlace, Head, HeadReader, load_body
from dgm_tb.plugin.segments import Gap, Segment
from dgm_tb.records import KINDS
from dgm_tb.segment_names import current_segments

MAX_KEPT_BODY = 4096
MAX_GAPS = 1000
MAX_ENTRIES = 1_000_000
"""Records indexed per recording: a hostile file of tiny records must not fill the memory."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "loss": ("names",),
    "layer_statistics": ("quantity",),
    "dynamics": ("quantity",),
    "polylines": ("quantity", "statistic"),
    "contribution": ("target", "direction", "samples", "columns"),
    "samples": ("finding",),
    "relevance": ("finding",),
}
"""Kind -> keys of its body by which its records are looked up."""

_FIRST_STEP = re.compile(rb'^\{"version":\d+,"first_step":(\d+),')
_MAX_BODIES = 4096
_NO_ARRAYS: tuple[tuple[ArrayPlace, ...] | None, Mapping[str, ArrayPlace]] = None, {}
_serial = count()


@dataclass
class _Index:
    """What is known of the records."""

    by_kind: dict[str, list[Entry]] = field(default_factory=dict)
    by_variant: dict[tuple[Hashable, ...], list[Entry]] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    bad: list[tuple[Path, Gap, int | None]] = field(default_factory=list)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    last_of: dict[Path, int] = field(default_factory=dict)
    n_entries: int = 0
    n_bytes: int = 0

    def add(self, entry: Entry, variant: tuple[Hashable, ...]) -> None:
        self.by_kind.setdefault(entry.kind, []).append(entry)
        if variant:
            self.by_variant.setdefault((entry.kind, *variant), []).append(entry)
        first, last = self.spans.get(entry.kind, (entry.first_step, entry.last_step))
        self.spans[entry.kind] = min(first, entry.first_step), max(last, entry.last_step)
        self.last_of[entry.path] = entry.last_step
        self.n_entries += 1

    def forget(self, path: Path) -> None:
        """Drop all records of one segment."""
        for table in (self.by_kind, self.by_variant):
            for key, entries in table.items():
                table[key] = [entry for entry in entries if entry.path != path]  # type: ignore[index]
        self.bad = [item for item in self.bad if item[0] != path]
        self.last_of.pop(path, None)
        left = {kind: entries for kind, entries in self.by_kind.items() if entries}
        self.spans = {k: (min(e.first_step for e in es), max(e.last_step for e in es)) for k, es in left.items()}


@dataclass(frozen=True)
class _Joined:
    """Which entries were joined: their number and the last one's serial."""

    change: int
    n_entries: int
    serial: int

    def is_beginning_of(self, entries: list[Entry], change: int) -> bool:
        n = self.n_entries
        return self.change == change and 0 < n <= len(entries) and entries[n - 1].serial == self.serial


class Recording:
    """The records of one start of a training.

    Args:
        folder: Holds the segments.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._segments: dict[str, Segment] = {}
        self._index = _Index()
        self._heads = HeadReader()
        self._bodies: dict[tuple[str, bytes], Mapping[str, Any]] = {}
        self._arrays: dict[int, tuple[tuple[ArrayPlace, ...] | None, Mapping[str, ArrayPlace]]] = {}
        self._checked: dict[tuple[int, int], tuple[Mapping[str, Any], Mapping[str, ArrayPlace]]] = {}
        self._graph: tuple[Entry, Graph] | None = None
        self._change = 0

    # -- following the files -------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Index what has been appended since."""
        with self._lock:
            try:
                names = current_segments(os.listdir(self.folder))
            except OSError:
                return
            for name, segment in list(self._segments.items()):
                if segment.was_replaced():
                    self._index.forget(segment.path)
                    del self._segments[name]
                    self._change += 1
            for number, name in enumerate(names):
                segment = self._segments.setdefault(name, Segment(self.folder / name))
                for payload in segment.read(is_sealed=number + 1 < len(names)):
                    self._take_in(segment, payload.offset, payload.content)

    def _take_in(self, segment: Segment, offset: int, payload: bytes) -> None:
        index = self._index
        index.n_bytes += len(payload)
        if index.n_entries >= MAX_ENTRIES:
            index.unknown["(too many records)"] = index.unknown.get("(too many records)", 0) + 1
            return
        try:
            head = self._heads.read(payload)
            if head.kind not in KINDS:
                index.unknown[head.kind[:40]] = index.unknown.get(head.kind[:40], 0) + 1
                return
            entry, variant = self._entry(segment.path, offset, len(payload), head)
        except RecordError as error:
            if len(index.bad) < MAX_GAPS:
                gap = Gap(offset, len(payload), str(error)[:200])
                index.bad.append((segment.path, gap, index.last_of.get(segment.path)))
            return
        index.add(entry, variant)

    def _entry(self, path: Path, offset: int, length: int, head: Head) -> tuple[Entry, tuple[Hashable, ...]]:
        body, first_step = self._body(head)
        check_steps(head.kind, first_step, head.last_step)
        places, arrays = self._arrays.get(id(head.arrays), _NO_ARRAYS)
        if places is not head.arrays:
            arrays = {place.name: place for place in head.arrays}
            if len(self._arrays) < _MAX_BODIES:
                self._arrays[id(head.arrays)] = head.arrays, arrays
        self._check_arrays(head.kind, body, arrays)
        variant = tuple(_hashable(head.kind, key, body.get(key)) for key in VARIANTS.get(head.kind, ()))
        kept = body if len(head.content) <= MAX_KEPT_BODY else None
        entry = Entry(
            kind=head.kind,
            first_step=min(first_step, head.last_step),
            last_step=head.last_step,
            wall_time=head.wall_time,
            path=path,
            offset=offset,
            length=length,
            base=head.base,
            arrays=arrays,
            serial=next(_serial),
            kept=kept,
        )
        return entry, variant

    def _body(self, head: Head) -> tuple[Mapping[str, Any], Any]:
        """Body and first step. Bodies that differ in nothing else are decoded and kept once."""
        match = _FIRST_STEP.match(head.content)
        key = (head.kind, head.content[match.end() :]) if match else (head.kind, head.content)
        body = self._bodies.get(key)
        if match and body is not None:
            return body, int(match[1])
        body = load_body(head.kind, head.content)
        first_step = body.pop("first_step", head.last_step)
        check_body(head.kind, body)
        if match and len(head.content) <= MAX_KEPT_BODY and len(self._bodies) < _MAX_BODIES:
            self._bodies[key] = body
        return body, first_step

    def _check_arrays(self, kind: str, body: Mapping[str, Any], arrays: Mapping[str, ArrayPlace]) -> None:
        """Check the arrays of a record, once for all records of the same body and layout."""
        known = self._checked.get((id(body), id(arrays)))
        if known is None or known[0] is not body or known[1] is not arrays:
            check_arrays(kind, body, arrays)
            if len(self._checked) < _MAX_BODIES:
                self._checked[id(body), id(arrays)] = body, arrays

    # -- looking up ----------------------------------------------------------------------------------------------------

    def entries(self, kind: str, **wanted: Any) -> list[Entry]:
        """Records of a kind in the order written, whose body has the wanted values of the keys in ``VARIANTS``."""
        if not wanted:
            return self._index.by_kind.get(kind, [])[:]
        keys = VARIANTS[kind]
        if len(wanted) == len(keys):
            return self._index.by_variant.get((kind, *(wanted[key] for key in keys)), [])[:]
        pairs = [(keys.index(key) + 1, value) for key, value in wanted.items()]
        tables = [
            found
            for variant, found in list(self._index.by_variant.items())
            if variant[0] == kind and all(variant[place] == value for place, value in pairs)
        ]
        return sorted((entry for found in tables for entry in found), key=lambda entry: entry.serial)

    def variants(self, kind: str) -> list[tuple[Any, ...]]:
        """Values of the keys in ``VARIANTS[kind]`` that there are records of, in the order first written."""
        return [variant[1:] for variant, found in list(self._index.by_variant.items()) if variant[0] == kind and found]

    def joined(self, name: Hashable, entries: list[Entry], read: Callable[[Entry, int], Arrays]) -> Arrays:
        """What ``read`` takes from each entry, joined along the first axis; kept, and extended as the recording grows.

        Args:
            name: What is read; with the recording, the key under which it is kept.
            entries: All of one lookup.
            read: From an entry and its open segment to arrays, the same number each time; trailing axes may grow.
                An entry whose bytes can't be read any more is left out.
        """
        key = id(self), self.folder, name
        known = CACHE.get(key)
        state = _Joined(self._change, len(entries), entries[-1].serial if entries else -1)
        n_known = 0
        parts: list[Arrays] = []
        if known is not None and isinstance(known[0], _Joined):
            if known[0] == state:
                return known[1]
            if known[0].is_beginning_of(entries, self._change):
                n_known = known[0].n_entries
                parts = [known[1]] if known[1] else []
        fresh = self.collect(entries[n_known:], read)
        parts += [fresh] if fresh else []
        arrays = tuple(map(concatenated, zip(*parts, strict=True))) if parts else ()
        CACHE.put(key, state, arrays)
        return arrays

    def collect(self, entries: list[Entry], read: Callable[[Entry, int], Arrays]) -> Arrays:
        """Like ``joined``, but nothing is kept."""
        parts: list[Arrays] = []
        for path, group in _by_path(entries):
            try:
                with opened(path) as file:
                    parts += [found for entry in group if (found := _try(read, entry, file))]
            except RecordError:
                continue
        return tuple(map(concatenated, zip(*parts, strict=True))) if parts else ()

    # -- facts ---------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @property
    def facts(self) -> Mapping[str, Any]:
        """Body of its ``recording`` record; empty if that is lost."""
        found = self.entries("recording")
        return found[0].body if found else {}

    @property
    def started(self) -> float:
        """When it began, in seconds since 1970."""
        found = self.entries("recording") or self.entries("loss")
        started = self.facts.get("started", found[0].wall_time if found else 0.0)
        return float(started) if isinstance(started, (int, float)) else 0.0

    @property
    def resume_step(self) -> int:
        """Its first step; it supersedes earlier recordings from there."""
        step = self.facts.get("resume_step")
        if isinstance(step, int):
            return step
        return min((e.first_step for e in self.entries("loss")[:1]), default=0)

    @property
    def rank(self) -> int:
        """Of the process that wrote it."""
        rank = self.facts.get("rank", 0)
        return rank if isinstance(rank, int) else 0

    @property
    def window_steps(self) -> int:
        """Steps per window of the dynamics."""
        steps = self.facts.get("window_steps", 1)
        return steps if isinstance(steps, int) and steps > 0 else 1

    @property
    def steps(self) -> tuple[int, int] | None:
        """First and last step with a loss or a statistic; None if there is none."""
        found = [span for kind in ("loss", "layer_statistics") if (span := self._index.spans.get(kind))]
        return (min(first for first, _ in found), max(last for _, last in found)) if found else None

    @property
    def graph(self) -> Graph:
        """Its newest readable graph; an empty one if none is recorded."""
        for entry in reversed(self.entries("graph")):
            if self._graph is not None and self._graph[0] is entry:
                return self._graph[1]
            try:
                self._graph = entry, Graph.from_json(entry.body)
            except RecordError:
                continue
            return self._graph[1]
        return Graph()

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """Bytes that could not be read."""
        found = [(s.path, gap, self._step_before(s.path, gap)) for s in list(self._segments.values()) for gap in s.gaps]
        return [
            {
                "recording": self.name,
                "segment": path.name,
                "offset": gap.offset,
                "bytes": gap.n_bytes,
                "reason": gap.reason,
                "after_step": after,
            }
            for path, gap, after in found + self._index.bad[:]
        ]

    @property
    def unknown_kinds(self) -> dict[str, int]:
        """Kinds of a newer version, and how many records of them were skipped."""
        return dict(self._index.unknown)

    @property
    def revision(self) -> int:
        """Changes whenever something new was indexed, or a gap appeared."""
        return self._index.n_bytes + self._change + sum(len(s.gaps) for s in list(self._segments.values()))

    def sizes(self) -> dict[str, int]:
        """Bytes on disk by kind of record."""
        return {kind: sum(entry.length for entry in found) for kind, found in self._index.by_kind.items()}

    def _step_before(self, path: Path, gap: Gap) -> int | None:
        known = (e for found in list(self._index.by_kind.values()) for e in found if e.path == path)
        before = max((e for e in known if e.offset < gap.offset), key=lambda e: e.offset, default=None)
        return before.last_step if before is not None else None


def concatenated(parts: tuple[Array, ...]) -> Array:
    """Arrays joined along the first axis; where trailing axes differ, filled up with NaN (0 for whole numbers)."""
    if len({part.shape[1:] for part in parts}) > 1:
        shape = tuple(map(max, zip(*(part.shape[1:] for part in parts), strict=True)))
        parts = tuple(_padded(part, shape) for part in parts)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _padded(part: Array, shape: tuple[int, ...]) -> Array:
    fill = np.nan if part.dtype.kind == "f" else 0
    widths = [(0, 0), *((0, wanted - size) for wanted, size in zip(shape, part.shape[1:], strict=True))]
    return np.pad(part, widths, constant_values=fill)


def _hashable(kind: str, key: str, value: Any) -> Hashable:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if value is None or isinstance(value, str):
        return value
    raise RecordError(f"{key} of a {kind} record is a text; got {str(value)[:40]!r}")


def _by_path(entries: list[Entry]) -> Iterator[tuple[Path, list[Entry]]]:
    group: list[Entry] = []
    for entry in entries:
        if group and group[0].path is not entry.path:
            yield group[0].path, group
            group = []
        group.append(entry)
    if group:
        yield group[0].path, group


def _try(read: Callable[[Entry, int], Arrays], entry: Entry, file: int) -> Arrays | None:
    try:
        return read(entry, file)
    except (RecordError, ValueError, IndexError):
        return None
