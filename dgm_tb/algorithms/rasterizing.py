"""What a chart of many lines looks like, without drawing it: where each line passes, and how many pass through a cell.

A line is a sequence of points ``[first step, last step] x [lowest value, highest value]`` (a value at a step, the range
of a window of steps, a value that lasts), each joined to the next by the shortest straight piece, as the chart's axis
shows it. A point that is not finite, or that the axis can't show, interrupts the line.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

SCALES = ("linear", "symlog", "log")
N_HALVES = 1 << 16
BLOCK_ELEMENTS = 1 << 18  # 1 MB of float32: the handful of arrays of one block stays in the processor's cache
LARGEST = 3e38  # of float32: what is beyond, over the threshold of symlog, is no gap in a line
FARTHEST = 1e30  # of positions, so that their differences stay finite


class Axis(NamedTuple):
    """The vertical axis of a chart: where a value lies is ``(scaled(value) - origin) / unit``.

    Attributes:
        scale: One of ``SCALES``: the value itself, asinh(value / threshold), or log10(value) of positive values.
        threshold: Of ``symlog``.
        origin: In scaled units, as is ``unit``.
        unit: Not 0.
    """

    scale: str
    threshold: float = 1.0
    origin: float = 0.0
    unit: float = 1.0

    def scaled(self, values: Array) -> Array:
        """Values in the units of the axis, float64 (float32 of float32); NaN where it can't show them."""
        scaled = values if values.dtype == np.float32 else values.astype(np.float64)
        with np.errstate(all="ignore"):
            if self.scale == "symlog":
                scaled = np.arcsinh(np.clip(scaled / self.threshold, -LARGEST, LARGEST))
            elif self.scale == "log":
                scaled = np.log10(scaled)
            return np.where(np.isfinite(values) & np.isfinite(scaled), scaled, np.asarray(np.nan, scaled.dtype))

    def positions(self, values: Array) -> Floats:
        """Where values lie, float32; NaN where the axis can't show them."""
        scaled = self.scaled(values)
        if not 1e-30 < abs(self.unit) < 1e30 or abs(self.origin) > 1e30:
            scaled = scaled.astype(np.float64)
        with np.errstate(all="ignore"):
            return np.clip((scaled - self.origin) / self.unit, -FARTHEST, FARTHEST).astype(np.float32)

    def inverted(self, scaled: Array) -> Array:
        """The values that lie at these scaled units."""
        with np.errstate(over="ignore"):
            if self.scale == "symlog":
                return np.asarray(np.sinh(scaled) * self.threshold)
            return np.asarray(10.0**scaled) if self.scale == "log" else scaled

    def placing(self, dtype: npt.DTypeLike, n_values: int) -> Callable[[Array], Floats]:
        """The function ``positions``, for so many values of one type in all: many of float16 are looked up."""
        if dtype != np.float16 or n_values <= N_HALVES:
            return self.positions
        every = self.positions(np.arange(N_HALVES, dtype=np.uint16).view(np.float16))
        return lambda values: np.take(every, np.ascontiguousarray(values).view(np.uint16))


class Polylines(NamedTuple):
    """Lines over common steps.

    Attributes:
        bounds: First and last step of each point ``[points, 2]``, ascending.
        low: Lowest value of each point and line ``[points, lines]``, floating point.
        high: Highest value; ``low`` itself where no point is higher than one value.
    """

    bounds: Array
    low: Array
    high: Array

    def positions(self, place: Callable[[Array], Floats], points: slice, lines: slice) -> tuple[Floats, Floats]:
        """Lowest and highest position of some points of some lines ``[points, lines]``."""
        low = place(self.low[points, lines])
        if self.low is self.high:
            return low, low
        high = place(self.high[points, lines])
        return np.fmin(low, high), np.fmax(low, high)  # what is finite of the two, where only one is


class Extents(NamedTuple):
    """How far lines reach in adjoining columns of a chart.

    Attributes:
        columns: Which columns.
        lines: Which lines.
        low: Lowest position of each line in each column ``[columns, lines]``; NaN where it is not.
        high: Highest one.
    """

    columns: slice
    lines: slice
    low: Floats
    high: Floats


def extents(polylines: Polylines, edges: Array, axis: Axis) -> Iterator[Extents]:
    """How far each line reaches in each column, in blocks that together cover all of both.

    Args:
        polylines: The lines.
        edges: Steps between which the columns lie ``[columns + 1]``, ascending. Both edges belong to a column.
        axis: Of the positions.
    """
    starts, ends = np.maximum.accumulate(polylines.bounds.astype(np.float64), axis=0).T
    n_points, n_lines = polylines.low.shape
    edges = np.asarray(edges, np.float64)
    # column c touches the points first[c] to stop[c] - 1; the piece that edge e cuts begins at the point cut[e]
    first = np.searchsorted(ends, edges[:-1], "left")
    stop = np.searchsorted(starts, edges[1:], "left")
    stop[-1:] = np.searchsorted(starts, edges[-1:], "right")
    stop = np.maximum(first, stop)
    cut = np.searchsorted(ends, edges, "left") - 1
    place = axis.placing(polylines.low.dtype, polylines.low.size)
    for columns in _column_blocks(first, stop, n_lines):
        begin = max(int(cut[columns.start]), 0)
        end = min(max(int(stop[columns.stop - 1]), int(cut[columns.stop]) + 2), n_points)
        block_edges = slice(columns.start, columns.stop + 1)
        for from_line in range(0, n_lines, BLOCK_ELEMENTS):
            lines = slice(from_line, min(from_line + BLOCK_ELEMENTS, n_lines))
            low, high = polylines.positions(place, slice(begin, end), lines)
            crossed = _at_edges(
                low, high, starts[begin:end], ends[begin:end], edges[block_edges], cut[block_edges] - begin
            )
            lowest, highest = np.fmin(crossed[:-1], crossed[1:]), np.fmax(crossed[:-1], crossed[1:])
            _take_in(lowest, low, first[columns] - begin, stop[columns] - begin, np.fmin)
            _take_in(highest, high, first[columns] - begin, stop[columns] - begin, np.fmax)
            yield Extents(columns, lines, lowest, highest)


def reach(polylines: Polylines, axis: Axis) -> tuple[float, float] | None:
    """The lowest and the highest position of all lines; None if no value can be shown."""
    place = axis.placing(polylines.low.dtype, polylines.low.size)
    n_points, n_lines = polylines.low.shape
    n_rows = max(BLOCK_ELEMENTS // max(n_lines, 1), 1)
    least, most = np.inf, -np.inf
    for at in range(0, n_points, n_rows):
        low, high = polylines.positions(place, slice(at, at + n_rows), slice(None))
        least = min(least, float(np.fmin.reduce(low, None, initial=np.inf)))
        most = max(most, float(np.fmax.reduce(high, None, initial=-np.inf)))
    return (least, most) if least <= most else None


def density(polylines: Polylines, edges: Array, axis: Axis, height: int) -> npt.NDArray[np.int32]:
    """How many lines pass through each cell; each counts once per cell.

    Args:
        polylines: The lines.
        edges: Steps between which the columns lie ``[columns + 1]``.
        axis: With positions 0 to ``height`` for the bottom and the top of the chart, which both belong to it.
        height: Rows.

    Returns:
        ``[height, columns]``, the lowest row first.
    """
    counts = np.zeros((height, len(edges) - 1), np.int32)
    inside = axis._replace(unit=axis.unit * (1 + 1e-6))  # the top edge belongs to the last row
    for found in extents(polylines, edges, inside):
        # A line is in row r if it begins at or below r and does not end below r: two histograms, no loop over rows.
        # Lines that are not in the chart have both in the same row, so that they cancel out.
        begins, ends = found.low, np.add(found.high, 1, out=found.high)
        for cells in (begins, ends):
            np.maximum(np.fmin(cells, height, out=cells), 0, out=cells)
        begins, ends = begins.astype(np.intp), ends.astype(np.intp)
        for number, column in enumerate(range(found.columns.start, found.columns.stop)):
            change = np.bincount(begins[number], minlength=height + 1) - np.bincount(ends[number], minlength=height + 1)
            counts[:, column] += np.cumsum(change[:height]).astype(np.int32)
    return counts


class Stroke(NamedTuple):
    """A part of a chart: all that is so near to a straight line from one step to another.

    Attributes:
        steps: Of its two ends, ascending; they may be the same.
        positions: Of its two ends.
        reach: How far it reaches above and below the straight line.
    """

    steps: tuple[float, float]
    positions: tuple[float, float] = (0.0, 0.0)
    reach: float = 0.0


def passing(polylines: Polylines, stroke: Stroke, axis: Axis) -> npt.NDArray[np.bool_]:
    """Which lines pass through a part of a chart, or touch it ``[lines]``."""
    starts, ends = np.maximum.accumulate(polylines.bounds.astype(np.float64), axis=0).T
    n_points, n_lines = polylines.low.shape
    place = axis.placing(polylines.low.dtype, polylines.low.size)
    begin = max(int(np.searchsorted(ends, stroke.steps[0], "left")) - 1, 0)
    stop = min(int(np.searchsorted(starts, stroke.steps[1], "right")) + 1, n_points)
    passes = np.zeros(n_lines, np.bool_)
    for from_line in range(0, n_lines, BLOCK_ELEMENTS):
        lines = slice(from_line, min(from_line + BLOCK_ELEMENTS, n_lines))
        n_rows = max(BLOCK_ELEMENTS // max(lines.stop - lines.start, 1), 1)
        for at in range(begin, stop, n_rows):
            points = slice(at, min(at + n_rows + 1, stop))  # one more: the piece to the next block's first point
            low, high = polylines.positions(place, points, lines)
            leave, reach = joints(low, high)
            first, last = starts[points], ends[points]
            passes[lines] |= _meets(stroke, (first, last), (low, low), (high, high))
            passes[lines] |= _meets(stroke, (last[:-1], first[1:]), (leave, reach), (leave, reach))
    return passes


# -- helpers -----------------------------------------------------------------------------------------------------------


def _column_blocks(first: Array, stop: Array, n_lines: int) -> Iterator[slice]:
    """Runs of columns with few enough elements to be worked on at once."""
    load = np.cumsum(np.maximum(stop - first, 1)) * min(max(n_lines, 1), BLOCK_ELEMENTS)
    at = 0
    while at < len(first):
        done = load[at - 1] if at else 0
        end = max(int(np.searchsorted(load, done + BLOCK_ELEMENTS, "right")), at + 1)
        yield slice(at, end)
        at = end


def _at_edges(low: Floats, high: Floats, starts: Array, ends: Array, edges: Array, cut: Array) -> Floats:
    """Where lines are at the edges of columns ``[edges, lines]``; NaN before the first point and after the last one."""
    is_cut = (cut >= 0) & (cut < len(low) - 1)
    before = cut[is_cut]
    width = starts[before + 1] - ends[before]
    share = _column(np.clip((edges[is_cut] - ends[before]) / np.where(width > 0, width, 1), 0, 1))
    leave, reach = joints(low, high)
    crossed = _rows(leave, before) * (1 - share)
    crossed += _rows(reach, before) * share
    if is_cut.all():
        return crossed
    known, crossed = crossed, np.full((len(edges), low.shape[1]), np.nan, np.float32)
    crossed[is_cut] = known
    return crossed


def joints(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Where the shortest piece from each point to the next leaves the one and reaches the other.

    Of points that have positions in common it is a level piece in the middle of these.

    Args:
        low: Lowest position of each point ``[points, lines]``.
        high: Highest one.

    Returns:
        Two arrays ``[points - 1, lines]``.
    """
    if low is high:
        return low[:-1], low[1:]
    middle = (np.maximum(low[:-1], low[1:]) + np.minimum(high[:-1], high[1:])) / 2
    leave = np.minimum(np.maximum(middle, low[:-1]), high[:-1])
    return leave, np.minimum(np.maximum(middle, low[1:]), high[1:])


def _take_in(extent: Floats, values: Floats, first: Array, stop: Array, extreme: np.ufunc) -> None:
    """Extend what is known of each column by the points first to stop - 1 that touch it."""
    for number in range(int((stop - first).max(initial=0))):  # reduceat takes ten times as long on whole rows
        touched = np.flatnonzero(stop - first > number)
        found = _rows(values, first[touched] + number)
        if len(touched) == len(extent):
            extreme(extent, found, out=extent)
        else:
            extent[touched] = extreme(extent[touched], found)


def _rows(values: Floats, index: Array) -> Floats:
    """Rows by ascending index; a view if they are adjoining."""
    if len(index) and index[-1] - index[0] == len(index) - 1 and (np.diff(index) == 1).all():
        return values[index[0] : index[-1] + 1]
    return values[index]


def _meets(stroke: Stroke, steps: tuple[Array, Array], low: tuple[Floats, Floats], high: tuple[Floats, Floats]) -> Any:
    """Which lines have a part that meets the stroke ``[lines]``.

    Args:
        stroke: Where to look.
        steps: First and last step of each part ``[parts]``.
        low: The lower side of each part at both of them ``[parts, lines]``; straight in between.
        high: The upper side.
    """
    begin, end = np.maximum(steps[0], stroke.steps[0]), np.minimum(steps[1], stroke.steps[1])
    rows = np.flatnonzero(begin <= end)
    if not len(rows):
        return False
    above, below = [], []
    for at in (begin[rows], end[rows]):
        width = (steps[1] - steps[0])[rows]
        share = _column((at - steps[0][rows]) / np.where(width > 0, width, 1))
        length = stroke.steps[1] - stroke.steps[0]
        way = (at - stroke.steps[0]) / (length or 1)
        centre = _column(stroke.positions[0] + way * (stroke.positions[1] - stroke.positions[0]))
        lower, upper = ((ends[0][rows], ends[1][rows]) for ends in (low, high))
        below.append(lower[0] * (1 - share) + lower[1] * share - centre)
        above.append(below[-1] if low is high else upper[0] * (1 - share) + upper[1] * share - centre)
    # Both sides are straight: where one end lies over the stroke and the other under it, it is met in between.
    return ((np.minimum(*below) <= stroke.reach) & (np.maximum(*above) >= -stroke.reach)).any(0)


def _column(values: Array) -> Floats:
    return values[:, None].astype(np.float32)
