"""Compare blue-noise sampling with its rivals; print one Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py [--sizes 1000 10000 100000 1000000] [--seeds 3]

Data: eight smooth modes of very different populations, 256 snapshots, float32, and 20 planted outliers (step, spike,
drift, oscillation, blow-up). CPU s: process time of one call. MB: peak of what it allocates beyond the matrix, which
is memory-mapped. recall: outliers drawn; out_cov: distance of the worst outlier to its nearest sample; ratio: largest
distance of any polyline to a sample over the smallest between samples (D2; 1.15 is the bar); overplot: drawn per
covered pixel; pixcov: share of the full drawing within 2 pixels of a sample; dir: entropy of directions; the last two
on straight lines that fill the unit square: low-frequency power (random 1, bar .15) and smallest distance over the
hexagonal lattice's (bar .70).
"""

import argparse
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "algorithms")]

import sampling_oracle as oracle  # noqa: E402

from dgm_tb.algorithms.polyline_features import (  # noqa: E402
    Points,
    euclidean_features,
    nearest_euclidean,
    row_blocks,
    squared_distances,
)
from dgm_tb.algorithms.sampling import blue_noise_order, random_order  # noqa: E402

Array = npt.NDArray[Any]
Sampler = Callable[[Array, int, np.random.Generator], Array]


def features_of(polylines: Array) -> Array:
    return euclidean_features(np.asarray(polylines), np.empty((len(polylines), 0), np.float32))


def random_sample(polylines: Array, k: int, rng: np.random.Generator) -> Array:
    return random_order(polylines, k, rng=rng)


def blue_noise(polylines: Array, k: int, rng: np.random.Generator) -> Array:
    return blue_noise_order(polylines, k, rng=rng)


def blue_noise_segments(polylines: Array, k: int, rng: np.random.Generator) -> Array:
    return blue_noise_order(polylines, k, rng=rng, distance="segments")


def farthest_point(polylines: Array, k: int, rng: np.random.Generator) -> Array:
    points = Points.of(features_of(polylines))
    ids, nearest = [int(rng.integers(len(polylines)))], np.full(len(polylines), np.inf, np.float32)
    while len(ids) < k:
        np.minimum(nearest, squared_distances(points, points.take(ids[-1:]))[:, 0], out=nearest)
        ids.append(int(nearest.argmax()))
    return np.array(ids)


def k_means_medoids(polylines: Array, k: int, rng: np.random.Generator) -> Array:
    from sklearn.cluster import KMeans

    points = Points.of(features_of(polylines))
    centres = KMeans(k, n_init=1, max_iter=20, random_state=int(rng.integers(1 << 31))).fit(points.features)
    return np.unique(nearest_euclidean(Points.of(centres.cluster_centers_), points, 0.0)[0])


# name -> sampler and the largest n it is tried on
SAMPLERS: dict[str, tuple[Sampler, int]] = {
    "random": (random_sample, 1_000_000),
    "k-means medoids": (k_means_medoids, 100_000),
    "farthest point": (farthest_point, 1_000_000),
    "dart throwing (paper)": (oracle.dart_throwing, 100_000),
    "blue noise, D1": (blue_noise_segments, 100_000),
    "**blue noise**": (blue_noise, 1_000_000),
}


def coverage(polylines: Array, ids: Array, outliers: Array) -> tuple[float, float]:
    """Return out_cov and ratio; exact distances, streamed."""
    samples = Points.of(features_of(polylines[ids]).astype(np.float64))
    nearest = np.empty(len(polylines))
    for block in row_blocks(*polylines.shape):
        points = Points.of(features_of(polylines[block]).astype(np.float64))
        nearest[block] = np.sqrt(nearest_euclidean(points, samples, 0.0)[1])
    between = np.sqrt(squared_distances(samples, samples)) + np.diag(np.full(len(ids), np.inf))
    return float(nearest[outliers].max()), float(nearest.max() / between.min())


def measured(sampler: Sampler, polylines: Array, outliers: Array, k: int, seed: int) -> list[float]:
    started = time.process_time()
    ids = sampler(polylines, k, np.random.default_rng(seed))
    seconds = time.process_time() - started
    tracemalloc.start()
    sampler(polylines, k, np.random.default_rng(seed))
    megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    drawn = [np.nan] * 3
    if len(polylines) <= 100_000:
        values = np.asarray(polylines)
        drawn = [*oracle.overplot_and_pixel_coverage(values, ids), oracle.direction_entropy(values, ids)]
    return [seconds, megabytes, float(np.isin(outliers, ids).mean()), *coverage(polylines, ids, outliers), *drawn]


def unit_square(sampler: Sampler, k: int, seeds: int) -> list[float]:
    found = []
    for seed in range(seeds):
        points, polylines = oracle.straight_lines(20_000, np.random.default_rng(seed))
        polylines = polylines.astype(np.float32)
        spectrum = oracle.spectrum(points[sampler(polylines, k, np.random.default_rng(seed))])
        found.append([spectrum.low, spectrum.spread])
    return np.mean(found, axis=0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("| n, k | sampler | CPU s | MB | recall | out_cov | ratio | overplot | pixcov | dir | low | rho |")
    print("|---" * 12 + "|")
    squares = {name: unit_square(sampler, 512, options.seeds) for name, (sampler, _) in SAMPLERS.items()}
    for n in options.sizes:
        k, rows = 64 if n <= 1000 else 128, {name: [] for name, (_, limit) in SAMPLERS.items() if n <= limit}
        for seed in range(options.seeds if n <= 10_000 else 1):
            with tempfile.TemporaryDirectory() as folder:
                polylines, outliers = oracle.planted_polylines(n, np.random.default_rng(seed))
                np.save(f"{folder}/polylines.npy", polylines)
                del polylines
                mapped = np.load(f"{folder}/polylines.npy", mmap_mode="r")
                for name, row in rows.items():
                    row.append(measured(SAMPLERS[name][0], mapped, outliers, k, seed))
        for name, row in rows.items():
            numbers = [*np.mean(row, axis=0), *squares[name]]
            cells = " | ".join("–" if np.isnan(number) else f"{number:.3g}" for number in numbers)
            print(f"| {n:,}, {k} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
