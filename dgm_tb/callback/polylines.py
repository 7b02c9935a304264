"""Which neurons are kept at full step resolution: a sticky blue-noise sample of each layer, and its outliers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dgm_tb.algorithms.sampling import blue_noise_order

Array = np.ndarray[Any, np.dtype[Any]]

SAMPLED = {"activation": 20, "gradient": 8}
"""Quantity -> neurons sampled per layer."""
KEPT = 0.85
"""Share of a layer's sample that stays when it is drawn again."""
REDRAWN = 1.5
"""A sample is drawn again when the history has grown by this factor."""
NEURONS_PER_WINDOW = 16_384
"""Samples are drawn again for layers of so many neurons per window; for the others later."""
LEAST_COST = 1024
"""Neurons of a larger layer for which drawing costs as much as for a small one."""
MAX_OUTLIERS = 8
OUTLIER_SPREADS = 12.0
HISTORY_COLUMNS = 64


class PolylineSampler:
    """Grows a layer-wise blue-noise sample while training goes on.

    A layer's sample is drawn again whenever its history has become half as long again. Then most of the sampled neurons
    stay, those that are most redundant among them may leave, and neurons come in that are far from all the others.
    Outliers enter at once.

    Attributes:
        neurons: Sampled neurons, sorted numbers over all layers ``[sampled]``.
        outliers: Whether each is an outlier ``[sampled]``.
    """

    def __init__(self, quantity: str) -> None:
        self.k = SAMPLED[quantity]
        self.neurons: Array = np.zeros(0, np.int64)
        self.outliers: Array = np.zeros(0, np.bool_)
        self._history = _History()
        self._n_windows = 0
        self._latest: Array = np.zeros(0, np.float32)
        self._sampled: dict[int, Array] = {}
        self._due: dict[int, int] = {}
        self._rng = np.random.default_rng(0)

    def update(self, window: Array, layers: Sequence[tuple[int, int]]) -> None:
        """Take in one more window.

        Args:
            window: Mean of the drawn statistic over the window ``[neurons]``.
            layers: Offset and number of neurons of each layer.
        """
        self._n_windows += 1
        before = self._latest
        self._latest = _carried(window.astype(np.float32), before, layers)
        self._history.add(self._latest)
        self._redraw(layers)
        sampled, outliers = [], []
        for offset, neurons in layers:
            rows = slice(offset, offset + neurons)
            odd = offset + _outliers(window[rows], before[rows])
            sampled.append(np.union1d(self._sampled[offset], odd))
            outliers.append(odd)
        self.neurons = np.concatenate(sampled) if sampled else self.neurons
        self.outliers = np.isin(self.neurons, np.concatenate(outliers)) if outliers else self.outliers

    def _redraw(self, layers: Sequence[tuple[int, int]]) -> None:
        """Draw samples of new layers, and of those that are due, the longest waiting first, as long as time allows."""
        n_neurons = 0
        for offset, neurons in sorted(layers, key=lambda layer: self._due.get(layer[0], 0)):
            is_new = offset not in self._sampled
            if is_new or (self._due[offset] <= self._n_windows and n_neurons < NEURONS_PER_WINDOW):
                self._sampled[offset] = self._draw(slice(offset, offset + neurons))
                self._due[offset] = math.ceil(REDRAWN * self._n_windows)
                n_neurons += 0 if is_new else max(neurons, LEAST_COST)

    def _draw(self, rows: slice) -> Array:
        if rows.stop - rows.start <= self.k:
            return np.arange(rows.start, rows.stop)
        lines = self._history.lines(rows)
        before = self._sampled.get(rows.start, np.zeros(0, np.int64)) - rows.start
        kept = before[blue_noise_order(lines[before], math.ceil(KEPT * len(before)), rng=self._rng)]
        drawn = blue_noise_order(lines, self.k, rng=self._rng, must=kept.tolist(), previous=before.tolist())
        return np.asarray(np.sort(drawn) + rows.start)


class _History:
    """All neurons over the whole training, in at most HISTORY_COLUMNS means of equally many windows each."""

    def __init__(self) -> None:
        self._columns: list[Array] = []
        self._per_column = 1
        self._n_last = 1

    def add(self, window: Array) -> None:
        with np.errstate(invalid="ignore"):
            if self._n_last < self._per_column:
                self._n_last += 1
                mean = _padded(self._columns[-1], len(window))
                self._columns[-1] = mean + (window - mean) / self._n_last
                return
            if len(self._columns) == HISTORY_COLUMNS:
                pairs = zip(self._columns[::2], self._columns[1::2], strict=True)
                self._columns = [(_padded(a, len(b)) + b) / 2 for a, b in pairs]
                self._per_column *= 2
        self._columns.append(window)
        self._n_last = 1

    def lines(self, rows: slice) -> Array:
        """Return the polylines of neurons ``[rows, columns]``, without the time before they were there."""
        columns = np.stack([column[rows] for column in self._columns if len(column) >= rows.stop], 1)
        return columns[:, ~np.isnan(columns).all(0)]


def _padded(column: Array, size: int) -> Array:
    return np.pad(column, (0, size - len(column)), constant_values=np.nan)


def _carried(window: Array, before: Array, layers: Sequence[tuple[int, int]]) -> Array:
    """A window in which layers that were not called, all of whose neurons are NaN, have their values from before."""
    for offset, neurons in layers:
        rows = slice(offset, offset + neurons)
        if neurons and len(before) >= rows.stop and np.isnan(window[offset]) and np.isnan(window[rows]).all():
            window[rows] = before[rows]
    return window


def _outliers(values: Array, before: Array) -> Array:
    """Neurons of a layer that are not finite, that are far from the others, or that moved as none of the others did.

    Far is measured in spreads, of the values or of their changes since the window ``before`` (which may be shorter, as
    the layer is new); a change must also be as large as a spread of the values, so that one can see it.
    """
    is_finite = np.isfinite(values)
    if not is_finite.any():
        return np.zeros(0, np.int64)
    distance = np.full(len(values), np.inf)
    deviation, spread = _deviations(values[is_finite])
    distance[is_finite] = deviation / spread
    if len(before) == len(values):
        is_known = is_finite & np.isfinite(before)
        deviation, changes = _deviations(values[is_known] - before[is_known])
        distance[is_known] = np.maximum(distance[is_known], deviation / max(changes, spread / OUTLIER_SPREADS))
    odd = np.flatnonzero(distance > OUTLIER_SPREADS)
    return np.sort(odd[np.argsort(-distance[odd], kind="stable")[:MAX_OUTLIERS]])


def _deviations(values: Array) -> tuple[Array, float]:
    """Distances from the median, and their spread: the median one, more if a tenth is far, as when most are dead."""
    if not values.size:
        return values, 1.0
    deviation = np.abs(values - _median(values))
    half, most = (len(values) - 1) // 2, (len(values) - 1) * 9 // 10
    ordered = np.partition(deviation, (half, most))
    return deviation, max(float(ordered[half]), float(ordered[most]) / 3, 1e-30)


def _median(values: Array) -> float:
    """The lower median: a third of the cost of ``np.median`` on a layer's neurons."""
    middle = (len(values) - 1) // 2
    return float(np.partition(values, middle)[middle])
