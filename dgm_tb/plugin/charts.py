"""Routes that draw lines: losses, the mini charts of all layers, and the training dynamics of one. See http_api.md."""

from functools import partial
from typing import Any

import numpy as np

from dgm_tb.algorithms.downsampling import minmax_columns
from dgm_tb.errors import UnknownNameError
from dgm_tb.plugin.decimate import PERCENTILES, decimated, percentiles
from dgm_tb.plugin.drawing import draw
from dgm_tb.plugin.entry import Entry
from dgm_tb.plugin.lines import MAX_COLUMNS, MAX_VALUES, View, asked_range, drawn_lines, window_spans
from dgm_tb.plugin.rows import row_number
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.storage import OpenFile
from dgm_tb.plugin.tracks import Windows
from dgm_tb.plugin.views import QUANTITIES, Answer, float32, recorded_statistics
from dgm_tb.plugin.wire import Arguments, BadArgument, nonfinite_codes
from dgm_tb.records import STATISTICS

Array = np.ndarray[Any, np.dtype[Any]]

QUANTILE_NEURONS = 2048
"""Percentiles are those of about so many evenly spread neurons where a layer has more."""


def losses(run: Run, arguments: Arguments) -> Answer:
    """Route ``losses``."""
    columns = arguments.number("columns", 800, 1, MAX_COLUMNS)
    first, last = asked_range(run, arguments)
    skipped = run.skipped_steps
    n_skipped = int(((skipped >= first) & (skipped <= last)).sum())
    facts: dict[str, Any] = {
        "names": [],
        "first": first,
        "last": last,
        "skipped": n_skipped,
        "points": [],
        "nonfinite": [],
    }
    arrays: dict[str, Array] = {}
    for number, (name, series) in enumerate(run.losses.items()):
        keep = (series.steps >= first) & (series.steps <= last)
        steps, values = series.steps[keep], series.values[keep]
        codes = nonfinite_codes(values)
        bad = steps[codes > 0]
        counts = {label: int((codes == code).sum()) for code, label in ((1, "NaN"), (2, "Infinity"), (3, "-Infinity"))}
        facts["names"].append(name)
        facts["points"].append(len(steps))
        facts["nonfinite"].append({**counts, "first": int(bad[0]) if len(bad) else None})
        drawn_steps, drawn = minmax_columns(steps, values, columns) if len(steps) else (steps, values)
        has_global = len(series.global_steps) == len(series.steps)
        global_steps = series.global_steps[keep] if has_global else steps
        arrays[f"steps_{number}"] = drawn_steps.astype(np.float64)
        arrays[f"values_{number}"] = float32(drawn)
        arrays[f"global_steps_{number}"] = global_steps[np.searchsorted(steps, drawn_steps)].astype(np.float64)
    return facts, arrays


def minis(run: Run, arguments: Arguments) -> Answer:
    """Route ``minis``."""
    quantity = arguments.text("quantity", "activation", QUANTITIES)
    recorded = recorded_statistics(run, "layer_statistics").get(quantity, [])
    statistic = arguments.text("statistic", recorded[0] if recorded else STATISTICS[quantity][0].name)
    if recorded and statistic not in recorded:
        raise UnknownNameError(f"no statistic {statistic[:60]!r} of {quantity}; there are {', '.join(recorded)}")
    columns = arguments.number("columns", 64, 1, MAX_COLUMNS)
    span = arguments.number("span", 128, 1, 100_000)
    low, high = run.steps or (0, 0)
    center = min(max(arguments.number("center", high, 0, 1 << 53), low), high)
    first = max(low, min(center - span // 2, high - span))
    last = min(high, first + span)
    steps, lines, known = _layer_matrix(run, quantity, statistic, first, last)
    steps, lines, known = decimated(steps, lines, lines, known, columns)
    values = lines.T
    finite = np.where(np.isfinite(values), values, np.nan)
    with np.errstate(all="ignore"):
        lows, highs = np.fmin.reduce(finite, 1, initial=np.nan), np.fmax.reduce(finite, 1, initial=np.nan)
    facts = {
        "layers": run.layers,
        "recorded": known.any(0),
        "quantity": quantity,
        "statistic": statistic,
        "center": center,
        "first": first,
        "last": last,
        "low": lows,
        "high": highs,
    }
    codes = np.where(known.T, nonfinite_codes(values), 0).astype(np.uint8)
    return facts, {"steps": steps.astype(np.float64), "values": float32(values), "nonfinite": codes}


def dynamics(run: Run, arguments: Arguments) -> Answer:
    """Route ``dynamics``."""
    k = arguments.number("k", 128, 1, 2000)
    view = View.asked(run, arguments)
    found = view.windows()
    drawn = draw(view.spans, view.layer, view.quantity, found, k, view.first, view.last, max_outliers=k)
    facts, arrays = line_chart(view, found, drawn.neurons, view.columns)
    low, high = run.steps or (0, 0)
    facts |= {
        "neurons": found.values.shape[1],
        "recorded_first": low,
        "recorded_last": high,
        "sampled": len(drawn.neurons) - int(drawn.is_outlier.sum()),
        "outliers": drawn.n_outliers,
        "nonfinite_neurons": drawn.n_nonfinite,
    }
    arrays["outlier"] = drawn.is_outlier.astype(np.uint8)
    arrays["quantiles"] = float32(_quantiles(found, arrays["steps"]))
    return facts, arrays


def line_chart(view: View, found: Windows, neurons: Array, columns: int, places: Array | None = None) -> Answer:
    """The lines of some neurons: what ``dynamics`` and ``lines`` have in common. Arguments as of ``drawn_lines``."""
    lines = drawn_lines(view, found, neurons, columns, places)
    finite = lines.values[np.isfinite(lines.values)]
    recordings = view.run.recordings
    facts = {
        **view.facts,
        "resolution": lines.resolution,
        "window_steps": recordings[-1].window_steps if recordings else 1,
        "spans": window_spans(found.bounds),
        "low": float(finite.min()) if finite.size else float("nan"),
        "high": float(finite.max()) if finite.size else float("nan"),
    }
    arrays = {
        "steps": lines.steps.astype(np.float64),
        "values": float32(lines.values.T),
        "nonfinite": np.where(lines.is_known, nonfinite_codes(lines.values), 0).astype(np.uint8).T,
        "neurons": neurons.astype(np.int32),
        "every_step": float32(lines.every_step),
    }
    return facts, arrays


# -- helpers -----------------------------------------------------------------------------------------------------------


def _layer_matrix(run: Run, quantity: str, statistic: str, first: int, last: int) -> tuple[Array, Array, Array]:
    """One statistic of all layers in data-flow order ``[T, layers]``, and where it was recorded.

    Raises:
        BadArgument: If that is more than memory should hold.
    """
    layers = run.layers
    parts = []
    for recording, limit in run.spans():
        rows = [row_number(recording.graph, layer, quantity) for layer in layers]
        entries = recording.entries("layer_statistics", quantity=quantity)
        touched = [e for e in entries if e.last_step >= first and e.first_step <= min(last, limit - 1)]
        if found := recording.collect(touched, partial(_read_statistic, statistic=statistic)):
            keep = (found[0] >= first) & (found[0] <= last) & (found[0] < limit)
            row_of = np.array([-1 if row is None else row for row in rows], np.int64)
            parts.append((row_of, *(array[keep] for array in found)))
    steps = np.unique(np.concatenate([np.zeros(0, np.int64), *(own for _, own, *_ in parts)]))
    if len(steps) * len(layers) > MAX_VALUES:
        most = MAX_VALUES // len(layers)
        raise BadArgument(
            f"span: {len(steps)} steps of {len(layers)} layers are too many; ask for at most {most} steps"
        )
    values = np.full((len(steps), len(layers)), np.nan, np.float32)
    known = np.zeros(values.shape, np.bool_)
    for row_of, own_steps, own_values, own_known in parts:
        columns = np.flatnonzero((row_of >= 0) & (row_of < own_values.shape[1]))
        chosen = row_of[columns]
        place = np.searchsorted(steps, own_steps)
        values[place], known[place] = np.nan, False  # of a step that came twice, the later one stays
        values[np.ix_(place, columns)], known[np.ix_(place, columns)] = own_values[:, chosen], own_known[:, chosen]
    return steps, values, known


def _read_statistic(entry: Entry, file: OpenFile, statistic: str) -> tuple[Array, ...]:
    """Steps, one statistic of all layers ``[T, layers]``, and that it is there."""
    steps, values = entry.read("steps", file=file), entry.read("values", file=file)
    names = list(entry.body["statistics"][: values.shape[2]])
    own = values[:, :, names.index(statistic)] if statistic in names else np.zeros((len(steps), 0), np.float32)
    return steps, own, np.ones(own.shape, np.bool_)


def _quantiles(found: Windows, steps: Array) -> Array:
    """Percentiles over all neurons at each step, of its window ``[5, T]``."""
    if not len(steps) or not len(found.bounds):
        return np.full((len(PERCENTILES), len(steps)), np.nan)
    window = np.searchsorted(found.bounds[:, 1], steps).clip(0, len(found.bounds) - 1)
    used, places = np.unique(window, return_inverse=True)
    stride = -(-found.values.shape[1] // QUANTILE_NEURONS)
    return percentiles(found.values[used, ::stride, 0].astype(np.float32))[:, places]
