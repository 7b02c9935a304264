"""One recording on disk: an index of its records in memory, their arrays read when asked for."""

import threading
from bisect import bisect_left
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dgm_tb.errors import RecordError, StaleIndexError
from dgm_tb.graph import Graph
from dgm_tb.plugin import storage
from dgm_tb.plugin.cache import CACHE, Arrays
from dgm_tb.plugin.entry import Entry, opened
from dgm_tb.plugin.index import Index, Table
from dgm_tb.plugin.joining import together
from dgm_tb.plugin.live import Live
from dgm_tb.plugin.reading import Read, by_path, read_each
from dgm_tb.plugin.segments import Gap, Segment
from dgm_tb.plugin.storage import Item, Place
from dgm_tb.segment_names import LIVE_NAME, current_segments, segment_name, segment_span


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

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._segments: dict[str, Segment] = {}
        self._index = Index()
        self._live = Live(folder)
        self._facts: tuple[Entry, Mapping[str, Any]] | None = None
        self._graph: tuple[Entry, Graph] | None = None
        self._change = 0
        self._n_refreshes = 0
        self._n_news = 0
        self._damage = 0, 0
        self._gaps: tuple[int, list[dict[str, Any]]] = -1, []
        self._doubts: dict[str, int] = {}
        self._troubles: dict[str, str] = {}

    # -- following the files -------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Index what has been appended since, and forget what is gone."""
        with self._lock:
            try:
                found = self._listed()
                if not found.keys() >= self._segments.keys():  # the list may have missed what has taken their place
                    found = self._listed()
            except OSError as error:
                self._note(self.folder.name, f"can't be listed: {storage.reason(error)}")
                return
            self._note(self.folder.name, None)
            self._follow(found)
            live = found.get(LIVE_NAME)
            self._live.refresh(live is not None, live.status if live is not None else None)
            gaps = [gap for segment in self._segments.values() for gap in segment.gaps]
            damage = len(gaps) + len(_holes(self._segments)), sum(gap.n_bytes for gap in gaps)
            self._n_news += damage != self._damage
            self._damage = damage
            self._n_refreshes += 1

    def _listed(self) -> dict[str, Item]:
        try:
            return {item.name: item for item in storage.items(self.folder)}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def _follow(self, found: dict[str, Item]) -> None:
        names = current_segments(found)
        known = {
            name: segment
            for name in names
            if (segment := self._segments.get(name)) is not None and not segment.was_replaced(found[name].status)
        }
        gone = {id(segment.path) for name, segment in self._segments.items() if name not in known}
        is_in_order = not gone and list(known) == names[: len(known)]
        # Whoever reads meanwhile must not see a segment without the ones that it replaces, nor both.
        index = self._index if is_in_order else self._index.without(gone)
        segments = {name: known.get(name) or Segment(self.folder / name) for name in names}
        for number, (name, segment) in enumerate(segments.items()):
            first, last = segment_span(name) or (0, 0)
            is_sealed = number + 1 < len(names) or first < last
            for payload in segment.read(is_sealed=is_sealed, status=found[name].status):
                try:
                    index.take_in(segment.path, payload.offset, payload.content)
                except RecordError as error:
                    segment.give_up(payload.offset, len(payload.content), str(error))
        self._segments = segments
        if not is_in_order:
            index.sort()
            self._index = index
            self._change += 1
            self._n_news += 1

    def _note(self, name: str, trouble: str | None) -> None:
        """Keep what can't be read at the moment; None: it can be again."""
        if self._troubles.get(name) != trouble:
            self._troubles = {known: text for known, text in self._troubles.items() if known != name}
            if trouble is not None:
                self._troubles[name] = trouble
            self._n_news += 1

    # -- looking up ----------------------------------------------------------------------------------------------------

    def entries(self, kind: str, **wanted: Any) -> list[Entry]:
        """Records of a kind in the order written, whose body has the wanted values of the keys in ``index.VARIANTS``.

        Those of windows that have not ended yet come last.
        """
        index = self._index
        return index.entries(kind, **wanted) + self._live.entries(index, kind, **wanted)

    def variants(self, kind: str) -> list[tuple[Any, ...]]:
        """Values of the keys in ``index.VARIANTS[kind]`` that there are records of, in the order first written."""
        return list(dict.fromkeys(self._index.variants(kind) + self._live.variants(kind)))

    def joined(self, name: Hashable, entries: list[Entry], read: Read) -> Arrays:
        """What ``read`` takes from each entry, joined along the first axis; kept, and extended as the recording grows.

        Args:
            name: What is read; with the recording, the key under which it is kept.
            entries: All of one lookup.
            read: Takes arrays from an entry. An entry whose bytes can't be read any more is left out.

        Raises:
            StaleIndexError: If a segment is gone.
        """
        n_written = len(entries)
        while n_written and entries[n_written - 1].is_live:
            n_written -= 1
        arrays = self._joined(name, entries[:n_written], read)
        live = self.collect(entries[n_written:], read)
        return together([part for part in (arrays, live) if part])

    def _joined(self, name: Hashable, entries: list[Entry], read: Read) -> Arrays:
        key = id(self), self.folder, name
        known = CACHE.get(key)
        change = self._change
        state = _Joined(change, len(entries), entries[-1].serial if entries else -1)
        n_known = 0
        parts: list[Arrays] = []
        if known is not None and isinstance(known[0], _Joined):
            if known[0] == state:
                return known[1]
            if known[0].is_beginning_of(entries, change):
                n_known = known[0].n_entries
                parts = [known[1]] if known[1] else []
        fresh, is_whole = self._collected(entries[n_known:], read)
        parts += [fresh] if fresh else []
        arrays = together(parts)
        if is_whole:
            CACHE.put(key, state, arrays)
        return arrays

    def collect(self, entries: list[Entry], read: Read) -> Arrays:
        """Like ``joined``, but nothing is kept."""
        return self._collected(entries, read)[0]

    def _collected(self, entries: list[Entry], read: Read) -> tuple[Arrays, bool]:
        """The arrays, and whether all bytes could be read."""
        parts: list[Arrays] = []
        is_whole = True
        for path, group in by_path(entries):
            trouble = None
            try:
                with opened(path) as file:
                    found, error = read_each(read, group, file)
                    parts += found
                    if error is not None:
                        raise error
                self._doubts.pop(path.name, None)
            except RecordError as problem:
                self._doubt(path.name, problem)
                is_whole, trouble = False, str(problem)
            self._note(path.name, trouble)
        return together(parts), is_whole

    def _doubt(self, name: str, error: RecordError) -> None:
        """Raise a file's loss, so that the index is refreshed and the question asked again; not if that was in vain.

        The first refresh since may have been under way already.
        """
        if isinstance(error, StaleIndexError):
            if self._n_refreshes - self._doubts.setdefault(name, self._n_refreshes) < 2:
                raise error

    # -- facts ---------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @property
    def facts(self) -> Mapping[str, Any]:
        """Body of its ``recording`` record; empty if that is lost."""
        found = self.entries("recording")
        if not found:
            return {}
        if self._facts is None or self._facts[0] is not found[0]:
            self._facts = found[0], found[0].body  # asked for again and again, and read from disk each time if large
        return self._facts[1]

    @property
    def order(self) -> int:
        """Its number among the starts of its run, from 1, as it counted them itself; 0 if it does not say."""
        order = self.facts.get("order")
        return order if type(order) is int and order > 0 else 0

    @property
    def started(self) -> float:
        """When it began, in seconds since 1970."""
        tables = [table for kind in ("recording", "loss") for table in self._index.tables(kind) if table.entries]
        started = self.facts.get("started", tables[0].began if tables else 0.0)
        return float(started) if isinstance(started, (int, float)) else 0.0

    @property
    def written(self) -> tuple[float, float] | None:
        """When its first and its last steps were written, in seconds since 1970; None if it has none."""
        tables = self._step_tables()
        return (min(table.began for table in tables), max(table.wrote for table in tables)) if tables else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is left, not even damage."""
        return not self._index.n_entries and not any(self._damage)

    @property
    def resume_step(self) -> int:
        """Its first step; it supersedes earlier recordings from there."""
        step = self.facts.get("resume_step")
        if isinstance(step, int):
            return step
        return min((table.first for table in self._index.tables("loss") if table.entries), default=0)

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
        tables = self._step_tables()
        return (min(table.first for table in tables), max(table.last for table in tables)) if tables else None

    def _step_tables(self) -> list[Table]:
        return [t for kind in ("loss", "layer_statistics") for t in self._index.tables(kind) if t.entries]

    @property
    def graph(self) -> Graph:
        """Its newest readable graph; an empty one if none is recorded."""
        for entry in sorted(self.entries("graph"), key=lambda entry: entry.last_step, reverse=True):
            if self._graph is not None and self._graph[0] is entry:
                return self._graph[1]
            try:
                self._graph = entry, Graph.from_json(entry.body)
            except StaleIndexError:
                raise
            except RecordError:
                continue
            return self._graph[1]
        return Graph()

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """Bytes that could not be read."""
        revision = self.revision
        if self._gaps[0] != revision:
            self._gaps = revision, self._found_gaps()
        return self._gaps[1]

    def _found_gaps(self) -> list[dict[str, Any]]:
        segments = self._segments
        holes = _holes(segments)
        found = {name: [*segment.gaps, *holes.get(name, ())] for name, segment in segments.items()}
        steps: dict[int, list[tuple[int, int]]] = {id(segments[name].path): [] for name, gaps in found.items() if gaps}
        for entry in self._index.all_entries() if steps else ():
            if id(entry.path) in steps:
                steps[id(entry.path)].append((entry.offset, entry.last_step))
        gaps = []
        for name, segment in segments.items():
            known = sorted(steps.get(id(segment.path), ()))
            for gap in found[name]:
                before = bisect_left(known, (gap.offset, 0)) - 1
                facts = {"recording": self.name, "segment": name, "offset": gap.offset, "bytes": gap.n_bytes}
                after = known[before][1] if before >= 0 else None
                gaps.append({**facts, "reason": gap.reason, "after_step": after})
        return gaps

    @property
    def troubles(self) -> list[str]:
        """What is there and could not be read when it was asked for last."""
        return [f"recording {self.name}: {text}" for text in self._troubles.values()]

    @property
    def unknown_kinds(self) -> dict[str, int]:
        """Kinds and arrays (``loss.pitch``) of a newer version, and how many of them were skipped."""
        return self._index.unknown

    @property
    def revision(self) -> int:
        """Grows whenever something was indexed or forgotten, a gap appeared or was closed."""
        return self._index.n_bytes + self._n_news + self._live.change

    def sizes(self) -> dict[str, int]:
        """Bytes on disk by kind of record."""
        return self._index.sizes()


def _holes(segments: Mapping[str, Segment]) -> dict[str, list[Gap]]:
    """Segments whose successor is missing."""
    spans = [(name, span) for name in segments if (span := segment_span(name)) is not None]
    holes = {}
    for (name, (_, last)), (_, (first, _)) in pairwise(spans):
        if first > last + 1:
            missing = segment_name(last + 1) + (f" to {segment_name(first - 1)}" if first > last + 2 else "")
            holes[name] = [Gap(segments[name].offset, 0, f"{missing} missing")]
    return holes
