"""The core of blue-noise sampling: order points so that every prefix is random, even and maximal.

The reach of a sample is the largest distance of any point to its nearest sample. Only points at least ``spacing``
times the reach away from all samples are eligible to be the next one. So in every prefix no point is further from a
sample than 1 / spacing times the smallest distance of two samples. This is dart throwing with a shrinking radius
(McCool and Fiume 1992) in which every dart hits; the darts that miss are what loses outliers.

Of the eligible points a random few are compared. One is preferred if many points lie nearer to it than to any sample,
which keeps samples off the fringes of the population, and if its segments head where the samples' do not.
"""

import math
from typing import NamedTuple

import numpy as np

from dgm_tb.algorithms.polyline_features import BoolArray, Distance, FloatArray, IntArray, Points, squared_distances

# While samples are few a free choice counts most, when they are many an even one: spacing grows with every doubling.
FIRST_SPACING, SPACING_GROWTH, LAST_SPACING = 0.875, 0.02, 0.95
FEW = 32  # samples up to which the first spacing holds
REFRESH = 0.8  # all points are compared with the samples again when the reach has shrunk to this share
TRIALS = 64  # eligible points that are compared
PROBES = 1024  # random points that tell how much lies nearer to a trial
WORTHWHILE = 0.8  # further trials are taken at once if they gain this share of the best one's gain
BALANCE = 2.0  # what direction counts beside the gain
GOLDEN = 0.618034  # its multiples spread evenly over a circle
N_DIRECTIONS = 8
CHART_ASPECT = 2.0  # width over height of the chart in which directions are judged
CHART_RANGES = 16.0  # the chart is as high as all values, but at most so many times the range of the central 98 %


class Favoured(NamedTuple):
    """Points tried before any other, in this order; all ``[favoured]``.

    Attributes:
        points: Their indices.
        spacing: Distance to all samples, over the reach, that suffices.
        turn: They are not tried before the reach has come down to this dissimilarity.
    """

    points: IntArray
    spacing: FloatArray
    turn: FloatArray


class MaximalOrder(NamedTuple):
    """Samples, and the reach of the first 1, 2, ... of them; both ``[k]``.

    The reach is a dissimilarity. It is infinite among samples that came first whatever their distances.
    """

    points: IntArray
    reach: FloatArray


def spacing(n_samples: int) -> float:
    """Return how far from ``n_samples`` the next one must be, over their reach."""
    return min(FIRST_SPACING + SPACING_GROWTH * math.log2(max(1.0, n_samples / FEW)), LAST_SPACING)


def chart_height(values: FloatArray, some: FloatArray) -> float:
    """Return the range of values, or less where that would flatten most lines, judged by ``some``; 1 if it is empty."""
    if not values.size:
        return 1.0
    low, high = np.quantile(some, [0.01, 0.99])
    height = float(values.max() - values.min())
    return min(height, CHART_RANGES * float(high - low)) or height or 1.0


def direction_shares(values: FloatArray, height: float) -> FloatArray:
    """Return ``[rows, N_DIRECTIONS]``: the share of each polyline's segments in equal bins of the angle on the chart.

    Args:
        values: Polylines ``[rows, T]``.
        height: Values that the chart spans; it is CHART_ASPECT times as wide as high.
    """
    n_rows, n_segments = len(values), values.shape[1] - 1
    if n_segments < 1:
        return np.zeros((n_rows, N_DIRECTIONS))
    angles = np.linspace(-np.pi / 2, np.pi / 2, N_DIRECTIONS + 1)[1:-1]
    slopes = np.diff(values, axis=1)
    above = np.zeros((n_rows, N_DIRECTIONS + 1))
    above[:, 0] = n_segments
    for i, edge in enumerate(np.tan(angles) * CHART_ASPECT * height / n_segments, start=1):
        above[:, i] = np.count_nonzero(slopes > values.dtype.type(edge), axis=1)
    shares: FloatArray = -np.diff(above, axis=1) / n_segments
    return shares


def maximal_order(
    points: Points,
    directions: FloatArray,
    ranks: IntArray,
    n_random: int,
    distance: Distance,
    k: int,
    *,
    must: IntArray,
    favoured: Favoured,
) -> MaximalOrder:
    """Order ``k`` of the points.

    Args:
        points: As ``distance`` wants them, finite.
        directions: Shares ``[n, N_DIRECTIONS]`` from :func:`direction_shares`.
        ranks: A number per point, without repeats ``[n]``; those below ``n_random`` are random.
        n_random: Points from this rank on are outliers that were added; they are compared only if there are no others.
        distance: An entry of ``DISTANCES``.
        k: Number of samples, at least 1 and at most n.
        must: Indices that come first whatever their distances, without repeats.
        favoured: Indices tried before any other.
    """
    drawing = _Drawing(points, directions, ranks, n_random, distance, k)
    for point in must[:k].tolist() or favoured.points[:1].tolist() or [int(ranks.argmin())]:
        drawing.add(point, np.inf)
    drawing.probe(0)
    while (reach := drawing.settle()) > 0 and not drawing.is_full:
        _draw_until(drawing, REFRESH**distance.power * reach, favoured)
    copies = np.flatnonzero(drawing.nearest == 0)
    drawing.order.extend(copies[np.argsort(ranks[copies])][: k - len(drawing.order)].tolist())
    drawing.reach.extend([max(reach, 0.0)] * (k - len(drawing.reach)))
    return MaximalOrder(np.array(drawing.order, np.int64), np.array(drawing.reach))


class _Drawing:
    """A sample as it grows: the order, every point's dissimilarity to it and how full each direction is."""

    def __init__(
        self, points: Points, directions: FloatArray, ranks: IntArray, n_random: int, distance: Distance, k: int
    ) -> None:
        self.points, self.directions, self.ranks, self.distance, self.k = points, directions, ranks, distance, k
        self.n_random = n_random
        self.order: list[int] = []
        self.reach: list[float] = []
        self.fill = np.zeros(N_DIRECTIONS)
        self.nearest = np.full(len(ranks), np.inf, points.squares.dtype)
        self.n_settled = 0
        self.probes = points.take(lowest(ranks, PROBES))
        self.to_probes = np.full(len(self.probes.squares), np.inf, points.squares.dtype)

    @property
    def is_full(self) -> bool:
        return len(self.order) >= self.k

    @property
    def spacing(self) -> float:
        """Dissimilarity that the next sample must keep from all others, over that of the reach."""
        return spacing(len(self.order)) ** self.distance.power

    def add(self, point: int, reach: float) -> None:
        """Add a sample that was drawn when the others had this reach."""
        if self.order:
            self.reach.append(reach)
        self.order.append(point)
        self.fill += self.directions[point]

    def settle(self) -> float:
        """Bring ``nearest`` up to date, -1 for samples themselves; return the reach."""
        new = self.order[self.n_settled :]
        for few in (new[i : i + TRIALS] for i in range(0, len(new), TRIALS)):
            to_new = self.distance.dissimilarity(self.points, self.points.take(few))
            np.minimum(self.nearest, to_new.min(axis=1), out=self.nearest)
        self.nearest[new] = -1
        self.n_settled = len(self.order)
        return float(self.nearest.max())

    def probe(self, start: int) -> None:
        """Bring ``to_probes`` up to date with the samples from ``start``."""
        to_new = squared_distances(self.probes, self.points.take(self.order[start:]))
        np.minimum(self.to_probes, to_new.min(axis=1), out=self.to_probes)

    def turns(self, points: IntArray) -> IntArray:
        """Return ranks that begin elsewhere for each number of samples: else points that lost would come again."""
        ranks = self.ranks[points]
        start = int(len(self.order) * GOLDEN % 1 * self.n_random)
        return np.where(ranks < self.n_random, (ranks - start) % self.n_random, ranks)

    def probed(self, trials: Points) -> FloatArray:
        """Return squared Euclidean distances ``[trials, probes]``, or what gains nothing once probes are too few."""
        if len(self.order) > PROBES // 2:
            return np.broadcast_to(self.to_probes, (len(trials.squares), len(self.to_probes)))
        return squared_distances(trials, self.probes)


def _draw_until(drawing: _Drawing, end: float, favoured: Favoured) -> None:
    """Add samples until the reach is below ``end``; only points that can become eligible before are looked at."""
    may_enter = drawing.nearest >= FIRST_SPACING**drawing.distance.power * end
    may_enter[favoured.points] = True
    ids = np.flatnonzero(may_enter)
    points, nearest = drawing.points.take(ids), drawing.nearest[ids]
    favoured = favoured._replace(points=np.searchsorted(ids, favoured.points))
    while not drawing.is_full and (reach := float(nearest.max())) >= end and reach > 0:
        new = _favoured(drawing, points, nearest, favoured, reach)
        if new:
            start = len(drawing.order)
            for i in new[: drawing.k - start]:
                drawing.add(int(ids[i]), reach)
            drawing.probe(start)
        elif (favoured.turn < reach).any():  # before their turn something is missing: the farthest point
            new = _voted(drawing, points, ids, np.array([nearest.argmax()]), reach)
        else:
            new = _voted(drawing, points, ids, np.flatnonzero(nearest >= drawing.spacing * reach), reach)
        np.minimum(nearest, drawing.distance.dissimilarity(points, points.take(new)).min(axis=1), out=nearest)
        nearest[new] = -1


def _favoured(drawing: _Drawing, points: Points, nearest: FloatArray, favoured: Favoured, reach: float) -> list[int]:
    """Return favoured points whose turn it is, in order, that keep their spacing to all samples and to each other."""
    limits = favoured.spacing**drawing.distance.power * reach
    is_open = (nearest[favoured.points] >= limits) & (favoured.turn >= reach)
    candidates, limits = favoured.points[is_open], limits[is_open]
    new: list[int] = []
    if len(candidates):
        apart = drawing.distance.dissimilarity(points.take(candidates), points.take(candidates))
        is_left = np.ones(len(candidates), np.bool_)
        for i, candidate in enumerate(candidates.tolist()):
            if is_left[i]:
                new.append(candidate)
                is_left &= apart[i] >= limits
    return new


def _voted(drawing: _Drawing, points: Points, ids: IntArray, eligible: IntArray, reach: float) -> list[int]:
    """Add the best of a few ``eligible`` points, and others nearly as good that keep apart; return their indices."""
    few = eligible[lowest(drawing.turns(ids[eligible]), TRIALS)]
    trials = points.take(few)
    apart = drawing.distance.dissimilarity(trials, trials) if len(few) > 1 else np.zeros((1, 1))
    to_probes, shares = drawing.probed(trials), drawing.directions[ids[few]]
    limit, enough = drawing.spacing * reach, 0.0
    is_left: BoolArray = np.ones(len(few), np.bool_)
    new: list[int] = []
    while is_left.any() and not drawing.is_full:
        gains = drawing.to_probes.sum() - np.minimum(drawing.to_probes, to_probes).sum(axis=1)
        best = max(0.0, float(gains[is_left].max()))
        if best < enough:
            break
        enough = enough or WORTHWHILE * best
        scores = gains / (best or 1.0) + BALANCE * (shares @ _emptiness(drawing.fill))
        winner = int(np.where(is_left, scores, -np.inf).argmax())
        drawing.add(int(ids[few[winner]]), reach)
        np.minimum(drawing.to_probes, to_probes[winner], out=drawing.to_probes)
        new.append(int(few[winner]))
        is_left &= apart[winner] >= limit
        is_left[winner] = False
    return new


def _emptiness(fill: FloatArray) -> FloatArray:
    """Return how surprising a segment of each direction would be, 1 if all are equally frequent ``[N_DIRECTIONS]``."""
    shares = fill / max(float(fill.sum()), 1.0)
    surprise: FloatArray = -np.log(shares + 1e-3) / np.log(N_DIRECTIONS)
    return surprise


def lowest(ranks: IntArray, count: int) -> IntArray:
    """Return the indices of the ``count`` lowest ranks in their order, all if there are fewer."""
    found = np.argpartition(ranks, count)[:count] if len(ranks) > count else np.arange(len(ranks))
    return found[np.argsort(ranks[found])]
