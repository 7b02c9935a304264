"""Runs the detectors over a recording."""

import time
from typing import TYPE_CHECKING

import numpy as np

from dgm_tb.algorithms.detection import History, LayerHistory, detect
from dgm_tb.errors import UnknownNameError
from dgm_tb.records import Finding

if TYPE_CHECKING:
    from dgm_tb.plugin.run import Run

REST_SECONDS = 10.0

_CLIPPING = ("ReLU", "ReLU6", "Threshold")


class Diagnosis:
    """The detectors' findings of one run, worked out again at most every ten seconds while it grows."""

    def __init__(self) -> None:
        self._revision = ""
        self._worked_out = -REST_SECONDS
        self._findings: list[Finding] = []

    def findings(self, run: "Run") -> list[Finding]:
        """What the detectors find in a run, up to its first non-finite step."""
        revision, now = run.revision, time.monotonic()
        is_due = now - self._worked_out >= REST_SECONDS or run.ended is not None
        if revision != self._revision and is_due:
            recorded = run.recorded_findings().values()
            bad = [f.evidence.get("first_nonfinite_step", f.step) for f in recorded if f.kind == "nonfinite"]
            history = history_of(run, min(map(int, bad), default=None))
            self._findings = [Finding(**vars(detection), run=run.name) for detection in detect(history)]
            self._revision, self._worked_out = revision, now
        return self._findings


def history_of(run: "Run", until: int | None) -> History:
    """The numbers that detectors look at.

    Args:
        run: The run.
        until: First step to leave out; None for none.
    """
    graph = run.graph
    layers = []
    for layer in graph.flow_order():
        try:
            low = run.dynamics(layer.name, "activation", "min")
            high = run.dynamics(layer.name, "activation", "max")
        except UnknownNameError:
            continue
        keep = low.steps < (until if until is not None else np.inf)
        layers.append(
            LayerHistory(
                layer.name,
                layer.module,
                low.steps[keep],
                low.values[:, keep],
                high.values[:, keep],
                layer.type in _CLIPPING,
            )
        )
    losses = {}
    for name, series in run.losses.items():
        keep = series.steps < (until if until is not None else np.inf)
        losses[name] = series.steps[keep], series.values[keep]
    nodes = {node.id: (node.kind, node.module) for node in graph.nodes}
    return History(layers, losses, nodes, graph.parents())
