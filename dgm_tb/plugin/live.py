"""The live file of a recording: records of windows that have not ended yet, replaced as a whole every few seconds."""

from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from dgm_tb.errors import RecordError
from dgm_tb.plugin.cache import CACHE
from dgm_tb.plugin.entry import Entry
from dgm_tb.plugin.index import VARIANTS, Index
from dgm_tb.plugin.segments import Segment
from dgm_tb.plugin.storage import OpenFile, Place, Status, opened
from dgm_tb.segment_names import LIVE_NAME

LIVE_KINDS = ("dynamics", "polylines")
MAX_BYTES = 16 << 20
"""Of a live file; a larger one is none of ours."""
MAX_ENTRIES = 4096


class Live:
    """Follows the live file of a recording. A file that is damaged, half there or gone is no damage to the recording.

    Attributes:
        change: Counts how often something else was found.
    """

    def __init__(self, folder: Place) -> None:
        self.change = 0
        self._path = folder / LIVE_NAME
        self._state: Hashable = None
        self._index: Index | None = None

    def refresh(self, is_there: bool, status: Status | None = None) -> None:
        """Read the file again if it is another one than before.

        Args:
            is_there: Whether the list of the folder has it.
            status: As that list gave it, if it did.
        """
        if not is_there:
            self._take(None, None)
            return
        try:
            with opened(self._path, status) as file:
                now = file.status()
                if now != self._state:
                    is_ours = now.is_file and now.size <= MAX_BYTES
                    self._take(now, self._indexed(now, file.read_at(0, now.size)) if is_ours else None)
        except OSError:  # replaced this very moment
            return

    def _take(self, state: Hashable, index: Index | None) -> None:
        if state != self._state:
            self._state, self._index = state, index
            self.change += 1

    def _indexed(self, state: Status, content: bytes) -> Index:
        snapshot = _Snapshot(self._path, state, content)
        index = Index(MAX_ENTRIES)
        for payload in Segment(snapshot).read(is_sealed=True):
            try:
                index.take_in(snapshot, payload.offset, payload.content)
            except RecordError:
                continue
        return index

    def entries(self, main: Index, kind: str, **wanted: Any) -> list[Entry]:
        """Its records of a kind, but those of windows that the segments have already."""
        index = self._index
        if index is None or kind not in LIVE_KINDS:
            return []
        found, keys = [], VARIANTS[kind]
        for values in index.variants(kind):
            variant = dict(zip(keys, values, strict=True))
            if all(variant[key] == value for key, value in wanted.items()):
                last = max((table.last for table in main.tables(kind, **variant)), default=-1)
                found += [entry for entry in index.entries(kind, **variant) if entry.first_step > last]
        return found

    def variants(self, kind: str) -> list[tuple[Any, ...]]:
        """As of ``Index``."""
        return self._index.variants(kind) if self._index is not None and kind in LIVE_KINDS else []


class _Snapshot:
    """A file as it was at one moment; its bytes are kept while there is room, and read again while they are there."""

    name = LIVE_NAME

    def __init__(self, path: Place, state: Status, content: bytes) -> None:
        self._path, self._state = path, state
        self._keep(content)

    def opened(self, status: Status | None) -> AbstractContextManager[OpenFile]:
        """Its bytes.

        Raises:
            OSError: If they are gone.
        """
        known = CACHE.get((_Snapshot, self._path))
        if known is not None and known[0] == self._state:
            return nullcontext(_Bytes(known[1][0].data, self._state))
        with opened(self._path) as file:
            content = file.read_at(0, self._state.size) if file.status() == self._state else b""
        if len(content) != self._state.size:
            raise FileNotFoundError(f"{self.name} was replaced")
        self._keep(content)
        return nullcontext(_Bytes(memoryview(content), self._state))

    def _keep(self, content: bytes) -> None:
        CACHE.put((_Snapshot, self._path), self._state, (np.frombuffer(content, np.uint8),))


class _Bytes:
    """Bytes that are read like a file."""

    is_remote = False

    def __init__(self, content: memoryview, status: Status) -> None:
        self._content, self._status = content, status

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        return bytes(self._content[offset : offset + n_bytes])

    def fetch(self, ranges: Any) -> None:
        """Nothing to do."""

    def status(self) -> Status:
        return self._status
