"""Arrays of several records, joined along their first axis."""

import math
from collections.abc import Sequence

import numpy as np

from dgm_tb.plugin.cache import Array, Arrays

MAX_WIDENED, MAX_WIDENED_BYTES = 4, 64 << 20
"""Memory of joined arrays: so many times that of the parts, or so much, whichever is more."""

Widths = tuple[tuple[int, ...], ...]
"""Sizes of all axes but the first, of each array."""


def together(parts: Sequence[Arrays]) -> Arrays:
    """Arrays of several records, each joined along the first axis.

    Where that takes much more memory than the parts themselves, since a few of them are far wider than the others, only
    those of the widths of most bytes are joined: a small file could claim any width.
    """
    filled = [part for part in parts if len(part[0])] or parts[:1]
    if len({_widths(part) for part in filled}) > 1:
        own = sum(array.nbytes for part in filled for array in part)
        if sum(map(_joined_bytes, zip(*filled, strict=True))) > max(MAX_WIDENED * own, MAX_WIDENED_BYTES):
            sizes: dict[Widths, int] = {}
            for part in filled:
                widths = _widths(part)
                sizes[widths] = sizes.get(widths, 0) + sum(array.nbytes for array in part)
            usual = max(sizes, key=sizes.__getitem__)
            filled = [part for part in filled if _widths(part) == usual]
    return tuple(map(_concatenated, zip(*filled, strict=True))) if filled else ()


def _widths(part: Arrays) -> Widths:
    return tuple(array.shape[1:] for array in part)


def _joined_bytes(parts: tuple[Array, ...]) -> int:
    widths = map(max, zip(*(part.shape[1:] for part in parts), strict=True))
    return int(sum(map(len, parts)) * math.prod(widths) * parts[0].itemsize)


def _concatenated(parts: tuple[Array, ...]) -> Array:
    """Arrays joined along the first axis; where trailing axes differ, filled up with NaN (0 for whole numbers)."""
    if len({part.shape[1:] for part in parts}) > 1:
        shape = tuple(map(max, zip(*(part.shape[1:] for part in parts), strict=True)))
        parts = tuple(_padded(part, shape) for part in parts)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _padded(part: Array, shape: tuple[int, ...]) -> Array:
    fill = np.nan if part.dtype.kind == "f" else 0
    widths = [(0, 0), *((0, wanted - size) for wanted, size in zip(shape, part.shape[1:], strict=True))]
    return np.pad(part, widths, constant_values=fill)
