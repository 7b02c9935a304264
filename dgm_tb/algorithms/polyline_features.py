"""Polylines as points: coordinates in which the distance of two polylines is plain arithmetic.

A polyline is the piecewise linear curve through one neuron's values at T snapshots. Corresponding segments of two
polylines differ by a linear piece with end points ``a`` and ``b``; its L2 norm is
``d = sqrt((a² + ab + b²) / 3) = sqrt(midpoint² + slope² / 12)``. From it follow the two distances

* D2, ``euclidean``: the root of the summed ``d²``, which is the L2 distance of the two curves, and
* D1, ``segments``: the sum of ``d``, the distance of Liu et al. 2018 ("sum of distances between corresponding
  segments").
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Values further from the median polyline than this many robust spreads are compressed logarithmically, so that their
# squares do not overflow. Everything nearer is exact.
LINEAR_SPREADS = {np.dtype(np.float32): 1e15, np.dtype(np.float64): 1e100}
# Distance, in robust spreads per snapshot, between a polyline that is non-finite throughout and one that never is.
LANE_SPREADS = 32.0
SCALE_ROWS = 256  # rows that estimate the median polyline and the spread, if not all are few
SCALE_ELEMENTS = 1 << 18
BLOCK_ELEMENTS = 1 << 19  # 2 MB of float32: one block stays in the cache through every pass over it


class Points(NamedTuple):
    """Polylines as features ``[n, f]`` with their squared lengths ``[n]``, which every Euclidean distance needs."""

    features: FloatArray
    squares: FloatArray

    @classmethod
    def of(cls, features: FloatArray) -> "Points":
        """Return the features with their squared lengths."""
        return cls(features, np.einsum("ij,ij->i", features, features))

    def take(self, indices: IntArray | list[int] | slice) -> "Points":
        """Return the points at the indices."""
        return Points(self.features[indices], self.squares[indices])

    def joined(self, other: "Points") -> "Points":
        """Return these points followed by the others."""
        return Points(np.vstack([self.features, other.features]), np.concatenate([self.squares, other.squares]))


class Distance(NamedTuple):
    """One polyline distance: how to turn rows into features and how to compare points.

    Attributes:
        features: From values ``[rows, T]`` and lanes ``[rows, lanes]``, further numbers to compare by their
            difference, to features ``[rows, f]``. The Euclidean distance of features is D2, and at most the distance.
        dissimilarity: From points and others to the distance raised to ``power`` ``[points, others]``.
        nearly: From points and others to the dissimilarity to a near one of the first 1, 2, ... others, usually the
            nearest ``[points, others]``.
        power: It spares roots.
        bound: From ``f`` to the largest ratio of the squared distance to the squared Euclidean distance of features.
    """

    features: Callable[[FloatArray, FloatArray], FloatArray]
    dissimilarity: Callable[[Points, Points], FloatArray]
    nearly: Callable[[Points, Points], FloatArray]
    power: int
    bound: Callable[[int], int]


def squared_distances(points: Points, others: Points) -> FloatArray:
    """Return squared Euclidean distances ``[points, others]``; what rounding alone can produce counts as zero."""
    squares = points.features @ (-2 * others.features).T
    sums = points.squares[:, None] + others.squares
    squares += sums
    sums *= 8 * np.finfo(sums.dtype).eps
    squares[squares < sums] = 0
    return squares


def segment_distances(points: Points, others: Points) -> FloatArray:
    """Return the summed segment distances D1 ``[points, others]`` of features made by :func:`segment_features`."""
    sums = np.empty((len(points.features), len(others.features)), points.features.dtype)
    for block in row_blocks(*points.features.shape):
        for j, other in enumerate(others.features):
            sums[block, j] = _summed_lengths(points.features[block] - other)
    return sums


def _summed_lengths(differences: FloatArray) -> FloatArray:
    """Return the sum of the lengths of segments ``[rows]`` from differences of features, which are overwritten."""
    differences *= differences
    lengths = differences[:, : differences.shape[1] // 2]
    lengths += differences[:, differences.shape[1] // 2 :]
    sums: FloatArray = np.sqrt(lengths, out=lengths).sum(axis=1)
    return sums


def nearest_euclidean(points: Points, others: Points) -> FloatArray:
    """Return the squared distance to the nearest of the first 1, 2, ... others ``[points, others]``."""
    squares = squared_distances(points, others)
    return np.minimum.accumulate(squares, axis=1, out=squares)


def nearly_nearest_by_segments(points: Points, others: Points) -> FloatArray:
    """Return D1 to that of the first 1, 2, ... others ``[points, others]`` which is nearest in D2: a few pairs each."""
    squares = nearest_euclidean(points, others)
    is_nearer = np.diff(squares, axis=1, prepend=np.inf) < 0
    is_nearer[:, 0] = True
    sums = np.full(squares.shape, np.inf, squares.dtype)
    rows, columns = np.nonzero(is_nearer)
    for block in row_blocks(len(rows), points.features.shape[1]):
        differences = points.features[rows[block]] - others.features[columns[block]]
        sums[rows[block], columns[block]] = _summed_lengths(differences)
    return np.minimum.accumulate(sums, axis=1, out=sums)


def euclidean_features(values: FloatArray, lanes: FloatArray) -> FloatArray:
    """Return features ``[rows, T + lanes]`` whose Euclidean distance is D2 (lanes are appended as they are).

    With ``e`` the difference of two polylines, D2² = eᵀMe where M is tridiagonal (1/3 at both ends of the diagonal,
    else 2/3; 1/6 beside it). Its Cholesky factor is bidiagonal, so ``Lᵀe`` costs one multiply-add per value.
    """
    n_rows, n_snapshots = values.shape
    features = np.empty((n_rows, n_snapshots + lanes.shape[1]), values.dtype)
    features[:, n_snapshots:] = lanes
    diagonal, beside = _cholesky(n_snapshots)
    np.multiply(values, diagonal.astype(values.dtype), out=features[:, :n_snapshots])
    features[:, : n_snapshots - 1] += values[:, 1:] * beside.astype(values.dtype)
    return features


def euclidean_products(values: FloatArray) -> FloatArray:
    """Return ``My`` of every row ``y``: its dot product with a row ``x`` is that of their Euclidean features."""
    products = values * (1 if values.shape[1] == 1 else 2 / 3)
    if values.shape[1] > 1:
        products[:, [0, -1]] /= 2
        products[:, 1:] += values[:, :-1] / 6
        products[:, :-1] += values[:, 1:] / 6
    return products


def euclidean_squares(values: FloatArray) -> FloatArray:
    """Return ``xᵀMx`` of every row ``x``, the squared length of its Euclidean features, without making them."""
    squares: FloatArray = np.einsum("ij,ij->i", values, values)
    if values.shape[1] > 1:
        squares *= 2
        squares += np.einsum("ij,ij->i", values[:, 1:], values[:, :-1])
        squares -= values[:, 0] ** 2 + values[:, -1] ** 2
        squares /= 3
    return squares


@functools.lru_cache(maxsize=64)
def _cholesky(n_snapshots: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return diagonal ``[T]`` and subdiagonal ``[T - 1]`` of M's Cholesky factor; one snapshot is a plain number."""
    diagonal, beside = np.ones(n_snapshots), np.empty(max(0, n_snapshots - 1))
    carried = 0.0
    for t in range(n_snapshots if n_snapshots > 1 else 0):
        diagonal[t] = np.sqrt((1 / 3 if t in (0, n_snapshots - 1) else 2 / 3) - carried)
        if t < n_snapshots - 1:
            beside[t] = (1 / 6) / diagonal[t]
            carried = beside[t] ** 2
    return diagonal, beside


def segment_features(values: FloatArray, lanes: FloatArray) -> FloatArray:
    """Return features ``[rows, 2 m]``: midpoints of the segments, then their slopes / √12.

    Lanes are flat segments, weighed by √m: of curves that differ evenly D1 is √m times D2, for which lanes are scaled.
    """
    lanes = lanes * np.sqrt(max(1, values.shape[1] - 1)).astype(values.dtype)
    flat = np.zeros_like(lanes)
    if values.shape[1] < 2:  # a single snapshot is one flat segment
        return np.hstack([values, lanes, np.zeros_like(values), flat])
    slopes = np.diff(values, axis=1)
    midpoints = values[:, :-1] + slopes / 2
    slopes /= np.sqrt(12).astype(values.dtype)
    return np.hstack([midpoints, lanes, slopes, flat])


DISTANCES: dict[str, Distance] = {
    "euclidean": Distance(euclidean_features, squared_distances, nearest_euclidean, 2, lambda n_features: 1),
    "segments": Distance(
        segment_features, segment_distances, nearly_nearest_by_segments, 1, lambda n_features: n_features // 2
    ),
}


class Scale(NamedTuple):
    """The median polyline ``[T]`` and the robust spread of values around it (1.4826 times their median deviation)."""

    centre: npt.NDArray[np.float64]
    spread: float


def robust_scale(polylines: npt.NDArray[Any], rng: np.random.Generator) -> Scale:
    """Estimate centre and spread from all rows if they are few, else from 256 random ones.

    Constant or empty polylines get the spread 1.
    """
    n_rows = len(polylines)
    is_small = polylines.size <= SCALE_ELEMENTS or n_rows <= SCALE_ROWS
    rows = np.arange(n_rows) if is_small else np.sort(rng.choice(n_rows, SCALE_ROWS, replace=False))
    values = polylines[rows].astype(np.float64)
    finite = np.isfinite(values)
    whole = finite.all(axis=1)
    if whole.any():
        values, finite = values[whole], finite[whole]
        centre = np.median(values, axis=0)
    else:
        columns = [column[kept] for column, kept in zip(values.T, finite.T, strict=True)]
        centre = np.array([np.median(column) if column.size else 0.0 for column in columns])
    deviations = np.abs(values - centre)[finite]
    spread = 1.4826 * float(np.median(deviations)) if deviations.size else 0.0
    if not 0 < spread < np.inf:  # most values equal the median: take the spread of those that do not
        positive = deviations[(deviations > 0) & np.isfinite(deviations)]
        spread = float(np.median(positive)) if positive.size else _largest_deviation(polylines, centre)
    return Scale(centre, spread)


def _largest_deviation(polylines: npt.NDArray[Any], centre: npt.NDArray[np.float64]) -> float:
    """Return the largest finite deviation from the centre in all rows, 1 if there is none."""
    largest = 0.0
    for block in row_blocks(len(polylines), polylines.shape[1]):
        deviations = np.abs(polylines[block].astype(np.float64) - centre)
        largest = max(largest, float(np.max(deviations, initial=0.0, where=np.isfinite(deviations))))
    return largest or 1.0


def row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Yield slices of rows that cover ``n_rows`` in blocks of about 1 MB."""
    step = max(16, BLOCK_ELEMENTS // max(1, n_columns))
    for start in range(0, n_rows, step):
        yield slice(start, min(n_rows, start + step))


def take_rows(polylines: npt.NDArray[Any], ids: IntArray) -> npt.NDArray[Any]:
    """Return ``polylines[ids]`` for ascending ids, as a view where they are consecutive."""
    if len(ids) and ids[-1] - ids[0] == len(ids) - 1:
        return polylines[int(ids[0]) : int(ids[-1]) + 1]
    return polylines[ids]


def finite_rows(polylines: npt.NDArray[Any]) -> BoolArray:
    """Return a flag ``[n]`` per row: has it only finite values? One streamed pass."""
    finite = np.empty(len(polylines), np.bool_)
    for block in row_blocks(*polylines.shape):
        with np.errstate(over="ignore", invalid="ignore"):
            sums = polylines[block].sum(axis=1, dtype=np.result_type(polylines.dtype, np.float32))
        finite[block] = np.isfinite(sums)
        odd = block.start + np.flatnonzero(~finite[block])  # non-finite, or only the sum overflowed
        finite[odd] = np.isfinite(polylines[odd]).all(axis=1)
    return finite


def n_living(polylines: npt.NDArray[Any]) -> int:
    """Return after how many snapshots no polyline has a finite value any more."""
    is_finite = np.zeros(polylines.shape[1], np.bool_)
    for block in row_blocks(*polylines.shape):
        is_finite |= np.isfinite(polylines[block]).any(axis=0)
    return int(np.flatnonzero(is_finite)[-1]) + 1 if is_finite.any() else 0


def standardised(rows: npt.NDArray[Any], scale: Scale, dtype: npt.DTypeLike) -> FloatArray:
    """Return rows ``[rows, T]`` in robust spreads around the centre, non-finite values filled.

    A non-finite value takes the last finite one before it (else the first after it, else the centre), so a polyline
    that dies stays comparable to those that do not. Rows that float32 cannot hold are computed in float64.
    """
    values = linearly_standardised(rows, scale, dtype)
    limit = LINEAR_SPREADS[values.dtype]
    with np.errstate(over="ignore", invalid="ignore"):
        odd = np.flatnonzero(~(np.einsum("ij,ij->i", values, values) < limit**2))
    if len(odd):
        filled = _filled(rows[odd].astype(np.float64), scale.centre)
        with np.errstate(over="ignore", invalid="ignore"):
            values[odd] = _compressed((filled - scale.centre) / scale.spread, limit)
    return values


def linearly_standardised(rows: npt.NDArray[Any], scale: Scale, dtype: npt.DTypeLike) -> FloatArray:
    """Return rows ``[rows, T]`` in robust spreads around the centre; what ``dtype`` cannot hold is not finite."""
    work = np.dtype(dtype if 1e-30 < scale.spread < 1e30 else np.float64)
    centre = scale.centre.astype(work if rows.dtype in (np.float32, np.float16) else np.float64)
    values: FloatArray = np.empty(rows.shape, work)
    with np.errstate(over="ignore", invalid="ignore"):
        np.subtract(rows, centre, out=values, casting="same_kind")
        values *= 1 / scale.spread
        return values.astype(dtype, copy=False)


def _compressed(values: npt.NDArray[np.float64], limit: float) -> npt.NDArray[np.float64]:
    """Return values unchanged up to the limit and logarithmic (with equal slope there) beyond."""
    values = np.clip(values, -1e300, 1e300)
    sizes = np.maximum(np.abs(values) / limit, 1.0)
    far: npt.NDArray[np.float64] = np.sign(values) * limit * (1 + np.log(sizes))
    return np.where(sizes > 1, far, values)


def _filled(rows: npt.NDArray[np.float64], centre: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Carry the last finite value over non-finite ones; lead in with the first finite; all lost: the centre."""
    finite = np.isfinite(rows)
    steps = np.where(finite, np.arange(rows.shape[1]), -1)
    np.maximum.accumulate(steps, axis=1, out=steps)
    source = np.where(steps < 0, finite.argmax(axis=1)[:, None], steps)
    filled = np.take_along_axis(rows, source, axis=1)
    return np.where(finite.any(axis=1, keepdims=True), filled, centre)


def nonfinite_lanes(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return ``[rows, 3]``: when non-finite values begin, their share, and the share of +Inf minus that of -Inf.

    The unit is robust spreads, scaled so that full range weighs LANE_SPREADS in D2 of T snapshots.
    """
    lost = ~np.isfinite(rows)
    n_snapshots = rows.shape[1]
    onset = np.where(lost.any(axis=1), lost.argmax(axis=1), n_snapshots) / n_snapshots
    infinite = (rows == np.inf).mean(axis=1) - (rows == -np.inf).mean(axis=1)
    lanes: npt.NDArray[np.float64] = np.stack([onset, lost.mean(axis=1), infinite], axis=1)
    lanes *= LANE_SPREADS * np.sqrt(n_snapshots)
    return lanes
