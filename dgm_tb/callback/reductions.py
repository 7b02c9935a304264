"""From one output tensor to one number per neuron, in as few passes and operations as measured to be cheapest.

Two stages where positions exist: first over the contiguous positions, then over examples. ``torch.std``,
``isfinite`` and ``count_nonzero`` are avoided on whole tensors: measured 3 to 30 times slower than these sums
(`benchmarks/capture.py`, and the project's measurements quoted in docs/architecture.md).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

N_STATISTICS = 5
SUM, SQUARES, MIN, MAX, NONZERO = range(N_STATISTICS)

PIVOT_RATIO = 10.0
"""From this ratio of mean to standard deviation on, float32 squares cost the latter more than 1e-5 of its value."""

MANY_POSITIONS = 64
"""Below so many positions, smallest and largest values are taken over the examples first: short rows are slow."""

CHUNK = 1 << 20
"""Values whose signs are taken at once: the temporary stays in the cache (measured 1.7 times as fast as in one go)."""


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
    x: Tensor,
    is_last_axis: bool,
    counts_zeros: bool,
    sums: Sequence[Tensor],
    pivot: Tensor | None = None,
    example_axis: int | None = 0,
) -> Tensor | None:
    """Write sum, sum of squares, min, max and number of non-zero values of every neuron.

    Args:
        x: Output of a module, detached, float32 or wider.
        is_last_axis: Whether the neurons are the last axis, else axis 1.
        counts_zeros: Count non-zero values; else they are not written.
        sums: ``N_STATISTICS`` tensors ``[neurons]`` in the dtype of ``x``, written in place.
        pivot: Subtracted from the values before they are summed and squared ``[neurons]``; None: nothing is.
        example_axis: The axis of ``x`` with the examples (0 unless the neurons are last), or None.

    Returns:
        The largest ``|x|`` of each example, Inf from 1e19 on; None without an axis of examples.
    """
    view = x if x.dim() == 2 else examples_channels_positions(x, is_last_axis)
    if view.dim() == 2:
        squares = view * view
        _sum_rows(view, squares, sums, pivot)
        if counts_zeros:
            torch.sum(view.sign().abs_(), 0, out=sums[NONZERO])
        return _largest(squares, x.shape, example_axis)
    if view.shape[-1] < MANY_POSITIONS:
        torch.amin(view.amin(0), -1, out=sums[MIN])
        torch.amax(view.amax(0), -1, out=sums[MAX])
        rows = view.flatten(1)
        largest = torch.maximum(rows.amax(1), rows.amin(1).neg_())
    else:
        low, high = view.amin(-1), view.amax(-1)
        torch.amin(low, 0, out=sums[MIN])
        torch.amax(high, 0, out=sums[MAX])
        largest = torch.maximum(high, low.neg_()).amax(1)
    centered = view if pivot is None else view - pivot[:, None]
    torch.sum(centered.sum(-1), 0, out=sums[SUM])
    torch.sum(_norm(centered, -1).square_(), 0, out=sums[SQUARES])
    if counts_zeros:
        torch.sum(_nonzero(view), 0, out=sums[NONZERO])
    return largest


def _largest(squares: Tensor, shape: Sequence[int], example_axis: int | None) -> Tensor | None:
    if example_axis is None:
        return None
    if len(shape) == 2:
        return squares.amax(1).sqrt_()
    if example_axis == 0:
        return squares.reshape(shape[0], -1).amax(1).sqrt_()
    return squares.reshape(shape[0], shape[1], -1).amax((0, 2)).sqrt_()


def _sum_rows(view: Tensor, squares: Tensor, sums: Sequence[Tensor], pivot: Tensor | None) -> None:
    torch.amin(view, 0, out=sums[MIN])
    torch.amax(view, 0, out=sums[MAX])
    if pivot is not None:
        view = view - pivot
        squares = view * view
    torch.sum(view, 0, out=sums[SUM])
    torch.sum(squares, 0, out=sums[SQUARES])


def _nonzero(view: Tensor) -> Tensor:
    """Number of values that are not zero ``[examples, neurons]``, of ``[examples, neurons, positions]``."""
    if view.is_cuda or view.numel() <= CHUNK:
        return view.sign().abs_().sum(-1)
    counts = view.new_empty(view.shape[:2])
    n = max(1, CHUNK // view[0].numel())
    signs = view.new_empty(min(n, len(view)), *view.shape[1:])
    for chunk, out in zip(view.split(n), counts.split(n), strict=True):  # type: ignore[no-untyped-call]
        torch.sum(torch.sign(chunk, out=signs[: len(chunk)]).abs_(), -1, out=out)
    return counts


def join_turns(sums: Sequence[Tensor], turn: Sequence[Tensor]) -> None:
    """Add to the sums of a loop's turns so far those of the next one, both as ``reduce_activation`` wrote them."""
    for number in (SUM, SQUARES, NONZERO):
        sums[number].add_(turn[number].to(sums[number], non_blocking=True))
    torch.minimum(sums[MIN], turn[MIN].to(sums[MIN]), out=sums[MIN])
    torch.maximum(sums[MAX], turn[MAX].to(sums[MAX]), out=sums[MAX])


def needs_pivot(sums: Sequence[Tensor], count: int) -> bool:
    """Whether the mean of some neuron is so large beside its standard deviation that the latter has lost its digits.

    Args:
        sums: What ``reduce_activation`` wrote.
        count: Values per neuron.
    """
    mean = sums[SUM] / count
    variance = sums[SQUARES] / count - mean * mean
    return bool((mean * mean > PIVOT_RATIO**2 * variance).logical_and(mean != 0).any())


def sum_of_squares(g: Tensor, is_last_axis: bool, out: Tensor | None = None) -> Tensor:
    """The sum of squares of every neuron's gradient ``[neurons]``; written to ``out``, if that is given."""
    view = g if g.dim() == 2 else examples_channels_positions(g, is_last_axis)
    squares = view * view if view.dim() == 2 else _norm(view, -1).square_()
    return torch.sum(squares, 0, out=out)


def _norm(x: Tensor, axis: int) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, 2, axis)
    return norm
