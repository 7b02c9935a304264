"""Reads what detectors look at, in as few numbers as their thresholds need."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dgm_tb.algorithms.detection import History, LayerHistory, Track
from dgm_tb.errors import RecordError
from dgm_tb.graph import Layer
from dgm_tb.plugin.cache import CACHE, Array, Arrays
from dgm_tb.plugin.entry import Entry
from dgm_tb.plugin.joining import together
from dgm_tb.plugin.recording import Recording
from dgm_tb.plugin.rows import neuron_span, row_number
from dgm_tb.plugin.storage import OpenFile
from dgm_tb.records import STATISTICS, Finding

if TYPE_CHECKING:
    from dgm_tb.plugin.run import Run

MAX_WINDOWS = 128
"""Windows of longer runs are put together to this many stretches; their extremes stay."""

MAX_POINTS = 2048
"""So many steps of a layer's statistics are kept; of more, their medians, smallest and largest values by stretches."""

CLIPPING = ("ReLU", "ReLU6", "Threshold")

_NEURONS = {
    "activation": {"mean": "mean/mean", "std": "std/mean", "low": "min/min", "high": "max/max"},
    "gradient": {"gradient": "rms/mean"},
    "weight": {"weight": "norm/mean"},
}
"""Quantity -> what is read of its windows, and the aggregate that it is."""

_LAYERS = {"gradient": {"rms": "gradient"}, "weight": {"norm": "weight"}, "update": {"ratio": "update"}}
"""Quantity -> statistic -> its name in ``LayerHistory.tracks``; those of activations keep theirs."""

_REDUCE: dict[str, Callable[[Array, Array], Array]] = {
    "low": lambda values, starts: np.fmin.reduceat(values, starts, 0),
    "min": lambda values, starts: np.fmin.reduceat(values, starts, 0),
    "high": lambda values, starts: np.fmax.reduceat(values, starts, 0),
    "max": lambda values, starts: np.fmax.reduceat(values, starts, 0),
    "update": lambda values, starts: np.fmax.reduceat(values, starts, 0),
}


def history_of(run: "Run", recorded: Sequence[Finding]) -> History:
    """The numbers that detectors look at, up to the first step that was not finite.

    Args:
        run: The run.
        recorded: What was found while training.
    """
    bad = [int(f.evidence.get("first_nonfinite_step", f.step)) for f in recorded if f.kind == "nonfinite"]
    until = min(bad, default=None)
    last = until - 1 if until is not None else np.inf
    spans = [(recording, min(limit - 1, last)) for recording, limit in run.spans()]
    windows = [{q: _read(r, "dynamics", q, limit, MAX_WINDOWS) for q in _NEURONS} for r, limit in spans]
    tracks = [{q: _read(r, "layer_statistics", q, limit, MAX_POINTS) for q in STATISTICS} for r, limit in spans]
    graph = run.graph
    layers = [_layer(layer, spans, windows, tracks) for layer in graph.flow_order()]
    losses = {name: (s.steps[s.steps <= last], s.values[s.steps <= last]) for name, s in run.losses.items()}
    blamed = [(f.step, f.last_step) for f in recorded if f.kind in ("outlier_sample", "loss_spike", "nonfinite")]
    return History(
        [layer for layer in layers if layer is not None],
        losses,
        {node.id: (node.kind, node.module) for node in graph.nodes},
        graph.parents(),
        {node.id: node.op for node in graph.nodes},
        _examples(spans[-1][0]) if spans else {},
        _idle(recorded),
        _explosions(recorded),
        until,
        blamed,
    )


def _idle(recorded: Sequence[Finding]) -> dict[str, str]:
    """What the callback saw of parameters that do not train."""
    seen = [f.evidence.get("idle", {}) for f in recorded if _is_seen(f, "not_training")]
    return {str(module): str(why) for found in seen if isinstance(found, Mapping) for module, why in found.items()}


def _is_seen(finding: Finding, kind: str) -> bool:
    """Whether this is what the callback saw while training, for a detector to judge in the end."""
    return finding.kind == kind and finding.severity == "info"


def _explosions(recorded: Sequence[Finding]) -> list[tuple[int, str, Mapping[str, Any]]]:
    """What the callback saw of exploding gradients."""
    return [(f.step, f.module, f.evidence) for f in recorded if _is_seen(f, "exploding_gradient")]


def _layer(layer: Layer, spans: Sequence[Any], windows: Sequence[Any], tracks: Sequence[Any]) -> LayerHistory | None:
    """One layer over all recordings; None if there are no windows of it."""
    neurons = _of_neurons(layer, spans, windows)
    if not len(neurons.get("steps", ())):
        return None
    steps = neurons.pop("steps")
    low, high = neurons.pop("low"), neurons.pop("high")
    found = _of_layer(layer, spans, tracks)
    is_clipping = layer.type in CLIPPING
    shape = tuple(layer.shape)
    return LayerHistory(layer.name, layer.module, steps, low, high, is_clipping, layer.type, shape, found, neurons)


def _of_neurons(layer: Layer, spans: Sequence[Any], windows: Sequence[Any]) -> dict[str, Array]:
    """Of every recording in which the layer is as wide as in the newest one: a training may be resumed with another."""
    parts: dict[str, list[Array]] = {}
    widths: dict[str, int] = {}
    for (recording, _), read in reversed(list(zip(spans, windows, strict=True))):
        for quantity, arrays in read.items():
            span = neuron_span(recording.graph, layer.name, quantity)
            if span is None or not len(arrays.get("steps", ())):
                continue
            names = [name for name in _NEURONS[quantity] if name in arrays and arrays[name].shape[1] >= span[1]]
            is_whole = quantity != "activation" or {"low", "high"} <= set(names)
            if not is_whole or widths.setdefault(quantity, span[1] - span[0]) != span[1] - span[0]:
                continue
            for name in names:
                parts.setdefault(name, []).insert(0, arrays[name][:, slice(*span)].T)
            if quantity == "activation":
                parts.setdefault("steps", []).insert(0, arrays["steps"])
    if not {"low", "high", "steps"} <= parts.keys():
        return {}
    return {name: np.concatenate(found, -1) for name, found in parts.items()}


def _of_layer(layer: Layer, spans: Sequence[Any], tracks: Sequence[Any]) -> dict[str, Track]:
    parts: dict[str, list[tuple[Array, Array]]] = {}
    for (recording, _), read in zip(spans, tracks, strict=True):
        for quantity, arrays in read.items():
            row = row_number(recording.graph, layer.name, quantity)
            if row is None or not len(arrays.get("steps", ())):
                continue
            for name, values in arrays.items():
                if name != "steps" and row < values.shape[1]:
                    parts.setdefault(name, []).append((arrays["steps"], values[:, row]))
    return {
        name: Track(np.concatenate([s for s, _ in found]), np.concatenate([v for _, v in found]))
        for name, found in parts.items()
    }


def _examples(recording: Recording) -> dict[str, Array]:
    """Layer -> largest ``|activation|`` of each example in the last steps that were kept whole."""
    rings = recording.entries("ring")
    entry = rings[-1] if rings else None
    if entry is None or "examples" not in entry.arrays:
        return {}
    try:
        values = entry.read("examples").astype(np.float32)
    except RecordError:
        return {}
    return {layer.name: values[:, number] for number, layer in enumerate(recording.graph.layers[: values.shape[1]])}


def _read(recording: Recording, kind: str, quantity: str, last: float, limit: int) -> dict[str, Array]:
    """Arrays ``[stretches, neurons or layers]`` by name, and the last step of each stretch as ``steps``.

    Of windows that have ended, and of steps; none of them is read twice while the recording grows.

    Args:
        recording: The recording.
        kind: ``dynamics`` or ``layer_statistics``.
        quantity: A key of ``records.STATISTICS``.
        last: Last step.
        limit: How many stretches there are at most.
    """
    axis = "windows" if kind == "dynamics" else "steps"
    known = {(entry.first_step, entry.last_step): entry for entry in recording.entries(kind, quantity=quantity)}
    entries = [known[steps] for steps in sorted(known) if steps[0] <= last and not known[steps].is_live]
    n_rows = sum(entry.n_rows(axis) for entry in entries)
    size = 1 << max(0, -(-n_rows // limit) - 1).bit_length()  # seldom another one while a recording grows
    parts, waiting, n_waiting = [], [], 0
    for number, entry in enumerate(entries):
        waiting.append(entry)
        n_waiting += entry.n_rows(axis)
        if n_waiting < size and number + 1 < len(entries):
            continue
        parts.append(_stretches(recording, kind, quantity, waiting, n_waiting, size, last))
        waiting, n_waiting = [], 0
    parts = [part for part in parts if part]
    return dict(zip(("steps", *_names(kind, quantity)), together(parts), strict=True)) if parts else {}


def _stretches(
    recording: Recording, kind: str, quantity: str, entries: list[Entry], n_rows: int, size: int, last: float
) -> Arrays:
    """The stretches of some records, in the order of ``_names``; kept if they can't change any more."""
    key = id(recording), recording.folder, "history", kind, quantity, entries[0].serial, entries[-1].serial
    known = CACHE.get(key)
    if known is not None and known[0] == size:
        return known[1]
    names = _names(kind, quantity)
    found = recording.collect(entries, partial(_read_entry, kind=kind, quantity=quantity, names=names))
    if not found:
        return ()
    is_before = found[0] <= last
    stretches = _in_stretches(names, tuple(array[is_before] for array in found), size)
    if len(stretches[0]) and int(is_before.sum()) == n_rows >= size:
        CACHE.put(key, size, stretches)
    return stretches


def _names(kind: str, quantity: str) -> tuple[str, ...]:
    if kind == "dynamics":
        return tuple(_NEURONS[quantity])
    aliases = _LAYERS.get(quantity, {})
    return tuple(aliases.get(statistic.name, statistic.name) for statistic in STATISTICS[quantity])


def _read_entry(entry: Entry, file: OpenFile, kind: str, quantity: str, names: tuple[str, ...]) -> Arrays:
    """Steps, and an array for each name; NaN where the record does not have it."""
    columns = _columns(entry, kind, quantity)
    values = entry.read("values", file=file)
    steps = entry.read("windows", file=file)[:, 1] if kind == "dynamics" else entry.read("steps", file=file)
    if kind == "dynamics":
        values = values.transpose(1, 0, 2)
    nothing = np.full(values.shape[:2], np.nan, np.float32)
    found = [values[:, :, columns[name]].astype(np.float32) if name in columns else nothing for name in names]
    return steps, *found


def _columns(entry: Entry, kind: str, quantity: str) -> dict[str, int]:
    """Name -> the column that holds it; of windows of a single step, which have one aggregate, that one."""
    if kind == "dynamics":
        names = list(map(str, entry.body["aggregates"]))
        own = {name.partition("/")[0]: number for number, name in reversed(list(enumerate(names)))}
        wanted = {name: (full, full.partition("/")[0]) for name, full in _NEURONS[quantity].items()}
        known = {name: pair for name, pair in wanted.items() if pair[1] in own}
        return {name: names.index(full) if full in names else own[short] for name, (full, short) in known.items()}
    aliases = _LAYERS.get(quantity, {})
    return {aliases.get(str(name), str(name)): number for number, name in enumerate(entry.body["statistics"])}


def _in_stretches(names: tuple[str, ...], arrays: Arrays, size: int) -> Arrays:
    steps, *values = arrays
    if size <= 1 or not len(steps):
        return arrays
    starts = np.arange(0, len(steps), size)
    ends = np.append(starts[1:], len(steps)) - 1
    reduced = [_REDUCE.get(name, _means)(array, starts) for name, array in zip(names, values, strict=True)]
    return steps[ends], *reduced


def _means(values: Array, starts: Array) -> Array:
    counts = np.diff(np.append(starts, len(values)))
    return np.asarray(np.add.reduceat(values, starts, 0) / counts[:, None])
