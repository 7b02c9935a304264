"""Polylines that are compared with each other: read in blocks of rows, as values, points or products."""

from typing import Any

import numpy as np
import numpy.typing as npt

from dgm_tb.algorithms.polyline_features import (
    Distance,
    FloatArray,
    IntArray,
    Points,
    Scale,
    euclidean_products,
    euclidean_squares,
    linearly_standardised,
    nonfinite_lanes,
    standardised,
    take_rows,
)


class Population:
    """Either polylines that are finite throughout, or polylines that are not."""

    def __init__(
        self, polylines: npt.NDArray[Any], ids: IntArray, is_finite: bool, scale: Scale, distance: Distance
    ) -> None:
        """Take the ascending ``ids`` of ``polylines`` ``[n, T]``."""
        self.polylines, self.ids, self.is_finite, self.scale, self.distance = polylines, ids, is_finite, scale, distance

    @property
    def n_snapshots(self) -> int:
        """Values per polyline."""
        return int(self.polylines.shape[1])

    def read(self, ids: IntArray, dtype: npt.DTypeLike) -> tuple[FloatArray, Points]:
        """Return values ``[ids, T]`` in robust spreads around the median polyline, and points; ids must ascend."""
        rows = take_rows(self.polylines, ids)
        values = standardised(rows, self.scale, dtype)
        lanes = nonfinite_lanes(rows) if not self.is_finite else np.empty((len(rows), 0))
        return values, Points.of(self.distance.features(values, lanes.astype(dtype)))

    def read_raw(self, ids: IntArray) -> Points:
        """Return ascending ids as points for :meth:`products`, float32, at the least cost.

        Finite polylines are their plain values; what float32 cannot hold is not finite.
        """
        if not self.is_finite:
            return self.read(ids, np.float32)[1]
        values = linearly_standardised(take_rows(self.polylines, ids), self.scale, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            return Points(values, euclidean_squares(values))

    def products(self, values: FloatArray, points: Points) -> FloatArray:
        """Return of each row what has, with a row of :meth:`read_raw`, the dot product of both rows' features."""
        return euclidean_products(values) if self.is_finite else points.features
