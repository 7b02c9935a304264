"""Reads arrays of many entries of the index."""

from collections.abc import Callable, Iterator
from typing import Any

from dgm_tb.errors import RecordError, StaleIndexError
from dgm_tb.plugin.cache import Arrays
from dgm_tb.plugin.entry import Entry
from dgm_tb.plugin.storage import Openable, OpenFile, Place

Read = Callable[[Entry, OpenFile], Arrays]
"""From an entry and its open segment to arrays, the same number each time; trailing axes may grow."""


def by_path(entries: list[Entry]) -> Iterator[tuple[Place | Openable, list[Entry]]]:
    """Entries that follow each other in one file, and the file."""
    group: list[Entry] = []
    for entry in entries:
        if group and group[0].path is not entry.path:
            yield group[0].path, group
            group = []
        group.append(entry)
    if group:
        yield group[0].path, group


def read_each(read: Read, entries: list[Entry], file: OpenFile) -> tuple[list[Arrays], OSError | None]:
    """The arrays of the entries, and why some of them could not be read; a storage that fails is not asked further."""
    if file.is_remote:
        file.fetch(_ranges(read, entries))
    parts, trouble = [], None
    for entry in entries:
        try:
            found = _try(read, entry, file)
        except OSError as error:
            trouble = error
            if file.is_remote:
                break
            continue
        if found:
            parts.append(found)
    return parts, trouble


def _try(read: Read, entry: Entry, file: OpenFile) -> Arrays | None:
    """The arrays; None if this record can't be understood."""
    try:
        return read(entry, file)
    except StaleIndexError:
        raise
    except (RecordError, ValueError, IndexError):
        return None


class _Plan:
    """Notes what would be read of a file."""

    is_remote = False

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        self.ranges.append((offset, n_bytes))
        return bytes(n_bytes)

    def fetch(self, ranges: Any) -> None:
        raise NotImplementedError

    def status(self) -> Any:
        raise NotImplementedError


def _ranges(read: Read, entries: list[Entry]) -> list[tuple[int, int]]:
    """The ranges of their file that will be read: where they lie does not depend on what is in them."""
    plan = _Plan()
    for entry in entries:
        _try(read, entry, plan)
    return plan.ranges
