"""How much the histories of a layer's neurons move: the measurements behind ``patterns``.

Five movements are measured, after the layer's median at each moment is taken off:

* jump: from the mean right before a moment to the mean right after it,
* excursion: how far a moment lies beyond what is before and beyond what is after it,
* drift: from the mean of the first quarter to that of the last one,
* swing: the deviation from the running mean, root mean square without the largest tenth,
* growth: from where a history was before its last eighth to its end.

A jump or an excursion counts in units of what is usual *at that moment* (the ninth decile over the layer): where all
neurons start with a leap, a leap is nothing. Histories are first cut into at most ``MAX_COLUMNS`` columns.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MAX_COLUMNS = 128
BLOCK_NEURONS = 2048
"""Neurons measured at one time: 2 MB for each of a dozen arrays."""
SAMPLE = 2048
"""Medians and deciles of the layer are those of about so many evenly spread neurons."""


class Columns(NamedTuple):
    """Histories in columns of snapshots; NaN where one of them is not finite.

    Attributes:
        starts: First snapshot of each column ``[columns]``.
        ends: Last one ``[columns]``.
        mean: Mean of each column ``[columns, neurons]``, float32.
        low: Smallest value.
        high: Largest value.
    """

    starts: Ints
    ends: Ints
    mean: Floats
    low: Floats
    high: Floats

    @classmethod
    def of(cls, main: Array, low: Array, high: Array) -> "Columns":
        """Cut histories ``[neurons, snapshots]``; at least one snapshot."""
        n_neurons, n_snapshots = main.shape
        n_columns = min(n_snapshots, MAX_COLUMNS)
        starts = np.arange(n_columns) * n_snapshots // n_columns
        ends = np.append(starts[1:], n_snapshots) - 1
        found = np.empty((3, n_columns, n_neurons), np.float32)
        wide = np.float32 if main.dtype == np.float16 else np.float64
        for block in blocks(n_neurons):
            values, lowest, highest = (part[block].T.astype(wide) for part in (main, low, high))
            with np.errstate(invalid="ignore", over="ignore"):
                found[0, :, block] = np.add.reduceat(values, starts, 0) / (ends - starts + 1)[:, None]
                found[1, :, block] = np.minimum.reduceat(np.fmin(lowest, values), starts, 0)
                found[2, :, block] = np.maximum.reduceat(np.fmax(highest, values), starts, 0)
        return cls(starts, ends, *found)

    @property
    def moves(self) -> Bools:
        """Whether a neuron has two different values ``[neurons]``."""
        return np.asarray(self.low.min(0) < self.high.max(0))


class Movement(NamedTuple):
    """One movement of all neurons ``[neurons]``.

    Attributes:
        size: In units of what is usual at its moment; in the unit of the values if it has no moment.
        otherwise: What is usual in the same history, in the unit of ``size``; None if the movement is all of it.
        amount: In the unit of the values.
        at: Column of its moment, else the last one.
    """

    size: Floats
    otherwise: Floats | None
    amount: Floats
    at: Ints

    def take(self, neurons: Ints) -> "Movement":
        """Of some neurons."""
        rest = None if self.otherwise is None else self.otherwise[neurons]
        return Movement(self.size[neurons], rest, self.amount[neurons], self.at[neurons])


class Layer:
    """What is usual in a layer: its median at each moment, and its ninth decile of jumps and excursions.

    Args:
        columns: Finite histories.
        neurons: Those that move.
    """

    def __init__(self, columns: Columns, neurons: Ints) -> None:
        self.columns = columns
        sample = neurons[:: -(-len(neurons) // SAMPLE)]
        parts = columns.mean, columns.low, columns.high
        self._medians = [np.median(part[:, sample], axis=1)[:, None].astype(np.float64) for part in parts]
        mean, low, high = self.centred(sample)
        self._usual = _usual(np.abs(_jumps(mean))), _usual(_excursions(low, high))

    def centred(self, neurons: Ints) -> tuple[Floats, Floats, Floats]:
        """Mean, smallest and largest value without the layer's median ``[columns, neurons]``, float64."""
        parts = self.columns.mean, self.columns.low, self.columns.high
        mean, low, high = (part[:, neurons] - median for part, median in zip(parts, self._medians, strict=True))
        return mean, low, high

    def movements(self, neurons: Ints) -> dict[str, Movement]:
        """Each movement of these neurons by its name."""
        parts = [self._measured(neurons[block]) for block in blocks(len(neurons))]
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}

    def _measured(self, neurons: Ints) -> dict[str, Movement]:
        mean, low, high = self.centred(neurons)
        n_columns, everyone = len(mean), np.arange(len(neurons))
        jumps, excursions = np.abs(_jumps(mean)), _excursions(low, high)
        sizes = jumps / self._usual[0]
        at = sizes.argmax(0)
        found = {"jump": Movement(sizes.max(0), np.median(sizes, axis=0), jumps[at, everyone], at + 3)}
        sizes = excursions / self._usual[1]
        at = sizes.argmax(0)
        rest = without_largest(sizes)
        found["excursion"] = Movement(sizes.max(0), rest, excursions[at, everyone], at + gap(n_columns))
        quarter, eighth, end = max(n_columns // 4, 2), max(n_columns // 8, 1), np.full(len(neurons), n_columns - 1)
        drift = np.abs(mean[-quarter:].mean(0) - mean[:quarter].mean(0))
        found["drift"] = Movement(drift, None, drift, end)
        swing = _swing(mean)
        found["swing"] = Movement(swing, None, swing, end)
        expected = _lines(
            mean, np.array([n_columns - eighth - quarter]), np.array([n_columns - eighth]), np.array([n_columns - 1])
        )
        growth = np.abs(mean[-1] - expected[0])
        return {**found, "growth": Movement(growth, np.median(jumps, axis=0), growth, end)}


def blocks(n_neurons: int) -> Iterator[slice]:
    """Slices that cover so many neurons."""
    for at in range(0, n_neurons, BLOCK_NEURONS):
        yield slice(at, at + BLOCK_NEURONS)


def gap(n_columns: int) -> int:
    """Columns that an excursion may last to either side of its moment."""
    return 1 if n_columns < 32 else 2


def reach(n_columns: int) -> int:
    """Columns before and after a moment that it is compared with."""
    return min(max(n_columns // 8, 3), 16)


def without_largest(sizes: Floats) -> Floats:
    """Mean over the first axis without the largest tenth."""
    kept = len(sizes) - len(sizes) // 10
    return np.asarray(np.partition(sizes, kept - 1, axis=0)[:kept].mean(0))


# -- helpers -----------------------------------------------------------------------------------------------------------


def _jumps(mean: Floats) -> Floats:
    """How far the lines through what is right after and right before a moment are apart ``[columns - 5, neurons]``."""
    n_columns = len(mean)
    moments = np.arange(3, n_columns - 2)
    before, after = np.maximum(moments - reach(n_columns), 0), np.minimum(moments + reach(n_columns), n_columns)
    return _lines(mean, moments, after, moments - 0.5) - _lines(mean, before, moments, moments - 0.5)


def _excursions(low: Floats, high: Floats) -> Floats:
    """How far each moment is beyond what is before and after it, at least 0 ``[columns - 2 gap, neurons]``."""
    n_columns, apart, length = len(low), gap(len(low)), 3
    moments = np.arange(apart, n_columns - apart)
    before = np.maximum(moments - apart - length + 1, 0), moments - apart + 1
    after = moments + apart, np.minimum(moments + apart + length, n_columns)
    above = high[moments] - np.maximum(_means(high, *before), _means(high, *after))
    below = np.minimum(_means(low, *before), _means(low, *after)) - low[moments]
    return np.asarray(np.maximum(np.maximum(above, below), 0))


def _swing(mean: Floats) -> Floats:
    n_columns = len(mean)
    half, moments = max(n_columns // 16, 1), np.arange(n_columns)
    smooth = _means(mean, np.maximum(moments - half, 0), np.minimum(moments + half + 1, n_columns))
    return np.sqrt(without_largest((mean - smooth) ** 2))


def _means(values: Floats, begin: Ints, end: Ints) -> Floats:
    """Mean of the rows ``begin[i]`` to ``end[i] - 1`` for each i."""
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, 0)])
    return np.asarray((sums[end] - sums[begin]) / (end - begin)[:, None])


def _lines(values: Floats, begin: Ints, end: Ints, at: Floats) -> Floats:
    """Where the straight line through the rows ``begin[i]`` to ``end[i] - 1``, by least squares, is at ``at[i]``."""
    time = np.arange(len(values), dtype=np.float64)[:, None]
    n = (end - begin)[:, None]
    centre = (begin[:, None] + end[:, None] - 1) / 2
    covariance = _means(values * time, begin, end) - centre * _means(values, begin, end)
    slope = covariance / ((n**2 - 1) / 12)
    return np.asarray(_means(values, begin, end) + slope * (at[:, None] - centre))


def _usual(amounts: Floats) -> Floats:
    """Ninth decile at each moment ``[moments, 1]``; a fifth of that of most moments at the least, and never 0."""
    deciles = np.quantile(amounts, 0.9, axis=1, method="lower")
    least = 0.2 * float(np.median(deciles)) or float(amounts.max(initial=0.0)) or 1.0
    return np.maximum(deciles, least)[:, None]


def _joined(parts: list[Movement]) -> Movement:
    size, amount, at = (np.concatenate([part[field] for part in parts]) for field in (0, 2, 3))
    rest = [part.otherwise for part in parts if part.otherwise is not None]
    return Movement(size, np.concatenate(rest) if rest else None, amount, at)
