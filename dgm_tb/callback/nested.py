"""Tensors in nested tuples, lists and mappings: batches, arguments and outputs."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

MAX_DEPTH = 5


def tensors_in(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Every tensor in ``value``, in order."""
    if isinstance(value, Tensor):
        yield value
    elif depth < MAX_DEPTH:
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
        for item in items:
            yield from tensors_in(item, depth + 1)


def named_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in ``value`` with its place: ``batch[0]``, ``batch[image]``."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_tensors(item, f"{name}[{key}]")
    elif isinstance(value, (tuple, list)):
        for number, item in enumerate(value):
            yield from named_tensors(item, f"{name}[{number}]")
