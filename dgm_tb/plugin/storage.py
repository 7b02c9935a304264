"""Where recordings are read from: a disk, or any storage that fsspec has a package for (``s3://``, ``gs://``, ...).

The reader lists folders, asks how large files are and reads ranges of their bytes; nothing else. Whatever goes wrong
while it does is an ``OSError``. fsspec is imported when an address with ``://`` is given, not before.
"""

import os
import stat
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dgm_tb.errors import NoRecordingError

NEAR_BYTES = 4096
"""Ranges of a remote file that are not farther apart are asked for as one."""

_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "VersionId", "version_id", "ino")


class Status(NamedTuple):
    """What a file is like at a moment.

    Attributes:
        size: Bytes.
        mtime: When it was written last, in seconds since 1970; 0 where the storage does not say.
        identity: Another one if another file has taken the name; None where the storage can't tell.
        version: Another one after every change; None on a disk, where looking again costs nothing.
        is_file: Whether it is one: no folder, pipe or device.
    """

    size: int
    mtime: float
    identity: Hashable = None
    version: Hashable = None
    is_file: bool = True


class Item(NamedTuple):
    """Something in a folder; its status where the list brings it along, else None."""

    name: str
    is_folder: bool
    status: Status | None


class OpenFile(Protocol):
    """A file, open for reading."""

    @property
    def is_remote(self) -> bool:
        """Whether each read costs a request."""

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Bytes from ``offset`` on; fewer only where the file ends."""

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Have these ranges (offset, bytes) ready for ``read_at``, asked for all at once."""

    def status(self) -> Status:
        """What it is like now."""


class Openable(Protocol):
    """What is neither on a disk nor an address, but can be read like a file."""

    name: str

    def opened(self, status: Status | None) -> AbstractContextManager[OpenFile]:
        """Open it."""


class RemotePath:
    """A folder or file of an fsspec file system; has of ``pathlib.Path`` what the reader needs.

    Args:
        system: The fsspec file system.
        path: The path inside of it.
    """

    def __init__(self, system: Any, path: str) -> None:
        self.system = system
        self.path = path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.system, f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return str(self.system.unstrip_protocol(self.path))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and (self.path, self.system) == (other.path, other.system)

    def __hash__(self) -> int:
        return hash((self.path, self.system))

    def opened(self, status: Status | None) -> AbstractContextManager[OpenFile]:
        """Open it; no request is made before something is read."""
        return nullcontext(_RemoteFile(self, status))


Place = Path | RemotePath


def place_of(path: str | Path | RemotePath) -> Place:
    """The place that a path or an address names.

    Raises:
        NoRecordingError: If no storage of that kind is known, its package is missing, or it can't be reached.
    """
    if not isinstance(path, str):
        return path
    if "://" not in path:
        return Path(path).expanduser()
    try:
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        system, inner = url_to_fs(path)
    except ImportError as error:
        raise NoRecordingError(f"{path} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise NoRecordingError(f"{path} can't be read: fsspec knows no storage of that kind ({error})") from error
    except Exception as error:
        raise NoRecordingError(f"{path} can't be reached: {reason(error)}") from error
    return Path(inner) if isinstance(system, LocalFileSystem) else RemotePath(system, inner)


def items(folder: Place) -> list[Item]:
    """What is in a folder.

    Raises:
        OSError: If it can't be listed.
    """
    if isinstance(folder, RemotePath):
        return _remote_items(folder)
    with os.scandir(folder) as found:
        return [Item(entry.name, _is_folder(entry), None) for entry in found]


@contextmanager
def opened(place: Place | Openable, status: Status | None = None) -> Iterator[OpenFile]:
    """A file, open for reading.

    Args:
        place: Where it is.
        status: As the list of its folder gave it; spares a request.

    Raises:
        OSError: If it can't be opened.
    """
    if not isinstance(place, Path):
        with place.opened(status) as remote:
            yield remote
        return
    file = os.open(place, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not hold us up
    try:
        yield _LocalFile(file)
    finally:
        os.close(file)


def status_of(place: Place) -> Status:
    """What a file is like now.

    Raises:
        OSError: If it can't be told.
    """
    if isinstance(place, Path):
        return _local_status(os.stat(place))
    return _remote_status(_asked(place.system.info, place.path))


class _LocalFile:
    is_remote = False

    def __init__(self, file: int) -> None:
        self._file = file

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        content = os.pread(self._file, n_bytes, offset)
        while len(content) < n_bytes and (more := os.pread(self._file, n_bytes - len(content), offset + len(content))):
            content += more
        return content

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Nothing to do: a read is no request."""

    def status(self) -> Status:
        return _local_status(os.fstat(self._file))


class _RemoteFile:
    """Keeps what it was told to fetch, and the range read last: one that begins inside of it asks only for the rest."""

    is_remote = True

    def __init__(self, place: RemotePath, status: Status | None) -> None:
        self._place, self._status = place, status
        self._starts: list[int] = []
        self._parts: list[bytes] = []
        self._last = 0, b""

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        number = bisect_right(self._starts, offset) - 1
        if number >= 0:
            content = _cut(self._starts[number], self._parts[number], offset, n_bytes)
            if len(content) == n_bytes:
                return content
        content = _cut(*self._last, offset, n_bytes)
        if len(content) < n_bytes:
            system, path = self._place.system, self._place.path
            content += _asked(system.cat_file, path, start=offset + len(content), end=offset + n_bytes)
            self._last = offset, content
        return content

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        starts: list[int] = []
        ends: list[int] = []
        for offset, n_bytes in sorted(ranges):
            if ends and offset <= ends[-1] + NEAR_BYTES:
                ends[-1] = max(ends[-1], offset + n_bytes)
            else:
                starts.append(offset)
                ends.append(offset + n_bytes)
        paths = [self._place.path] * len(starts)
        self._parts = _asked(self._place.system.cat_ranges, paths, starts, ends, on_error="raise") if starts else []
        self._starts = starts

    def status(self) -> Status:
        return self._status if self._status is not None else status_of(self._place)


def _cut(start: int, part: bytes, offset: int, n_bytes: int) -> bytes:
    """As much of the wanted range as a part that begins at ``start`` holds, from its beginning on."""
    return part[offset - start : offset - start + n_bytes] if offset >= start else b""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _local_status(found: os.stat_result) -> Status:
    return Status(
        found.st_size, found.st_mtime_ns / 1e9, (found.st_dev, found.st_ino), None, stat.S_ISREG(found.st_mode)
    )


def _remote_items(folder: RemotePath) -> list[Item]:
    _asked(folder.system.invalidate_cache, folder.path)  # many file systems keep lists for ever
    found = []
    for info in _asked(folder.system.ls, folder.path, detail=True):
        path = str(info["name"]).rstrip("/")
        if path.strip("/") != folder.path.strip("/"):  # stores may list a folder in itself
            is_folder = info.get("type") == "directory"
            found.append(Item(path.rpartition("/")[2], is_folder, None if is_folder else _remote_status(info)))
    return found


def _remote_status(info: Mapping[str, Any]) -> Status:
    written = next((info[key] for key in _TIMES if info.get(key)), 0.0)
    size = int(info.get("size") or 0)
    version = size, str(written), *(str(info.get(key)) for key in _VERSIONS)
    return Status(size, _seconds(written), None, version, info.get("type") != "directory")


def _seconds(moment: Any) -> float:
    """Seconds since 1970 of a time as one of the file systems gives it."""
    try:
        if isinstance(moment, str):
            moment = datetime.fromisoformat(moment)
        return float(moment.timestamp() if isinstance(moment, datetime) else moment)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _asked(call: Any, *arguments: Any, **options: Any) -> Any:
    """What a storage answers; file systems raise errors of many packages."""
    try:
        return call(*arguments, **options)
    except OSError:
        raise
    except Exception as error:
        raise OSError(reason(error)) from error


def reason(error: BaseException) -> str:
    """What went wrong, without the address of the file."""
    text = getattr(error, "strerror", None) or str(error)
    return text[:300] or type(error).__name__
