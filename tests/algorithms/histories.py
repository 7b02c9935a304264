"""Layers of made-up training histories, and unusual ones planted among them. Generated from seeds, so that those that a
test asks about are not those that thresholds were chosen with (seeds below 1000).

    python tests/algorithms/histories.py 8000 8040     # the confusion matrix over these seeds
"""

import sys
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dgm_tb.algorithms.patterns import KINDS, unusual

Array = np.ndarray
Rng = np.random.Generator


def white(n: int, time: Array, rng: Rng) -> Array:
    """Levels with independent noise."""
    return rng.normal(0, 1, (n, 1)) + rng.normal(0, 0.1, (n, len(time)))


def sluggish(n: int, time: Array, rng: Rng) -> Array:
    """Noise that lasts for ten snapshots."""
    found = np.zeros((n, len(time)))
    noise = rng.normal(0, 0.05, found.shape)
    for t in range(1, len(time)):
        found[:, t] = 0.9 * found[:, t - 1] + noise[:, t]
    return found + rng.normal(0, 1, (n, 1))


def walking(n: int, time: Array, rng: Rng) -> Array:
    """Random walks."""
    return rng.normal(0, 1, (n, 1)) + np.cumsum(rng.normal(0, 0.03, (n, len(time))), 1)


def heavy_tailed(n: int, time: Array, rng: Rng) -> Array:
    """Noise with outliers of its own, loud and quiet neurons."""
    loudness = np.exp(rng.normal(0, 0.7, (n, 1)))
    return rng.normal(0, 1, (n, 1)) + 0.1 * loudness * rng.standard_t(3, (n, len(time)))


def drifting(n: int, time: Array, rng: Rng) -> Array:
    """All drift, to either side, by different amounts."""
    way = np.exp(rng.normal(0, 0.5, (n, 1))) * rng.choice([-1, 1], (n, 1), p=[0.3, 0.7])
    return rng.normal(0, 0.3, (n, 1)) + way * (1 - np.exp(-3 * time)) + rng.normal(0, 0.05, (n, len(time)))


def settling(n: int, time: Array, rng: Rng) -> Array:
    """A violent beginning, then calm."""
    noise = 0.1 * np.exp(rng.normal(0, 0.3, (n, 1))) * rng.normal(size=(n, len(time)))
    return rng.normal(0, 1, (n, 1)) + 3 * rng.normal(size=(n, 1)) * np.exp(-time / 0.03) + noise


def smooth(n: int, time: Array, rng: Rng) -> Array:
    """Growth without noise, as of the norms of weights."""
    growth = np.abs(rng.normal(0.6, 0.2, (n, 1))) * np.log1p(20 * time)
    return 3 + rng.normal(0, 0.3, (n, 1)) + growth + 0.3 * rng.normal(size=(n, 1)) * time**2


def fanning(n: int, time: Array, rng: Rng) -> Array:
    """All alike in the beginning, far apart in the end."""
    walk = np.cumsum(0.05 * rng.normal(size=(n, len(time))) * np.sqrt(time), 1)
    return 0.1 * rng.normal(size=(n, 1)) + walk + rng.normal(size=(n, 1)) * time


POPULATIONS: tuple[Callable[[int, Array, Rng], Array], ...] = (
    white, sluggish, walking, heavy_tailed, drifting, settling, smooth, fanning,
)  # fmt: skip


class LayerOfHistories(NamedTuple):
    """Main, smallest and largest values ``[neurons, snapshots]``, float16 as recorded, and planted neuron -> kind."""

    main: Array
    low: Array | None
    high: Array | None
    planted: dict[int, str]


def layer(population: Callable[..., Array], seed: int, strength: tuple[float, float] = (2, 5)) -> LayerOfHistories:
    """A layer with some neurons of each kind, whose size is ``strength`` times the visible band of the others."""
    rng = np.random.default_rng((seed, POPULATIONS.index(population)))
    n, n_snapshots = int(rng.choice([64, 256, 1024])), int(rng.choice([24, 64, 200, 500]))
    time = np.linspace(0, 1, n_snapshots)
    values = population(n, time, rng)
    centred = values - np.median(values, 0)
    band = float(np.quantile(np.abs(centred - np.median(centred, 1, keepdims=True)).max(1), 0.99))
    kinds = rng.choice(KINDS, 2, replace=False).tolist() if n == 64 else list(KINDS) * (3 if n == 1024 else 1)
    planted = dict(zip(rng.permutation(n)[: len(kinds)].tolist(), kinds, strict=True))
    for neuron, kind in planted.items():
        plant(values[neuron], kind, time, band * rng.uniform(*strength) * rng.choice([-1, 1]), rng)
    if rng.random() < 0.5:
        return LayerOfHistories(values.astype(np.float16), None, None, planted)
    with np.errstate(invalid="ignore"):
        movement = np.diff(values, axis=1, prepend=np.nan)
    noise = 2 * np.abs(movement).mean(1, where=np.isfinite(movement), keepdims=True)
    below, above = (noise * (1.8 + 0.5 * np.abs(rng.normal(size=values.shape))) * (movement != 0) for _ in "lh")
    return LayerOfHistories(*(part.astype(np.float16) for part in (values, values - below, values + above)), planted)


def plant(line: Array, kind: str, time: Array, size: float, rng: Rng) -> None:
    """Make one history unusual, in place."""
    at = int(rng.uniform(0.15, 0.8) * len(time))
    if kind == "nonfinite":
        line[at : at + 1 if rng.random() < 0.5 else None] = rng.choice([np.nan, np.inf, -np.inf])
    elif kind == "dead":
        line[at:] = rng.choice([0.0, line[at]])
    elif kind == "blow_up":
        line += size * np.exp((time - 1) / rng.uniform(0.03, 0.1))
    elif kind == "step":
        line[at:] += size
    elif kind == "spike":
        line[at : at + int(rng.integers(1, max(2, len(time) // 64 + 1)))] += size
    elif kind == "oscillation":
        cycles = rng.uniform(4, min(30, len(time) / 4))
        line += 0.7 * size * np.sin(2 * np.pi * cycles * time + rng.uniform(0, 6))
    elif kind == "drift":
        begin, end = rng.uniform(0, 0.3), rng.uniform(0.7, 1)
        line += size * np.clip((time - begin) / (end - begin), 0, 1)


class Confusion(NamedTuple):
    """Counts of (planted kind, named kind or ""), of false findings by population, and of neurons that are none."""

    named: Counter[tuple[str, str]]
    false: Counter[str]
    n_usual: int


def confusion(seeds: range, strength: tuple[float, float] = (2, 5)) -> Confusion:
    """What ``unusual`` says of every population at each seed."""
    named: Counter[tuple[str, str]] = Counter()
    false: Counter[str] = Counter()
    n_usual = 0
    for seed in seeds:
        for population in POPULATIONS:
            main, low, high, planted = layer(population, seed, strength)
            found, _ = unusual(main, low, high)
            kinds = {int(neuron): KINDS[kind] for neuron, kind in zip(found.neurons, found.kinds, strict=True)}
            named.update((kind, kinds.pop(neuron, "")) for neuron, kind in planted.items())
            false[population.__name__] += len(kinds)
            n_usual += len(main) - len(planted)
    return Confusion(named, false, n_usual)


def main() -> None:
    first, stop, *strength = map(float, sys.argv[1:])
    found = confusion(range(int(first), int(stop)), (strength[0], strength[1]) if strength else (2, 5))
    print("| planted | " + " | ".join([*KINDS, "not found"]) + " |\n|" + "---|" * (len(KINDS) + 2))
    for kind in KINDS:
        print(f"| {kind} | " + " | ".join(str(found.named[kind, name]) for name in [*KINDS, ""]) + " |")
    n = found.named.total()
    right, missed = sum(found.named[kind, kind] for kind in KINDS), sum(found.named[kind, ""] for kind in KINDS)
    print(f"\n{n} planted: {right / n:.1%} named rightly, {1 - missed / n:.1%} found; {found.false.total()} false ones "
          f"among {found.n_usual} neurons: {dict(found.false)}")  # fmt: skip


if __name__ == "__main__":
    main()
