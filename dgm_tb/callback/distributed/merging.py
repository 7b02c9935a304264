"""Puts together what several ranks recorded of one step: numbers that hold for the whole batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dgm_tb.callback.slots import Slot
from dgm_tb.callback.step_row import StepRow, statistics_of
from dgm_tb.callback.windows import Row

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Share:
    """What one rank knows of one step.

    Attributes:
        losses: Name -> value.
        activation: ``[(mean, std, min, max, zero fraction), neurons]``, or None if only the losses were observed.
        counts: Values behind each neuron's statistics ``[neurons]``.
        gradient: Root mean square of the gradient of the rank's own loss ``[neurons]``.
        gradient_counts: Values behind it ``[neurons]``.
        weights: Sums of squares over the rank's part of sharded weights: after the step, of its change, before it
            ``[3, neurons]``; None if every rank has all weights.
    """

    losses: dict[str, float]
    activation: Array | None = None
    counts: Array = field(default_factory=lambda: np.zeros(0))
    gradient: Array = field(default_factory=lambda: np.zeros(0))
    gradient_counts: Array = field(default_factory=lambda: np.zeros(0))
    weights: Array | None = None


def shares_of(rows: Sequence[Row], slots: Sequence[Slot]) -> list[Share]:
    """What this rank knows of each of ``rows``, over the neurons of all ``slots``."""
    observed = [row.raw for row in rows if row.raw is not None]
    if not observed:
        return [Share(row.losses) for row in rows]
    sizes = [slot.neurons for slot in slots]
    activation, gradient = statistics_of(observed, slots)
    counts, gradient_counts = _counts(observed, "counts", sizes), _counts(observed, "gradient_counts", sizes)
    columns = iter(zip(activation, counts, gradient, gradient_counts, strict=True))
    return [Share(row.losses, *(next(columns) if row.raw is not None else ())) for row in rows]


def _counts(rows: Sequence[StepRow], name: str, sizes: Sequence[int]) -> Array:
    counts = np.zeros((len(rows), len(sizes)))
    for number, row in enumerate(rows):
        known = getattr(row, name)
        counts[number, : len(known)] = known
    return np.repeat(counts, sizes, 1)


def merge(shares: Sequence[Share], slots: Sequence[Slot], world_size: int) -> tuple[dict[str, float], dict[str, Array]]:
    """Put the shares of one step together.

    Args:
        shares: One per rank that was heard of, all over the neurons of ``slots``.
        slots: The layout.
        world_size: Number of all ranks.

    Returns:
        The losses, each the mean over the ranks that have it, and quantity -> statistics ``[statistics, neurons]``.
        The gradient is that of the mean of the ranks' losses, since this is what the optimizer's gradients are of.
    """
    names = dict.fromkeys(name for share in shares for name in share.losses)
    losses = {name: float(np.mean([s.losses[name] for s in shares if name in s.losses])) for name in names}
    observed = [share for share in shares if share.activation is not None]
    if not observed:
        return losses, {}
    counts_zeros = np.repeat([slot.counts_zeros for slot in slots], [slot.neurons for slot in slots])
    values = np.stack([share.activation for share in observed if share.activation is not None])
    activation = merged_activation(values, np.stack([share.counts for share in observed]), counts_zeros)
    gradients, counts = (np.stack([getattr(s, name) for s in observed]) for name in ("gradient", "gradient_counts"))
    gradient = merged_rms(gradients, counts) / world_size
    return losses, {"activation": activation, "gradient": gradient.astype(np.float32)[None]}


def merged_activation(values: Array, counts: Array, counts_zeros: Array) -> Array:
    """Statistics over the values of all ranks.

    Args:
        values: ``[ranks, (mean, std, min, max, zero fraction), neurons]``; anything where the count is 0.
        counts: Values behind them ``[ranks, neurons]``.
        counts_zeros: Whether a neuron's zeros are counted ``[neurons]``; else its zero fraction is 1 or 0.

    Returns:
        ``[(mean, std, min, max, zero fraction), neurons]``; NaN for neurons without any value.
    """
    total = counts.sum(0)
    means, deviations, lows, highs, zeros = np.moveaxis(values, 1, 0)
    with np.errstate(all="ignore"):
        share = _shares(counts, total)
        mean = _sum(share, means)
        variance = _sum(share, deviations**2.0 + (means - mean) ** 2)
        low = np.where(share > 0, lows, np.inf).min(0)
        high = np.where(share > 0, highs, -np.inf).max(0)
        zero = np.where(counts_zeros, _sum(share, zeros), np.where(share > 0, zeros, np.inf).min(0))
    merged = np.stack([mean, np.sqrt(variance), low, high, zero]).astype(np.float32)
    merged[:, total == 0] = np.nan
    return merged


def _shares(counts: Array, total: Array) -> Array:
    """What part of the values is each rank's ``[ranks, neurons]``, or ``[ranks, 1]`` if each has as many."""
    if total.all() and (counts == counts[0]).all():
        return np.full((len(counts), 1), 1.0 / len(counts))
    return counts / total


def _sum(share: Array, values: Array) -> Array:
    """The weighted sum over the ranks, in float64; whatever has no weight counts for nothing."""
    weighted = share * values
    return np.asarray((weighted if share.shape[1] == 1 else np.where(share > 0, weighted, 0.0)).sum(0))


def merged_rms(rms: Array, counts: Array) -> Array:
    """Root mean squares over the values of all ranks ``[neurons]``, from each rank's and their counts."""
    total = counts.sum(0)
    with np.errstate(all="ignore"):
        return np.where(total > 0, np.sqrt(_sum(_shares(counts, total), np.square(rms, dtype=np.float64))), np.nan)


def columns_in(slots: Sequence[Slot], other: Sequence[tuple[str, int]]) -> Array:
    """Where another rank's neurons are here.

    Args:
        slots: The layout here.
        other: Name and number of neurons of each slot there, in the order of the layout there.

    Returns:
        Column here of every neuron there ``[neurons there]``; -1 for neurons of slots that are not known here or have
        another size.
    """
    places: Mapping[str, Slot] = {slot.name: slot for slot in slots}
    parts = []
    for name, neurons in other:
        slot = places.get(name)
        fits = slot is not None and slot.neurons == neurons
        parts.append(slot.offset + np.arange(neurons) if slot is not None and fits else np.full(neurons, -1))
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def moved(array: Array, columns: Array, size: int, fill: float = np.nan) -> Array:
    """An array whose last axis runs over another rank's neurons, over the ``size`` neurons here; see ``columns_in``."""
    if len(columns) == size and np.array_equal(columns, np.arange(size)):
        return array
    out = np.full((*array.shape[:-1], size), fill, array.dtype)
    known = columns >= 0
    out[..., columns[known]] = array[..., known]
    return out
