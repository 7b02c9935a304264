"""A recording of one layer whose values the tests choose."""

from pathlib import Path

import numpy as np
import sample_recording as sample

from dgm_tb.graph import Graph, Layer, Node
from dgm_tb.plugin.run import Run
from dgm_tb.records import Record

AGGREGATES = ["mean/mean", "mean/min", "mean/max"]


def write(
    folder: Path, values: np.ndarray, window: int, sampled: tuple[int, ...] = (), dtype: type = np.float32
) -> Run:
    """Record ``values`` ``[neurons, steps]`` in windows of ``window`` steps; some neurons at every step as well."""
    n_neurons, n_steps = values.shape
    steps = np.arange(n_steps)
    graph = Graph([Node("wide", "module", "Linear", "", [1, n_neurons], "wide")], [], {"": "Net"},
                  [Layer("wide", "wide", "Linear", n_neurons, 0, [1, n_neurons])])  # fmt: skip
    means = values.mean(0)[:, None, None].astype(np.float32)
    body = {"quantity": "activation", "statistics": ["mean"]}
    records = [
        sample.recording_record(window_steps=window),
        Record("graph", 0, 0, graph.to_json()),
        Record("layer_statistics", 0, n_steps - 1, body, {"steps": steps, "values": means}),
    ]
    for first in range(0, n_steps, window):
        part = values[:, first : first + window]
        last = first + part.shape[1] - 1
        kept = np.stack([part.mean(1), np.fmin.reduce(part, 1), np.fmax.reduce(part, 1)], 1)
        kept = kept[:, None, : 3 if window > 1 else 1].astype(dtype)
        body = {"quantity": "activation", "aggregates": AGGREGATES[: kept.shape[2]]}
        records.append(Record("dynamics", first, last, body, {"windows": np.array([[first, last]]), "values": kept}))
    if sampled:
        neurons = np.array(sampled)
        arrays = {"steps": steps, "neurons": neurons, "outliers": np.zeros(len(neurons), np.uint8),
                  "values": values[neurons].T.astype(np.float32)}  # fmt: skip
        records.append(Record("polylines", 0, n_steps - 1, {"quantity": "activation", "statistic": "mean"}, arrays))
    sample.write(folder, records)
    return Run(folder)


N, STEPS, WINDOW, SAMPLED = 12, 96, 8, (2, 5)


def wandering() -> np.ndarray:
    """Twelve neurons that wander over the zero; the sixth has a spike of one step, the last one goes bad."""
    found = np.cumsum(np.random.default_rng(1).normal(0, 0.2, (N, STEPS)), 1) + np.linspace(-2, 2, N)[:, None]
    found[5, 43] = 9
    found[N - 1, 70:] = np.nan
    return found.astype(np.float32)


VALUES = wandering()
