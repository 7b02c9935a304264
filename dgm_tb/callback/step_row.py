"""What one observed step left of every neuron, and the statistics that come of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgm_tb.callback.reductions import MAX, MIN
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

    def is_finite(self) -> bool:
        """Whether every activation and every gradient of the step was finite (slots not called hold zeros)."""
        extremes = torch.isfinite(self.activation[MIN : MAX + 1]).all()
        return bool(extremes & torch.isfinite(self.gradient).all())

    def extremes_finite(self, slot: Slot) -> bool:
        """Whether the slot's smallest and largest activations are finite (so all are)."""
        return bool(torch.isfinite(self.activation[MIN : MAX + 1, slot.columns]).all())


def statistics_of(rows: Sequence[StepRow], slots: Sequence[Slot]) -> tuple[Array, Array]:
    """Turn the raw sums of several steps into statistics, in float64.

    Args:
        rows: The steps; earlier ones may know fewer slots than later ones.
        slots: All slots.

    Returns:
        Activation ``[steps, (mean, std, min, max, zero fraction), neurons]`` and gradient rms ``[steps, neurons]``; NaN
        for slots that were not called or got no gradient.
    """
    sizes = [slot.neurons for slot in slots]
    raw = _stacked([row.activation for row in rows], sum(sizes))
    squares = _stacked([row.gradient for row in rows], sum(sizes))
    counts = np.repeat(_stacked([torch.tensor(row.counts) for row in rows], len(slots)), sizes, 1)
    gradient_counts = np.repeat(_stacked([torch.tensor(row.gradient_counts) for row in rows], len(slots)), sizes, 1)
    counts_zeros = np.repeat([slot.counts_zeros for slot in slots], sizes)
    total, square, low, high, nonzero = np.moveaxis(raw, 1, 0)
    with np.errstate(all="ignore"):
        mean = total / counts
        variance = np.maximum(square / counts - mean * mean, 0.0)
        mean = mean + _pivots(rows, slots)
        zeros = np.where(counts_zeros, 1.0 - nonzero / counts, (low == 0) & (high == 0))
        zeros = np.where(np.isnan(mean), np.nan, zeros)  # the sign of NaN counts as zero
        activation = np.stack([mean, np.sqrt(variance), low, high, zeros], 1)
        np.moveaxis(activation, 1, 2)[counts == 0] = np.nan
        gradient = np.where(gradient_counts > 0, np.sqrt(squares / gradient_counts), np.nan) / _scales(rows)
    return activation, gradient


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
    """Stack tensors in float64, filling up the last axis of the shorter ones with zeros."""
    if all(tensor.shape[-1] == size for tensor in tensors):
        return torch.stack(list(tensors)).cpu().numpy().astype(np.float64)
    stacked = np.zeros((len(tensors), *tensors[0].shape[:-1], size))
    for number, tensor in enumerate(tensors):
        stacked[number, ..., : tensor.shape[-1]] = tensor.cpu().numpy()
    return stacked
