"""The files of a recording that is being written: whole records are appended, and a torn one is cut off again."""

import contextlib
import errno
import os
import time
from io import FileIO
from pathlib import Path

from dgm_tb.segment_names import LIVE_NAME, segment_name

SEGMENT_BYTES = 64 << 20
CHECK_SECONDS = 2.0
"""How often it is looked whether the file is still there: appending to a deleted one is no error."""


class GoneError(OSError):
    """The recording's folder was deleted or moved."""


class SegmentFiles:
    """Appends to ``folder/000000.dgm``, ``000001.dgm``, ...

    Args:
        folder: The recording's folder, which is made.
        segment_bytes: Size beyond which the next segment begins.

    Attributes:
        number: Of the newest segment.
        n_bytes: Appended so far.

    Raises:
        OSError: If the folder can't be made, or is there already.
    """

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder = folder.absolute()  # the training may change its working folder
        self.number = -1
        self.n_bytes = 0
        self._segment_bytes = segment_bytes
        self._size = 0
        self._checked = 0.0
        self._file: FileIO | None = None
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        self._begin_next()

    @property
    def last_sealed(self) -> int:
        """Number of the last segment that is not appended to any more; -1 if there is none."""
        return self.number - (self._file is not None)

    def append(self, framed: bytes) -> None:
        """Append a record, or nothing. After an error the next record begins a segment.

        Raises:
            GoneError: If the file is not where it was made.
            OSError: If it can't be written.
        """
        if self._size and self._size + len(framed) > self._segment_bytes:
            self.seal()
        file = self._file or self._begin_next()
        if time.monotonic() - self._checked > CHECK_SECONDS:
            self._check_place(file)
        try:
            _write(file, framed)
        except OSError:
            self._cut_off(file)
            raise
        self._size += len(framed)
        self.n_bytes += len(framed)

    def seal(self) -> None:
        """End the segment that is being written. Safe to call twice.

        Raises:
            GoneError: If the file is not where it was made.
            OSError: If the system could not write what it had been given.
        """
        file, self._file, self._size = self._file, None, 0
        if file is not None:
            try:
                self._check_place(file)
                os.fsync(file.fileno())
            finally:
                file.close()

    def replace_live(self, framed: bytes) -> None:
        """Replace ``live.dgm`` as a whole; without content remove it.

        Raises:
            OSError: If that is impossible; then it is as it was.
        """
        place = self.folder / LIVE_NAME
        if not framed:
            place.unlink(missing_ok=True)
            return
        fresh = self.folder / f"{LIVE_NAME}.part"
        try:
            with open(fresh, "wb", buffering=0) as file:
                _write(file, framed)
            os.replace(fresh, place)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise

    def _path(self) -> Path:
        return self.folder / segment_name(self.number)

    def _begin_next(self) -> FileIO:
        if not self.folder.is_dir():
            raise GoneError(f"{self.folder} was deleted or moved")
        self.number += 1
        try:
            self._file = open(self._path(), "xb", buffering=0)
        except OSError:
            self.number -= 1
            raise
        self._size, self._checked = 0, time.monotonic()
        return self._file

    def _check_place(self, file: FileIO) -> None:
        self._checked = time.monotonic()
        try:
            place, own = os.stat(self._path()), os.fstat(file.fileno())
        except FileNotFoundError:
            raise GoneError(f"{self._path()} was deleted or moved") from None
        if (place.st_dev, place.st_ino) != (own.st_dev, own.st_ino):
            raise GoneError(f"{self._path()} was replaced")

    def _cut_off(self, file: FileIO) -> None:
        """Leave whole records only, and this segment, of whose end a reader may have seen more; an empty one goes."""
        size, self._file, self._size = self._size, None, 0
        with contextlib.suppress(OSError), file:
            file.truncate(size)
            os.fsync(file.fileno())
        if not size:
            with contextlib.suppress(OSError):
                self._path().unlink()
                self.number -= 1


def _write(file: FileIO, content: bytes) -> None:
    view = memoryview(content)
    while view:
        n_written = file.write(view)
        if not n_written:
            raise OSError(errno.EIO, "the disk takes nothing")
        view = view[n_written:]
