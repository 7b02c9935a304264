"""The core of blue-noise sampling: order points so that every prefix is random, even and maximal.

At radius ``r`` any point at least ``r`` away from all samples is eligible. When none is left, ``r`` shrinks to SHRINK
times the largest remaining distance. So within a prefix no two samples are closer than r, and no point is further
than r / SHRINK from a sample. Relaxing the radius is McCool and Fiume 1992; drawing only eligible points replaces the
misses of dart throwing, which lose outliers (12 of 20 found among 1e5 polylines, benchmarks/sampling.py).
"""

from typing import NamedTuple

import numpy as np

from dgm_tb.algorithms.polyline_features import Distance, FloatArray, IntArray, Points

SHRINK = 0.95  # nearer to 1 is more even, further is more random
TRIALS = 64  # eligible points drawn at once, among which the emptiest direction wins
N_DIRECTIONS = 8
CHART_ASPECT = 2.0  # width over height of the chart in which directions are judged


class Favoured(NamedTuple):
    """Points tried first at every level, in this order, at ``ease`` times the radius; both ``[favoured]``."""

    points: IntArray
    ease: FloatArray


class MaximalOrder(NamedTuple):
    """Indices of the samples in order and ``reach``: how far from a sample a point may be (a dissimilarity)."""

    points: IntArray
    reach: float


def chart_height(values: FloatArray) -> float:
    """Return the range of the central 98 % of values (at most 2^16 of them are looked at), 1 if it is empty."""
    if not values.size:
        return 1.0
    low, high = np.quantile(values[:: 1 + values.size // (1 << 16)], [0.01, 0.99])
    return float(high - low) or 1.0


def direction_shares(values: FloatArray, height: float) -> FloatArray:
    """Return ``[rows, N_DIRECTIONS]``: the share of each polyline's segments in equal bins of the angle on the chart.

    Args:
        values: Polylines ``[rows, T]``.
        height: Values that the chart spans; it is CHART_ASPECT times as wide as high.
    """
    n_rows, n_segments = len(values), values.shape[1] - 1
    if n_segments < 1:
        return np.zeros((n_rows, N_DIRECTIONS), values.dtype)
    angles = np.linspace(-np.pi / 2, np.pi / 2, N_DIRECTIONS + 1)[1:-1]
    slopes = np.diff(values, axis=1)
    above = np.zeros((n_rows, N_DIRECTIONS + 1), values.dtype)
    above[:, 0] = n_segments
    for i, edge in enumerate(np.tan(angles) * CHART_ASPECT * height / n_segments, start=1):
        above[:, i] = np.count_nonzero(slopes > values.dtype.type(edge), axis=1)
    shares: FloatArray = -np.diff(above, axis=1) / n_segments
    return shares


class _Drawing:
    """A sample as it grows: the order, every point's dissimilarity to it and how full each direction is."""

    def __init__(self, points: Points, directions: FloatArray, distance: Distance, k: int) -> None:
        self.points, self.directions, self.distance, self.k = points, directions, distance, k
        self.nearest = np.full(len(points.squares), np.inf, points.squares.dtype)
        self.fill = np.zeros(N_DIRECTIONS, directions.dtype)
        self.order: list[int] = []

    @property
    def is_full(self) -> bool:
        return len(self.order) >= self.k

    def between(self, points: IntArray, others: IntArray) -> FloatArray:
        return self.distance.dissimilarity(self.points.take(points), self.points.take(others))

    def add(self, point: int) -> None:
        self.order.append(point)
        self.fill += self.directions[point]

    def settle(self, added: list[int]) -> None:
        """Bring ``nearest`` up to date with the samples added since the last call; a sample itself is at -1."""
        if added:
            to_added = self.distance.dissimilarity(self.points, self.points.take(added))
            np.minimum(self.nearest, to_added.min(axis=1), out=self.nearest)
            self.nearest[added] = -1


def maximal_order(
    points: Points,
    directions: FloatArray,
    distance: Distance,
    k: int,
    rng: np.random.Generator,
    *,
    must: IntArray,
    favoured: Favoured,
) -> MaximalOrder:
    """Order ``k`` of the points.

    Args:
        points: As ``distance`` wants them, finite.
        directions: Shares ``[n, N_DIRECTIONS]`` from :func:`direction_shares`.
        distance: An entry of ``DISTANCES``.
        k: Number of samples, at most n.
        rng: Draws the eligible points.
        must: Indices that come first whatever their distances, without repeats.
        favoured: Indices tried before any other at each level.
    """
    drawing = _Drawing(points, directions, distance, k)
    for point in must[:k]:
        drawing.add(int(point))
    if not drawing.order and k:
        drawing.add(int(favoured.points[0]) if len(favoured.points) else int(rng.integers(len(points.squares))))
    drawing.settle(drawing.order)
    reach = np.inf
    while not drawing.is_full:
        reach = float(drawing.nearest.max())
        if reach <= 0:  # only copies of the samples are left
            rest = rng.permutation(np.flatnonzero(drawing.nearest == 0))
            drawing.order.extend(rest[: k - len(drawing.order)].tolist())
            break
        before = len(drawing.order)
        radius = reach * SHRINK**distance.power
        _draw_favoured(drawing, radius, favoured)
        _draw_level(drawing, radius, rng, before)
        drawing.settle(drawing.order[before:])
    return MaximalOrder(np.array(drawing.order, np.int64), reach)


def _draw_favoured(drawing: _Drawing, radius: float, favoured: Favoured) -> None:
    """Add the favoured points that keep their eased distance to all samples and to each other."""
    limits = radius * favoured.ease**drawing.distance.power
    open_ = np.flatnonzero(drawing.nearest[favoured.points] >= limits)
    points, limits = favoured.points[open_], limits[open_]
    apart = drawing.between(points, points)
    alive = np.ones(len(points), np.bool_)
    for i, point in enumerate(points):
        if alive[i] and not drawing.is_full:
            drawing.add(int(point))
            alive &= apart[i] >= limits


def _draw_level(drawing: _Drawing, radius: float, rng: np.random.Generator, start: int) -> None:
    """Add eligible points until none is left at this radius; those added since ``start`` are not settled yet."""
    eligible = np.flatnonzero(drawing.nearest >= radius)
    new = np.array(drawing.order[start:], np.int64)
    while True:
        if len(new) and len(eligible):
            eligible = eligible[drawing.between(eligible, new).min(axis=1) >= radius]
        if drawing.is_full or not len(eligible):
            return
        trials = rng.permutation(eligible) if len(eligible) <= TRIALS else rng.choice(eligible, TRIALS, replace=False)
        count = len(drawing.order)
        _vote(drawing, trials, radius)
        new = np.array(drawing.order[count:], np.int64)


def _vote(drawing: _Drawing, trials: IntArray, radius: float) -> None:
    """Add trials one by one, always the one that heads where the sample is emptiest, while they stay apart."""
    apart = drawing.between(trials, trials)
    shares = drawing.directions[trials]
    alive = np.ones(len(trials), np.bool_)
    while alive.any() and not drawing.is_full:
        winner = int(np.argmin(np.where(alive, shares @ drawing.fill, np.inf)))
        drawing.add(int(trials[winner]))
        alive &= apart[winner] >= radius
        alive[winner] = False
