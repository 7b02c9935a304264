"""Follows one growing segment file: hands out intact payloads, waits for torn tails, steps over damage.

Files are read with ``pread`` (a mapped file that shrinks kills the process) in blocks; nothing is kept but an offset.
"""

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dgm_tb import framing
from dgm_tb.resync import find_header

BLOCK_BYTES = 8 << 20
RESYNC_BYTES = 1 << 20
FINGERPRINT_BYTES = 64
PATIENCE_SECONDS = 60.0
"""A bad tail younger than this may still be being written."""


@dataclass(frozen=True)
class Gap:
    """Bytes of a segment that could not be read."""

    offset: int
    n_bytes: int
    reason: str


@dataclass(frozen=True)
class Payload:
    """One intact record: where its bytes begin in the file, and the bytes."""

    offset: int
    content: bytes


class Segment:
    """Follows one segment file.

    Attributes:
        path: The file.
        offset: Everything before it has been handed out or given up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self._given_up: list[Gap] = []
        self._tail: Gap | None = None
        self._searched: tuple[int, int] | None = None
        self._identity: tuple[int, int] | None = None
        self._fingerprint = b""

    @property
    def gaps(self) -> list[Gap]:
        """Damage found so far, in the order of the file; an incomplete end is in it until it is completed."""
        return self._given_up[:] if self._tail is None else [*self._given_up, self._tail]

    def was_replaced(self) -> bool:
        """Whether the file shrank, or is or begins like another one than it was: everything known of it is void."""
        if self._identity is None:
            return False
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return True
        try:
            status = os.fstat(file)
            is_same = (status.st_dev, status.st_ino) == self._identity and status.st_size >= self.offset
            return not is_same or os.pread(file, len(self._fingerprint), 0) != self._fingerprint
        except OSError:
            return True
        finally:
            os.close(file)

    def read(self, *, is_sealed: bool) -> Iterator[Payload]:
        """Hand out what has been appended; a caller that stops early is handed the rest the next time.

        Args:
            is_sealed: Whether a later segment exists, so that this one won't grow: a bad tail is damage then.
        """
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not hold us up
        except OSError:
            return
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or not status.st_size:
                return
            self._identity = status.st_dev, status.st_ino
            if len(self._fingerprint) < FINGERPRINT_BYTES:
                self._fingerprint = os.pread(file, FINGERPRINT_BYTES, 0)
            is_final = is_sealed or time.time() - status.st_mtime > PATIENCE_SECONDS
            yield from self._read(_Blocks(file), status.st_size, is_final)
        except OSError:  # unreadable for now; the next call tries again
            return
        finally:
            os.close(file)

    def _read(self, blocks: "_Blocks", size: int, is_final: bool) -> Iterator[Payload]:
        self._tail = None
        while self.offset < size:
            left = size - self.offset
            length = framing.payload_length(blocks.read(self.offset, framing.HEADER_BYTES))
            n_bytes = framing.OVERHEAD_BYTES + (length or 0)
            if length is None or n_bytes > left:
                is_torn = length is not None or left < framing.HEADER_BYTES
                if (is_torn and not is_final) or not self._resync(blocks, size):
                    self._tail = Gap(self.offset, left, "incomplete record") if is_final else None
                    return
                continue
            record = blocks.read(self.offset, n_bytes)
            content = record[framing.HEADER_BYTES : -framing.FOOTER_BYTES]
            is_intact = framing.is_intact(content, record[-framing.FOOTER_BYTES :])
            if not is_intact and n_bytes == left and not is_final:
                return
            start, self.offset = self.offset, self.offset + n_bytes
            if is_intact:
                yield Payload(start + framing.HEADER_BYTES, content)
            else:
                self._given_up.append(Gap(start, n_bytes, "damaged record"))

    def _resync(self, blocks: "_Blocks", size: int) -> bool:
        """Go on at the next valid record header, if there is one: what lies before it is damage, not a torn tail."""
        if self._searched == (self.offset, size):
            return False
        for start in range(self.offset + 1, size, RESYNC_BYTES):
            stretch = blocks.read(start, RESYNC_BYTES + framing.HEADER_BYTES - 1)
            at = find_header(stretch, size - start)
            if at is not None:
                self._given_up.append(Gap(self.offset, start + at - self.offset, "no record"))
                self.offset = start + at
                return True
        self._searched = self.offset, size
        return False


class _Blocks:
    """Reads a file in large blocks."""

    def __init__(self, file: int) -> None:
        self._file, self._start, self._block = file, 0, b""

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Bytes of the file; fewer at its end."""
        at = offset - self._start
        if not 0 <= at <= at + n_bytes <= len(self._block):
            self._block, self._start, at = os.pread(self._file, max(BLOCK_BYTES, n_bytes), offset), offset, 0
        return self._block[at : at + n_bytes]
