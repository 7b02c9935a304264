"""Routes that look at all neurons of a layer, drawn or not. See http_api.md, "Questions about all neurons"."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dgm_tb.algorithms import rasterizing
from dgm_tb.algorithms.polyline_features import euclidean_features as features_of
from dgm_tb.algorithms.polyline_features import nonfinite_lanes, robust_scale, standardised
from dgm_tb.algorithms.rasterizing import SCALES, Axis, Polylines, Stroke
from dgm_tb.plugin.cache import CACHE, Arrays
from dgm_tb.plugin.charts import line_chart
from dgm_tb.plugin.drawing import thinned
from dgm_tb.plugin.lines import AllLines, View, all_lines, windows_of
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.views import Answer, float32
from dgm_tb.plugin.wire import Arguments, BadArgument

Array = np.ndarray[Any, np.dtype[Any]]

MAX_LINES = 256
MAX_ANSWER = 700_000
"""Bytes of an answer."""
MAX_SELECTED = 150_000
FARTHEST = 1e300
LONGEST = 1e30
LAST_STEP = float(1 << 53)


def lines(run: Run, arguments: Arguments) -> Answer:
    """Route ``lines``."""
    view = View.asked(run, arguments)
    n_neurons = view.n_neurons()
    neurons = np.array(arguments.numbers("neurons", MAX_LINES, n_neurons - 1))
    windows, places = windows_of(view, neurons)
    columns = min(view.columns, max(MAX_ANSWER // (11 * len(neurons)), 1))  # two points of 5 bytes, and a bit more
    while True:
        facts, arrays = line_chart(view, windows, neurons, columns, places)
        if sum(array.nbytes for array in arrays.values()) <= MAX_ANSWER or columns == 1:
            return {**facts, "neurons": n_neurons, "columns": columns}, arrays
        columns //= 2


def density(run: Run, arguments: Arguments) -> Answer:
    """Route ``density``."""
    view, axis = View.asked(run, arguments), _axis(arguments)
    width, height = arguments.number("width", 400, 1, 1200), arguments.number("height", 200, 1, 500)
    low, high = (arguments.optional_real(name, -FARTHEST, FARTHEST) for name in ("low", "high"))
    if low is not None and high is not None and low >= high:
        raise BadArgument(f"low is below high; got {low:g} and {high:g}")
    key = (id(run), run.folder, "density", view[1:], axis, width, height, low, high)
    cells, numbers = CACHE.made(key, run.read_revision, lambda: _density(view, axis, width, height, low, high))
    low, high, largest, n_neurons = numbers.tolist()
    facts = {"low": low, "high": high, "neurons": int(n_neurons), "largest": int(largest)}
    return {**view.facts, **_axis_facts(axis), **facts}, {"density": cells}


def nearest(run: Run, arguments: Arguments) -> Answer:
    """Route ``nearest``."""
    view, axis = View.asked(run, arguments), _axis(arguments)
    step, value = arguments.real("step", 0, LAST_STEP), arguments.real("value", -FARTHEST, FARTHEST)
    limit = arguments.number("limit", 8, 1, MAX_LINES)
    axis = axis._replace(origin=value)
    begin, end = _column(view, step)
    found, is_every_step = _near(view, begin, end)
    low, high = _of_each(found, lambda part: _extent(part, begin, end, axis))
    distance = np.maximum(np.maximum(low, -high), 0)
    low, high = _of_each(found, lambda part: _extent(part, step, step, axis))
    middle = low / 2 + high / 2
    known = np.flatnonzero(~np.isnan(distance))
    if len(known) > limit:
        farthest = np.partition(distance[known], limit - 1)[limit - 1]
        known = known[distance[known] <= farthest]
    away = np.nan_to_num(np.abs(middle[known]), nan=np.inf)
    neurons = known[np.lexsort((away, distance[known]))][:limit]
    facts = {**view.facts, **_axis_facts(axis), "step": step, "value": value, "neurons": len(distance)}
    values = axis.inverted(middle[neurons].astype(np.float64) + value)
    arrays = {"neurons": neurons.astype(np.int32), "distance": float32(distance[neurons]), "values": float32(values)}
    return {**facts, "every_step": is_every_step}, arrays


def brush(run: Run, arguments: Arguments) -> Answer:
    """Route ``brush``."""
    view, axis = View.asked(run, arguments), _axis(arguments)
    kind = arguments.text("kind", "box", ("box", "line", "nonfinite"))
    steps = [arguments.real(name, 0, LAST_STEP) for name in ("step1", "step2")]
    if kind == "nonfinite":
        windows = view.windows(max(min(steps), view.first), min(max(steps), view.last))
        is_meant = np.asarray(~np.isfinite(windows.values[windows.is_recorded]).all((0, 2)))
    else:
        values = [arguments.real(name, -FARTHEST, FARTHEST) for name in ("value1", "value2")]
        stroke, origin = _stroke(steps, values, kind == "box" or steps[0] == steps[1])
        axis = axis._replace(origin=origin)
        found, _ = _near(view, *stroke.steps)
        (is_meant,) = _of_each(found, lambda part: (rasterizing.passing(part, stroke, axis),))
    neurons = np.flatnonzero(is_meant)
    facts = {**view.facts, **_axis_facts(axis), "kind": kind, "neurons": len(is_meant), "count": len(neurons)}
    return facts, {"neurons": neurons[:MAX_SELECTED].astype(np.int32)}


def similar(run: Run, arguments: Arguments) -> Answer:
    """Route ``similar``."""
    view = View.asked(run, arguments, has_columns=False)
    n_neurons = view.n_neurons()
    neuron, limit = arguments.number("neuron", None, 0, n_neurons - 1), arguments.number("limit", 32, 1, 2000)
    key = (id(run), run.folder, "histories", view[1:])
    features, n_snapshots = CACHE.made(key, run.read_revision, lambda: _histories(view))
    if neuron >= len(features):
        raise BadArgument(f"neuron is below {len(features)}, the neurons with a history in this range; got {neuron}")
    difference = features - features[neuron]
    distance = np.sqrt(np.einsum("ij,ij->i", difference, difference) / n_snapshots)
    order = np.argsort(distance, kind="stable")
    order = order[order != neuron][:limit]
    facts = {**view.facts, "neurons": len(features), "neuron": neuron}
    return facts, {"neurons": order.astype(np.int32), "distance": float32(distance[order])}


# -- helpers -----------------------------------------------------------------------------------------------------------


def _axis(arguments: Arguments) -> Axis:
    threshold = arguments.optional_real("threshold", 1e-38, 1e38)
    return Axis(arguments.text("scale", "linear", SCALES), 1.0 if threshold is None else threshold)


def _axis_facts(axis: Axis) -> dict[str, Any]:
    return {"scale": axis.scale, "threshold": axis.threshold}


def _near(view: View, begin: float, end: float) -> tuple[AllLines, bool]:
    """The lines of all neurons from the last point before a range of steps to the first one after it."""
    bounds = view.bounds()
    before = bounds[bounds[:, 1] < begin]
    after = bounds[bounds[:, 0] > end]
    first = float(before[:, 1].max()) if len(before) else max(view.first, begin)
    last = float(after[:, 0].min()) if len(after) else min(view.last, end)
    is_every_step = view.is_seen_at_every_step(len(bounds))
    return all_lines(view, min(first, last), max(first, last), is_every_step), is_every_step


def _column(view: View, step: float) -> tuple[float, float]:
    """First and last step of the column of the chart in which a step lies."""
    width = (view.last - view.first) / view.columns or 1.0
    begin = view.first + float(np.clip((step - view.first) // width, 0, view.columns - 1)) * width
    return min(begin, step), max(begin + width, step)


def _of_each(found: AllLines, ask: Callable[[Polylines], tuple[Array, ...]]) -> tuple[Array, ...]:
    """What is asked of every line ``[neurons]``; of those that are seen at every step, of that line."""
    answers = ask(found.lines)
    for every, own in zip(answers, ask(found.own), strict=True):
        every[found.neurons] = own
    return answers


def _extent(part: Polylines, begin: float, end: float, axis: Axis) -> tuple[Array, Array]:
    """Lowest and highest position of each line between two steps."""
    low, high = np.full((2, part.low.shape[1]), np.nan, np.float32)
    for found in rasterizing.extents(part, np.array([begin, end]), axis):
        low[found.lines], high[found.lines] = found.low[0], found.high[0]
    return low, high


def _stroke(steps: list[float], values: list[float], is_box: bool) -> tuple[Stroke, float]:
    """A stroke from one point to another, or the rectangle between them, and the origin of its positions."""
    half = (values[1] - values[0]) / 2
    origin, half = values[0] + half, float(np.clip(half, -LONGEST, LONGEST))
    if is_box:
        return Stroke((min(steps), max(steps)), reach=abs(half)), origin
    return Stroke((min(steps), max(steps)), (-half, half) if steps[0] < steps[1] else (half, -half)), origin


def _density(view: View, axis: Axis, width: int, height: int, low: float | None, high: float | None) -> Arrays:
    """Cells ``[height, width]``, and lowest and highest scaled value, largest count and number of neurons."""
    bounds = view.bounds()
    found = all_lines(view, view.first, view.last, view.is_seen_at_every_step(len(bounds)))
    if low is None or high is None:
        ranges = [part for lines in (found.lines, found.own) if (part := rasterizing.reach(lines, axis))]
        least, most = (min(a for a, _ in ranges), max(b for _, b in ranges)) if ranges else (0.0, 1.0)
        low, high = _chart_range(low, high, least, most)
    place = axis._replace(origin=low, unit=(high - low) / height)
    edges = np.linspace(view.first, max(view.last, view.first + 1), width + 1)
    counts = rasterizing.density(found.lines, edges, place, height)
    if len(found.neurons):
        windows = found.lines._replace(low=found.lines.low[:, found.neurons], high=found.lines.high[:, found.neurons])
        counts -= rasterizing.density(windows, edges, place, height)
        counts += rasterizing.density(found.own, edges, place, height)
    largest = int(counts.max(initial=0))
    cells = np.zeros(counts.shape, np.uint8)
    passed = counts > 0
    shares = np.log(counts[passed]) / np.log(largest) if largest > 1 else 1.0
    cells[passed] = np.rint(1 + 254 * shares)
    return cells[::-1], np.array([low, high, largest, found.lines.low.shape[1]], np.float64)


def _chart_range(low: float | None, high: float | None, least: float, most: float) -> tuple[float, float]:
    """A chart's lowest and highest value, where they are not given those of the data; never the same."""
    begin, end = (least if low is None else low), (most if high is None else high)
    if begin < end:
        return begin, end
    if low is None and high is None:
        return begin - 0.5, end + 0.5
    return (begin, begin + 1) if low is not None else (end - 1, end)


def _histories(view: View) -> Arrays:
    """Features whose distances are those of histories ``[neurons, features]``, and the number of snapshots."""
    windows = view.windows()
    histories = thinned(windows.values[windows.is_recorded, :, 0])
    scale = robust_scale(histories, np.random.default_rng(0))
    lanes = nonfinite_lanes(histories).astype(np.float32)
    return features_of(standardised(histories, scale, np.float32), lanes), np.array(histories.shape[1])
