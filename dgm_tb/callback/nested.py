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


def arguments_as_batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call as a batch."""
    if kwargs:
        return {**{str(number): value for number, value in enumerate(args)}, **kwargs}
    return args[0] if len(args) == 1 else list(args)


def named_arguments(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors in the arguments of a call by the names of the arguments: ``input[x]``, ``decoder.input[z]``."""
    values = zip(names, (*args, *kwargs.values()), strict=True)
    return {place: tensor for name, value in values for place, tensor in named_tensors(value, name)}


def _items(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, (tuple, list)):
        return enumerate(value)
    if is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name, None)) for field in fields(value))
    return ()
