"""From one output tensor to one number per neuron, in as few passes and operations as measured to be cheapest.

Two stages where positions exist: first over the contiguous positions, then over examples. ``torch.std``,
``isfinite`` and ``count_nonzero`` are avoided on whole tensors: measured 3 to 30 times slower than these sums
(`benchmarks/capture.py`, and the project's measurements quoted in docs/architecture.md).
"""

import torch
from torch import Tensor

N_STATISTICS = 5
SUM, SQUARES, MIN, MAX, NONZERO = range(N_STATISTICS)

PIVOT_RATIO = 10.0
"""From this ratio of mean to standard deviation on, float32 squares cost the latter more than 1e-5 of its value."""


def examples_channels_positions(x: Tensor, is_last_axis: bool) -> Tensor:
    """View ``x`` as ``[examples, neurons, positions]`` or, with the neurons last, as ``[rows, neurons]``."""
    if x.dim() == 1:
        return x.unsqueeze(1)
    if is_last_axis:
        return x.reshape(-1, x.shape[-1])
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return x.reshape(x.shape[0], x.shape[1], -1)


def reduce_activation(
    x: Tensor, is_last_axis: bool, counts_zeros: bool, row: Tensor, pivot: Tensor | None = None
) -> Tensor:
    """Write sum, sum of squares, min, max and number of non-zero values of every neuron.

    Args:
        x: Output of a module, detached, float32 or wider.
        is_last_axis: Whether the neurons are the last axis, else axis 1.
        counts_zeros: Count non-zero values (for outputs that are never negative); else they are not written.
        row: ``[N_STATISTICS, neurons]``, written in place.
        pivot: Subtracted from the values before they are summed and squared ``[neurons]``; None: nothing is.

    Returns:
        The largest ``|x|`` of each example ``[examples]``; Inf from 1e19 on.
    """
    view = examples_channels_positions(x, is_last_axis)
    if view.dim() == 2:
        squares = view * view
        if pivot is None:
            torch.sum(view, 0, out=row[SUM])
            torch.sum(squares, 0, out=row[SQUARES])
        else:
            centered = view - pivot
            torch.sum(centered, 0, out=row[SUM])
            torch.sum(centered * centered, 0, out=row[SQUARES])
        torch.amin(view, 0, out=row[MIN])
        torch.amax(view, 0, out=row[MAX])
        if counts_zeros:
            torch.sum(view.sign().abs_(), 0, out=row[NONZERO])
        return squares.reshape(x.shape[0], -1).amax(1).sqrt_()
    low, high = view.amin(-1), view.amax(-1)
    centered = view if pivot is None else view - pivot[:, None]
    torch.sum(centered.sum(-1), 0, out=row[SUM])
    torch.sum(_norm(centered, -1).square_(), 0, out=row[SQUARES])
    torch.amin(low, 0, out=row[MIN])
    torch.amax(high, 0, out=row[MAX])
    if counts_zeros:
        torch.sum(view.sign().abs_().sum(-1), 0, out=row[NONZERO])
    return torch.maximum(high, low.neg_()).amax(1)


def needs_pivot(row: Tensor, count: int) -> bool:
    """Whether the mean of some neuron is so large beside its standard deviation that the latter has lost its digits.

    Args:
        row: What ``reduce_activation`` wrote ``[N_STATISTICS, neurons]``.
        count: Values per neuron.
    """
    mean = row[SUM] / count
    variance = row[SQUARES] / count - mean * mean
    return bool((mean * mean > PIVOT_RATIO**2 * variance).logical_and(mean != 0).any())


def sum_of_squares(g: Tensor, is_last_axis: bool) -> Tensor:
    """The sum of squares of every neuron's gradient ``[neurons]``."""
    view = examples_channels_positions(g, is_last_axis)
    if view.dim() == 2:
        return (view * view).sum(0)
    return _norm(view, -1).square_().sum(0)


def rows_norm(weight: Tensor, neuron_axis: int, groups: int = 1) -> Tensor:
    """The L2 norm of every neuron's incoming weights ``[neurons]``.

    Args:
        weight: Any shape; float32 or wider.
        neuron_axis: 0 for ``[out, in, ...]``, 1 for transposed convolutions ``[in, out / groups, ...]``, -1 for
            embeddings.
        groups: Groups of a transposed convolution.
    """
    if weight.dim() == 1:
        return weight.abs()
    if neuron_axis == 0:
        return _norm(weight.flatten(1), -1)
    if weight.dim() == 2:
        return _norm(weight, 0)
    per_input = _norm(weight.flatten(2), -1)
    return _norm(per_input.reshape(groups, -1, weight.shape[1]), 1).flatten()


def _norm(x: Tensor, axis: int) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, 2, axis)
    return norm
