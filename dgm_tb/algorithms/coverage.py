"""How well every prefix of a sample covers polylines that are too many to hold."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dgm_tb.algorithms.maximal_order import MaximalOrder
from dgm_tb.algorithms.polyline_features import (
    FloatArray,
    IntArray,
    Points,
    euclidean_products,
    euclidean_squares,
    row_blocks,
)
from dgm_tb.algorithms.population import Population

# What rounding to float32 can add to a squared distance, over a row's squared length.
NOISE = np.float32(32 * np.finfo(np.float32).eps)
LARGEST = 1e30  # ratio that is not infinite
COPIES = 1e-30  # stands for the limit 0, when all other rows should be copies of samples
N_DIRECTIONS = 32  # of a sketch; shorter polylines are not worth one


class Prefixes(NamedTuple):
    """The first 1, 2, ... samples and how far from them a row may be.

    Attributes:
        products: Their dot product with a row is -2 times that of the features ``[k, f]``, float32.
        squares: Squared lengths of the samples' features ``[k]``, float32.
        limits: Squared distance within which each prefix should have every row ``[k]``.
    """

    products: FloatArray
    squares: FloatArray
    limits: FloatArray

    @classmethod
    def of(cls, products: FloatArray, squares: FloatArray, limits: FloatArray) -> "Prefixes":
        """Return prefixes of samples given in any precision."""
        with np.errstate(over="ignore"):
            return cls(products.astype(np.float32), squares.astype(np.float32), limits)


def farness(rows: Points, prefixes: Prefixes) -> FloatArray:
    """Return the largest ratio of a row's squared distance to a prefix over that prefix' limit ``[rows]``.

    It is infinite where float32 cannot tell.
    """
    strictest = np.float32(1 / prefixes.limits[prefixes.limits > COPIES].min(initial=np.inf))
    with np.errstate(over="ignore", invalid="ignore"):
        to_samples = prefixes.products @ rows.features.T
        to_samples += prefixes.squares[:, None]
        lengths = rows.squares * (1 - NOISE)
        nearest = np.full(len(lengths), np.inf, np.float32)
        farthest, ratio = np.zeros(len(lengths), np.float32), np.empty(len(lengths), np.float32)
        for to_sample, limit in zip(to_samples, prefixes.limits.tolist(), strict=True):
            np.minimum(nearest, to_sample, out=nearest)
            if limit < np.inf:
                np.add(nearest, lengths, out=ratio)
                ratio *= 1 / max(limit, COPIES)
                np.maximum(farthest, ratio, out=farthest)
        farthest[~(rows.squares * NOISE * strictest < 0.05) | np.isnan(farthest)] = np.inf
    return farthest


class Survey:
    """All polylines of a population, to be compared with the prefixes of a sample again and again.

    Most are compared by a *sketch*: coordinates in the few directions in which polylines differ most, and the length of
    the rest, which bound the distance of two from above. Only those that may still be far are read again.
    """

    def __init__(self, population: Population, some: IntArray) -> None:
        """Take a population and ascending ids of ``some`` that tell in which directions polylines differ."""
        self.population = population
        self.sketch: Points | None = None
        if population.is_finite and population.n_snapshots > 2 * N_DIRECTIONS:
            self.directions = euclidean_products(_principal_directions(population.read(some, np.float64)[0]))
            self.sketch = self._sketched()

    def farness(self, drawn: MaximalOrder, evenness: float, enough: float) -> tuple[FloatArray, FloatArray]:
        """Return the limit of each prefix, and how far polylines are.

        Args:
            drawn: Samples' ids and their reach, which is the least limit.
            evenness: Limit over the smallest distance of two samples of the prefix.
            enough: How far polylines are is exact where it is larger.

        Returns:
            Limits ``[k]``, dissimilarities, and the largest ratio of a polyline's distance to a prefix over its limit
            ``[ids]``.
        """
        distance, places = self.population.distance, np.argsort(np.argsort(drawn.points))
        values, points = self.population.read(np.sort(drawn.points), np.float64)
        values, samples = values[places], points.take(places)
        limits = np.maximum(drawn.reach, evenness**distance.power * _closest(distance.dissimilarity(samples, samples)))
        far = self._bounded_farness(values, samples, limits, enough)
        for dissimilarity in (distance.nearly, distance.dissimilarity):
            is_unclear = np.isinf(far) if distance.power == 2 else far > enough**2
            far[is_unclear] = self._exact_farness(self.population.ids[is_unclear], samples, limits, dissimilarity)
        return limits, np.sqrt(far)

    def _bounded_farness(self, values: FloatArray, samples: Points, limits: FloatArray, enough: float) -> FloatArray:
        """Return squares of ratios as :meth:`farness` does, or more; for D2 exact where they exceed ``enough``."""
        ids, distance = self.population.ids, self.population.distance
        bounds = limits ** (2 / distance.power) / distance.bound(samples.features.shape[1])
        far: FloatArray = np.full(len(ids), np.inf, np.float32)
        if self.sketch is not None:
            coordinates = _coordinates(Points(values, samples.squares), self.directions)
            coordinates[:, :-1] *= -1  # the lengths of the rests add up, at worst
            prefixes = Prefixes.of(2 * coordinates, samples.squares, bounds)
            for block in row_blocks(len(ids), len(limits)):
                far[block] = farness(self.sketch.take(block), prefixes)
        prefixes = Prefixes.of(-2 * self.population.products(values, samples), samples.squares, bounds)
        unclear = np.flatnonzero(far > enough**2)
        for block in row_blocks(len(unclear), self.population.n_snapshots):
            far[unclear[block]] = farness(self.population.read_raw(ids[unclear[block]]), prefixes)
        return far

    def _exact_farness(
        self, ids: IntArray, samples: Points, limits: FloatArray, dissimilarity: Callable[[Points, Points], FloatArray]
    ) -> FloatArray:
        """Return squares of ratios as :meth:`farness` does, for ascending ids, from any measure of dissimilarity."""
        far: FloatArray = np.empty(len(ids))
        for block in row_blocks(len(ids), self.population.n_snapshots):
            nearest = dissimilarity(self.population.read(ids[block], np.float64)[1], samples)
            np.minimum.accumulate(nearest, axis=1, out=nearest)
            far[block] = (nearest / np.maximum(limits, COPIES)).max(axis=1)
        ratios: FloatArray = np.minimum(far ** (2 / self.population.distance.power), LARGEST)
        return ratios

    def _sketched(self) -> Points:
        ids, directions = self.population.ids, self.directions.astype(np.float32)
        sketch = Points(np.empty((len(ids), 1 + len(directions)), np.float32), np.empty(len(ids), np.float32))
        for block in row_blocks(len(ids), self.population.n_snapshots):
            rows = self.population.read_raw(ids[block])
            sketch.features[block] = _coordinates(rows, directions)
            sketch.squares[block] = rows.squares
        return sketch


def _closest(apart: FloatArray) -> FloatArray:
    """Return the smallest dissimilarity of two of the first 1, 2, ... samples ``[k]`` from all of them ``[k, k]``."""
    closest: FloatArray = np.where(np.tri(len(apart), k=-1, dtype=np.bool_), apart, np.inf).min(axis=1)
    return np.minimum.accumulate(closest, out=closest)


def _principal_directions(values: FloatArray) -> FloatArray:
    """Return up to N_DIRECTIONS rows whose Euclidean features are orthonormal and span most of those of ``values``.

    Rows longer than the median count like it: else a few outliers would take all directions.
    """
    lengths = np.sqrt(euclidean_squares(values))
    values = values / np.maximum(lengths, np.median(lengths) or 1.0)[:, None]
    strengths, mixtures = np.linalg.eigh(values @ euclidean_products(values).T)
    is_strong = strengths > 1e-9 * max(strengths[-1], COPIES)
    strengths, mixtures = strengths[is_strong][-N_DIRECTIONS:], mixtures[:, is_strong][:, -N_DIRECTIONS:]
    directions: FloatArray = (mixtures / np.sqrt(strengths)).T @ values
    return directions


def _coordinates(rows: Points, directions: FloatArray) -> FloatArray:
    """Return the dot products of rows with the directions and, last, the length of the rest ``[rows, q + 1]``."""
    coordinates = np.empty((len(rows.features), 1 + len(directions)), directions.dtype)
    inside = coordinates[:, :-1]
    with np.errstate(over="ignore", invalid="ignore"):
        np.matmul(rows.features, directions.T, out=inside)
        rests = rows.squares - np.einsum("ij,ij->i", inside, inside)
        coordinates[:, -1] = np.sqrt(np.maximum(rests, 0) + NOISE * rows.squares)
    return coordinates
