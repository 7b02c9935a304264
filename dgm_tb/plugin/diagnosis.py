"""Runs the detectors over a recording."""

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dgm_tb.algorithms.detection import History, LayerHistory, detect
from dgm_tb.plugin.cache import CACHE, Array, Arrays
from dgm_tb.plugin.entry import Entry
from dgm_tb.plugin.joining import together
from dgm_tb.plugin.recording import Recording
from dgm_tb.plugin.rows import neuron_span
from dgm_tb.plugin.storage import OpenFile
from dgm_tb.records import Finding

if TYPE_CHECKING:
    from dgm_tb.plugin.run import Run

REST_SECONDS = 10.0
REST_SHARE = 20
"""Detectors rest this many times as long as they worked: a large run that grows must not keep a core busy."""
MAX_WINDOWS = 512
"""Windows of longer runs are put together to this many stretches; their extremes stay."""

_CLIPPING = ("ReLU", "ReLU6", "Threshold")


class Diagnosis:
    """The detectors' findings of one run, worked out again at most every ten seconds, or seldomer, while it grows.

    Attributes:
        change: Counts how often they found something else: it may be long after the records came.
    """

    def __init__(self) -> None:
        self.change = 0
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
                recorded = run.recorded_findings().values()
                bad = [f.evidence.get("first_nonfinite_step", f.step) for f in recorded if f.kind == "nonfinite"]
                history = history_of(run, min(map(int, bad), default=None))
                found = [Finding(**vars(detection), run=run.name) for detection in detect(history)]
                self.change += found != self._findings
                self._findings = found
                self._revision, self._worked_out = revision, time.monotonic()
                self._rest = max(REST_SECONDS, REST_SHARE * (self._worked_out - now))
        return self._findings


def history_of(run: "Run", until: int | None) -> History:
    """The numbers that detectors look at.

    Args:
        run: The run.
        until: First step to leave out; None for none.
    """
    graph = run.graph
    last = until - 1 if until is not None else np.inf
    extremes = [(recording.graph, _extremes(recording, min(limit - 1, last))) for recording, limit in run.spans()]
    layers = []
    for layer in graph.flow_order():
        parts = [
            (found.steps, found.low[:, slice(*span)], found.high[:, slice(*span)])
            for own, found in extremes
            if found is not None and (span := neuron_span(own, layer.name, "activation"))
        ]
        if parts:
            steps, low, high = together(parts)
            is_clipping = layer.type in _CLIPPING
            layers.append(LayerHistory(layer.name, layer.module, steps, low.T, high.T, is_clipping))
    losses = {}
    for name, series in run.losses.items():
        keep = series.steps < (until if until is not None else np.inf)
        losses[name] = series.steps[keep], series.values[keep]
    nodes = {node.id: (node.kind, node.module) for node in graph.nodes}
    return History(layers, losses, nodes, graph.parents())


class _Extremes(NamedTuple):
    """Smallest and largest activation of all neurons ``[stretches, neurons]``, and the stretches' last steps."""

    steps: Array
    low: Array
    high: Array


def _extremes(recording: Recording, last: float) -> _Extremes | None:
    """Extremes of at most ``MAX_WINDOWS`` stretches of windows that have ended; none of them is read twice."""
    known = {
        (entry.first_step, entry.last_step): entry for entry in recording.entries("dynamics", quantity="activation")
    }
    entries = [known[steps] for steps in sorted(known) if steps[0] <= last and not known[steps].is_live]
    n_windows = sum(entry.n_rows("windows") for entry in entries)
    size = 1 << max(0, -(-n_windows // MAX_WINDOWS) - 1).bit_length()  # seldom another one while a recording grows
    parts, waiting, n_waiting = [], [], 0
    for number, entry in enumerate(entries):
        waiting.append(entry)
        n_waiting += entry.n_rows("windows")
        if n_waiting < size and number + 1 < len(entries):
            continue
        parts.append(_stretches(recording, waiting, n_waiting, size, last))
        waiting, n_waiting = [], 0
    parts = [part for part in parts if part]
    return _Extremes(*together(parts)) if parts else None


def _stretches(recording: Recording, entries: list[Entry], n_windows: int, size: int, last: float) -> Arrays:
    """Extremes of the stretches of some records; kept if they can't change any more."""
    key = id(recording), recording.folder, "extremes", entries[0].serial, entries[-1].serial
    known = CACHE.get(key)
    if known is not None and known[0] == size:
        return known[1]
    found = recording.collect(entries, _read_extremes)
    if not found:
        return ()
    is_before = found[0] <= last
    steps, low, high = (array[is_before] for array in found)
    stretches = _in_stretches(steps, low, high, size)
    if len(steps) == n_windows >= size:
        CACHE.put(key, size, stretches)
    return stretches


def _read_extremes(entry: Entry, file: OpenFile) -> Arrays:
    names = entry.body["aggregates"]
    values = entry.read("values", file=file)
    low, high = values[:, :, names.index("min/min")], values[:, :, names.index("max/max")]
    return entry.read("windows", file=file)[:, 1], low.T.astype(np.float32), high.T.astype(np.float32)


def _in_stretches(steps: Array, low: Array, high: Array, size: int) -> Arrays:
    if size <= 1 or not len(steps):
        return steps, low, high
    starts = np.arange(0, len(steps), size)
    ends = np.append(starts[1:], len(steps)) - 1
    return steps[ends], np.minimum.reduceat(low, starts, 0), np.maximum.reduceat(high, starts, 0)
