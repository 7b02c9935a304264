"""Numbers along the steps of a run, joined from the records of all its recordings.

What was read is kept and extended as a recording grows. Superseded steps are left out, records in
the wrong order come out in order, and what an older layout did not have yet is NaN.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dgm_tb.errors import DgmError, UnknownNameError
from dgm_tb.plugin.cache import Array, Arrays
from dgm_tb.plugin.entry import Entry
from dgm_tb.plugin.joining import together
from dgm_tb.plugin.recording import Recording
from dgm_tb.plugin.rows import aggregate_columns, neuron_span, row_number, statistic_names
from dgm_tb.plugin.series import Series
from dgm_tb.plugin.storage import OpenFile
from dgm_tb.plugin.thinned import show_extremes, thinned_windows

Spans = Sequence[tuple[Recording, float]]
"""Recordings, each with the step from which a later one supersedes it."""

MAX_VALUES = 1 << 27
"""At full step resolution, in one answer."""
SELDOM = 4
"""A range with less than this fraction of the records is read on its own, not kept."""


class Windows(NamedTuple):
    """One statistic of some neurons in windows.

    Attributes:
        bounds: First and last step of each window ``[windows, 2]``, ascending.
        values: ``[windows, neurons, aggregates]``; the main aggregate, then the smallest and the largest value if kept.
        aggregates: ``("main", "min", "max")``, or the beginning of it, or ``("main", "max")``.
    """

    bounds: Array
    values: Array
    aggregates: tuple[str, ...]

    def column(self, name: str) -> int:
        """Where an aggregate is along the last axis of ``values``; the main one instead of one that was not kept."""
        return self.aggregates.index(name) if name in self.aggregates else 0

    @property
    def is_recorded(self) -> Array:
        """Whether the layout had these neurons yet: all windows but those, all NaN, before the first other one."""
        there = (number for number, window in enumerate(self.values) if not np.isnan(window).all())
        return np.asarray(np.arange(len(self.values)) >= next(there, 0))


class Points(NamedTuple):
    """Full-resolution values of sampled neurons, one entry per neuron and step.

    Attributes:
        steps: ``[points]``.
        neurons: Number within the layer ``[points]``.
        values: ``[points]``, float32.
        is_outlier: ``[points]``.
    """

    steps: Array
    neurons: Array
    values: Array
    is_outlier: Array


def losses(spans: Spans) -> dict[str, Series]:
    """Every loss by name, at the steps at which it was there."""
    parts: dict[str, list[Arrays]] = {}
    for recording, limit in spans:
        for (names,) in recording.variants("loss"):
            entries = recording.entries("loss", names=names)
            joined = recording.joined(("loss", names), entries, _read_loss)
            if not joined:
                continue
            steps, global_steps, values, present = joined
            for column, name in enumerate(names[: values.shape[1]]):
                keep = (present[:, column] > 0) & (steps < limit)
                parts.setdefault(name, []).append((steps[keep], values[keep, column], global_steps[keep]))
    return {name: Series(*ascending(*together(found))) for name, found in parts.items()}


def skipped_steps(spans: Spans) -> Array:
    """Steps in which a gradient scaler left an optimizer step out ``[steps]``, int64, ascending."""
    parts = []
    for recording, limit in spans:
        entries = [entry for entry in recording.entries("loss") if "skipped" in entry.arrays]
        if joined := recording.joined("skipped", entries, _read_skipped):
            parts.append(joined[0][joined[0] < limit])
    return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))


def layer_statistics(spans: Spans, layer: str, quantity: str) -> dict[str, Series]:
    """Statistics of a whole layer at every observed step; empty if none was recorded."""
    parts: dict[str, list[tuple[Array, Array]]] = {}
    is_known = False
    for recording, limit in spans:
        row = row_number(recording.graph, layer, quantity)
        entries = recording.entries("layer_statistics", quantity=quantity)
        if row is None or not entries:
            continue
        names = tuple(entries[-1].body["statistics"])
        read = partial(_read_row, row=row, names=names)
        joined = recording.joined(("layer_statistics", quantity, row, names), entries, read)
        if not joined:
            continue
        steps, values, known = joined
        is_known |= bool(known.any())
        keep = steps < limit
        for column, name in enumerate(names):
            parts.setdefault(name, []).append((steps[keep], values[keep, column]))
    if not is_known:
        return {}
    ordered = {name: ascending(*together(found)) for name, found in parts.items()}
    return {name: Series(steps, values, np.zeros(0, np.int64)) for name, (steps, values) in ordered.items()}


def observed_steps(spans: Spans, quantity: str) -> Array:
    """Steps at which a quantity was observed, ascending."""
    parts = [np.zeros(0, np.int64)]
    for recording, limit in spans:
        entries = recording.entries("layer_statistics", quantity=quantity)
        joined = recording.joined(("steps", quantity), entries, lambda e, file: (e.read("steps", file=file),))
        parts += [steps[steps < limit] for steps in joined]
    steps = np.concatenate(parts)
    return steps if (steps[1:] > steps[:-1]).all() else np.unique(steps)


def windows(
    spans: Spans,
    layer: str,
    quantity: str,
    statistic: str,
    *,
    first: float = -np.inf,
    last: float = np.inf,
    rows: slice | None = None,
) -> Windows | None:
    """The windows of a layer's neurons that touch a range of steps.

    Args:
        spans: Recordings.
        layer: Name of the layer.
        quantity: A key of ``records.STATISTICS``.
        statistic: One of its statistics.
        first: First step.
        last: Last step.
        rows: Neurons to read; all by default. Some only: nothing is kept.

    Returns:
        None if nothing was recorded. Values of neurons that a layout did not have yet are NaN.

    Raises:
        UnknownNameError: If the quantity has no such statistic.
    """
    sources = []
    for recording, limit in spans:
        span = neuron_span(recording.graph, layer, quantity)
        entries = recording.entries("dynamics", quantity=quantity)
        if span is not None and entries:
            _check_statistic(entries[-1], quantity, statistic)
            sources.append((recording, limit, span, entries))
    names = _aggregates(itertools.chain.from_iterable(entries for *_, entries in sources), statistic)
    parts = []
    for recording, limit, span, entries in sources:
        begin, stop = span if rows is None else (span[0] + rows.start, min(span[0] + rows.stop, span[1]))
        read = partial(_read_windows, begin=begin, stop=stop, statistic=statistic, names=names)
        touched = [e for e in entries if e.first_step <= last and e.last_step >= first] or entries[-1:]
        if rows is None and len(touched) * SELDOM > len(entries):
            joined = recording.joined(("dynamics", quantity, begin, stop, statistic, names), entries, read)
        else:
            joined = recording.collect(touched, read)
        if joined:
            bounds, values = joined
            keep = (bounds[:, 1] < limit) & (bounds[:, 0] <= last) & (bounds[:, 1] >= first)
            parts.append((bounds, values) if keep.all() else (bounds[keep], values[keep]))
    if not parts or not any(values.shape[1] for _, values in parts):
        return None
    bounds, values = together(parts)
    order = _order(bounds[:, 0])
    if order is not None:
        bounds, values = bounds[order], values[order]
    return Windows(bounds, values, names)


def polyline_points(spans: Spans, layer: str, quantity: str, first: float, last: float) -> Points:
    """Full-resolution values of a layer's sampled neurons, from all records that touch a range of steps."""
    parts = []
    for recording, limit in spans:
        span = neuron_span(recording.graph, layer, quantity)
        if span is None:
            continue
        entries = [e for e in recording.entries("polylines") if e.body["quantity"] == quantity]
        touched = [e for e in entries if e.first_step <= last and e.last_step >= first]
        found = recording.collect(touched, partial(_read_points, begin=span[0], stop=span[1]))
        if found:
            keep = found[0] < limit
            parts.append(tuple(array[keep] for array in found))
    if not parts:
        nothing = np.zeros(0, np.int64)
        return Points(nothing, nothing, np.zeros(0, np.float32), np.zeros(0, np.bool_))
    return Points(*together(parts))


def sampled_neurons(spans: Spans, layer: str, quantity: str, first: float, last: float) -> tuple[Array, Array]:
    """Neurons of a layer that were sampled in a range of steps, and those of them that were outliers; ascending."""
    neurons, outliers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for recording, limit in spans:
        span = neuron_span(recording.graph, layer, quantity)
        for of, statistic in recording.variants("polylines"):
            if of != quantity or span is None:
                continue
            entries = recording.entries("polylines", quantity=of, statistic=statistic)
            read = partial(_read_sampled, begin=span[0], stop=span[1])
            touched = [e for e in entries if e.first_step <= last and e.last_step >= first]
            if len(touched) * SELDOM > len(entries):
                found = recording.joined(("sampled", of, statistic, span), entries, read)
            else:
                found = recording.collect(touched, read)
            if found:
                starts, ends, ids, flags = found
                inside = (starts <= last) & (ends >= first) & (starts < limit)
                neurons.append(ids[inside])
                outliers.append(ids[inside & (flags > 0)])
    return np.unique(np.concatenate(neurons)), np.unique(np.concatenate(outliers))


class EveryStep(NamedTuple):
    """Lines of some neurons at every observed step.

    Attributes:
        steps: ``[T]``.
        values: ``[T, neurons]``.
        is_known: Whether something was recorded ``[T, neurons]``.
    """

    steps: Array
    values: Array
    is_known: Array


def at_every_step(
    spans: Spans, quantity: str, found: Windows, neurons: Array, points: Points, first: float, last: float
) -> EveryStep:
    """Some neurons at full step resolution where that was kept, else the value of their window.

    Of windows that were thinned out, where lines have few values of their own or none, both extremes are shown.

    Raises:
        DgmError: If that is more than memory should hold.
    """
    entries = [entry for recording, _ in spans for entry in recording.entries("dynamics", quantity=quantity)]
    is_thinned = thinned_windows(found.bounds, entries)
    steps = observed_steps(spans, quantity)
    if is_thinned.any():
        steps = np.unique(np.concatenate([steps, points.steps, found.bounds[is_thinned].ravel()]))
    steps = steps[(steps >= first) & (steps <= last)]
    shape = len(steps), len(neurons)
    if math.prod(shape) > MAX_VALUES:
        raise DgmError(f"{shape[0]} steps of {shape[1]} neurons are too much for memory; narrow first and last, or k")
    if not len(steps) or not len(found.bounds):
        return EveryStep(steps, np.full(shape, np.nan, np.float32), np.zeros(shape, np.bool_))
    window = np.searchsorted(found.bounds[:, 1], steps).clip(0, len(found.bounds) - 1)
    is_inside = (steps >= found.bounds[window, 0]) & (steps <= found.bounds[window, 1]) & found.is_recorded[window]
    values = found.values[window[:, None], neurons, 0].astype(np.float32)
    values[~is_inside] = np.nan
    is_known = np.repeat(is_inside[:, None], len(neurons), 1)
    n_neurons = found.values.shape[1]
    column = np.full(n_neurons + 1, -1)
    column[neurons] = np.arange(len(neurons))
    of = column[np.minimum(points.neurons, n_neurons)]  # a file may name neurons that no window has
    place = np.searchsorted(steps, points.steps).clip(0, len(steps) - 1)
    drawn = (of >= 0) & (steps[place] == points.steps)
    at = place[drawn], of[drawn]
    values[at], is_known[at] = points.values[drawn], True
    if is_thinned.any():
        is_own = np.zeros(shape, np.bool_)
        is_own[at] = True
        low, high = (found.values[:, neurons, found.column(name)].astype(np.float32) for name in ("min", "max"))
        show_extremes(values, is_own, np.where(is_inside & is_thinned[window], window, -1), low, high)
    return EveryStep(steps, values, is_known)


def ascending(steps: Array, *others: Array) -> Arrays:
    """Arrays along the steps, brought into their order; of a step that came twice, the later one."""
    order = _order(steps)
    return (steps, *others) if order is None else tuple(array[order] for array in (steps, *others))


def _order(steps: Array) -> Array | None:
    if (steps[1:] > steps[:-1]).all():
        return None
    order = np.argsort(steps, kind="stable")
    is_last = np.append(steps[order][1:] != steps[order][:-1], True)
    return np.asarray(order[is_last])


def _check_statistic(entry: Entry, quantity: str, statistic: str) -> None:
    known: Iterable[Any] = entry.body["aggregates"]
    if not aggregate_columns(list(known), statistic):
        names = ", ".join(statistic_names(list(known)))
        raise UnknownNameError(f"no statistic {statistic!r} of {quantity}; there are {names}")


def _read_loss(entry: Entry, file: OpenFile) -> Arrays:
    return tuple(entry.read(name, file=file) for name in ("steps", "global_steps", "values", "present"))


def _read_skipped(entry: Entry, file: OpenFile) -> Arrays:
    return (entry.read("steps", file=file)[entry.read("skipped", file=file) > 0],)


def _read_row(entry: Entry, file: OpenFile, row: int, names: tuple[str, ...]) -> Arrays:
    steps, values = entry.read("steps", file=file), entry.read("values", file=file)
    found = np.full((len(steps), len(names)), np.nan, np.result_type(values.dtype, np.float32))
    is_known = row < values.shape[1]
    if is_known:
        own = {name: column for column, name in enumerate(entry.body["statistics"][: values.shape[2]])}
        for column, name in enumerate(names):
            if name in own:
                found[:, column] = values[:, row, own[name]]
    return steps, found, np.full(len(steps), is_known)


def _aggregates(entries: Iterable[Entry], statistic: str) -> tuple[str, ...]:
    """Which aggregates of a statistic some of the records have: ``main``, ``min``, ``max`` in this order."""
    bodies = {id(entry.kept): entry for entry in entries}  # shared by thousands of records
    known = {name for entry in bodies.values() for name in aggregate_columns(entry.body["aggregates"], statistic)}
    return tuple(name for name in ("main", "min", "max") if name in known)


def _read_windows(
    entry: Entry, file: OpenFile, begin: int, stop: int, statistic: str, names: tuple[str, ...]
) -> Arrays:
    """Bounds and values; what a window of a single step does not hold of its own is its main aggregate."""
    own = aggregate_columns(entry.body["aggregates"], statistic)
    if "main" not in own:
        return ()
    columns = [own.get(name, own["main"]) for name in names]
    values = entry.read("values", begin, stop, file)[:, :, columns]
    return entry.read("windows", file=file), np.ascontiguousarray(values.transpose(1, 0, 2))


def _read_sampled(entry: Entry, file: OpenFile, begin: int, stop: int) -> Arrays:
    ids, flags = entry.read("neurons", file=file), entry.read("outliers", file=file)
    own = (ids >= begin) & (ids < stop)
    n = int(own.sum())
    return np.full(n, entry.first_step), np.full(n, entry.last_step), ids[own] - begin, flags[own]


def _read_points(entry: Entry, file: OpenFile, begin: int, stop: int) -> Arrays:
    ids = entry.read("neurons", file=file)
    own = np.flatnonzero((ids >= begin) & (ids < stop))
    steps, outliers = entry.read("steps", file=file), entry.read("outliers", file=file)
    values = entry.read("values", file=file)[:, own].astype(np.float32)
    shape = values.shape
    return (
        np.broadcast_to(steps[:, None], shape).ravel(),
        np.broadcast_to(ids[own] - begin, shape).ravel(),
        values.ravel(),
        np.broadcast_to(outliers[own] > 0, shape).ravel(),
    )
