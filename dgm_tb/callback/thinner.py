"""The records of several segments, in order, become fewer: which kinds are thinned, and how records are joined for it.

| kind | a quarter of its detail |
|---|---|
| ``dynamics`` | four windows of a quantity become one; what a one-step window lacks of its aggregates is its value |
| ``layer_statistics`` | eight rows become two, that hold the extremes of every column |
| ``polylines`` | the same; from ``LAST_LEVEL`` on they are left out, as the windows say nearly as much |
| ``loss`` | kept as it is; from ``LAST_LEVEL`` on as the layer statistics |

Everything else, and whatever is no record of this version, stays byte by byte as it is.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dgm_tb.callback.thinning import ROWS, WINDOWS, merge_windows, thin_rows
from dgm_tb.errors import RecordError
from dgm_tb.records import KINDS, STATISTICS, Record, compact, encode, expand, parse

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]
Layout = dict[str, Array]
"""Quantity -> number of the first neuron of each layer."""

LAST_LEVEL = 3
"""From here on there are no polylines, and losses are thinned, too."""
HOLE = 4
"""Windows that begin so many times as late as the last one did are not merged with it: those between them are lost."""
JOINED_ROWS = 256
JOINED_BYTES = 2 << 20
"""Records of one sort are collected until they have that many windows or rows, or bytes."""


@dataclass(frozen=True)
class _Way:
    """How one kind is thinned.

    Attributes:
        axes: Array -> its axis of windows or rows; of the other arrays, the largest value of each place is kept.
        unit: Windows or rows that are thinned together.
        thin: From a body and its arrays to the thinned arrays, and what the body must say besides.
    """

    axes: Mapping[str, int]
    unit: int
    thin: Callable[[Mapping[str, Any], Arrays, Layout], tuple[Arrays, dict[str, Any]]]


@dataclass
class _Pending:
    """Records of one sort that have not been thinned yet.

    Attributes:
        body: What they have in common.
        same: Bytes that must be equal, too.
        parts: Their arrays.
        windows: Bounds of the last two windows, where they have some ``[up to 2, 2]``.
        wall_time: Of the last one.
        n_rows: How many windows or rows that is.
        n_bytes: Of their values.
    """

    body: Mapping[str, Any]
    same: bytes
    parts: list[Arrays] = field(default_factory=list)
    windows: Array = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    wall_time: float = 0.0
    n_rows: int = 0
    n_bytes: int = 0


class Thinner:
    """Takes in the records of a run of segments, and hands out those that replace them.

    Args:
        level: How often what comes out has been thinned.
        layout: What is known of the layers so far; extended by the graphs that come along.
    """

    def __init__(self, level: int, layout: Layout) -> None:
        self.last_step = 0
        self._level = level
        self._layout = layout
        self._pending: dict[tuple[str, str], _Pending] = {}

    def take(self, payload: bytes) -> list[bytes]:
        """Take in one record; returns the records that are complete by now."""
        try:
            record = parse(payload)
        except RecordError:
            return [payload]
        self.last_step = max(self.last_step, record.last_step)
        if record.kind == "graph":
            self._learn(record.body)
        if record.kind == "polylines" and self._level >= LAST_LEVEL:
            return []
        way = _WAYS.get(record.kind)
        if way is None or (record.kind == "loss" and self._level < LAST_LEVEL) or not _fits(record, way):
            return [payload]
        return self._join(record, way)

    def rest(self) -> list[bytes]:
        """The records of what is still pending; what comes later is not joined with it."""
        pending, self._pending = self._pending, {}
        return [made for (kind, _), known in pending.items() for made in self._thin(kind, known, is_last=True)]

    def _learn(self, body: Mapping[str, Any]) -> None:
        for key, quantities in (("layers", ("activation", "gradient")), ("weights", ("weight", "update"))):
            try:
                firsts = np.unique(np.array([int(item["offset"]) for item in body[key]], np.int64))
            except (TypeError, KeyError, ValueError):
                continue
            self._layout |= dict.fromkeys(quantities, firsts)

    def _join(self, record: Record, way: _Way) -> list[bytes]:
        body, arrays = _prepared(record)
        slot = record.kind, json.dumps(body, sort_keys=True)
        same = arrays["neurons"].tobytes() if "neurons" in arrays else b""
        pending = self._pending.get(slot)
        made = []
        if pending is not None and (pending.same != same or _is_apart(pending, arrays)):
            made = self._thin(record.kind, pending, is_last=True)
            pending = None
        if pending is None:
            pending = self._pending[slot] = _Pending(body, same)
        pending.parts.append(arrays)
        if "windows" in arrays:
            pending.windows = np.concatenate([pending.windows, arrays["windows"]])[-2:]
        pending.wall_time = record.wall_time
        pending.n_rows += arrays["values"].shape[way.axes["values"]]
        pending.n_bytes += arrays["values"].nbytes
        if pending.n_rows >= JOINED_ROWS or (pending.n_bytes >= JOINED_BYTES and pending.n_rows >= way.unit):
            made += self._thin(record.kind, pending, is_last=False)
        return made

    def _thin(self, kind: str, pending: _Pending, *, is_last: bool) -> list[bytes]:
        """Thin what is pending; unless it is the last, what does not make up a unit stays."""
        way = _WAYS[kind]
        n_used = pending.n_rows if is_last else pending.n_rows // way.unit * way.unit
        if not n_used:
            return []
        used, left = _split(_joined(pending.parts, way), way, n_used)
        pending.n_rows -= n_used
        pending.parts = [left] if pending.n_rows else []
        pending.n_bytes = left["values"].nbytes
        thinned, scale = way.thin(pending.body, used, self._layout)
        steps = thinned["windows"] if kind == "dynamics" else thinned["steps"]
        first, last = int(steps.flat[0]), int(steps.flat[-1])
        return [encode(Record(kind, first, last, {**pending.body, **scale}, thinned, pending.wall_time))]


# -- records joined ----------------------------------------------------------------------------------------------------


def _fits(record: Record, way: _Way) -> bool:
    """Whether the arrays are all there, with as many windows or rows each, and not empty."""
    if not KINDS[record.kind].arrays.keys() - KINDS[record.kind].optional <= record.arrays.keys():
        return False
    lengths = {record.arrays[name].shape[axis] for name, axis in way.axes.items() if name in record.arrays}
    return len(lengths) == 1 and lengths != {0}


def _is_apart(pending: _Pending, arrays: Arrays) -> bool:
    """Whether windows are missing between the pending ones and further ones, as after a while without disk space."""
    before, after = pending.windows, arrays.get("windows")
    if after is None or (len(before) < 2 and before[0, 0] == before[0, 1]):
        return False
    lengths = (int((windows[:, 1] - windows[:, 0]).max()) + 1 for windows in (before, after))
    pace = max(*lengths, *np.diff(before[:, 0]).tolist())
    return bool(after[0, 0] - before[-1, 0] > HOLE * pace)


def _prepared(record: Record) -> tuple[dict[str, Any], Arrays]:
    """Body and arrays in the form that all records of their sort share."""
    body = {key: value for key, value in record.body.items() if key != "exponents"}
    arrays = {name: expand(name, array, record.body) for name, array in record.arrays.items()}
    if record.kind == "dynamics":
        body["aggregates"], arrays["values"] = _with_all_aggregates(body, arrays)
    if record.kind == "loss":
        arrays.setdefault("skipped", np.zeros(len(arrays["steps"]), np.uint8))
    return body, arrays


def _with_all_aggregates(body: Mapping[str, Any], arrays: Arrays) -> tuple[list[str], Array]:
    """Names and values of all aggregates of a quantity; a window of one step may hold only the main ones of its own."""
    known = {name: column for column, name in enumerate(body["aggregates"])}
    columns: dict[str, int] = {}
    for statistic in STATISTICS.get(body["quantity"], ()):
        main = known.get(f"{statistic.name}/{statistic.windows[0]}")
        for window in statistic.windows:
            name = f"{statistic.name}/{window}"
            if main is not None:
                columns[name] = known.get(name, main)
    is_complete = columns.keys() <= known.keys()
    if is_complete or not known.keys() <= columns.keys() or (np.diff(arrays["windows"]) != 0).any():
        return list(known), arrays["values"]
    return list(columns), arrays["values"][:, :, list(columns.values())]


def _joined(parts: Sequence[Arrays], way: _Way) -> Arrays:
    joined = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if name not in way.axes:
            joined[name] = np.maximum.reduce(arrays)
        else:
            joined[name] = np.concatenate(_padded(arrays, way.axes[name]), way.axes[name])
    return joined


def _padded(arrays: list[Array], axis: int) -> list[Array]:
    """The arrays, all but one axis filled up with NaN to the largest size."""
    sizes = [max(lengths) for lengths in zip(*(array.shape for array in arrays), strict=True)]
    padded = []
    for array in arrays:
        widths = [(0, 0 if n == axis else size - array.shape[n]) for n, size in enumerate(sizes)]
        padded.append(np.pad(array, widths, constant_values=np.nan) if any(right for _, right in widths) else array)
    return padded


def _split(arrays: Arrays, way: _Way, at: int) -> tuple[Arrays, Arrays]:
    """The arrays up to a window or row, and from there on."""
    before, after = dict(arrays), dict(arrays)
    for name, axis in way.axes.items():
        if name in arrays:
            before[name], left = np.split(arrays[name], [at], axis)
            after[name] = left.copy()
    return before, after


# -- kinds -------------------------------------------------------------------------------------------------------------


def _thin_dynamics(body: Mapping[str, Any], arrays: Arrays, layout: Layout) -> tuple[Arrays, dict[str, Any]]:
    layers = layout.get(body["quantity"])
    bounds, values = merge_windows(arrays["windows"], arrays["values"], body["aggregates"], layers)
    halved, scale = compact({"values": values})
    return {"windows": bounds, **halved}, scale


def _thin_layer_statistics(body: Mapping[str, Any], arrays: Arrays, layout: Layout) -> tuple[Arrays, dict[str, Any]]:
    values = arrays["values"]
    places, kept, _ = thin_rows(values.reshape(len(values), -1))
    return {"steps": arrays["steps"][places], "values": kept.reshape(-1, *values.shape[1:])}, {}


def _thin_polylines(body: Mapping[str, Any], arrays: Arrays, layout: Layout) -> tuple[Arrays, dict[str, Any]]:
    places, kept, _ = thin_rows(arrays["values"].astype(np.float32))  # whose extremes cost a fifth of float16's
    halved, scale = compact({"values": kept})
    return {"steps": arrays["steps"][places], **{n: arrays[n] for n in ("neurons", "outliers")}, **halved}, scale


def _thin_loss(body: Mapping[str, Any], arrays: Arrays, layout: Layout) -> tuple[Arrays, dict[str, Any]]:
    places, values, present = thin_rows(arrays["values"], arrays["present"])
    thinned = {name: arrays[name][places] for name in ("steps", "global_steps")}
    thinned |= {"values": values, "present": present.astype(np.uint8)}
    if arrays["skipped"].any():
        thinned["skipped"] = np.maximum.reduceat(arrays["skipped"], places)
    return thinned, {}


_WAYS: dict[str, _Way] = {
    "dynamics": _Way({"windows": 0, "values": 1}, WINDOWS, _thin_dynamics),
    "layer_statistics": _Way({"steps": 0, "values": 0}, ROWS, _thin_layer_statistics),
    "polylines": _Way({"steps": 0, "values": 0}, ROWS, _thin_polylines),
    "loss": _Way({"steps": 0, "global_steps": 0, "values": 0, "present": 0, "skipped": 0}, ROWS, _thin_loss),
}
