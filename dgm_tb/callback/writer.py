"""The writer: a thread of its own that encodes records and appends them to segments of at most 64 MB."""

import os
import queue
import threading
import time
from pathlib import Path

from dgm_tb import framing, records
from dgm_tb.callback.say import warn
from dgm_tb.records import Record
from dgm_tb.segment_names import segment_name

SEGMENT_BYTES = 64 << 20
QUEUE_BYTES = 256 << 20

_STOP = None


class SegmentWriter:
    """Appends records to ``folder/000000.dgm``, ``000001.dgm``, ...; never raises into the training.

    After a failed write (disk full, folder deleted) one warning says what is lost, and everything after it is dropped.

    Args:
        folder: The recording's folder; made if needed.

    Raises:
        OSError: If the folder can't be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.failure: str | None = None
        self.n_bytes = 0
        self._segment = 0
        self._file = open(self._path(), "ab", buffering=0)
        self._queue: queue.SimpleQueue[Record | threading.Event | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._thread = threading.Thread(target=self._run, name="dgm_tb-writer", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Queue a record; returns at once. A record is dropped while more than 256 MB wait for the disk."""
        size = sum(array.nbytes for array in record.arrays.values())
        if self.failure is None and self._waiting_bytes + size <= QUEUE_BYTES:
            self._waiting_bytes += size
            stamped = record if record.wall_time else _stamp(record)
            self._queue.put(stamped)

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until everything queued so far is in the file."""
        done = threading.Event()
        self._queue.put(done)
        if self._thread.is_alive():
            done.wait(timeout)

    def close(self) -> None:
        """Write what is queued, seal the segment, end the thread. Safe to call twice."""
        if self._thread.is_alive():
            self._queue.put(_STOP)
            self._thread.join(60.0)

    def _path(self) -> Path:
        return self.folder / segment_name(self._segment)

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if item is _STOP:
                break
            if isinstance(item, threading.Event):
                item.set()
                continue
            self._waiting_bytes -= sum(array.nbytes for array in item.arrays.values())
            if self.failure is None:
                try:
                    self._append(framing.frame(records.encode(item)))
                except Exception as error:
                    self._fail(item, error)
        self._seal()

    def _append(self, framed: bytes) -> None:
        if self._file.tell() and self._file.tell() + len(framed) > SEGMENT_BYTES:
            self._seal()
            self._segment += 1
            self._file = open(self._path(), "ab", buffering=0)
        view = memoryview(framed)
        while view:
            view = view[self._file.write(view) :]
        self.n_bytes += len(framed)

    def _fail(self, record: Record, error: Exception) -> None:
        if isinstance(error, OSError):
            self.failure = str(error)
        lost = "this and all later records are" if isinstance(error, OSError) else "this record is"
        warn(
            f"could not write a {record.kind} record of step {record.last_step} to {self.folder}: {error}; "
            f"{lost} lost, training goes on"
        )

    def _seal(self) -> None:
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            self.failure = self.failure or str(error)


def _stamp(record: Record) -> Record:
    return Record(record.kind, record.first_step, record.last_step, record.body, record.arrays, time.time())
