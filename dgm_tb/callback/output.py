"""Where the records of one recording go: to its own folder, within the size that the user allows; or nowhere."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgm_tb import framing, records
from dgm_tb.callback.options import Options
from dgm_tb.callback.retention import Retention
from dgm_tb.callback.say import warn
from dgm_tb.callback.segment_files import SEGMENT_BYTES
from dgm_tb.callback.writer import SegmentWriter
from dgm_tb.records import Record
from dgm_tb.segment_names import current_segments

SEGMENTS = 32
"""A recording of ``max_disk_mb`` has at least so many, to be thinned out one after the other."""
MAX_FIRST_BYTES = 1 << 20
MAX_ORDER = 1 << 53


class Output:
    """Begins a recording.

    Args:
        folder: Where the recording's own folder is made; None: nothing is written.
        options: The options.
        step: The first step.
        facts: What the recording says of itself, besides the options.
    """

    def __init__(self, folder: Path | None, options: Options, step: int, facts: Mapping[str, Any]) -> None:
        self._writer: SegmentWriter | None = None
        if folder is None:
            return
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{os.urandom(2).hex()}"
        max_bytes = options.max_disk_mb << 20
        segment_bytes = min(max_bytes // SEGMENTS, SEGMENT_BYTES)
        try:
            order = _next_order(folder)
            retention = Retention(folder / name, max_bytes)
            self._writer = SegmentWriter(folder / name, segment_bytes, max_bytes, retention)
        except OSError as error:
            warn(f"can't write to {folder}: {error}; nothing is recorded, training goes on")
            return
        body = {
            "schema": records.SCHEMA_VERSION,
            "recording": name,
            "options": options.to_json(),
            "window_steps": options.window_steps,
            "started": time.time(),
            "order": order,
            "versions": {},
            "resume_step": step,
            **facts,
        }
        self._writer.write(Record("recording", step, step, body))

    @property
    def is_writing(self) -> bool:
        """Whether records go to the disk."""
        return self._writer is not None

    def put(self, record: Record) -> None:
        """Queue a record."""
        if self._writer is not None:
            self._writer.write(record)

    def put_live(self, live: Sequence[Record]) -> None:
        """Replace the records of windows that have not ended yet; without any, there is none."""
        if self._writer is not None:
            self._writer.write_live(live)

    def sync(self, seconds: float = 30.0) -> None:
        """Wait until all records so far are on the disk, but not longer than that."""
        if self._writer is not None:
            self._writer.flush(seconds)

    def close(self) -> None:
        """Write what is queued. Safe to call twice."""
        if self._writer is not None:
            self._writer.close()


def _next_order(folder: Path) -> int:
    """The place of a new recording among those of the same run: clocks may go backwards from one start to the next."""
    try:
        recordings = [place for place in folder.iterdir() if place.is_dir()]
    except FileNotFoundError:
        return 1
    return 1 + max([len(recordings), *map(_order, recordings)])


def _order(recording: Path) -> int:
    """What the first record of a recording says of its place; 0 if it says nothing."""
    try:
        first = recording / current_segments(os.listdir(recording))[0]
        if not first.is_file():
            return 0
        with open(first, "rb") as file:
            length = framing.payload_length(file.read(framing.HEADER_BYTES)) or 0
            order = records.parse(file.read(min(length, MAX_FIRST_BYTES))).body.get("order")
        return order if isinstance(order, int) and 0 < order < MAX_ORDER else 0
    except Exception:  # whatever a file may hold
        return 0
