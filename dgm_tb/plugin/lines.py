"""The lines of a layer's neurons in one view: what a chart draws of some, and where those of all neurons lie."""

from typing import Any, NamedTuple

import numpy as np

from dgm_tb.algorithms.rasterizing import Polylines
from dgm_tb.plugin import tracks
from dgm_tb.plugin.cache import CACHE
from dgm_tb.plugin.decimate import decimated
from dgm_tb.plugin.entry import Entry
from dgm_tb.plugin.rows import neuron_span
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.storage import OpenFile
from dgm_tb.plugin.tracks import Points, Spans, Windows
from dgm_tb.plugin.wire import Arguments
from dgm_tb.records import STATISTICS

Array = np.ndarray[Any, np.dtype[Any]]

MAX_COLUMNS = 4000
MAX_VALUES = 1 << 23
"""Values along the steps that are held at once; lines of more are drawn in windows."""
MAX_SPANS = 64
WINDOW_BYTES = 6
"""Of a neuron in a window: smallest, main and largest value in float16."""
FEW = 8
"""Up to so many neurons of a layer too large to be kept are read one by one."""


class View(NamedTuple):
    """What a chart of training dynamics shows.

    Attributes:
        run: The run.
        layer: Name of the layer.
        quantity: A key of ``records.STATISTICS``.
        statistic: One of its statistics.
        first: First step.
        last: Last step.
        columns: A range with fewer windows is seen at every step where that was kept; 0: never.
    """

    run: Run
    layer: str
    quantity: str
    statistic: str
    first: int
    last: int
    columns: int

    @classmethod
    def asked(cls, run: Run, arguments: Arguments, *, has_columns: bool = True) -> "View":
        """The view that a request is about."""
        layer = arguments.text("layer")
        quantity = arguments.text("quantity", "activation", tuple(STATISTICS))
        statistic = arguments.text("statistic", STATISTICS[quantity][0].name)
        columns = arguments.number("columns", 400, 1, MAX_COLUMNS) if has_columns else 0
        return cls(run, layer, quantity, statistic, *asked_range(run, arguments), columns)

    @property
    def spans(self) -> Spans:
        """Recordings, each with the step from which a later one supersedes it."""
        return list(self.run.spans())

    @property
    def facts(self) -> dict[str, Any]:
        """What the header of every answer about it says."""
        return {name: getattr(self, name) for name in ("layer", "quantity", "statistic", "first", "last")}

    def n_neurons(self) -> int:
        """Neurons of the layer.

        Raises:
            UnknownNameError: If the run has no such layer, or the layer no such quantity.
        """
        spans = [neuron_span(recording.graph, self.layer, self.quantity) for recording in self.run.recordings]
        widest = max((span[1] - span[0] for span in spans if span is not None), default=0)
        if not widest:
            raise self.run.missing(self.layer, self.quantity)
        return widest

    def windows(self, first: float | None = None, last: float | None = None) -> Windows:
        """The windows of all neurons that touch the view, or a part of it.

        Raises:
            UnknownNameError: If nothing was recorded.
        """
        begin, end = (self.first if first is None else first), (self.last if last is None else last)
        found = tracks.windows(self.spans, self.layer, self.quantity, self.statistic, first=begin, last=end)
        if found is None:
            raise self.run.missing(self.layer, self.quantity)
        return found

    def bounds(self) -> Array:
        """First and last step of each window that touches the view ``[windows, 2]``, ascending."""
        parts = [np.zeros((0, 2), np.int64)]
        for recording, limit in self.spans:
            entries = recording.entries("dynamics", quantity=self.quantity)
            if entries and neuron_span(recording.graph, self.layer, self.quantity) is not None:
                parts += [
                    b[b[:, 1] < limit] for b in recording.joined(("bounds", self.quantity), entries, _read_bounds)
                ]
        bounds = np.concatenate(parts)
        (_, bounds) = tracks.ascending(bounds[:, 0], bounds)
        return bounds[(bounds[:, 0] <= self.last) & (bounds[:, 1] >= self.first)]

    def is_seen_at_every_step(self, n_windows: int) -> bool:
        """Whether the range has so few windows that neurons are drawn at every step where that was kept."""
        is_main = self.statistic == STATISTICS[self.quantity][0].name
        return is_main and n_windows < self.columns and self.quantity in self.run.polyline_quantities

    def holds_every_step(self, n_lines: int, first: float, last: float) -> bool:
        """Whether so many lines fit into memory at every step."""
        steps = tracks.observed_steps(self.spans, self.quantity)
        return int(((steps >= first) & (steps <= last)).sum()) * n_lines <= MAX_VALUES


def asked_range(run: Run, arguments: Arguments) -> tuple[int, int]:
    """First and last step that a request is about; all of the run's by default."""
    low, high = run.steps or (0, 0)
    first = arguments.number("first", low, 0, 1 << 53)
    return first, max(first, arguments.number("last", high, 0, 1 << 53))


class DrawnLines(NamedTuple):
    """Some neurons' lines with few enough points to be drawn.

    Attributes:
        steps: ``[T]``.
        values: ``[T, lines]``.
        is_known: Whether something was recorded ``[T, lines]``.
        every_step: Share of each line's steps that are its own values, not those of a window ``[lines]``.
        resolution: In words.
    """

    steps: Array
    values: Array
    is_known: Array
    every_step: Array
    resolution: str


def drawn_lines(view: View, windows: Windows, neurons: Array, columns: int, places: Array | None = None) -> DrawnLines:
    """The lines of some neurons.

    Args:
        view: What the chart shows.
        windows: All windows in it.
        neurons: Numbers within the layer.
        columns: At most so many pairs of points, and what is not finite.
        places: Where these neurons are in ``windows``; at their numbers by default.
    """
    places = neurons if places is None else places
    resolution = window_lengths(windows.bounds)
    every_step = np.full(len(neurons), float(resolution == EVERY_STEP))
    is_fine = view.is_seen_at_every_step(len(windows.bounds))
    if not is_fine or not view.holds_every_step(len(neurons), view.first, view.last):
        return DrawnLines(*_of_windows(windows, places, columns), every_step, resolution)
    points = tracks.polyline_points(view.spans, view.layer, view.quantity, view.first, view.last)
    if places is not neurons:
        points = _placed(points, neurons, places)
    lines = tracks.at_every_step(view.spans, view.quantity, windows, places, points, view.first, view.last)
    if len(lines.steps) and resolution != EVERY_STEP:
        inside = (points.steps >= view.first) & (points.steps <= view.last) & np.isin(points.neurons, places)
        counts = np.bincount(points.neurons[inside], minlength=int(places.max(initial=0)) + 1)[places]
        every_step = np.minimum(counts / len(lines.steps), 1)
    return DrawnLines(
        *decimated(lines.steps, lines.values, lines.values, lines.is_known, columns), every_step, EVERY_STEP
    )


def windows_of(view: View, neurons: Array) -> tuple[Windows, Array]:
    """The windows in a view, at least those of some neurons, and where these are among them."""
    n_neurons = view.n_neurons()
    if len(neurons) <= FEW and n_neurons * len(view.bounds()) * WINDOW_BYTES > CACHE.max_bytes // 4:
        parts = [
            tracks.windows(
                view.spans,
                view.layer,
                view.quantity,
                view.statistic,
                first=view.first,
                last=view.last,
                rows=slice(neuron, neuron + 1),
            )
            for neuron in neurons.tolist()
        ]
        found = [part for part in parts if part is not None]
        if len(found) == len(parts) and all(np.array_equal(part.bounds, found[0].bounds) for part in found):
            values = np.concatenate([part.values for part in found], 1)
            return found[0]._replace(values=values), np.arange(len(neurons))
    every = view.windows()
    n_missing = int(neurons.max()) + 1 - every.values.shape[1]
    if n_missing > 0:  # neurons that no window has
        every = every._replace(values=np.pad(every.values, ((0, 0), (0, n_missing), (0, 0)), constant_values=np.nan))
    return every, neurons


class AllLines(NamedTuple):
    """Where the lines of all neurons lie, or in a part of the view.

    Attributes:
        lines: All neurons, by their windows.
        neurons: Those that are seen at every step ``[m]``, ascending.
        own: Their lines at every step, which count instead of those of their windows.
    """

    lines: Polylines
    neurons: Array
    own: Polylines


def all_lines(view: View, first: float, last: float, is_every_step: bool) -> AllLines:
    """The lines of all neurons in a range of steps.

    Args:
        view: What the chart shows.
        first: First step.
        last: Last step.
        is_every_step: Whether to see neurons at every step where that was kept.

    Raises:
        UnknownNameError: If nothing was recorded.
    """
    found = view.windows(first, last)
    neurons, own = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
    nothing = Polylines(np.zeros((0, 2)), own, own)
    if not is_every_step:
        low, high = _ranges(found)
        return AllLines(Polylines(found.bounds[:, [1, 1]], low, high), neurons, nothing)
    main = found.values[:, :, 0]
    windows = Polylines(found.bounds, main, main)
    points = tracks.polyline_points(view.spans, view.layer, view.quantity, first, last)
    neurons = np.unique(points.neurons)
    neurons = neurons[(neurons >= 0) & (neurons < main.shape[1])]
    if not len(neurons) or not view.holds_every_step(len(neurons), first, last):
        return AllLines(windows, neurons[:0], nothing)
    lines = tracks.at_every_step(view.spans, view.quantity, found, neurons, points, first, last)
    bounds = np.stack([lines.steps, lines.steps], 1)
    return AllLines(windows, neurons, Polylines(bounds, lines.values, lines.values))


# -- how finely the data is kept ---------------------------------------------------------------------------------------


EVERY_STEP = "every step"


def window_spans(bounds: Array) -> list[list[int]]:
    """Runs of windows of about the same length: first step, last step, steps of the longest one; few of them."""
    if not len(bounds):
        return []
    lengths = np.maximum(bounds[:, 1] - bounds[:, 0] + 1, 1)
    for power in (1, 2, 4, 8, 64):
        sort = np.ceil(np.log2(lengths) / power)
        starts = np.flatnonzero(np.diff(sort, prepend=-1))
        if len(starts) <= MAX_SPANS:
            break
    else:
        starts = np.zeros(1, np.int64)
    longest = np.maximum.reduceat(lengths, starts)
    ends = np.append(starts[1:], len(bounds)) - 1
    return [list(map(int, span)) for span in zip(bounds[starts, 0], bounds[ends, 1], longest, strict=True)]


def window_lengths(bounds: Array) -> str:
    """How finely a range is kept, in words; what is left over at its end does not count."""
    spans = window_spans(bounds)
    lengths = [steps for first, last, steps in spans if last - first >= steps] or [steps for *_, steps in spans] or [1]
    shortest, longest = min(lengths), max(lengths)
    if longest == 1:
        return EVERY_STEP
    return f"windows of {shortest} to {longest} steps" if shortest < longest else f"windows of {longest} steps"


# -- helpers -----------------------------------------------------------------------------------------------------------


def _read_bounds(entry: Entry, file: OpenFile) -> tuple[Array, ...]:
    return (entry.read("windows", file=file),)


def _placed(points: Points, neurons: Array, places: Array) -> Points:
    """The points of some neurons, which are called by their places instead of their numbers."""
    own = np.isin(points.neurons, neurons)
    order = np.argsort(neurons)
    place = places[order][np.searchsorted(neurons[order], points.neurons[own])]
    return Points(*(array[own] for array in points))._replace(neurons=place)


def _ranges(windows: Windows, neurons: Array | slice = slice(None)) -> tuple[Array, Array]:
    """Smallest and largest value of each window ``[windows, neurons]``; the same array if only one was kept."""
    by_name = {name: windows.values[:, neurons, number] for number, name in enumerate(windows.aggregates)}
    return by_name.get("min", by_name["main"]), by_name.get("max", by_name["main"])


def _of_windows(found: Windows, neurons: Array, columns: int) -> tuple[Array, Array, Array]:
    """Smallest and largest value of some neurons in every column of windows, and what is not finite."""
    low, high = (values.astype(np.float32) for values in _ranges(found, neurons))
    main = found.values[:, neurons, 0].astype(np.float32)
    steps, known = found.bounds[:, 1], np.broadcast_to(found.is_recorded[:, None], main.shape)
    bad = np.flatnonzero((~np.isfinite(main) & np.isfinite(low)).any(1))
    if len(bad):  # the extremes are those of the finite steps: the main value is a point of its own
        order = np.argsort(np.concatenate([np.arange(len(steps)), bad]), kind="stable")
        low, high = (np.concatenate([lines, main[bad]])[order] for lines in (low, high))
        steps, known = np.concatenate([steps, steps[bad]])[order], np.concatenate([known, known[bad]])[order]
    return decimated(steps, low, high, known, columns, is_range=len(found.aggregates) > 1)
