"""Which neurons are kept at full step resolution: a sticky blue-noise sample of each layer, and its outliers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dgm_tb.algorithms.sampling import blue_noise_order

Array = np.ndarray[Any, np.dtype[Any]]

SAMPLED = {"activation": 20, "gradient": 8}
"""Quantity -> neurons sampled per layer."""
MAX_OUTLIERS = 8
OUTLIER_MADS = 12.0
HISTORY_COLUMNS = 64


class PolylineSampler:
    """Grows a layer-wise blue-noise sample while training goes on.

    The sample is drawn again at windows 1, 8, 64, ...: each time the histories are eight times as long, so that the
    total cost stays small; ids already drawn stay unless they have become redundant. Outliers enter at once.

    Attributes:
        neurons: Sampled neurons, sorted numbers over all layers ``[sampled]``.
        outliers: Whether each is an outlier ``[sampled]``.
    """

    def __init__(self, quantity: str) -> None:
        self.k = SAMPLED[quantity]
        self.neurons: Array = np.zeros(0, np.int64)
        self.outliers: Array = np.zeros(0, np.bool_)
        self._history: list[Array] = []
        self._n_windows = 0
        self._per_column = 1
        self._sampled: dict[int, Array] = {}
        self._rng = np.random.default_rng(0)

    def update(self, window: Array, layers: Sequence[tuple[int, int]]) -> None:
        """Take in one more window.

        Args:
            window: Mean of the drawn statistic over the window ``[neurons]``.
            layers: Offset and number of neurons of each layer.
        """
        self._n_windows += 1
        self._remember(window)
        power = self._n_windows.bit_length() - 1
        is_due = self._n_windows == 1 << power and power % 3 == 0
        sampled, outliers = [], []
        for offset, neurons in layers:
            rows = slice(offset, offset + neurons)
            if is_due or offset not in self._sampled:
                self._sampled[offset] = self._draw(rows)
            odd = _outliers(window[rows]) + offset
            sampled.append(np.union1d(self._sampled[offset], odd))
            outliers.append(odd)
        self.neurons = np.concatenate(sampled) if sampled else self.neurons
        self.outliers = np.isin(self.neurons, np.concatenate(outliers)) if outliers else self.outliers

    def _remember(self, window: Array) -> None:
        self._history.append(window.astype(np.float32))
        if len(self._history) > HISTORY_COLUMNS:
            size = len(self._history[-1])
            padded = [np.pad(column, (0, size - len(column)), constant_values=np.nan) for column in self._history]
            self._history = [(a + b) / 2 for a, b in zip(padded[::2], padded[1::2], strict=False)] + padded[-1:]

    def _draw(self, rows: slice) -> Array:
        if rows.stop - rows.start <= self.k:
            return np.arange(rows.start, rows.stop)
        known = [column[rows] for column in self._history if len(column) >= rows.stop]
        previous = self._sampled.get(rows.start, np.zeros(0, np.int64)) - rows.start
        polylines = np.stack(known, 1)
        drawn = blue_noise_order(polylines, self.k, rng=self._rng, previous=previous.tolist())
        return np.asarray(drawn + rows.start)


def _outliers(values: Array) -> Array:
    """Neurons that are not finite, or far from the layer's median in units of its median absolute deviation."""
    is_finite = np.isfinite(values)
    finite = values if is_finite.all() else values[is_finite]
    if not finite.size:
        return np.zeros(0, np.int64)
    deviation = np.abs(finite - _median(finite))
    scale = max(_median(deviation), 1e-3 * float(np.mean(deviation)), 1e-30)
    distance = np.full(len(values), np.inf)
    distance[is_finite] = deviation / scale
    odd = np.flatnonzero(distance > OUTLIER_MADS)
    return np.sort(odd[np.argsort(-distance[odd], kind="stable")[:MAX_OUTLIERS]])


def _median(values: Array) -> float:
    """The lower median: a third of the cost of ``np.median`` on a layer's neurons."""
    middle = (len(values) - 1) // 2
    return float(np.partition(values, middle)[middle])
