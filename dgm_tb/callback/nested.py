"""Tensors in nested tuples, lists, mappings and dataclasses: batches, arguments and outputs."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

MAX_DEPTH = 5


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in ``value``, in order."""
    for _, tensor in named_tensors(value, ""):
        yield tensor


def named_tensors(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in ``value`` with its place: ``batch[0]``, ``batch[image]``; of packed sequences the values only."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, PackedSequence):
        yield name, value.data
    elif depth < MAX_DEPTH:
        for key, item in _items(value):
            yield from named_tensors(item, f"{name}[{key}]", depth + 1)


def _items(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, (tuple, list)):
        return enumerate(value)
    if is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name, None)) for field in fields(value))
    return ()
