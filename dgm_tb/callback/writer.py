"""The writer: a thread of its own that encodes records and appends them to segments."""

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dgm_tb import framing, records
from dgm_tb.callback.backlog import DETAIL, Backlog, Entry
from dgm_tb.callback.retention import Retention
from dgm_tb.callback.say import warn
from dgm_tb.callback.segment_files import SEGMENT_BYTES, GoneError, SegmentFiles
from dgm_tb.records import Record

CLOSE_SECONDS = 60.0
RETRY_SECONDS = 5.0
"""Between two tries where the disk is full or fails."""
MAX_RETRY_SECONDS = 60.0
"""Between two tries with detail, where it alone finds no room; each begins a segment."""

_OF_ALL_NEURONS = ("polylines", "contribution", "ring", "dynamics")


class SegmentWriter:
    """Writes the records of one recording; never raises into the training, and never makes it wait.

    - What waits for the disk is bounded, see ``Backlog``.
    - Where writing fails (disk full, quota), a torn record is cut off again, alarm records are kept, and it is tried
      again every few seconds and at the end. Then a new segment begins, and a note says what is missing.
    - If the folder is deleted, the recording ends. Of all this one warning tells.
    - What is queued is written when the process exits without ``close``, too. A forked process writes nothing.

    Args:
        folder: The recording's folder, which is made.
        segment_bytes: Size beyond which a new segment begins.
        max_bytes: What the recording may hold; while it holds more, records with all neurons are left out.
        retention: Thins out old segments, so that it does not.

    Raises:
        OSError: If the folder can't be made.
    """

    def __init__(
        self,
        folder: Path,
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int | None = None,
        retention: Retention | None = None,
    ) -> None:
        self._files = SegmentFiles(folder, segment_bytes)
        self._backlog = Backlog()
        self._max_bytes = max_bytes
        self._retention = retention
        self._detail_from, self._pause = 0.0, RETRY_SECONDS
        self._looked_at = -1
        self._saved_bytes = 0
        self._is_full = self._is_failing = self._has_warned = self._is_last_try = False
        self._unwritable: set[str] = set()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="dgm_tb-writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def folder(self) -> Path:
        """The recording's folder."""
        return self._files.folder

    def write(self, record: Record) -> None:
        """Queue a record; returns at once."""
        if os.getpid() == self._pid:
            self._backlog.put(_stamped(record))

    def write_live(self, live: Sequence[Record]) -> None:
        """Replace ``live.dgm`` by these records, once everything queued before is written; without any, remove it."""
        if os.getpid() == self._pid:
            self._backlog.put_live([_stamped(record) for record in live])

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until everything queued so far is in the files, but not longer, and not while the disk fails."""
        if os.getpid() == self._pid:
            self._backlog.flush(timeout)

    def close(self) -> None:
        """Write what is queued, seal the segment, end the thread. Safe to call twice."""
        if os.getpid() != self._pid:
            return
        self._backlog.close()
        if not self._backlog.wait_for_end(CLOSE_SECONDS):
            warn(f"{self.folder}: the disk took too long, the last records may be lost")
        atexit.unregister(self.close)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (entry := self._backlog.take()) is not None:
                self._deal_with(entry)
            self._files.seal()
            self._files.replace_live(b"")
        except GoneError as error:
            warn(f"the recording ends, training goes on: {error}")
        except OSError as error:
            self._warn_of(error)
        except Exception as error:
            warn(f"the recording in {self.folder} ends, training goes on: {type(error).__name__}: {error}")
        finally:
            with contextlib.suppress(Exception):
                if self._retention is not None:
                    self._retention.close()
            self._backlog.end()

    def _deal_with(self, entry: Entry) -> None:
        if entry.is_live:
            self._replace_live(entry)
            return
        (record,) = entry.records
        framed = b"" if self._is_full and record.kind in _OF_ALL_NEURONS else self._framed(record)
        try:
            if framed:
                self._files.append(framed)
                self._note_success(record)
        except GoneError:
            raise
        except OSError as error:
            self._wait_out(error, entry)
            return
        self._backlog.done()
        self._keep_within_limit(record.last_step)

    def _wait_out(self, error: OSError, entry: Entry) -> None:
        """The disk fails: keep what matters, until it is time for the next try.

        Raises:
            OSError: If this one was the last, at the end of the training.
        """
        self._warn_of(error)
        if self._is_last_try:
            raise error
        self._backlog.put_back(entry, f"writing failed ({error.strerror or error})")
        self._is_failing, self._detail_from = True, time.monotonic() + RETRY_SECONDS
        if entry.records[0].kind in DETAIL:
            self._detail_from = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, MAX_RETRY_SECONDS)
        self._is_last_try = self._backlog.wait_for_close(RETRY_SECONDS)

    def _note_success(self, record: Record) -> None:
        """After a failure, alarm records may find room where detail finds none: try it with one, but not too often."""
        if not self._is_failing:
            return
        if record.kind in DETAIL:
            self._backlog.release()
            self._is_failing, self._pause = False, RETRY_SECONDS
        elif time.monotonic() >= self._detail_from:
            self._backlog.allow()

    def _replace_live(self, entry: Entry) -> None:
        framed = b"".join(map(self._framed, entry.records))
        with contextlib.suppress(OSError):  # the next record's trouble; the next set comes soon
            self._files.replace_live(framed)
        self._backlog.done()

    def _framed(self, record: Record) -> bytes:
        """The bytes of a record; none if it can't be written."""
        try:
            payload = records.encode(record)
            if len(payload) > framing.MAX_PAYLOAD_BYTES:
                raise ValueError(f"its {len(payload):,} bytes are more than {framing.MAX_PAYLOAD_BYTES:,}")
            return framing.frame(payload)
        except Exception as error:
            if record.kind not in self._unwritable:
                self._unwritable.add(record.kind)
                warn(f"a {record.kind} record of step {record.last_step} is lost, training goes on: {error}")
            return b""

    def _warn_of(self, error: OSError) -> None:
        """Say once that the disk fails."""
        if not self._has_warned:
            self._has_warned = True
            warn(
                f"can't write to {self.folder}: {error}; training goes on, losses and findings are kept in memory "
                "until it works again, neurons of the steps until then are lost"
            )

    # -- the limit -----------------------------------------------------------------------------------------------------

    def _keep_within_limit(self, step: int) -> None:
        """Thin out old segments if there is a new one or too much, as long as no record waits to be written."""
        sealed = self._files.last_sealed
        if sealed == self._looked_at and not (self._is_full or self._is_too_large()):
            return
        while self._retention is not None and self._retention.step(sealed):
            self._saved_bytes = self._files.n_bytes - self._retention.n_bytes
            if self._backlog.has_work():
                return
        self._looked_at = sealed
        self._set_full(self._is_too_large(), step)

    def _is_too_large(self) -> bool:
        return self._max_bytes is not None and self._files.n_bytes - self._saved_bytes > self._max_bytes

    def _set_full(self, is_full: bool, step: int) -> None:
        if is_full == self._is_full:
            return
        self._is_full = is_full
        limit = f"max_disk_mb={(self._max_bytes or 0) >> 20}"
        text = f"the recording has reached {limit}: no more neurons from here on"
        if not is_full:
            text = f"the recording is below {limit} again: neurons from here on"
        self.write(Record("note", step, step, {"text": text}))


def _stamped(record: Record) -> Record:
    return record if record.wall_time else replace(record, wall_time=time.time())
