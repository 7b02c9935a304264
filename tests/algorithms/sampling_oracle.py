"""Slow replicas, written straight from the definitions, of what the sampler promises; test data with known answers."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

WIDTH, HEIGHT = 400, 200  # pixels of the chart on which directions, overplotting and coverage are judged


def segment_lengths(difference: Array) -> Array:
    """Norms of the linear pieces with the end points a, b: sqrt((a² + ab + b²) / 3); [..., T] -> [..., T - 1]."""
    if difference.shape[-1] == 1:
        return np.abs(difference)
    a, b = difference[..., :-1], difference[..., 1:]
    return np.sqrt(np.maximum(a * a + a * b + b * b, 0) / 3)


def polyline_distances(polylines: Array, samples: Array, distance: str) -> Array:
    """D1 ("segments") or D2 ("euclidean") of every polyline to every sample [n, k], in float64."""
    polylines, samples = polylines.astype(np.float64), samples.astype(np.float64)
    columns = []
    for sample in samples:
        lengths = segment_lengths(polylines - sample)
        columns.append(lengths.sum(axis=1) if distance == "segments" else np.sqrt((lengths**2).sum(axis=1)))
    return np.stack(columns, axis=1)


class Coverage(NamedTuple):
    farthest: float  # largest distance of any polyline to its nearest sample
    closest: float  # smallest distance of two samples
    outliers: float  # largest distance of a planted outlier to its nearest sample


def coverage(polylines: Array, ids: Array, distance: str = "euclidean", outliers: Array | tuple[()] = ()) -> Coverage:
    to_samples = polyline_distances(polylines, polylines[ids], distance)
    between = to_samples[ids]
    np.fill_diagonal(between, np.inf)
    nearest = to_samples.min(axis=1)
    return Coverage(float(nearest.max()), float(between.min()), float(nearest[list(outliers)].max(initial=0.0)))


def evenness(polylines: Array, ids: Array, distance: str = "euclidean") -> Array:
    """Of the first 2, 3, ... samples: largest distance of any polyline to one over the smallest between two [k - 1]."""
    to_samples = polyline_distances(polylines, polylines[ids], distance)
    between = np.where(np.tri(len(ids), k=-1, dtype=bool), to_samples[ids], np.inf).min(axis=1)
    farthest = np.minimum.accumulate(to_samples, axis=1).max(axis=0)
    closest = np.minimum.accumulate(between)
    ratios: Array = np.divide(farthest, closest, out=np.ones(len(ids)), where=farthest > 0)[1:]
    return ratios


def direction_histogram(polylines: Array, n_bins: int = 8) -> Array:
    """Share of each polyline's segments per bin of the angle on the chart that fits all polylines [n, n_bins]."""
    per_step, per_unit = WIDTH / (polylines.shape[1] - 1), HEIGHT / (polylines.max() - polylines.min())
    angles = np.arctan2(np.diff(polylines.astype(np.float64), axis=1) * per_unit, per_step)
    bins = np.clip(((angles / np.pi + 0.5) * n_bins).astype(int), 0, n_bins - 1)
    return np.stack([(bins == b).mean(axis=1) for b in range(n_bins)], axis=1)


def direction_entropy(polylines: Array, ids: Array) -> float:
    """Entropy of the samples' directions over log(8): 1 if all directions are equally frequent."""
    shares = direction_histogram(polylines)[ids].mean(axis=0)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum() / np.log(8))


def pixels(polylines: Array, low: float, high: float) -> Array:
    """How many polylines cross each pixel of the chart [HEIGHT, WIDTH]."""
    columns = np.linspace(0, polylines.shape[1] - 1, WIDTH + 1)
    left = np.floor(columns).astype(int).clip(max=polylines.shape[1] - 2)
    edges = polylines[:, left] + (polylines[:, left + 1] - polylines[:, left]) * (columns - left)
    rows = np.clip((edges - low) / (high - low) * (HEIGHT - 1), 0, HEIGHT - 1).round().astype(int)
    first, last = np.minimum(rows[:, :-1], rows[:, 1:]), np.maximum(rows[:, :-1], rows[:, 1:])
    changes = np.zeros((HEIGHT + 1, WIDTH), int)
    column = np.broadcast_to(np.arange(WIDTH), first.shape)
    np.add.at(changes, (first, column), 1)
    np.add.at(changes, (last + 1, column), -1)
    return changes.cumsum(axis=0)[:-1]


def overplot_and_pixel_coverage(polylines: Array, ids: Array) -> tuple[float, float]:
    """Drawn per covered pixel of the samples, and the share of the full drawing within 2 pixels of a sample."""
    low, high = float(polylines.min()), float(polylines.max())
    drawn = pixels(polylines[ids], low, high)
    everything = np.zeros((HEIGHT, WIDTH), bool)
    for start in range(0, len(polylines), 10_000):
        everything |= pixels(polylines[start : start + 10_000], low, high) > 0
    padded = np.pad(drawn > 0, 2)
    near = np.zeros_like(everything)
    for dy in range(5):
        for dx in range(5):
            near |= padded[dy : dy + HEIGHT, dx : dx + WIDTH]
    return float(drawn.sum() / (drawn > 0).sum()), float((near & everything).sum() / everything.sum())


def dart_throwing(polylines: Array, k: int, rng: np.random.Generator, tries: int = 300) -> Array:
    """The paper's sampler: the best directed of 8 random trials is accepted if its D1 to all samples is at least r.

    r starts at 4 times the median distance and shrinks by a tenth after ``tries`` rejections in a row.
    """
    n = len(polylines)
    directions = direction_histogram(polylines)
    pairs = rng.integers(n, size=(200, 2))
    radius = 4 * float(np.median(segment_lengths(polylines[pairs[:, 0]] - polylines[pairs[:, 1]]).sum(axis=1)))
    samples, fill, rejected = [int(rng.integers(n))], np.zeros(directions.shape[1]), 0
    fill += directions[samples[0]]
    while len(samples) < k:
        trials = rng.integers(n, size=8)
        trials = trials[~np.isin(trials, samples)]
        if not len(trials):
            continue
        trial = int(trials[np.argmin(directions[trials] @ fill)])
        if segment_lengths(polylines[samples] - polylines[trial]).sum(axis=1).min() >= radius:
            samples.append(trial)
            fill += directions[trial]
            rejected = 0
        elif (rejected := rejected + 1) >= tries:
            radius, rejected = 0.9 * radius, 0
    return np.array(samples)


def planted_polylines(n: int, rng: np.random.Generator, n_snapshots: int = 256) -> tuple[Array, Array]:
    """Eight modes, populations like i^-1.5, and 20 outliers of five kinds; float32 [n, T] and the outliers' ids."""
    t = np.linspace(0, 1, n_snapshots)
    shares = np.arange(1, 9) ** -1.5
    modes = np.stack(
        [rng.uniform(0.2, 1) * np.sin(rng.uniform(1, 12) * t + rng.uniform(0, 6)) + rng.uniform(-1, 1) for _ in shares]
    )
    scale, level, slope = 0.1 * rng.standard_normal((3, n, 1), np.float32)
    polylines = modes.astype(np.float32)[rng.choice(8, n, p=shares / shares.sum())]
    polylines *= 1 + scale
    polylines += level + slope * t.astype(np.float32)
    polylines += np.float32(0.01) * rng.standard_normal((n, n_snapshots), np.float32)
    outliers = np.sort(rng.choice(n, 20, replace=False))
    steps = np.arange(n_snapshots)
    for i, outlier in enumerate(outliers):
        at, sign = int(rng.integers(n_snapshots // 8, max(1, n_snapshots * 7 // 8))), rng.choice([-1, 1])
        polylines[outlier] += (
            sign * rng.uniform(1, 3) * (steps >= at),  # step
            sign * rng.uniform(4, 8) * (np.abs(steps - at) < 2),  # spike
            sign * rng.uniform(2, 4) * (1 + t),  # drift
            rng.uniform(1, 2) * np.sin(rng.uniform(60, 120) * t + 1),  # oscillation
            sign * rng.uniform(4, 8) * np.exp(12 * (t - 1)),  # blow-up
        )[i % 5]
    return polylines, outliers


def straight_lines(n: int, rng: np.random.Generator, n_snapshots: int = 8) -> tuple[Array, Array]:
    """Lines y = a + bt with (a + b/2, b/√12) uniform in the unit square, so that D2 per √T is the planar distance.

    Returns the points [n, 2] and the polylines [n, T].
    """
    points = rng.uniform(size=(n, 2))
    slopes = np.sqrt(12) * points[:, 1:]
    return points, points[:, :1] + slopes * (np.linspace(0, 1, n_snapshots) - 0.5)


class Spectrum(NamedTuple):
    low: float  # mean power at .15 to .5 times √k; 1 if random
    peak: float  # largest mean power of a ring of width .1 √k; 1 if random
    spread: float  # smallest distance over that of the hexagonal lattice (rho)


def spectrum(points: Array) -> Spectrum:
    """Radial power spectrum, at whole frequencies, and relative radius of points in the unit square [k, 2]."""
    k = len(points)
    reach = int(2.2 * np.sqrt(k))
    frequencies = np.arange(-reach, reach + 1)
    waves = [np.exp(-2j * np.pi * np.outer(frequencies, points[:, axis])) for axis in (0, 1)]
    power = np.abs(waves[0] @ waves[1].T) ** 2 / k
    radius = np.hypot(frequencies[:, None], frequencies[None]) / np.sqrt(k)
    rings = [power[(radius >= r) & (radius < r + 0.1)] for r in np.arange(0.5, 2.0, 0.1)]
    between = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)) + 2 * np.eye(k)
    low = power[(radius >= 0.15) & (radius <= 0.5)].mean()
    return Spectrum(
        float(low),
        float(max(ring.mean() for ring in rings if ring.size)),
        float(between.min() / np.sqrt(2 / (np.sqrt(3) * k))),
    )
