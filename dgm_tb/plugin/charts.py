"""Routes that draw lines: losses, the mini charts of all layers, and the training dynamics of one. See http_api.md."""

from typing import Any

import numpy as np

from dgm_tb.algorithms.downsampling import minmax_columns
from dgm_tb.errors import UnknownNameError
from dgm_tb.plugin.rows import row_number
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.series import Dynamics
from dgm_tb.plugin.views import QUANTITIES, Answer, float32, recorded_statistics
from dgm_tb.plugin.wire import Arguments, nonfinite_codes
from dgm_tb.records import STATISTICS

Array = np.ndarray[Any, np.dtype[Any]]

MAX_COLUMNS = 4000


def losses(run: Run, arguments: Arguments) -> Answer:
    """Route ``losses``."""
    columns = arguments.number("columns", 800, 1, MAX_COLUMNS)
    first, last = _range(run, arguments)
    facts: dict[str, Any] = {"names": [], "first": first, "last": last, "points": [], "nonfinite": []}
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
        drawn_steps, drawn = minmax_columns(steps, values, max(1, columns // 2)) if len(steps) else (steps, values)
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
        raise UnknownNameError(f"no statistic {statistic!r} of {quantity}; there are {', '.join(recorded)}")
    columns = arguments.number("columns", 64, 2, MAX_COLUMNS)
    span = arguments.number("span", 128, 1, 100_000)
    low, high = run.steps or (0, 0)
    center = min(max(arguments.number("center", high, 0, 1 << 53), low), high)
    first = max(low, min(center - span // 2, high - span))
    last = min(high, first + span)
    order = run.graph.flow_order()
    steps, values, known = _layer_matrix(run, quantity, statistic, first, last)
    steps, values, known = _columns(steps, values, known, columns)
    finite = np.where(np.isfinite(values), values, np.nan)
    with np.errstate(all="ignore"):
        lows, highs = np.fmin.reduce(finite, 1, initial=np.nan), np.fmax.reduce(finite, 1, initial=np.nan)
    facts = {
        "layers": [layer.name for layer in order],
        "recorded": known.any(1),
        "quantity": quantity,
        "statistic": statistic,
        "center": center,
        "first": first,
        "last": last,
        "low": lows,
        "high": highs,
    }
    codes = np.where(known, nonfinite_codes(values), 0).astype(np.uint8)
    return facts, {"steps": steps.astype(np.float64), "values": float32(values), "nonfinite": codes}


def dynamics(run: Run, arguments: Arguments) -> Answer:
    """Route ``dynamics``."""
    layer = arguments.text("layer")
    quantity = arguments.text("quantity", "activation", QUANTITIES)
    statistic = arguments.text("statistic", STATISTICS[quantity][0].name)
    k = arguments.number("k", 128, 1, 2000)
    columns = arguments.number("columns", 400, 2, MAX_COLUMNS)
    low, high = run.steps or (0, 0)
    first, last = _range(run, arguments)
    everything = run.dynamics(layer, quantity, statistic)
    is_main = statistic == STATISTICS[quantity][0].name
    drawn = run.polylines(layer, quantity, k, first, last)
    if not is_main:  # only the main statistic is kept at full resolution; the sample is the same
        drawn = _windows_of(everything, drawn, first, last)
    steps, values = drawn.steps, drawn.values
    known = _covered(everything, steps) | np.isfinite(values).any(0)
    quantiles = _quantiles(everything, steps)
    steps, values, known_rows = _columns(steps, values, np.broadcast_to(known, values.shape), columns)
    places = np.searchsorted(drawn.steps, steps).clip(0, max(len(drawn.steps) - 1, 0))
    finite = values[np.isfinite(values)]
    window_steps = int(run.recordings[-1].facts.get("window_steps", 1) or 1)
    outliers = drawn.outliers if drawn.outliers is not None else np.zeros(len(drawn.neurons), np.bool_)
    order = np.argsort(~outliers, kind="stable")
    codes = np.where(known_rows, nonfinite_codes(values), 0).astype(np.uint8)
    is_full = (is_main and quantity in ("activation", "gradient")) or window_steps == 1
    facts = {
        "layer": layer,
        "quantity": quantity,
        "statistic": statistic,
        "first": first,
        "last": last,
        "recorded_first": low,
        "recorded_last": high,
        "neurons": len(everything.values),
        "sampled": int((~outliers).sum()),
        "outliers": int(outliers.sum()),
        "resolution": "every step" if is_full else f"windows of {window_steps} steps",
        "window_steps": window_steps,
        "low": float(finite.min()) if finite.size else float("nan"),
        "high": float(finite.max()) if finite.size else float("nan"),
        "nonfinite_neurons": int((~np.isfinite(everything.values)).any(1).sum()),
    }
    arrays = {
        "steps": steps.astype(np.float64),
        "values": float32(values[order]),
        "nonfinite": codes[order],
        "neurons": drawn.neurons[order].astype(np.int32),
        "outlier": outliers[order].astype(np.uint8),
        "quantiles": float32(quantiles[:, places] if quantiles.size else quantiles),
    }
    return facts, arrays


# -- helpers -----------------------------------------------------------------------------------------------------------


def _range(run: Run, arguments: Arguments) -> tuple[int, int]:
    low, high = run.steps or (0, 0)
    first = arguments.number("first", low, 0, 1 << 53)
    return first, max(first, arguments.number("last", high, 0, 1 << 53))


def _columns(steps: Array, values: Array, known: Array, columns: int) -> tuple[Array, Array, Array]:
    """Smallest and largest value of every line in every column, on one grid of steps for all lines.

    Returns:
        Steps ``[T]``, values ``[lines, T]`` and whether they were recorded, ``T`` at most ``2 * columns``.
    """
    if len(steps) <= 2 * columns:
        return steps, values, known
    starts = np.unique(np.linspace(0, len(steps), columns + 1).astype(np.int64)[:-1])
    ends = np.append(starts[1:], len(steps)) - 1
    with np.errstate(invalid="ignore"):
        low = np.fmin.reduceat(values, starts, 1)
        high = np.fmax.reduceat(values, starts, 1)
    bad = known & ~np.isfinite(values)
    has_bad = np.maximum.reduceat(bad, starts, 1)
    first_bad = np.where(np.isnan(values) & known, np.nan, values)
    worst = np.add.reduceat(np.where(bad, first_bad, 0.0), starts, 1)  # NaN or +-Inf survives the sum
    high = np.where(has_bad, worst, high)
    thinned = np.empty((len(values), 2 * len(starts)), values.dtype)
    thinned[:, ::2], thinned[:, 1::2] = low, high
    grid = np.empty(2 * len(starts), steps.dtype)
    grid[::2], grid[1::2] = steps[starts], steps[ends]
    covered = np.repeat(np.maximum.reduceat(known, starts, 1), 2, 1)
    return grid, thinned, covered


def _layer_matrix(run: Run, quantity: str, statistic: str, first: int, last: int) -> tuple[Array, Array, Array]:
    """One statistic of all layers in data-flow order ``[layers, T]``, and where it was recorded."""
    parts, all_steps = [], []
    for recording, limit in run.spans():
        rows = [row_number(recording.graph, layer.name, quantity) for layer in run.graph.flow_order()]
        for entry in recording.entries("layer_statistics", quantity=quantity):
            names = entry.body["statistics"]
            if entry.last_step < first or entry.first_step > min(last, limit - 1) or statistic not in names:
                continue
            steps, values = entry.read("steps"), entry.read("values")
            keep = (steps >= first) & (steps <= last) & (steps < limit)
            column = values[keep, :, names.index(statistic)]
            missing = np.full(int(keep.sum()), np.nan, np.float32)
            lines = [column[:, row] if row is not None and row < column.shape[1] else missing for row in rows]
            is_known = [row is not None and row < column.shape[1] for row in rows]
            parts.append((np.stack(lines) if lines else np.zeros((0, len(missing))), np.array(is_known, np.bool_)))
            all_steps.append(steps[keep])
    n_layers = len(run.graph.layers)
    if not parts:
        return np.zeros(0), np.zeros((n_layers, 0), np.float32), np.zeros((n_layers, 0), np.bool_)
    values = np.concatenate([lines for lines, _ in parts], 1)
    known = np.concatenate([np.repeat(is_known[:, None], lines.shape[1], 1) for lines, is_known in parts], 1)
    return np.concatenate(all_steps), values, known


def _windows_of(everything: Dynamics, drawn: Dynamics, first: int, last: int) -> Dynamics:
    inside = (everything.steps >= first) & (everything.first_steps <= last)
    steps = everything.steps[inside]
    values = everything.values[drawn.neurons][:, inside]
    return Dynamics(steps, values, drawn.neurons, steps, outliers=drawn.outliers)


def _covered(everything: Dynamics, steps: Array) -> Array:
    if not len(everything.steps):
        return np.zeros(len(steps), np.bool_)
    window = np.searchsorted(everything.steps, steps).clip(0, len(everything.steps) - 1)
    return np.asarray((steps >= everything.first_steps[window]) & (steps <= everything.steps[window]))


def _quantiles(everything: Dynamics, steps: Array) -> Array:
    """5, 25, 50, 75 and 95 % over all neurons at each step, of its window ``[5, T]``."""
    if not len(everything.steps) or not len(steps):
        return np.full((5, len(steps)), np.nan, np.float32)
    window = np.searchsorted(everything.steps, steps).clip(0, len(everything.steps) - 1)
    used = np.unique(window)
    values = np.where(np.isfinite(everything.values[:, used]), everything.values[:, used], np.nan)
    quantiles = np.full((5, len(everything.steps)), np.nan)
    some = ~np.isnan(values).all(0)
    if some.any():
        quantiles[:, used[some]] = np.nanpercentile(values[:, some], (5, 25, 50, 75, 95), axis=0)
    return quantiles[:, window]
