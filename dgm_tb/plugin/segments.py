"""Follows one growing segment file: hands out intact payloads, waits for torn tails, steps over damage.

Files are read by ranges (a mapped file that shrinks kills the process) in blocks; nothing is kept but an offset.
"""

import errno
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from dgm_tb import framing
from dgm_tb.plugin.storage import Openable, OpenFile, Place, Status, opened, reason
from dgm_tb.resync import find_header

BLOCK_BYTES = 1 << 20
REMOTE_BLOCK_BYTES = 8 << 20
"""A request costs more than its bytes; larger blocks of a disk's file cost more memory and time (measured)."""
RESYNC_BYTES = 1 << 20
FINGERPRINT_BYTES = 64
PATIENCE_SECONDS = 60.0
"""A bad tail younger than this may still be being written."""
MAX_SEGMENT_BYTES = 1 << 29
"""The writer begins another file at 64 MB. What lies beyond is not looked at: a sparse file is as long as it says."""
MAX_GAPS = 1000
"""Of one file; further damage is added to the last of them."""

_NO_FILE = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENODEV, errno.EISDIR}
_payload_length = lru_cache(1024)(framing.payload_length)


@dataclass(frozen=True)
class Gap:
    """Bytes of a segment that could not be read."""

    offset: int
    n_bytes: int
    reason: str


class Payload(NamedTuple):
    """One intact record: where its bytes begin in the file, and the bytes."""

    offset: int
    content: bytes


class Segment:
    """Follows one segment file.

    Attributes:
        path: The file.
        offset: Everything before it has been handed out or given up.
    """

    def __init__(self, path: Place | Openable) -> None:
        self.path = path
        self.offset = 0
        self._given_up: list[Gap] = []
        self._tail: Gap | None = None
        self._searched: tuple[int, int] | None = None
        self._seen: Status | None = None
        self._fingerprint = b""
        self._done: tuple[object, bool] | None = None

    @property
    def gaps(self) -> list[Gap]:
        """Damage found so far, in the order of the file; an incomplete end is in it until it is completed."""
        return self._given_up[:] if self._tail is None else [*self._given_up, self._tail]

    def give_up(self, offset: int, n_bytes: int, why: str) -> None:
        """Note damage; also for a caller who can't use what was handed out."""
        if len(self._given_up) < MAX_GAPS:
            self._given_up.append(Gap(offset, n_bytes, why[:200]))
        else:
            last = self._given_up[-1]
            self._given_up[-1] = replace(last, n_bytes=last.n_bytes + n_bytes, reason="much damage")

    def was_replaced(self, status: Status | None = None) -> bool:
        """Whether the file shrank, or is or begins like another one than it was: everything known of it is void.

        Args:
            status: As the list of its folder gave it, if it did.
        """
        seen = self._seen
        if seen is None:
            return False
        if status is not None and status.version is not None and status.version == seen.version:
            return False
        try:
            with opened(self.path, status) as file:
                now = file.status()
                is_same = now.identity == seen.identity and now.size >= self.offset
                return not is_same or file.read_at(0, len(self._fingerprint)) != self._fingerprint
        except OSError as error:
            return _is_gone(error)

    def read(self, *, is_sealed: bool, status: Status | None = None) -> Iterator[Payload]:
        """Hand out what has been appended; a caller that stops early is handed the rest the next time.

        Args:
            is_sealed: Whether a later segment exists, so that this one won't grow: a bad tail is damage then.
            status: As the list of its folder gave it, if it did.
        """
        try:
            with opened(self.path, status) as file:
                yield from self._follow(file, is_sealed)
        except OSError as error:  # unreadable for now; the next call tries again
            self._done = None
            if not _is_gone(error):
                size = status.size if status is not None else self.offset
                self._tail = Gap(self.offset, max(size - self.offset, 0), f"can't be read: {reason(error)}")

    def _follow(self, file: OpenFile, is_sealed: bool) -> Iterator[Payload]:
        now = file.status()
        is_final = is_sealed or time.time() - now.mtime > PATIENCE_SECONDS
        state = now.version, is_final
        if now.version is not None and state == self._done:
            return
        if not now.is_file or not now.size:
            self._tail = None
            return
        self._seen = now
        if len(self._fingerprint) < FINGERPRINT_BYTES:
            self._fingerprint = file.read_at(0, min(FINGERPRINT_BYTES, now.size))
        size = min(now.size, MAX_SEGMENT_BYTES)
        yield from self._read(_Blocks(file, size), size, is_final or size < now.size)
        if size < now.size:
            self._tail = Gap(self.offset, now.size - self.offset, "a file longer than any segment")
        self._done = state

    def _read(self, blocks: "_Blocks", size: int, is_final: bool) -> Iterator[Payload]:
        self._tail = None
        while self.offset < size:
            yield from self._intact(*blocks.around(self.offset))
            start, left = self.offset, size - self.offset
            if not left:
                return
            length = _payload_length(blocks.read(start, framing.HEADER_BYTES))
            n_bytes = framing.OVERHEAD_BYTES + (length or 0)
            if length is None or n_bytes > left:
                is_torn = length is not None or left < framing.HEADER_BYTES
                if (is_torn and not is_final) or not self._resync(blocks, size):
                    self._tail = Gap(start, left, "incomplete record") if is_final else None
                    return
                continue
            at = start + framing.HEADER_BYTES
            content = blocks.read(at, length)
            is_intact = framing.is_intact(content, blocks.read(at + length, framing.FOOTER_BYTES))
            if not is_intact and n_bytes == left and not is_final:
                return
            self.offset = start + n_bytes
            if is_intact:
                yield Payload(at, content)
            else:
                self.give_up(start, n_bytes, "damaged record")

    def _intact(self, block: bytes, start: int) -> Iterator[Payload]:
        """The intact records from the offset on that lie in a block, up to anything else: most of a file, fast."""
        at = self.offset - start
        while (length := _payload_length(block[at : at + framing.HEADER_BYTES])) is not None:
            begin = at + framing.HEADER_BYTES
            end = begin + length
            at = end + framing.FOOTER_BYTES
            content = block[begin:end]
            if at > len(block) or not framing.is_intact(content, block[end:at]):
                return
            self.offset = start + at
            yield Payload(start + begin, content)

    def _resync(self, blocks: "_Blocks", size: int) -> bool:
        """Go on at the next valid record header, if there is one: what lies before it is damage, not a torn tail."""
        if self._searched == (self.offset, size):
            return False
        for start in range(self.offset + 1, size, RESYNC_BYTES):
            stretch = blocks.read(start, min(RESYNC_BYTES + framing.HEADER_BYTES - 1, size - start))
            at = find_header(stretch, size - start)
            if at is not None:
                self.give_up(self.offset, start + at - self.offset, "no record")
                self.offset = start + at
                return True
        self._searched = self.offset, size
        return False


class _Blocks:
    """Reads a file of some size in large blocks."""

    def __init__(self, file: OpenFile, size: int) -> None:
        self._file, self._size, self._start, self._block = file, size, 0, b""
        self._n_bytes = REMOTE_BLOCK_BYTES if file.is_remote else BLOCK_BYTES

    def around(self, offset: int) -> tuple[bytes, int]:
        """A block that holds the byte at ``offset``, and where it begins."""
        self.read(offset, 1)
        return self._block, self._start

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Bytes of the file; fewer at its end."""
        at = offset - self._start
        if not 0 <= at <= at + n_bytes <= len(self._block):
            n_block = min(max(self._n_bytes, n_bytes), self._size - offset)
            self._block, self._start, at = self._file.read_at(offset, max(n_block, 0)), offset, 0
        return self._block[at : at + n_bytes]


def _is_gone(error: OSError) -> bool:
    return isinstance(error, FileNotFoundError) or error.errno in _NO_FILE
