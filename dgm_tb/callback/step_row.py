"""What one observed step left of every neuron, and the statistics that come of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgm_tb.callback.reductions import MAX, MIN, NONZERO, SQUARES, SUM
from dgm_tb.callback.slots import Slot

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class StepRow:
    """What one step left: raw sums of every neuron, and of every example its largest activation.

    Attributes:
        activation: ``[N_STATISTICS, neurons]``: sum, sum of squares, min, max, number of non-zero values.
        counts: ``[slots]``: values per neuron that went into them; 0 where the slot was not called.
        gradient: ``[neurons]``: sum of squares of the activation's gradient.
        gradient_counts: ``[slots]``: values per neuron; 0 where no gradient came.
        examples: Slot number -> largest ``|activation|`` of each example ``[examples]``.
        pivots: Slot number -> what was subtracted before summing ``[neurons]``, where something was.
        scale: The factor on the loss at its backward pass (AMP's loss scale, 0-dim); None: 1.
    """

    activation: Tensor
    counts: list[int]
    gradient: Tensor
    gradient_counts: list[int]
    examples: dict[int, Tensor] = field(default_factory=dict)
    pivots: dict[int, Tensor] = field(default_factory=dict)
    scale: Tensor | None = None

    def is_finite(self, *, with_gradients: bool = True) -> bool:
        """Whether every activation and every gradient of the step was finite (slots not called hold zeros)."""
        if not self.counts:
            return True
        extremes = self.activation[MIN : MAX + 1]
        if not with_gradients:
            return bool(torch.isfinite(extremes).all())
        if math.isfinite(float(extremes.sum() + self.gradient.sum())):
            return True
        return bool(torch.isfinite(extremes).all() & torch.isfinite(self.gradient).all())

    def extremes_finite(self, slot: Slot) -> bool:
        """Whether the slot's smallest and largest activations are finite (so all are)."""
        return bool(torch.isfinite(self.activation[MIN : MAX + 1, slot.columns]).all())


def statistics_of(rows: Sequence[StepRow], slots: Sequence[Slot]) -> tuple[Array, Array]:
    """Turn the raw sums of several steps into statistics; sums are combined in float64.

    Args:
        rows: The steps; earlier ones may know fewer slots than later ones.
        slots: All slots.

    Returns:
        Activation ``[steps, (mean, std, min, max, zero fraction), neurons]`` and gradient rms ``[steps, neurons]``,
        float32; NaN for slots that were not called or got no gradient.
    """
    sizes = [slot.neurons for slot in slots]
    raw = _stacked([row.activation for row in rows], sum(sizes))
    squares = _stacked([row.gradient for row in rows], sum(sizes))
    counts = _per_neuron([row.counts for row in rows], sizes)
    gradient_counts = _per_neuron([row.gradient_counts for row in rows], sizes)
    counts_zeros = np.repeat([slot.counts_zeros for slot in slots], sizes)
    activation = np.empty(raw.shape, np.float32)
    low, high = activation[:, 2], activation[:, 3] = raw[:, MIN], raw[:, MAX]
    with np.errstate(all="ignore"):
        mean = raw[:, SUM].astype(np.float64) / counts
        variance = np.maximum(raw[:, SQUARES] / counts - mean * mean, 0.0)
        mean = mean + _pivots(rows, slots)
        zeros = np.where(counts_zeros, 1.0 - raw[:, NONZERO] / counts, (low == 0) & (high == 0))
        activation[:, 0], activation[:, 1] = mean, np.sqrt(variance)
        activation[:, 4] = np.where(np.isnan(mean), np.nan, zeros)  # the sign of NaN counts as zero
        if not counts.all():
            np.moveaxis(activation, 1, 2)[np.broadcast_to(counts == 0, mean.shape)] = np.nan
        gradient = np.sqrt(squares / np.where(gradient_counts > 0, gradient_counts, np.nan)) / _scales(rows)
    return activation, gradient.astype(np.float32)


def _per_neuron(counts: Sequence[Sequence[int]], sizes: Sequence[int]) -> Array:
    """Counts of slots as float64 counts of neurons ``[steps, neurons]``, or ``[1, neurons]`` if no step differs."""
    alike = all(count == counts[0] for count in counts) and len(counts[0]) == len(sizes)
    chosen = counts[:1] if alike else counts
    padded = [[*count, *[0] * (len(sizes) - len(count))] for count in chosen]
    return np.repeat(np.array(padded, np.float64), sizes, 1)


def _scales(rows: Sequence[StepRow]) -> Array:
    """The loss scale of every step ``[steps, 1]``."""
    return np.array([[1.0 if row.scale is None else float(row.scale)] for row in rows])


def _pivots(rows: Sequence[StepRow], slots: Sequence[Slot]) -> Array:
    """What was subtracted from every neuron ``[steps, neurons]``, or ``[1, 1]`` zeros if nothing was."""
    if not any(row.pivots for row in rows):
        return np.zeros((1, 1))
    pivots = np.zeros((len(rows), sum(slot.neurons for slot in slots)))
    for number, row in enumerate(rows):
        for slot, pivot in row.pivots.items():
            pivots[number, slots[slot].columns] = pivot.cpu().numpy()
    return pivots


def _stacked(tensors: Sequence[Tensor], size: int) -> Array:
    """Stack float32 tensors, filling up the last axis of the shorter ones with zeros."""
    if all(tensor.shape[-1] == size for tensor in tensors):
        return np.asarray(torch.stack(list(tensors)).cpu().numpy())
    stacked = np.zeros((len(tensors), *tensors[0].shape[:-1], size), np.float32)
    for number, tensor in enumerate(tensors):
        stacked[number, ..., : tensor.shape[-1]] = tensor.cpu().numpy()
    return stacked
