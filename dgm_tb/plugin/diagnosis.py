"""Runs the detectors over a recording."""

import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from dgm_tb.algorithms.detection import detect
from dgm_tb.errors import StaleIndexError
from dgm_tb.plugin.history import history_of
from dgm_tb.records import Finding

if TYPE_CHECKING:
    from dgm_tb.plugin.run import Run

REST_SECONDS = 10.0
REST_SHARE = 20
"""Detectors rest this many times as long as they worked: a large run that grows must not keep a core busy."""


class Diagnosis:
    """The detectors' findings of one run, worked out again at most every ten seconds, or seldomer, while it grows.

    Attributes:
        change: Counts how often they found something else: it may be long after the records came.
        trouble: Why they found nothing, if one of them failed; None while all is well.
    """

    def __init__(self) -> None:
        self.change = 0
        self.trouble: str | None = None
        self._revision: tuple[int, int] | None = None
        self._worked_out = -REST_SECONDS
        self._rest = REST_SECONDS
        self._findings: list[Finding] = []
        self._lock = threading.Lock()

    def findings(self, run: "Run") -> list[Finding]:
        """What the detectors find in a run, up to its first non-finite step."""
        with self._lock:  # clients that ask at once wait for one another's work
            revision, now = run.read_revision, time.monotonic()
            is_due = now - self._worked_out >= self._rest or run.ended is not None
            if revision != self._revision and is_due:
                found = self._detected(run)
                self.change += found != self._findings
                self._findings = found
                self._revision, self._worked_out = revision, time.monotonic()
                self._rest = max(REST_SECONDS, REST_SHARE * (self._worked_out - now))
        return self._findings

    def _detected(self, run: "Run") -> list[Finding]:
        """What they find now; nothing a file holds may take the page away, nor the callback's own findings."""
        self.trouble = None
        try:
            with np.errstate(all="ignore"):  # odd numbers are no news for TensorBoard's log
                history = history_of(run, list(run.recorded_findings().values()))
                return [Finding(**vars(detection), run=run.name) for detection in detect(history)]
        except StaleIndexError:
            raise
        except Exception as error:
            self.trouble = f"no findings by the detectors, since one failed: {type(error).__name__}: {error}"
            return []
