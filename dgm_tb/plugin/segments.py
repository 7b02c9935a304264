"""Follows one growing segment file: hands out intact payloads, waits for torn tails, steps over damage.

Files are read with ``pread`` (a mapped file that shrinks kills the process) in blocks; nothing is kept but an offset.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dgm_tb import framing

BLOCK_BYTES = 8 << 20
RESYNC_BYTES = 1 << 20
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
        gaps: Damage found so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.gaps: list[Gap] = []
        self._inode = -1

    def was_replaced(self) -> bool:
        """Whether the file shrank or is another one than it was: everything known of it is void."""
        try:
            status = self.path.stat()
        except OSError:
            return self.offset > 0
        return status.st_size < self.offset or self._inode not in (-1, status.st_ino)

    def read(self, *, is_sealed: bool) -> Iterator[Payload]:
        """Hand out what has been appended.

        Args:
            is_sealed: Whether a later segment exists, so that this one won't grow: a bad tail is damage then.
        """
        try:
            file = os.open(self.path, os.O_RDONLY)
        except OSError:
            return
        try:
            status = os.fstat(file)
            self._inode = status.st_ino
            is_final = is_sealed or time.time() - status.st_mtime > PATIENCE_SECONDS
            yield from self._read(file, status.st_size, is_final)
        finally:
            os.close(file)

    def _read(self, file: int, size: int, is_final: bool) -> Iterator[Payload]:
        block, start = b"", self.offset
        while self.offset + framing.OVERHEAD_BYTES <= size:
            at = self.offset - start
            if at + framing.HEADER_BYTES > len(block):
                block, start, at = os.pread(file, BLOCK_BYTES, self.offset), self.offset, 0
            length = framing.payload_length(block[at : at + framing.HEADER_BYTES])
            if length is None:
                if not is_final or not self._resync(file, size):
                    return
                block, start = b"", self.offset
                continue
            end = at + length + framing.OVERHEAD_BYTES
            if self.offset + length + framing.OVERHEAD_BYTES > size:
                if is_final and self._resync(file, size):
                    block, start = b"", self.offset
                    continue
                return
            if end > len(block):
                block, start, at = os.pread(file, max(BLOCK_BYTES, end - at), self.offset), self.offset, 0
                end = length + framing.OVERHEAD_BYTES
            content = block[at + framing.HEADER_BYTES : end - framing.FOOTER_BYTES]
            if framing.is_intact(content, block[end - framing.FOOTER_BYTES : end]):
                yield Payload(self.offset + framing.HEADER_BYTES, content)
            elif self.offset + end - at == size and not is_final:
                return
            else:
                self.gaps.append(Gap(self.offset, end - at, "damaged record"))
            self.offset += end - at

    def _resync(self, file: int, size: int) -> bool:
        """Look for the next valid record header; a bounded stretch per call. Whether to go on reading."""
        first = self.offset
        stretch = os.pread(file, RESYNC_BYTES + framing.HEADER_BYTES, first)
        for at in range(1, len(stretch) - framing.HEADER_BYTES + 1):
            length = framing.payload_length(stretch[at : at + framing.HEADER_BYTES])
            if length is not None and first + at + length + framing.OVERHEAD_BYTES <= size:
                self._give_up(first, at)
                return True
        self._give_up(first, min(len(stretch), size - first))
        return self.offset + framing.OVERHEAD_BYTES <= size

    def _give_up(self, first: int, n_bytes: int) -> None:
        last = self.gaps[-1] if self.gaps else None
        if last is not None and last.offset + last.n_bytes == first and last.reason == "no record":
            self.gaps[-1] = Gap(last.offset, last.n_bytes + n_bytes, "no record")
        else:
            self.gaps.append(Gap(first, n_bytes, "no record"))
        self.offset = first + n_bytes
