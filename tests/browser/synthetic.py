"""Writes a recording of a training that never was: a VAE that an abnormal image drives to NaN.

The page tests need a recording whose every number is known, in a second instead of a training. It is made of the same
records as a real one.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from dgm_tb.framing import frame
from dgm_tb.graph import Edge, Graph, Layer, Link, Node, Weight
from dgm_tb.records import MARKER_TAG, PLUGIN_NAME, STATISTICS, Finding, Record, encode

BAD_STEP = 437
BAD_INDEX = 1203
BAD_LAYER = "to_logvar"
BAD_NEURON = 3
WINDOW = 16
SAMPLED = 24

_LAYERS = [  # name, parent module, type, neurons
    ("encoder.0", "encoder", "Linear", 128),
    ("encoder.1", "encoder", "ReLU", 128),
    ("encoder.2", "encoder", "Linear", 64),
    ("encoder.3", "encoder", "ReLU", 64),
    ("to_mu", "", "Linear", 16),
    ("to_logvar", "", "Linear", 16),
    ("decoder.0", "decoder", "Linear", 64),
    ("decoder.1", "decoder", "ReLU", 64),
    ("decoder.2", "decoder", "Linear", 64),
]
_OPS = [  # id, kind, op, module
    ("batch[0]", "input", "input", ""),
    ("flatten", "op", "flatten", ""),
    ("mul", "op", "mul", ""),
    ("exp", "op", "exp", ""),
    ("randn_like", "random", "randn_like", ""),
    ("mul:1", "op", "mul", ""),
    ("add", "op", "add", ""),
    ("binary_cross_entropy_with_logits", "loss", "binary_cross_entropy_with_logits", ""),
    ("pow", "op", "pow", ""),
    ("exp:1", "op", "exp", ""),
    ("sub", "op", "sub", ""),
    ("sum", "op", "sum", ""),
    ("add:1", "op", "add", ""),
    ("loss", "loss", "loss", ""),
]
_EDGES = """batch[0]>flatten flatten>encoder.0 encoder.0>encoder.1 encoder.1>encoder.2 encoder.2>encoder.3
encoder.3>to_mu encoder.3>to_logvar to_logvar>mul mul>exp exp>mul:1 randn_like>mul:1 mul:1>add to_mu>add add>decoder.0
decoder.0>decoder.1 decoder.1>decoder.2 decoder.2>binary_cross_entropy_with_logits
flatten>binary_cross_entropy_with_logits to_mu>pow to_logvar>exp:1 pow>sub exp:1>sub sub>sum
binary_cross_entropy_with_logits>add:1 sum>add:1 add:1>loss"""
_LINKS = [
    ("encoder.0", "encoder.2"), ("encoder.1", "encoder.2"), ("encoder.2", "to_mu"), ("encoder.2", "to_logvar"),
    ("decoder.0", "decoder.2"),
]  # fmt: skip


def vae_graph() -> Graph:
    """The graph of the VAE, as the tracer would see it."""
    offset, layers, weights, weight_offset = 0, [], [], 0
    for name, _, kind, neurons in _LAYERS:
        layers.append(Layer(name, name, kind, neurons, offset, [32, neurons]))
        offset += neurons
        if kind == "Linear":
            weights.append(Weight(name, "weight", neurons, weight_offset))
            weight_offset += neurons
    modules = [Node(name, "module", kind, parent, [32, neurons], name) for name, parent, kind, neurons in _LAYERS]
    operations = [Node(name, kind, op, module, [32, 64]) for name, kind, op, module in _OPS]
    edges = [Edge(*pair.split(">")) for pair in _EDGES.split()]
    order = [edge.source for edge in edges] + ["loss"]
    nodes = sorted([*modules, *operations], key=lambda node: order.index(node.id))
    sizes = {layer.name: layer.neurons for layer in layers}
    links = [Link(source, target, "channels", 0, 1) for source, target in _LINKS]
    assert all(sizes[link.source] for link in links)
    return Graph(
        nodes, edges, {"encoder": "Sequential", "decoder": "Sequential", **{n: t for n, _, t, _ in _LAYERS}},
        layers, weights, links, {}, {"decoder.0": "randn_like between it and its source joins or mixes neurons"},
    )  # fmt: skip


def vae_records(steps: int = 480, *, fails: bool = True, ends: bool = True, seed: int = 0) -> Iterator[Record]:
    """All records of one recording.

    Args:
        steps: Steps of the training.
        fails: Whether the abnormal image comes at ``BAD_STEP``; the loss is NaN from then on.
        ends: Whether the training has ended.
        seed: For the noise.
    """
    rng = np.random.default_rng(seed)
    graph = vae_graph()
    bad = BAD_STEP if fails else steps
    body = {"schema": 1, "recording": "20260101-120000-1", "options": {"every_n_steps": 1, "window_steps": WINDOW},
            "versions": {"torch": "2.13.0"}, "model": "VAE", "resume_step": 0, "window_steps": WINDOW}  # fmt: skip
    yield Record("recording", 0, 0, {**body, "started": time.time() - steps * 0.05})
    yield Record("graph", 0, 0, graph.to_json())
    yield _losses(steps, bad, rng)
    for quantity in STATISTICS:
        values = _neurons(graph, quantity, steps, bad, rng)
        yield from _quantity(graph, quantity, values, rng)
    snapshots = [*range(0, steps, 96), *([bad] if fails else [])]
    for step in snapshots:
        sets = ("batch", "abnormal", "normal") if step == bad else ("batch",)
        yield from (_matrix(graph, link, step, direction, name, rng)
                    for link in graph.links for direction in ("forward", "backward") for name in sets)  # fmt: skip
    if fails:
        yield from _failure(graph, rng)
    if ends:
        yield Record("end", steps - 1, steps - 1, {"reason": "finished", "last_step": steps - 1})


def _losses(steps: int, bad: int, rng: np.random.Generator) -> Record:
    time_ = np.arange(steps)
    reconstruction = 9 + 35 * np.exp(-time_ / 60) + rng.normal(0, 0.5, steps)
    divergence = 3 * (1 - np.exp(-time_ / 40)) + rng.normal(0, 0.08, steps)
    values = np.stack([reconstruction + divergence, reconstruction, divergence], 1).astype(np.float32)
    values[bad : bad + 1] = [np.inf, 52, np.inf]
    values[bad + 1 :] = np.nan
    arrays = {"steps": time_, "global_steps": time_, "values": values, "present": np.ones((steps, 3), np.uint8)}
    names = ["train_loss", "reconstruction", "kl"]
    return Record("loss", 0, steps - 1, {"names": names}, arrays, time.time())


def _neurons(graph: Graph, quantity: str, steps: int, bad: int, rng: np.random.Generator) -> np.ndarray:
    """The quantity's main statistic of every neuron and step ``[steps, neurons]``."""
    rows = graph.layers if quantity in ("activation", "gradient") else graph.weights
    neurons = sum(row.neurons for row in rows)
    time_ = np.arange(steps)[:, None]
    base = rng.normal(0, 0.5, neurons) * (0.3 + 0.7 * (1 - np.exp(-time_ / 80)))
    values = base + 0.05 * rng.normal(0, 1, (steps, neurons)).cumsum(0) / np.sqrt(time_ + 10)
    if quantity != "activation":
        values = {"gradient": 1e-3, "weight": 3.0, "update": 1e-3}[quantity] * np.exp(values)
    for row in rows:
        name = getattr(row, "name", None) or row.module
        columns = slice(row.offset, row.offset + row.neurons)
        if name == BAD_LAYER and quantity == "activation" and bad < steps:
            values[bad - 12 : bad, row.offset + BAD_NEURON] += np.linspace(0, 3, 12)
            values[bad, row.offset + BAD_NEURON] = 640
            values[bad, row.offset + 11] = 118
        if name == "decoder.1":
            values[:, row.offset + 7] = 0
        values[bad + 1 :, columns] = np.nan
    return values.astype(np.float32)


def _quantity(graph: Graph, quantity: str, values: np.ndarray, rng: np.random.Generator) -> Iterator[Record]:
    rows = graph.layers if quantity in ("activation", "gradient") else graph.weights
    steps = np.arange(len(values))
    names = [statistic.name for statistic in STATISTICS[quantity]]
    per_layer = np.stack([values[:, row.offset : row.offset + row.neurons].mean(1) for row in rows], 1)
    layers = np.stack([per_layer * (1 + 0.3 * i) for i in range(len(names))], 2)
    last = int(steps[-1])
    yield Record("layer_statistics", 0, last, {"quantity": quantity, "statistics": names},
                 {"steps": steps, "values": layers.astype(np.float32)}, time.time())  # fmt: skip
    aggregates = [f"{s.name}/{window}" for s in STATISTICS[quantity] for window in s.windows]
    starts = np.arange(0, len(values), WINDOW)
    windows = np.stack([starts, np.minimum(starts + WINDOW, len(values)) - 1], 1)
    reduced = np.stack([_window(values, windows, name.split("/")[1]) for name in aggregates], 2)
    yield Record("dynamics", 0, last, {"quantity": quantity, "aggregates": aggregates},
                 {"windows": windows, "values": reduced.astype(np.float16)}, time.time())  # fmt: skip
    chosen, outliers = [], []
    for row in rows:
        pick = set(rng.permutation(row.neurons)[:SAMPLED].tolist())
        name = getattr(row, "name", None) or row.module
        marked = {BAD_NEURON, 11} if (quantity, name) == ("activation", BAD_LAYER) and row.neurons == 16 else set()
        for neuron in sorted(pick | marked):
            chosen.append(row.offset + neuron)
            outliers.append(neuron in marked and len(values) > BAD_STEP)
    yield Record("polylines", 0, last, {"quantity": quantity, "statistic": STATISTICS[quantity][0].name},
                 {"steps": steps, "neurons": np.array(chosen, np.int64), "outliers": np.array(outliers, np.uint8),
                  "values": values[:, chosen]}, time.time())  # fmt: skip


def _window(values: np.ndarray, windows: np.ndarray, aggregate: str) -> np.ndarray:
    """``[neurons, windows]``; NaN propagates as it does in a mean."""
    function = {"mean": np.mean, "min": np.min, "max": np.max}[aggregate]
    return np.stack([function(values[first : last + 1], axis=0) for first, last in windows], 1)


def _matrix(graph: Graph, link: Link, step: int, direction: str, samples: str, rng: np.random.Generator) -> Record:
    sizes = {layer.name: layer.neurons for layer in graph.layers}
    values = rng.normal(0, 1, (sizes[link.target], sizes[link.source])) ** 3
    if samples == "abnormal" and link.target == BAD_LAYER:
        values[BAD_NEURON, [5, 17, 40]] = [80, 55, -30]
    body = {"step": step, "target": link.target, "direction": direction, "samples": samples, "columns": "channel"}
    if step == BAD_STEP:
        body["finding"] = "nonfinite-437"
    return Record("contribution", step, step, body, {"values": values.astype(np.float32)})


def digit(rng: np.random.Generator) -> np.ndarray:
    """An 8 x 8 ring with a gap, in [0, 16]."""
    y, x = np.mgrid[0:8, 0:8] - 3.5
    ring = np.exp(-((np.hypot(y, x) - 2.4) ** 2)) * (np.arctan2(y, x) > rng.uniform(-3, -1))
    return np.clip(16 * ring + rng.normal(0, 0.6, (8, 8)), 0, 16).astype(np.float32)


def _failure(graph: Graph, rng: np.random.Generator) -> Iterator[Record]:
    inputs = np.stack([digit(rng)[None] for _ in range(5)])
    inputs[0] *= 900
    layers = [layer.name for layer in graph.layers]
    statistics = rng.uniform(0.5, 2, (5, len(layers))).astype(np.float32)
    statistics[0, layers.index(BAD_LAYER) :] *= 320
    indices = [BAD_INDEX, 17, 904, 388, 1512]
    examples = [{"index": index, "position": i + 3, "role": "normal" if i else "abnormal", "label": i}
                for i, index in enumerate(indices)]  # fmt: skip
    finding = "nonfinite-437"
    yield Record("samples", BAD_STEP, BAD_STEP,
                 {"step": BAD_STEP, "finding": finding, "examples": examples, "layers": layers, "axes": "NCHW"},
                 {"inputs": inputs, "statistics": statistics})  # fmt: skip
    upstream = [[layer.name, layer.offset, layer.neurons] for layer in graph.layers[:4]]
    yield Record("relevance", BAD_STEP, BAD_STEP,
                 {"step": BAD_STEP, "finding": finding, "target": BAD_LAYER, "neuron": BAD_NEURON, "sample": 0,
                  "layers": upstream, "leak": {"bias": 0.02}},
                 {"values": rng.normal(0, 1, sum(n for _, _, n in upstream)).astype(np.float32),
                  "input": inputs[0] * rng.normal(0.4, 1, (1, 8, 8)).astype(np.float32)})  # fmt: skip
    for name, body in _findings():
        yield Record("finding", body.step, body.step, {"id": name, "finding": body.to_json()})


def _findings() -> list[tuple[str, Finding]]:
    """Id and finding, not yet in order."""
    overflow = Finding(
        kind="nonfinite", severity="error", step=BAD_STEP, first_step=BAD_STEP, last_step=BAD_STEP + 1,
        module=BAD_LAYER,
        summary=f"exp overflows after {BAD_LAYER}: neuron {BAD_NEURON} reaches 640 for dataset example {BAD_INDEX}; "
        f"the loss is Inf at step {BAD_STEP} and NaN from then on.",
        modules=["exp", "decoder.0"], neurons=[BAD_NEURON, 11], samples=[BAD_INDEX],
        evidence={"sample_index": "dataset", "largest": 640.0, "loss": float("inf")},
        advice="Clamp the log-variance, for example to [-10, 10], and look at the example.",
    )  # fmt: skip
    outlier = Finding(
        kind="outlier_sample", severity="error", step=BAD_STEP, first_step=BAD_STEP, last_step=BAD_STEP,
        module="encoder.0",
        summary=f"Dataset example {BAD_INDEX} is 900 times brighter than the rest of its batch.",
        neurons=[12, 80], samples=[BAD_INDEX],
        evidence={"sample_index": "dataset", "range": [0.0, 14400.0], "typical": [0.0, 16.0]},
        advice="Check the example's scaling.",
    )  # fmt: skip
    dead = Finding(
        kind="dead_units", severity="warning", step=200, first_step=8, last_step=479, module="decoder.1",
        summary="1 of 64 neurons of decoder.1 is zero for every example since step 8.", neurons=[7],
        evidence={"share": 0.015625}, advice="Lower the learning rate or use a leaky activation.",
    )  # fmt: skip
    return [("dead_units-200", dead), ("nonfinite-437", overflow), ("outlier_sample-437", outlier)]


def write_run(folder: Path, records: Iterator[Record], recording: str = "20260101-120000-1") -> Path:
    """Write a run as the callback does: a marker in an event file, the records in a segment.

    Returns:
        The segment, for appending further ``frame(encode(record))``.
    """
    segment = folder / "plugins" / PLUGIN_NAME / recording / "000001.dgm"
    segment.parent.mkdir(parents=True, exist_ok=True)
    with segment.open("wb") as file:
        for record in records:
            file.write(frame(encode(record)))
    metadata = summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=b"{}"),
        data_class=summary_pb2.DATA_CLASS_TENSOR,
    )
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[recording.encode()])
    value = summary_pb2.Summary.Value(tag=MARKER_TAG, metadata=metadata, tensor=tensor)
    writer = EventFileWriter(str(folder))
    writer.add_event(event_pb2.Event(wall_time=time.time(), summary=summary_pb2.Summary(value=[value])))
    writer.close()
    return segment
