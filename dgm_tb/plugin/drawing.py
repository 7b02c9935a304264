"""Which neurons of a layer to draw: the outliers, and a blue-noise sample of the rest."""

from typing import Any, NamedTuple

import numpy as np

from dgm_tb.algorithms.sampling import blue_noise_order
from dgm_tb.plugin import tracks
from dgm_tb.plugin.decimate import column_starts, reduced
from dgm_tb.plugin.tracks import Spans, Windows

Array = np.ndarray[Any, np.dtype[Any]]

SAMPLING_COLUMNS = 64
"""Windows are thinned to the smallest and largest value in this many columns before lines are compared."""


class Drawn(NamedTuple):
    """The neurons to draw.

    Attributes:
        neurons: Outliers first, then in blue-noise order ``[m]``.
        is_outlier: ``[m]``.
        n_outliers: All outliers in the range, drawn or not.
        n_nonfinite: Neurons of the layer with a value that is not finite in the range.
    """

    neurons: Array
    is_outlier: Array
    n_outliers: int
    n_nonfinite: int


def draw(
    spans: Spans,
    layer: str,
    quantity: str,
    windows: Windows,
    k: int,
    first: float,
    last: float,
    max_outliers: int | None = None,
) -> Drawn:
    """Choose neurons of a layer for a range of steps.

    Args:
        spans: Recordings.
        layer: Name of the layer.
        quantity: Its quantity.
        windows: All neurons' windows in the range; their first aggregate is compared.
        k: Neurons besides the outliers.
        first: First step.
        last: Last step.
        max_outliers: Outliers to draw at most, those farthest from the layer's median first; all by default.
    """
    main = windows.values[windows.is_recorded, :, 0]
    n_neurons = main.shape[1]
    sampled, outliers = tracks.sampled_neurons(spans, layer, quantity, first, last)
    sampled, outliers = sampled[sampled < n_neurons], outliers[outliers < n_neurons]
    is_bad = ~np.isfinite(main)
    must = outliers if max_outliers is None else _farthest(main.astype(np.float32), outliers, max_outliers)
    lines = thinned(main)
    rng = np.random.default_rng(0)
    neurons = blue_noise_order(lines, min(k + len(must), n_neurons), rng=rng, must=must, previous=sampled)
    return Drawn(neurons, np.isin(neurons, must), len(outliers), int(is_bad.any(0).sum()))


def thinned(main: Array) -> Array:
    """Lines to compare ``[neurons, points]``; a value that is not finite makes its point so."""
    if not len(main):
        return np.zeros((main.shape[1], 1), np.float32)
    values = main.astype(np.float32)
    if len(values) <= 2 * SAMPLING_COLUMNS:
        return values.T
    starts = column_starts(len(values), SAMPLING_COLUMNS)
    return np.concatenate([reduced(np.minimum, values, starts), reduced(np.maximum, values, starts)]).T


def _farthest(main: Array, outliers: Array, limit: int) -> Array:
    """The outliers farthest from the median at any time, in the order of their numbers."""
    if len(outliers) <= limit or not len(main):
        return outliers[:limit]
    with np.errstate(invalid="ignore"):
        distance = np.abs(main[:, outliers] - np.median(main, 1)[:, None]).max(0)
    order = np.argsort(-np.nan_to_num(distance, nan=np.inf, posinf=np.inf), kind="stable")
    return np.sort(outliers[order[:limit]])
