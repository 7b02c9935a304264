"""Which loss tells how the training goes, and whether it falls."""

from dataclasses import dataclass

import numpy as np

from dgm_tb.algorithms.detection.history import Array, History

SMOOTHING = 8
"""Steps over which losses are averaged before their extremes are compared."""


@dataclass(frozen=True)
class Trend:
    """How one loss went.

    Attributes:
        name: The loss.
        first: Its first value.
        early: Median of its first tenth, at least four steps.
        best: Smallest of its averages over a few steps.
        late: Median of its last quarter.
        noise: What single values differ from their neighbours, as a standard deviation.
    """

    name: str
    first: float
    early: float
    best: float
    late: float
    noise: float

    @property
    def gain(self) -> float:
        """By how much of its early magnitude the loss has fallen."""
        return (self.early - self.late) / max(abs(self.early), 1e-12)


def trend(history: History) -> Trend | None:
    """How the loss that is minimised went; None if there is none, or several of different networks."""
    name = main_loss(history)
    return _trend(name, *history.losses[name]) if name else None


def main_loss(history: History) -> str:
    """The loss that ``training_step`` returned, or that of the only backward pass; "" if there are several."""
    names = list(history.losses)
    if "loss" in names:
        return "loss"
    backward = [name for name in names if name.startswith("backward.")]
    if backward:
        return backward[0] if len(backward) == 1 else ""
    return names[0] if len(names) == 1 else ""


def _trend(name: str, steps: Array, values: Array) -> Trend | None:
    values = values[np.isfinite(values)]
    if len(values) < SMOOTHING:
        return None
    early = values[: max(4, len(values) // 10)]
    late = values[-max(SMOOTHING, len(values) // 4) :]
    smooth = np.convolve(values, np.full(SMOOTHING, 1 / SMOOTHING), "valid")
    noise = float(np.median(np.abs(np.diff(values)))) / 0.954  # of normal noise, differences are sqrt(2) sigma
    return Trend(name, float(values[0]), float(np.median(early)), float(smooth.min()), float(np.median(late)), noise)


WARMING = 1.5
"""Updates at the end over those in the middle, from which on the learning rate is still rising."""


def is_warming_up(history: History) -> bool:
    """Whether the updates of most layers are still growing at the end: then the training has hardly begun."""
    ratios = [layer.track("update").known().values for layer in history.weighted]
    ratios = [values for values in ratios if len(values) >= 8]
    grows = [np.median(v[-len(v) // 4 :]) > WARMING * np.median(v[len(v) // 4 : len(v) // 2]) for v in ratios]
    return 2 * sum(map(bool, grows)) > len(grows)
