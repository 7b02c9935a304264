"""A quarter of the numbers that still tells of every extreme: four windows become one, eight rows become two.

Pure functions of arrays. What is NaN in a window or row is either a value (the alarm), or stands for "not known": a
layer that was not called, or that the layout did not have yet.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

WINDOWS = 4
"""Windows that become one."""
ROWS = 8
"""Rows that become two."""
BLOCK_VALUES = 1 << 20
"""Values that are looked at together: they bound the memory that is needed."""


def merge_windows(
    bounds: Array, values: Array, aggregates: Sequence[str], layers: Array | None = None
) -> tuple[Array, Array]:
    """Merge each ``WINDOWS`` windows in a row, and what is left at the end, into one.

    A mean becomes the mean weighted by the steps that the windows span, a smallest value the smallest, a largest value
    the largest of those that are known. A mean that is NaN while other neurons of its layer are known is an alarm: it
    makes the merged mean NaN (not the extremes, which are those of the other windows). A layer that is NaN all over was
    not called, or is not there yet: the other windows count. (If it did run, the layer statistics tell of it.)

    Args:
        bounds: First and last step of each window ``[windows, 2]``.
        values: ``[neurons, windows, aggregates]``, any float.
        aggregates: Names of the last axis, ``<statistic>/<mean, min or max>``.
        layers: Number of the first neuron of each layer, ascending; all neurons are one layer by default.

    Returns:
        Bounds ``[merged, 2]`` and values ``[neurons, merged, aggregates]``, float32.
    """
    n_windows = len(bounds)
    n_merged = -(-n_windows // WINDOWS)
    starts = np.arange(n_merged) * WINDOWS
    ends = np.minimum(starts + WINDOWS, n_windows) - 1
    spanned = np.maximum(bounds[:, 1] - bounds[:, 0] + 1, 1)
    weights = np.pad(spanned, (0, n_merged * WINDOWS - n_windows)).reshape(n_merged, WINDOWS, 1)
    shares = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    alarms = _alarms(values, layers)
    merged = np.empty((values.shape[0], n_merged, values.shape[2]), np.float32)
    per_block = max(1, BLOCK_VALUES // max(1, n_windows * values.shape[2]))
    for first in range(0, len(values), per_block):
        block = slice(first, first + per_block)
        alarm = None if alarms is None else _grouped(alarms[block], n_merged, False)
        for column, name in enumerate(aggregates):
            grouped = _grouped(values[block, :, column], n_merged, np.nan).astype(np.float32)
            merged[block, :, column] = _merged(name.rpartition("/")[2], grouped, shares, alarm).T
    return np.stack([bounds[starts, 0], bounds[ends, 1]], 1), merged


def _merged(how: str, grouped: Array, shares: Array, alarm: Array | None) -> Array:
    """One aggregate of ``[merged, WINDOWS, neurons]``: ``[merged, neurons]``."""
    if how != "mean":
        pick = {"min": np.fmin, "max": np.fmax}[how]
        return np.asarray(pick(pick(grouped[:, 0], grouped[:, 1]), pick(grouped[:, 2], grouped[:, 3])))
    is_known = ~np.isnan(grouped)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if is_known.all():
            return np.asarray((grouped * shares).sum(1))
        mean = (np.where(is_known, grouped, 0) * shares).sum(1) / (is_known * shares).sum(1)
    if alarm is not None:
        mean[(alarm & ~is_known).any(1)] = np.nan
    return np.asarray(mean)


def _alarms(values: Array, layers: Array | None) -> Array | None:
    """Where NaN is a value, as something of the layer is known ``[neurons, windows]``; None if there is no NaN."""
    unknown = np.isnan(values)
    if not unknown.any():
        return None
    is_known = ~unknown.all(2)
    firsts = np.zeros(1, np.int64) if layers is None else np.union1d(0, layers[(layers > 0) & (layers < len(values))])
    of_layers = np.logical_or.reduceat(is_known, firsts, 0)
    return np.repeat(of_layers, np.diff(firsts, append=len(values)), 0)


def _grouped(values: Array, n_merged: int, fill: float) -> Array:
    """``[neurons, windows]`` as ``[merged, WINDOWS, neurons]``, filled up at the end."""
    grouped = np.full((n_merged * WINDOWS, len(values)), fill, values.dtype)
    grouped[: values.shape[1]] = values.T
    return grouped.reshape(n_merged, WINDOWS, len(values))


def thin_rows(values: Array, is_present: Array | None = None) -> tuple[Array, Array, Array]:
    """Keep two rows of each ``ROWS``, and of what is left at the end, that hold the extremes of every column.

    The first and the last row of a bucket remain, with the smallest and the largest value of each column (Inf is one)
    in the order in which they came. Where a column has NaN beside other values, a third row between them holds it.

    Args:
        values: ``[rows, columns]``, any float.
        is_present: Where there is a value at all ``[rows, columns]``; everywhere by default.

    Returns:
        Numbers of the rows that remain, ascending ``[kept]``; their values ``[kept, columns]``; where there are any.
    """
    n_whole = len(values) // ROWS * ROWS
    is_present = np.ones(values.shape, np.bool_) if is_present is None else is_present.astype(np.bool_)
    parts = []
    for first, stop in ((0, n_whole), (n_whole, len(values))):
        if stop - first > 2:
            n_rows = min(ROWS, stop - first)
            shape = (stop - first) // n_rows, n_rows, values.shape[1]
            places, *extremes = _extremes(values[first:stop].reshape(shape), is_present[first:stop].reshape(shape))
            parts.append((places + first, *extremes))
        else:
            parts.append((np.arange(first, stop), values[first:stop], is_present[first:stop]))
    places, thinned, present = (np.concatenate(part) for part in zip(*parts, strict=True))
    return places, thinned, present


def _extremes(values: Array, is_present: Array) -> tuple[Array, Array, Array]:
    """``thin_rows`` of buckets of equal length ``[buckets, rows, columns]``."""
    n_buckets, n_rows, n_columns = values.shape
    known = values if is_present.all() else np.where(is_present, values, np.nan).astype(values.dtype)
    low: Array = np.fmin.reduce(known, 1)
    high: Array = np.fmax.reduce(known, 1)
    is_falling = (known == high[:, None]).argmax(1) < (known == low[:, None]).argmax(1)
    first, last = np.where(is_falling, high, low), np.where(is_falling, low, high)
    is_mixed = np.asarray((np.isnan(values) & is_present).any(1) & ~np.isnan(low))
    rows = np.stack([first, np.where(is_mixed, np.nan, last).astype(values.dtype), last], 1)
    is_kept = np.ones((n_buckets, 3), np.bool_)
    is_kept[:, 1] = is_mixed.any(1)
    places = np.arange(n_buckets)[:, None] * n_rows + np.array([0, 1, n_rows - 1])
    present = np.broadcast_to(is_present.any(1, keepdims=True), (n_buckets, 3, n_columns))
    return places[is_kept], rows[is_kept], present[is_kept]
