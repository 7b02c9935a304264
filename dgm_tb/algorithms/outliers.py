"""Which example of a batch is out of line, which neurons stand out, and whether a value broke with its history.

Pure functions over NumPy arrays; every threshold is here, with its reason.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MIN_HISTORY = 5
"""Steps needed before anything is compared with its past: the first steps of a fresh network are all unusual."""

OUTLIER_RATIO = 10.0
"""An example is out of line if some layer answers it ten times as strongly as the batch's median example. Healthy
image batches stay below 4 (digits and CIFAR-10 through convolutional VAEs and classifiers)."""

JUMP_RATIO = 50.0
"""A loss or gradient norm broke with its history at fifty times the largest of the recent steps: GAN oscillation,
warm-up and spiky losses stay within a factor of ten of theirs."""


SPIKE_RATIO = 5.0
"""A spike stands out of the last ``SPIKE_WINDOW`` losses by this factor over their largest; label noise and small
batches give 1.5."""

SPIKE_RATIO_BEFORE = 2.5
"""And by this one over the largest of all recent ones, from where a falling loss comes."""

SPIKE_WINDOW = 16

CALM_RATIO = 4.0
"""Only a calm loss can spike: its recent largest value is below this many medians. GANs and RL are not calm."""

MIN_SPIKE_HISTORY = 32

EXTREME_RATIO = 20.0
"""An example whose first layer answers it this many times as strongly as the batch's median example, and half as many
times as strongly as any of the recent steps, is looked into whatever its loss. Heavy-tailed inputs are so in many
steps."""


@dataclass(frozen=True)
class Outliers:
    """Examples of one batch that some layer answers out of line.

    Attributes:
        positions: Positions in the batch, worst first.
        ratios: Largest ratio to the batch's median, over the layers, of each of ``positions``.
        layer: Number of the first layer (in the order given) that is out of line for the worst one.
        strongest: Number of the layer with the largest ratio for the worst one.
        normal: The most ordinary example's position.
    """

    positions: list[int]
    ratios: list[float]
    layer: int
    strongest: int
    normal: int


def outlying_examples(largest: Array, threshold: float = OUTLIER_RATIO) -> Outliers:
    """Find the examples that are out of line with their batch.

    Args:
        largest: Largest ``|value|`` of each layer and example ``[layers, examples]``, layers in data-flow order (the
            input first, where it is known). Inf marks a non-finite value, NaN an unknown one.
        threshold: Smallest ratio to the median example that counts.

    Returns:
        The outliers; none if the batch has fewer than three examples.
    """
    n_layers, n_examples = largest.shape
    if n_layers == 0 or n_examples == 0:
        return Outliers([], [], 0, 0, 0)
    ratios = _ratios(largest)
    worst = ratios.max(0)
    normal = int(np.argmin(np.where(np.isnan(largest).all(0), np.inf, np.abs(np.log(np.maximum(worst, 1e-30))))))
    if n_examples < 3:
        return Outliers([], [], 0, 0, normal)
    order = [int(n) for n in np.argsort(-worst, kind="stable") if worst[n] >= threshold]
    if not order:
        return Outliers([], [], 0, 0, normal)
    of_worst = ratios[:, order[0]]
    first = int(np.argmax(of_worst >= threshold))
    return Outliers(order, [float(worst[n]) for n in order], first, int(np.argmax(of_worst)), normal)


def _ratios(largest: Array) -> Array:
    """Each value over the median of the other examples of its layer; 0 where unknown, at most 1e30."""
    known = np.nan_to_num(largest, nan=0.0, posinf=np.inf)
    finite = np.where(np.isfinite(known), known, np.nan)
    with np.errstate(all="ignore"):
        center = np.nanmedian(np.where(np.isnan(finite).all(1, keepdims=True), 0.0, finite), 1)
        # the median counts the outlier itself in; with three or more examples it is one of the ordinary ones
        ratios = known / np.maximum(center, 1e-12)[:, None]
    ratios[center <= 1e-12] = 0.0
    return np.asarray(np.minimum(np.nan_to_num(ratios, nan=0.0, posinf=1e30), 1e30))


def jump(history: Sequence[float], value: float) -> float:
    """How many times larger ``|value|`` is than the largest of the recent finite ones.

    Args:
        history: Values of the recent steps, without this one.
        value: This step's.

    Returns:
        The ratio; Inf for a non-finite value; 0 with fewer than ``MIN_HISTORY`` finite values to compare with.
    """
    if not math.isfinite(value):
        return math.inf
    finite = [abs(v) for v in history if math.isfinite(v)]
    if len(finite) < MIN_HISTORY:
        return 0.0
    return abs(value) / max(max(finite), 1e-30)


def is_spike(history: Sequence[float], value: float) -> bool:
    """Whether a finite loss leaps out of a calm history.

    Args:
        history: Losses of the recent steps, without this one.
        value: This step's.
    """
    if len(history) < MIN_SPIKE_HISTORY or value <= SPIKE_RATIO * history[-1]:  # the usual case, at no cost
        return False
    finite = np.array([v for v in history if math.isfinite(v)])
    if len(finite) < MIN_SPIKE_HISTORY or finite.min() < 0 or not math.isfinite(value):
        return False
    last = finite[-SPIKE_WINDOW:]
    largest, median = float(last.max()), float(np.median(last))
    is_calm = largest < CALM_RATIO * median
    return is_calm and value > SPIKE_RATIO * largest and value > SPIKE_RATIO_BEFORE * float(finite.max())


def is_extreme(history: Sequence[float], values: Array) -> bool:
    """Whether one example of a batch is far out of it, and out of the recent batches.

    Args:
        history: Largest value of each of the recent batches, without this one.
        values: Largest ``|activation|`` of each example in one layer ``[examples]``.
    """
    if len(history) < MIN_HISTORY or len(values) < 3:
        return False
    largest = float(values.max())
    if not math.isfinite(largest) or largest <= EXTREME_RATIO / 2 * max(history):  # the usual case, at no cost
        return False
    return largest > EXTREME_RATIO * max(float(np.median(values)), 1e-12)


def worst_neurons(values: Array, limit: int = 8) -> list[int]:
    """Neurons that stand out, non-finite ones first, then by ``|value|``.

    Args:
        values: One number per neuron ``[neurons]``.
        limit: At most so many.

    Returns:
        Neurons whose value is not finite, or at least a tenth of the largest and above ten medians; the largest one at
        least.
    """
    if not len(values):
        return []
    magnitude = np.abs(values.astype(np.float64))
    magnitude[~np.isfinite(magnitude)] = np.inf
    order = np.argsort(-magnitude, kind="stable")[:limit]
    largest = magnitude[order[0]]
    if np.isinf(largest):
        return [int(n) for n in order if np.isinf(magnitude[n])]
    bar = max(0.1 * largest, 10 * float(np.median(magnitude)))
    return [int(n) for number, n in enumerate(order) if number == 0 or magnitude[n] >= bar]
