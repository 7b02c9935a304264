"""Records whose every number is known: the input of the reader's and the routes' tests, and of the golden files.

A model of the layers ``conv`` (3 neurons), ``fc`` (4), ``unfold`` (2) and ``out`` (5): ``fc`` takes the flattened maps
of ``conv`` (two positions), ``out`` takes ``fc`` and ``conv`` side by side, ``unfold`` takes the units of ``fc``
reshaped into maps. ``out`` comes first in the layout and last in the data flow.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dgm_tb.framing import frame
from dgm_tb.graph import Edge, Graph, Layer, Link, Node, Weight
from dgm_tb.records import PLUGIN_NAME, STATISTICS, Finding, Record, encode

Array = np.ndarray[Any, np.dtype[Any]]

NAME = "20260101-120000-1"
STARTED = 1_767_268_800.0
WINDOW = 4
STEPS = 12
LOSS_STEPS = np.arange(STEPS)
NAN_STEP = 9
SKIPPED = [2, 7]

LAYERS = {"out": 5, "conv": 3, "fc": 4, "unfold": 2}
FLOW = ["conv", "fc", "unfold", "out"]
WITH_WEIGHTS = {"out": 5, "conv": 3, "fc": 4}


def graph() -> Graph:
    """The model as traced."""
    kinds = {"out": "Linear", "conv": "Conv2d", "fc": "Linear", "unfold": "ConvTranspose2d"}
    layers, offset = [], 0
    for name, neurons in LAYERS.items():
        layers.append(Layer(name, name, kinds[name], neurons, offset, [2, neurons]))
        offset += neurons
    weights, offset = [], 0
    for name, neurons in WITH_WEIGHTS.items():
        weights.append(Weight(name, "weight", neurons, offset))
        offset += neurons
    nodes = [
        Node("batch[0]", "input", "input", "", [2, 1, 2, 1]),
        *(Node(name, "module", kinds[name], "", [2, LAYERS[name]], name) for name in FLOW[:2]),
        Node("cat", "op", "cat", "", [2, 7]),
        *(Node(name, "module", kinds[name], "", [2, LAYERS[name]], name) for name in FLOW[2:]),
        Node("loss", "loss", "mse_loss", "", []),
    ]
    pairs = "batch[0]>conv conv>fc fc>unfold fc>cat conv>cat cat>out out>loss unfold>loss"
    links = [
        Link("conv", "fc", "flatten", 0, 2),
        Link("fc", "out", "channels", 0, 1),
        Link("conv", "out", "channels", 4, 1),
        Link("fc", "unfold", "unflatten", 0, 3),
    ]
    modules = {"": "Net", **kinds}
    edges = [Edge(*pair.split(">")) for pair in pairs.split()]
    return Graph(
        nodes, edges, modules, layers, weights, links, {"embed": "integer outputs"}, {"unfold": "only by position"}
    )


def rows_of(quantity: str) -> dict[str, int]:
    """Layer -> neurons, in the order of the quantity's rows."""
    return LAYERS if quantity in ("activation", "gradient") else WITH_WEIGHTS


def span_of(layer: str, quantity: str = "activation") -> slice:
    """Rows of a layer in arrays over all neurons."""
    names = list(rows_of(quantity))
    first = sum(rows_of(quantity)[name] for name in names[: names.index(layer)])
    return slice(first, first + rows_of(quantity)[layer])


def neuron_values(quantity: str, statistic: str, steps: Array = LOSS_STEPS) -> Array:
    """What every neuron's statistic is at the given steps ``[neurons, steps]``, float32, exact in float16."""
    names = [known.name for known in STATISTICS[quantity]]
    neurons = np.arange(sum(rows_of(quantity).values()))[:, None]
    values = neurons + 0.25 * ((steps * (neurons + 3)) % 7) + 64 * names.index(statistic)
    if statistic == "max":
        values = values + 32
    if quantity == "activation":
        values = np.where((neurons == span_of("fc").start + 1) & (steps == NAN_STEP), np.nan, values)
    return values.astype(np.float32)


def layer_values(quantity: str, steps: Array = LOSS_STEPS) -> Array:
    """Statistics of whole layers ``[steps, layers, statistics]``, float32."""
    n_layers = len(rows_of(quantity))
    columns = len(STATISTICS[quantity])
    values = steps[:, None, None] * 0.5 + 10 * np.arange(n_layers)[:, None] + 100 * np.arange(columns)
    return values.astype(np.float32)


def loss_values(steps: Array = LOSS_STEPS) -> Array:
    """Two losses ``[steps, 2]``; the first goes bad, the second is there every other step."""
    values = np.stack([10 / (1.0 + steps), steps * 2.0], 1)
    values[steps == NAN_STEP, 0] = np.nan
    values[steps == NAN_STEP + 1, 0] = np.inf
    return values


def recording_record(
    name: str = NAME, *, resume_step: int = 0, started: float = STARTED, window_steps: int = WINDOW
) -> Record:
    """The first record."""
    body = {
        "schema": 1,
        "recording": name,
        "options": {"every_n_steps": 1, "window_steps": window_steps},
        "versions": {"torch": "2.13.0"},
        "model": "Net",
        "resume_step": resume_step,
        "started": started,
        "window_steps": window_steps,
    }
    return _at("recording", resume_step, resume_step, body)


def loss_record(steps: Array = LOSS_STEPS) -> Record:
    """Losses of the given steps."""
    present = np.ones((len(steps), 2), np.uint8)
    present[:, 1] = steps % 2 == 0
    arrays = {"steps": steps, "global_steps": steps * 2, "values": loss_values(steps), "present": present}
    arrays["skipped"] = np.isin(steps, SKIPPED).astype(np.uint8)
    return _at("loss", int(steps[0]), int(steps[-1]), {"names": ["train_loss", "d_loss"]}, arrays)


def quantity_records(quantity: str, steps: Array = LOSS_STEPS, window_steps: int = WINDOW) -> Iterator[Record]:
    """Layer statistics, dynamics and (with windows of several steps) polylines of the given steps."""
    first, last = int(steps[0]), int(steps[-1])
    statistics = STATISTICS[quantity]
    names = [known.name for known in statistics]
    yield _at(
        "layer_statistics",
        first,
        last,
        {"quantity": quantity, "statistics": names},
        {"steps": steps, "values": layer_values(quantity, steps)},
    )
    aggregates = [f"{s.name}/{w}" for s in statistics for w in (s.windows if window_steps > 1 else s.windows[:1])]
    starts = np.arange(0, len(steps), window_steps)
    bounds = np.stack([steps[starts], steps[np.minimum(starts + window_steps, len(steps)) - 1]], 1)
    values = np.stack([window_values(quantity, name, steps, window_steps) for name in aggregates], 2)
    yield _at(
        "dynamics",
        first,
        last,
        {"quantity": quantity, "aggregates": aggregates},
        {"windows": bounds, "values": values.astype(np.float16 if window_steps > 1 else np.float32)},
    )
    if quantity in ("activation", "gradient") and window_steps > 1:
        yield polyline_record(quantity, steps)


def window_values(quantity: str, aggregate: str, steps: Array = LOSS_STEPS, window_steps: int = WINDOW) -> Array:
    """One aggregate of every neuron and window ``[neurons, windows]``, as the float16 that is recorded."""
    statistic, _, kind = aggregate.partition("/")
    values = neuron_values(quantity, statistic, steps)
    function = {"mean": np.mean, "min": np.fmin.reduce, "max": np.fmax.reduce}[kind]
    parts = [function(values[:, at : at + window_steps], axis=1) for at in range(0, len(steps), window_steps)]
    return np.stack(parts, 1).astype(np.float16 if window_steps > 1 else np.float32).astype(np.float32)


POLYLINES = np.array([0, 2, 4, 5, 7, 8, 9, 11, 12, 13], np.int64)
OUTLIERS = np.array([4, 9], np.int64)


def polyline_record(quantity: str, steps: Array = LOSS_STEPS) -> Record:
    """Full-resolution values of ``POLYLINES``, of which ``OUTLIERS`` are outliers."""
    main = STATISTICS[quantity][0].name
    arrays = {
        "steps": steps,
        "neurons": POLYLINES,
        "outliers": np.isin(POLYLINES, OUTLIERS).astype(np.uint8),
        "values": neuron_values(quantity, main, steps)[POLYLINES].T,
    }
    return _at("polylines", int(steps[0]), int(steps[-1]), {"quantity": quantity, "statistic": main}, arrays)


def contribution_values(target: str, columns: str) -> Array:
    """The matrix into a layer, as recorded ``[targets, columns]``."""
    widths = {("fc", "channel"): 6, ("out", "channel"): 7, ("unfold", "channel"): 4, ("unfold", "position"): 12}
    n_columns, n_targets = widths[target, columns], LAYERS[target]
    return (np.arange(n_targets * n_columns).reshape(n_targets, n_columns) % 11 - 4).astype(np.float16)


def contribution_records(step: int, samples: str = "batch", finding: str | None = None) -> Iterator[Record]:
    """Matrices of every layer that has one, both directions."""
    for target, columns in (("fc", "channel"), ("out", "channel"), ("unfold", "position")):
        for sign, direction in ((1, "forward"), (-1, "backward")):
            body = {
                "step": step,
                "target": target,
                "direction": direction,
                "samples": samples,
                "columns": columns,
                "finding": finding,
            }
            values = sign * contribution_values(target, columns)
            arrays = {"values": values, "relevance": values.sum(1, dtype=np.float32) + 1}
            yield _at("contribution", step, step, body, arrays)


FINDINGS = {
    "f2": Finding(
        "dead_units", "warning", 3, 1, 11, "conv", "1 of 3 is zero", neurons=[2], evidence={"share": 0.33}
    ),
    "f1": Finding(
        "nonfinite", "error", 9, 9, 10, "fc", "fc reaches Infinity", ["out"], [1], [17],
        {"sample_index": "dataset", "largest": float("inf")}, "Clamp it.",
    ),
    "f3": Finding("outlier_sample", "error", 8, 8, 8, "loss", "example 17 is far from the rest", samples=[17]),
}  # fmt: skip

INPUTS = np.arange(6, dtype=np.float32).reshape(3, 1, 2, 1)
SAMPLE_STATISTICS = np.arange(12, dtype=np.float32).reshape(3, 4)
RELEVANCE_INPUT = np.array([[[0.5], [-2.0]]], np.float32)
RELEVANCE_VALUES = np.array([1, 2, 3], np.float32)
EXAMPLES = [
    {"index": 17, "position": 1, "role": "abnormal", "label": 4},
    {"index": None, "position": 0, "role": "normal", "label": None},
    {"index": 5, "position": 2, "role": "normal", "label": 0},
]


def finding_records() -> Iterator[Record]:
    """Findings, and what is known of the first one's examples."""
    for number, finding in FINDINGS.items():
        yield _at("finding", finding.step, finding.last_step, {"id": number, "finding": finding.to_json()})
    body = {"step": 9, "finding": "f1", "examples": EXAMPLES, "layers": list(LAYERS), "axes": "NCHW"}
    yield _at("samples", 9, 9, body, {"inputs": INPUTS, "statistics": SAMPLE_STATISTICS})
    body = {
        "step": 9,
        "finding": "f1",
        "target": "fc",
        "neuron": 1,
        "sample": 0,
        "layers": [["conv", 0, 3]],
        "leak": {"bias": 0.02},
    }
    yield _at("relevance", 9, 9, body, {"values": RELEVANCE_VALUES, "input": RELEVANCE_INPUT})
    yield from contribution_records(9, "abnormal", "f1")
    yield from contribution_records(9, "normal", "f1")


def all_records(window_steps: int = WINDOW, *, ends: bool = True) -> Iterator[Record]:
    """A whole recording: at least one record of every kind."""
    yield recording_record(window_steps=window_steps)
    yield _at("graph", 0, 0, graph().to_json())
    yield from contribution_records(0)
    yield loss_record()
    for quantity in STATISTICS:
        yield from quantity_records(quantity, window_steps=window_steps)
    yield from contribution_records(8)
    yield from finding_records()
    yield ring_record()
    yield _at("note", 5, 5, {"text": "no relevance for GroupNorm (layer 'norm')"})
    if ends:
        yield _at("end", STEPS - 1, STEPS - 1, {"reason": "finished", "last_step": STEPS - 1})


def ring_record() -> Record:
    """The last two steps of all neurons."""
    n_neurons = sum(LAYERS.values())
    arrays = {
        "steps": np.array([10, 11]),
        "activation": np.ones((2, 5, n_neurons), np.float32),
        "gradient": np.full((2, n_neurons), np.nan, np.float32),
        "examples": np.ones((2, len(LAYERS), 3), np.float32),
        "indices": np.array([[17, 5, 3], [-1, -1, -1]]),
    }
    return _at(
        "ring", 10, 11, {"reason": "finding", "losses": [{"train_loss": 1.0}, {"train_loss": float("nan")}]}, arrays
    )


def write(folder: Path, records: Iterable[Record], name: str = NAME, segment: int = 0) -> Path:
    """Write records as one segment of a recording of the run ``folder``.

    Returns:
        The segment.
    """
    path = folder / "plugins" / PLUGIN_NAME / name / f"{segment:06d}.dgm"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(framed(records))
    return path


def framed(records: Iterable[Record]) -> bytes:
    """Records as the bytes of a segment."""
    return b"".join(frame(encode(record)) for record in records)


def _at(kind: str, first: int, last: int, body: dict[str, Any], arrays: dict[str, Array] | None = None) -> Record:
    return Record(kind, first, last, body, arrays or {}, STARTED + last)
