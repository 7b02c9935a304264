"""Where the records of one recording go: to its own folder, until it is as large as the user allows; or nowhere."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgm_tb import records
from dgm_tb.callback.options import Options
from dgm_tb.callback.say import warn
from dgm_tb.callback.writer import SegmentWriter
from dgm_tb.records import Record

_ALWAYS = ("recording", "graph", "loss", "layer_statistics", "samples", "relevance", "finding", "note", "end")


class Output:
    """Begins a recording.

    Args:
        folder: Where the recording's own folder is made; None: nothing is written.
        options: The options.
        step: The first step.
        facts: What the recording says of itself, besides the options.
    """

    def __init__(self, folder: Path | None, options: Options, step: int, facts: Mapping[str, Any]) -> None:
        self._max_disk_mb = options.max_disk_mb
        self._is_full = False
        self._writer: SegmentWriter | None = None
        if folder is None:
            return
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{os.urandom(2).hex()}"
        try:
            self._writer = SegmentWriter(folder / name)
        except OSError as error:
            warn(f"can't write to {folder}: {error}; nothing is recorded, training goes on")
            return
        body = {
            "schema": records.SCHEMA_VERSION,
            "recording": name,
            "options": options.to_json(),
            "window_steps": options.window_steps,
            "started": time.time(),
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
        """Queue a record; beyond ``max_disk_mb`` only what ``_ALWAYS`` lists."""
        if self._writer is None or (self._is_full and record.kind not in _ALWAYS):
            return
        self._writer.write(record)
        if not self._is_full and self._writer.n_bytes > self._max_disk_mb << 20:
            self._is_full = True
            text = f"the recording has reached max_disk_mb={self._max_disk_mb}: no more neurons from here on"
            self._writer.write(Record("note", record.last_step, record.last_step, {"text": text}))

    def sync(self, seconds: float = 30.0) -> None:
        """Wait until all records so far are on the disk, but not longer than that."""
        if self._writer is not None:
            self._writer.flush(seconds)

    def close(self) -> None:
        """Write what is queued. Safe to call twice."""
        if self._writer is not None:
            self._writer.close()
