"""What is known of the records of some files: what each tells of and where its arrays lie, never the arrays."""

import math
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

from dgm_tb.errors import RecordError
from dgm_tb.plugin.checks import MAX_STEP, check_arrays, check_body, check_steps
from dgm_tb.plugin.entry import Entry
from dgm_tb.plugin.layout import ArrayPlace, Head, HeadReader, load_body
from dgm_tb.plugin.storage import Openable, Place
from dgm_tb.records import KINDS
from dgm_tb.segment_names import segment_span

MAX_KEPT_BODY = 4096
MAX_ENTRIES = 1_000_000
"""Records indexed per recording: a hostile file of tiny records must not fill the memory."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "loss": ("names",),
    "layer_statistics": ("quantity",),
    "dynamics": ("quantity",),
    "polylines": ("quantity", "statistic"),
    "contribution": ("target", "direction", "samples", "columns", "source"),
    "samples": ("finding",),
    "relevance": ("finding",),
}
"""Kind -> keys of its body by which its records are looked up."""

_FIRST_STEP = re.compile(rb'^\{"version":\d+,"first_step":(\d{1,16}),')
MAX_UNKNOWN = 100
_MAX_FORMS = 4096
_span = lru_cache(4096)(segment_span)
_serial = count()


@dataclass(slots=True)
class Table:
    """Some records in the order of their files, and what they span.

    Attributes:
        entries: The records.
        first: First step that one of them tells of.
        last: Last one.
        began: When the earliest was written, in seconds since 1970.
        wrote: When the latest was written.
    """

    entries: list[Entry]
    first: int = MAX_STEP
    last: int = -1
    began: float = math.inf
    wrote: float = -math.inf

    def add(self, entry: Entry) -> None:
        """Append a record."""
        self.entries.append(entry)
        if entry.first_step < self.first:
            self.first = entry.first_step
        if entry.last_step > self.last:
            self.last = entry.last_step
        if entry.wall_time < self.began:
            self.began = entry.wall_time
        if entry.wall_time > self.wrote:
            self.wrote = entry.wall_time


class _Form(NamedTuple):
    """What all records of one body and one layout share, checked once."""

    kept: Mapping[str, Any] | None
    places: tuple[ArrayPlace, ...]
    arrays: Mapping[str, ArrayPlace]
    tables: tuple[Table, ...]


class Index:
    """The records of the files of a recording.

    Args:
        max_entries: Records beyond it are only counted.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self.n_entries = 0
        self.n_bytes = 0
        self._unknown: dict[tuple[int, str], int] = {}
        self._max_entries = max_entries
        self._by_kind: dict[str, Table] = {}
        self._by_variant: dict[tuple[Hashable, ...], Table] = {}
        self._heads = HeadReader()
        self._bodies: dict[tuple[str, bytes], Mapping[str, Any]] = {}
        self._arrays: dict[int, tuple[tuple[ArrayPlace, ...], Mapping[str, ArrayPlace]]] = {}
        self._forms: dict[tuple[str, bytes, int], _Form] = {}

    # -- taking in -----------------------------------------------------------------------------------------------------

    def take_in(self, path: Place | Openable, offset: int, payload: bytes) -> None:
        """Index a record.

        Args:
            path: Its file; the same object for all its records.
            offset: Where the payload begins.
            payload: Its bytes.

        Raises:
            RecordError: If they are no record of the schema.
        """
        self.n_bytes += len(payload)
        if self.n_entries >= self._max_entries:
            self._skip(path, "(too many records)")
            return
        head = self._heads.read(payload)
        content, match = head.content, _FIRST_STEP.match(head.content)
        key = (head.kind, content[match.end() :], id(head.arrays)) if match else None
        form = self._forms.get(key) if key else None
        if form is None or form.places is not head.arrays or match is None:
            if head.kind not in KINDS:
                self._skip(path, head.kind)
                return
            body, first_step = self._body(head, match)
            check_steps(head.kind, first_step, head.last_step)
            form = self._form(head, body)
            if key and form.kept is not None and len(self._forms) < _MAX_FORMS:
                self._forms[key] = form
        else:
            first_step = int(match[1])
            if not 0 <= first_step <= head.last_step <= MAX_STEP:
                check_steps(head.kind, first_step, head.last_step)
        for name in head.unknown:
            self._skip(path, f"{head.kind}.{name}")
        first_step = min(first_step, head.last_step)
        entry = Entry(
            head.kind, first_step, head.last_step, head.wall_time, path, offset, len(payload), head.base,
            form.arrays, next(_serial), form.kept,
        )  # fmt: skip
        for table in form.tables:
            table.add(entry)
        self.n_entries += 1

    def _skip(self, path: Place | Openable, kind: str) -> None:
        key = id(path), kind[:40] if len(self._unknown) < MAX_UNKNOWN else "(others)"
        self._unknown[key] = self._unknown.get(key, 0) + 1

    def _body(self, head: Head, match: re.Match[bytes] | None) -> tuple[Mapping[str, Any], Any]:
        """Body and first step. Bodies that differ in nothing else are decoded and kept once."""
        rest = head.kind, head.content[match.end() :] if match else head.content
        known = self._bodies.get(rest)
        if match and known is not None:
            return known, int(match[1])
        body = load_body(head.kind, head.content)
        first_step = body.pop("first_step", head.last_step)
        check_body(head.kind, body)
        if match and len(head.content) <= MAX_KEPT_BODY and len(self._bodies) < _MAX_FORMS:
            self._bodies[rest] = body
        return body, first_step

    def _form(self, head: Head, body: Mapping[str, Any]) -> _Form:
        places, arrays = self._arrays.get(id(head.arrays), (None, {}))
        if places is not head.arrays:
            arrays = {place.name: place for place in head.arrays}
            if len(self._arrays) < _MAX_FORMS:
                self._arrays[id(head.arrays)] = head.arrays, arrays
        check_arrays(head.kind, body, arrays)
        keys = VARIANTS.get(head.kind, ())
        variant = (head.kind, *(_hashable(head.kind, key, body.get(key)) for key in keys))
        tables = [self._by_kind.setdefault(head.kind, Table([]))]
        if keys:
            tables.append(self._by_variant.setdefault(variant, Table([])))
        kept = body if len(head.content) <= MAX_KEPT_BODY else None
        return _Form(kept, head.arrays, arrays, tuple(tables))

    def without(self, paths: set[int]) -> "Index":
        """A copy that lacks the records of some files (ids of their paths); whoever reads this one may go on."""
        fresh = Index(self._max_entries)
        fresh.n_bytes = self.n_bytes
        fresh._heads, fresh._bodies, fresh._arrays = self._heads, self._bodies, self._arrays
        fresh._unknown = {key: n for key, n in self._unknown.items() if key[0] not in paths}
        fresh._by_kind = {key: _table(table.entries, paths) for key, table in self._by_kind.items()}
        fresh._by_variant = {key: _table(table.entries, paths) for key, table in self._by_variant.items()}
        fresh.n_entries = sum(len(table.entries) for table in fresh._by_kind.values())
        return fresh

    def sort(self) -> None:
        """Bring the records into the order of their files, if these were read in another one; nobody may be reading."""
        for table in (*self._by_kind.values(), *self._by_variant.values()):
            table.entries.sort(key=_place)

    # -- looking up ----------------------------------------------------------------------------------------------------

    def tables(self, kind: str, **wanted: Any) -> list[Table]:
        """Tables that together hold the records of a kind whose body has the wanted values of ``VARIANTS``."""
        if not wanted:
            found = self._by_kind.get(kind)
            return [found] if found is not None else []
        keys = VARIANTS[kind]
        if len(wanted) == len(keys):
            found = self._by_variant.get((kind, *(wanted[key] for key in keys)))
            return [found] if found is not None else []
        pairs = [(keys.index(key) + 1, value) for key, value in wanted.items()]
        return [
            table
            for variant, table in list(self._by_variant.items())
            if variant[0] == kind and all(variant[place] == value for place, value in pairs)
        ]

    def entries(self, kind: str, **wanted: Any) -> list[Entry]:
        """These records, in the order of their files."""
        tables = self.tables(kind, **wanted)
        if len(tables) == 1:
            return tables[0].entries[:]
        return sorted((entry for table in tables for entry in table.entries), key=_place)

    def all_entries(self) -> Iterator[Entry]:
        """All records, kind by kind."""
        for table in list(self._by_kind.values()):
            yield from table.entries[:]

    def variants(self, kind: str) -> list[tuple[Any, ...]]:
        """Values of the keys in ``VARIANTS[kind]`` that there are records of, in the order first met."""
        tables = list(self._by_variant.items())
        return [variant[1:] for variant, table in tables if variant[0] == kind and table.entries]

    @property
    def unknown(self) -> dict[str, int]:
        """Kinds, and arrays (``loss.pitch``), that ``records.KINDS`` does not have, and how many of them there were."""
        found: dict[str, int] = {}
        for (_, kind), n in list(self._unknown.items()):
            found[kind] = found.get(kind, 0) + n
        return found

    def sizes(self) -> dict[str, int]:
        """Bytes by kind of record."""
        found = {kind: sum(entry.length for entry in table.entries) for kind, table in list(self._by_kind.items())}
        return {kind: size for kind, size in found.items() if size}


def _table(entries: list[Entry], without: set[int]) -> Table:
    table = Table([])
    for entry in entries:
        if id(entry.path) not in without:
            table.add(entry)
    return table


def _place(entry: Entry) -> tuple[tuple[int, int] | None, int]:
    return _span(entry.path.name), entry.offset


def _hashable(kind: str, key: str, value: Any) -> Hashable:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if value is None or isinstance(value, str):
        return value
    raise RecordError(f"{key} of a {kind} record is a text; got {str(value)[:40]!r}")
