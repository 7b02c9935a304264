"""What windows say of the steps within them where a recording was thinned out: there, too, no extreme may be missed."""

from functools import lru_cache
from typing import Any

import numpy as np

from dgm_tb.plugin.entry import Entry
from dgm_tb.segment_names import segment_name, segment_span

Array = np.ndarray[Any, np.dtype[Any]]


def is_thinned(entry: Entry) -> bool:
    """Whether a record is in a segment that replaces others."""
    return _replaces_others(entry.path.name)


@lru_cache(4096)
def _replaces_others(name: str) -> bool:
    span = segment_span(name)
    return span is not None and name != segment_name(span[0])


def thinned_windows(bounds: Array, entries: list[Entry]) -> Array:
    """Which windows come from thinned records ``[windows]``.

    Args:
        bounds: First and last step of each window ``[windows, 2]``, ascending.
        entries: Records of dynamics.
    """
    flags = np.zeros(len(bounds), np.bool_)
    for entry in filter(is_thinned, entries):
        first = np.searchsorted(bounds[:, 0], entry.first_step)
        flags[first : np.searchsorted(bounds[:, 0], entry.last_step, "right")] = True
    return flags


def show_extremes(values: Array, is_own: Array, window: Array, low: Array, high: Array) -> None:
    """Fill in, in place, the steps of thinned windows that a line has no value of its own for.

    Where it has some within the window, each holds until the next one (they are the extremes, thinned as the window
    is). Where it has none, the smallest value stands at the window's first step, the largest at its last one.

    Args:
        values: ``[T, lines]``.
        is_own: Which of them are values of that very step ``[T, lines]``.
        window: Number of the thinned window of each step; -1 where there is none ``[T]``, ascending but for these.
        low: Smallest value in each window ``[windows, lines]``.
        high: Largest value.
    """
    steps = np.flatnonzero(window >= 0)
    if not len(steps):
        return
    starts = np.flatnonzero(np.diff(window[steps], prepend=-1))
    ends = np.append(starts[1:], len(steps)) - 1
    number = np.repeat(np.arange(len(starts)), ends - starts + 1)
    own = is_own[steps]
    last_own = np.maximum.accumulate(np.where(own, np.arange(len(steps), dtype=np.int32)[:, None], np.int32(-1)))
    is_held = ~own & (last_own >= starts[number][:, None])
    has_own = np.logical_or.reduceat(own, starts, 0)
    part = np.where(is_held, np.take_along_axis(values[steps], np.maximum(last_own, 0), 0), values[steps])
    of = window[steps[starts]]
    part[starts] = np.where(has_own, part[starts], low[of])
    part[ends] = np.where(has_own, part[ends], high[of])
    values[steps] = part
