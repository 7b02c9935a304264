"""Which of many polylines to draw: blue-noise order, after Liu et al. 2018 (DGMTracker).

A blue-noise sample is random and even: no two samples are close, no polyline is far from a sample. Dense regions thin
out, outliers stay. The order is progressive: every prefix is such a sample of its own, so a density slider needs no
second request.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dgm_tb.algorithms.polyline_features import DISTANCES, BoolArray, IntArray, finite_rows, n_living, robust_scale
from dgm_tb.algorithms.pool import population_order
from dgm_tb.algorithms.population import Population

Ids = Sequence[int] | npt.NDArray[np.integer[Any]]


def blue_noise_order(
    polylines: npt.NDArray[Any],
    k: int,
    *,
    rng: np.random.Generator,
    must: Ids = (),
    previous: Ids = (),
    distance: str = "euclidean",
) -> IntArray:
    """Order polylines so that every prefix is a blue-noise sample of them.

    In every prefix no polyline is further from a sample than 1.15 times the smallest distance between two samples
    (``must`` and ``previous`` may lie closer together).

    Polylines with a non-finite value are a population of their own and alternate with the finite ones: they are never
    crowded out, and never take more than half of the sample while finite polylines remain. Snapshots after which all
    polylines are lost tell nothing of any of them and do not count.

    The unit of the values does not matter. Of up to ``pool.EXACT_ROWS`` polylines the order of the rows does not matter
    either, and a shorter order is the beginning of a longer one.

    Args:
        polylines: Training dynamics ``[n, T]`` of any real dtype, in memory or memory-mapped (read in blocks of rows).
        k: Length of the order, at most; fewer if there are fewer polylines.
        rng: Makes every random choice; the same seed gives the same order.
        must: Ids that come first, in this order, whatever their distances.
        previous: Ids drawn before; each stays unless it is redundant by a margin.
        distance: ``"euclidean"`` (D2) or ``"segments"`` (D1, the paper's; slower), see ``polyline_features``.

    Returns:
        ``min(k, n)`` distinct ids, int64.

    Raises:
        ValueError: If ``polylines`` is not a matrix, ``k`` is negative, an id is out of range or the distance is
            unknown.

    Source: Liu et al. 2018 (trial by direction, distance of polylines). Differs in drawing only polylines that are
    far enough from all samples instead of throwing darts, so that no outlier is missed; see ``maximal_order``.
    """
    polylines, must_ids, previous_ids = _checked(polylines, k, must, previous, distance)
    n = len(polylines)
    k, must_ids = min(k, n), must_ids[:k]
    if k == 0:
        return must_ids
    finite = finite_rows(polylines)
    if not finite.any():
        polylines = polylines[:, : n_living(polylines)]
        finite = finite_rows(polylines)
    scale = robust_scale(polylines, rng)
    orders = []
    for is_finite, share in _shares(finite, must_ids, k - len(must_ids)):
        ids = np.flatnonzero(finite == is_finite)
        pinned, before = must_ids[finite[must_ids] == is_finite], previous_ids[finite[previous_ids] == is_finite]
        population = Population(polylines, ids, is_finite, scale, DISTANCES[distance])
        order = population_order(population, len(pinned) + share, rng, must=pinned, previous=before)
        orders.append(order[len(pinned) :])
    return np.concatenate([must_ids, _alternated(*orders)])


def random_order(
    polylines: npt.NDArray[Any],
    k: int,
    *,
    rng: np.random.Generator,
    must: Ids = (),
    previous: Ids = (),
    distance: str = "euclidean",
) -> IntArray:
    """Order polylines at random, ``must`` first and ``previous`` next: the baseline of :func:`blue_noise_order`."""
    polylines, must_ids, previous_ids = _checked(polylines, k, must, previous, distance)
    first = np.concatenate([must_ids, previous_ids[~np.isin(previous_ids, must_ids)]])
    rest = rng.permutation(np.setdiff1d(np.arange(len(polylines)), first))
    return np.concatenate([first, rest])[:k]


SAMPLERS: dict[str, Callable[..., IntArray]] = {"blue_noise": blue_noise_order, "random": random_order}


def _checked(
    polylines: npt.NDArray[Any], k: int, must: Ids, previous: Ids, distance: str
) -> tuple[npt.NDArray[Any], IntArray, IntArray]:
    """Return polylines as an array and both id lists as int64 without repeats, or raise ValueError."""
    polylines = np.asarray(polylines)
    if polylines.ndim != 2 or polylines.dtype.kind not in "fiub":
        raise ValueError(
            f"polylines must be a real matrix [neurons, snapshots]; got {polylines.dtype} {polylines.shape}; "
            "pass one row per neuron"
        )
    if k < 0:
        raise ValueError(f"k must be 0 or more polylines; got {k}; pass the number of polylines to draw")
    if distance not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}; pass one of {', '.join(map(repr, DISTANCES))}")
    return polylines, _checked_ids("must", must, len(polylines)), _checked_ids("previous", previous, len(polylines))


def _checked_ids(name: str, ids: Ids, n: int) -> IntArray:
    unique = np.array(list(dict.fromkeys(int(i) for i in ids)), np.int64)
    if len(unique) and not 0 <= unique.min() <= unique.max() < n:
        raise ValueError(
            f"{name} holds ids {unique.min()}..{unique.max()}; there are {n} polylines; pass ids in 0..{n - 1}"
        )
    return unique


def _shares(finite: BoolArray, must: IntArray, n_free: int) -> list[tuple[bool, int]]:
    """Return (is finite?, samples to draw beyond ``must``) for the non-finite and the finite polylines."""
    finite_free = int(np.count_nonzero(finite) - np.count_nonzero(finite[must]))
    lost_free = len(finite) - len(must) - finite_free
    lost_share = min(lost_free, max((n_free + 1) // 2, n_free - finite_free))
    return [(False, lost_share), (True, n_free - lost_share)]


def _alternated(first: IntArray, second: IntArray) -> IntArray:
    """Return first[0], second[0], first[1], ...; the longer one's rest at the end."""
    ranks = np.concatenate([2 * np.arange(len(first)), 2 * np.arange(len(second)) + 1])
    return np.concatenate([first, second])[np.argsort(ranks)]
