"""Blue-noise order of polylines that may be too many to hold: exact distances, memory for a pool and a sketch.

Up to EXACT_ROWS polylines are ordered as they are. Of more, a random pool is ordered. Then those are found that a
prefix of the order leaves too far from its samples, first of all the outliers that the pool lacks. They join the pool,
and the order is mended, until there are none.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dgm_tb.algorithms.coverage import Survey
from dgm_tb.algorithms.maximal_order import (
    N_DIRECTIONS,
    Favoured,
    MaximalOrder,
    chart_height,
    direction_shares,
    lowest,
    maximal_order,
)
from dgm_tb.algorithms.polyline_features import FloatArray, IntArray
from dgm_tb.algorithms.population import Population

HYSTERESIS = 0.7  # distance that a previous sample must keep from others, over the reach
EXACT_ROWS = 20_000
POOL_ROWS = 4096
POOL_PER_SAMPLE = 32
SOME_ROWS = 256  # rows that tell how polylines differ
CLIPPED = 1e15  # spreads, which float32 can hold
DOUBLE_ELEMENTS = 1 << 19  # a pool up to this size is float64, a larger one only if float32 is too coarse
COARSE = 1e-5  # squared reach over the largest squared length below which float32 is too coarse
MENDINGS = 8  # at most; 2 to 4 are usual
# Largest distance of a polyline to a prefix over the smallest in it, to which an order is mended and that is accepted.
MENDED, ACCEPTED = 1.14, 1.149
NEARLY_FAR = 0.9  # polylines beyond this share of the limit join the pool with those beyond it


class Mended(NamedTuple):
    """An order to be mended, and the dissimilarity within which each prefix should have all polylines; both ``[k]``."""

    ids: IntArray
    limits: FloatArray


def population_order(
    population: Population, k: int, rng: np.random.Generator, *, must: IntArray, previous: IntArray
) -> IntArray:
    """Return ``k`` ids in blue-noise order, starting with ``must``; ``previous`` ones stay if they can."""
    if k == len(must):
        return must
    n_pool = max(POOL_ROWS, POOL_PER_SAMPLE * k)
    if len(population.ids) <= max(EXACT_ROWS, n_pool):
        return Pool(population, population.ids, None, rng).order(k, must, previous).points
    ranks = rng.permutation(len(population.ids))
    first = population.ids[ranks < n_pool]
    survey = Survey(population, population.ids[ranks < SOME_ROWS])
    pool = Pool(population, np.unique(np.concatenate([first, must, previous])), ranks, rng)
    drawn = pool.order(k, must, previous)
    for mending in range(MENDINGS):
        limits, far = survey.farness(drawn, MENDED, NEARLY_FAR)
        if far.max() <= ACCEPTED / MENDED:
            break
        found = np.flatnonzero(far > NEARLY_FAR)
        if not pool.extend(population.ids[found[np.argsort(far[found])[-n_pool // 2 :]]]):
            break
        # What is found first are the outliers: with them the order begins anew.
        drawn = pool.order(k, must, previous, Mended(drawn.points, limits) if mending else None)
    return drawn.points


class Pool:
    """Polylines held in memory, by ascending ids."""

    def __init__(self, population: Population, ids: IntArray, ranks: IntArray | None, rng: np.random.Generator) -> None:
        """Take some ids of the population and the random ranks of all its ids.

        Without ranks the ids must be the whole population; ranks then hang on the polylines, not on their order.
        """
        self.population, self.ids = population, ids
        is_small = len(ids) * population.n_snapshots <= DOUBLE_ELEMENTS
        self.dtype: npt.DTypeLike = np.float64 if is_small else np.float32
        self.values, self.points = population.read(ids, self.dtype)
        if ranks is None:
            contents = self.points.features @ rng.standard_normal(self.points.features.shape[1])
            ranks = np.empty(len(ids), np.int64)
            ranks[np.argsort(contents)] = rng.permutation(len(ids))
        self.ranks, self.n_random = ranks, len(ids)

    def extend(self, ids: IntArray) -> int:
        """Add the ids that are not there yet; return how many."""
        new = np.setdiff1d(ids, self.ids)
        values, points = self.population.read(new, self.dtype)
        joined = np.concatenate([self.ids, new])
        by_id = np.argsort(joined)
        self.ids, self.values = joined[by_id], np.vstack([self.values, values])[by_id]
        self.points = self.points.joined(points).take(by_id)
        return len(new)

    def order(self, k: int, must: IntArray, previous: IntArray, mended: Mended | None = None) -> MaximalOrder:
        """Return ``k`` ids and their reach; an order to be mended is followed as far as its limits allow."""
        drawn = self._order(k, must, previous, mended)
        reach = float(drawn.reach[drawn.reach > 0].min(initial=np.inf)) ** (2 / self.population.distance.power)
        if self.dtype == np.float32 and reach < COARSE * self.points.squares.max():
            self.dtype = np.float64
            self.values, self.points = self.population.read(self.ids, self.dtype)
            drawn = self._order(k, must, previous, mended)
        return drawn

    def _order(self, k: int, must: IntArray, previous: IntArray, mended: Mended | None) -> MaximalOrder:
        favoured, turn = previous, np.full(len(previous), np.inf)
        if mended is not None:
            favoured = np.concatenate([mended.ids, previous[~np.isin(previous, mended.ids)]])
            turn = np.full(len(favoured), np.inf)
            turn[1 : len(mended.ids)] = mended.limits[:-1]
        ranks = self.ranks[np.searchsorted(self.population.ids, self.ids)]
        order, reach = maximal_order(
            self.points,
            self._directions(ranks) if mended is None else np.zeros((len(ranks), N_DIRECTIONS)),
            ranks,
            self.n_random,
            self.population.distance,
            k,
            must=np.searchsorted(self.ids, must),
            favoured=Favoured(
                np.searchsorted(self.ids, favoured),
                np.where(np.isin(favoured, previous), HYSTERESIS, 1 / ACCEPTED),
                turn,
            ),
        )
        return MaximalOrder(self.ids[order], reach)

    def _directions(self, ranks: IntArray) -> FloatArray:
        scale = self.population.scale
        with np.errstate(over="ignore"):
            median = (scale.centre - scale.centre[:1]) / scale.spread
        drawn = self.values + np.clip(median, -CLIPPED, CLIPPED).astype(self.dtype)
        return direction_shares(drawn, chart_height(drawn, drawn[lowest(ranks, SOME_ROWS)]))
