"""Blue-noise order of polylines that may be too many to hold: exact distances, memory for a pool and a block.

Up to EXACT_ROWS polylines are ordered as they are. Of more, a random pool is ordered; one streamed pass then finds
all those further from every sample than the pool's own may be (the outliers that it lacks); they join, and the pool
is ordered again, until none is found. Measured on 1e6 x 256 with 20 planted outliers, all of which are drawn: 2.0 CPU s
and 66 MB beyond the memory-mapped matrix (benchmarks/sampling.py).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from dgm_tb.algorithms.maximal_order import Favoured, chart_height, direction_shares, maximal_order
from dgm_tb.algorithms.polyline_features import (
    DOUBLE_ELEMENTS,
    Distance,
    FloatArray,
    IntArray,
    Points,
    Scale,
    nonfinite_lanes,
    row_blocks,
    standardised,
    take_rows,
)

HYSTERESIS = 0.75  # a previous sample stays unless another is nearer than this share of the radius
EXACT_ROWS = 20_000
POOL_ROWS = 8192
POOL_PER_SAMPLE = 32
REFINEMENTS = 4  # times that polylines found far from every sample may join the pool
NEARLY_FAR = 0.9  # with them join those beyond this share of the limit, which would be found next


class Population:
    """Polylines that are compared with each other: either all finite, or all with non-finite values."""

    def __init__(
        self, polylines: npt.NDArray[Any], ids: IntArray, is_finite: bool, scale: Scale, distance: Distance
    ) -> None:
        """Take the ascending ``ids`` of ``polylines`` ``[n, T]``."""
        self.polylines, self.ids, self.is_finite, self.scale, self.distance = polylines, ids, is_finite, scale, distance
        self.dtype = np.float64 if polylines.size <= DOUBLE_ELEMENTS else np.float32

    def order(self, k: int, rng: np.random.Generator, *, must: IntArray, previous: IntArray) -> IntArray:
        """Return ``k`` ids in blue-noise order, starting with ``must``; ``previous`` ones stay if they can."""
        if k == len(must):
            return must
        n_pool = max(POOL_ROWS, POOL_PER_SAMPLE * k)
        if len(self.ids) <= max(EXACT_ROWS, n_pool):
            return _Pool(self, self.ids).order(k, rng, must, previous)[0]
        drawn = rng.choice(self.ids, n_pool, replace=False)
        pool = _Pool(self, np.unique(np.concatenate([drawn, must, previous])))
        order, reach = pool.order(k, rng, must, previous)
        nearest, farness = self.nearest(self.ids, order, reach)
        for _ in range(REFINEMENTS):
            if farness.max() <= reach:
                break
            far = np.flatnonzero(farness > NEARLY_FAR**self.distance.power * reach)
            far = far[np.argsort(farness[far])[-n_pool // 2 :]]
            pool.extend(self.ids[far])
            order, reach = pool.order(k, rng, must, previous, earlier=order)
            stale = np.flatnonzero((farness > reach) | ~np.isin(nearest, order))
            nearest[stale], farness[stale] = self.nearest(self.ids[stale], order, reach)
        return order

    def read(self, ids: IntArray) -> tuple[FloatArray, Points]:
        """Return values ``[ids, T]`` in robust spreads and points of ascending ids."""
        rows = take_rows(self.polylines, ids)
        values = standardised(rows, self.scale, self.dtype)
        lanes = nonfinite_lanes(rows) if not self.is_finite else np.empty((len(rows), 0))
        return values, Points.of(self.distance.features(values, lanes.astype(self.dtype)))

    def nearest(self, ids: IntArray, order: IntArray, reach: float) -> tuple[IntArray, FloatArray]:
        """Return a sample and the dissimilarity to it for each id: the least one wherever it exceeds ``reach``."""
        samples = np.sort(order)
        others = self.read(samples)[1]
        nearest: IntArray = np.empty(len(ids), np.int64)
        farness: FloatArray = np.empty(len(ids), self.dtype)
        for block in row_blocks(len(ids), self.polylines.shape[1]):
            index, farness[block] = self.distance.nearest(self.read(ids[block])[1], others, reach)
            nearest[block] = samples[index]
        return nearest, farness


class _Pool:
    """The polylines held in memory, in order of arrival."""

    def __init__(self, population: Population, ids: IntArray) -> None:
        self.population, self.ids = population, ids
        values, self.points = population.read(ids)
        self.height = chart_height(values)
        self.directions = direction_shares(values, self.height)

    def extend(self, ids: IntArray) -> None:
        """Add the ids that are not there yet."""
        new = np.setdiff1d(ids, self.ids)
        values, points = self.population.read(new)
        self.ids, self.points = np.concatenate([self.ids, new]), self.points.joined(points)
        self.directions = np.vstack([self.directions, direction_shares(values, self.height)])

    def order(
        self, k: int, rng: np.random.Generator, must: IntArray, previous: IntArray, earlier: IntArray | None = None
    ) -> tuple[IntArray, float]:
        """Return ``k`` ids and the reach; samples of an ``earlier`` order come first where still eligible."""
        favoured = previous if earlier is None else np.concatenate([earlier, previous[~np.isin(previous, earlier)]])
        ease = np.where(np.isin(favoured, previous), HYSTERESIS, 1.0).astype(self.points.squares.dtype)
        order, reach = maximal_order(
            self.points,
            self.directions,
            self.population.distance,
            k,
            rng,
            must=self._indices(must),
            favoured=Favoured(self._indices(favoured), ease),
        )
        return self.ids[order], reach

    def _indices(self, ids: IntArray) -> IntArray:
        by_id = np.argsort(self.ids)
        return by_id[np.searchsorted(self.ids, ids, sorter=by_id)]
