"""Fewer points for a line chart without losing what one looks for in it: spikes, dips, NaN and Inf."""

from typing import Any

import numpy as np
import numpy.typing as npt


def minmax_columns(
    steps: npt.NDArray[Any], values: npt.NDArray[Any], columns: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the points that a chart of ``columns`` pixel columns can tell apart.

    The steps' range is cut into ``columns`` equal parts. Of each part and line remain the first, the smallest, the
    largest and the last value, the first NaN, the first +Inf and the first -Inf, in their order: a line drawn through
    these covers the same pixels as one through all points. Parts where nothing was recorded stay empty. The values
    are those that were there, unchanged.

    Args:
        steps: Ascending, finite ``[T]``.
        values: One line ``[T]`` or several ``[..., T]``, any real dtype.
        columns: At least 1.

    Returns:
        Steps and values: ``[m]`` each for one line; ``[..., m]`` each for several, where lines with fewer points than
        the longest repeat their last one. ``m <= 7 columns``, 4 columns where all is finite. With ``T <= 4 columns``,
        every point is returned, and the steps of several lines are a read-only view.

    Raises:
        ValueError: If the shapes do not match, the steps descend or are not finite, or ``columns`` is less than 1.
    """
    steps, values = np.asarray(steps), np.asarray(values)
    _check(steps, values, columns)
    if len(steps) <= 4 * columns:
        return np.broadcast_to(steps, values.shape) if values.ndim > 1 else steps, values
    lines = values.reshape(-1, len(steps))
    kept = _kept(lines, _part_starts(steps, columns))
    counts = kept.sum(axis=1)
    order = np.argsort(~kept, axis=1, kind="stable")[:, : int(counts.max(initial=0))]
    last = np.take_along_axis(order, counts[:, None] - 1, axis=1) if len(lines) else order[:, :1]
    order = np.where(np.arange(order.shape[1]) < counts[:, None], order, last)
    shape = (*values.shape[:-1], order.shape[1])
    return steps[order].reshape(shape), np.take_along_axis(lines, order, axis=1).reshape(shape)


def _check(steps: npt.NDArray[Any], values: npt.NDArray[Any], columns: int) -> None:
    if steps.ndim != 1 or values.ndim < 1 or values.shape[-1] != len(steps):
        raise ValueError(f"steps must be [T] and values [..., T]; got {steps.shape} and {values.shape}; put steps last")
    if columns < 1:
        raise ValueError(f"columns must be at least 1; got {columns}; pass the width of the chart in pixels")
    if not np.isfinite(steps).all() or (steps[1:] < steps[:-1]).any():
        raise ValueError("steps must be finite and ascending; got others; sort steps and values together first")


def _part_starts(steps: npt.NDArray[Any], columns: int) -> npt.NDArray[np.intp]:
    """Return the index of the first point of every part that holds points, ascending."""
    offsets = (steps - steps[0]).astype(np.float64)
    parts = np.minimum(offsets * (columns / (offsets[-1] or 1.0)), columns - 1).astype(np.int64)
    return np.flatnonzero(np.diff(parts, prepend=-1))


def _kept(lines: npt.NDArray[Any], starts: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Return which points remain ``[lines, T]``, given where the parts start."""
    n_snapshots = lines.shape[1]
    kept = np.zeros(lines.shape, np.bool_)
    kept[:, starts] = True
    kept[:, np.append(starts[1:], n_snapshots) - 1] = True
    part = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, n_snapshots)))
    finite = np.isfinite(lines)
    low, high = np.where(finite, lines, np.inf), np.where(finite, lines, -np.inf)
    smallest, largest = np.minimum.reduceat(low, starts, axis=1), np.maximum.reduceat(high, starts, axis=1)
    candidates = (
        finite & (lines == smallest[:, part]),
        finite & (lines == largest[:, part]),
        np.isnan(lines),
        lines == np.inf,
        lines == -np.inf,
    )
    for candidate in candidates:
        kept |= _first_of_each_part(candidate, starts, part)
    return kept


def _first_of_each_part(
    flags: npt.NDArray[np.bool_], starts: npt.NDArray[np.intp], part: npt.NDArray[np.intp]
) -> npt.NDArray[np.bool_]:
    """Keep only the first set flag in every part."""
    if not flags.any():
        return flags
    counts = flags.cumsum(axis=1)
    before = np.where(starts > 0, counts[:, starts - 1], 0)
    first: npt.NDArray[np.bool_] = flags & (counts - before[:, part] == 1)
    return first
