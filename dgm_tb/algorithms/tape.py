"""A tape of what ran: every floating-point function call with the values it saw, in the order it ran.

Autograd's own graph would not do: relevance has to flow where gradients do not (``no_grad``, ``detach``, frozen
layers), a user's backward pass inside ``training_step`` must stay untouched, and in-place functions destroy values that
rules need. So the tape keeps *values*: one ``Value`` per version of a tensor. Before a function writes to a tensor, the
values that live in the same memory are copied; afterwards the tensor, and every view of it, stands for a new value.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dgm_tb.algorithms.rules import Call, Rule, function_name, native
from dgm_tb.algorithms.rules.call import Carrier, replace_leaves, tensors_in

Geometry = tuple[torch.Size, tuple[int, ...], int]
"""Shape, strides and offset of a tensor in its memory."""


class Rank(IntEnum):
    """What a value depends on. Relevance is handed to the highest rank among the factors of a product."""

    CONSTANT = 0  # parameters, buffers, literals
    NOISE = 1  # random draws
    DATA = 2  # the examples


@dataclass(eq=False, slots=True)
class Value:
    """One version of one tensor. A value without a record is a leaf: an example, a draw, a constant."""

    tensor: Tensor
    rank: Rank
    name: str = ""
    record: Record | None = None
    is_gate: bool = False
    overwritten_by: list[tuple[Value, Geometry]] = field(default_factory=list)
    """Values written into this one's memory through another view, and where; resolved when the tensor is next used."""


@dataclass(eq=False, slots=True)
class Record:
    """One call on the tape; ``arguments`` and ``keywords`` hold values where the call had tensors."""

    function: Callable[..., Any]
    name: str
    rule: Rule | None
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    carriers: tuple[Value, ...]
    outputs: tuple[Value, ...]
    kept: tuple[int, ...]
    writes: bool

    def call(self) -> Call:
        """The call as rules see it, with half precision widened to float32."""
        index = {id(value): Carrier(i) for i, value in enumerate(self.carriers)}

        def fill(leaf: Any) -> Any:
            if not isinstance(leaf, Value):
                return leaf
            return index[id(leaf)] if id(leaf) in index else widen(leaf.tensor)

        top = max(value.rank for value in self.carriers)
        return Call(
            name=self.name,
            function=self.function,
            arguments=replace_leaves(self.arguments, fill),
            keywords={key: replace_leaves(tree, fill) for key, tree in self.keywords.items() if key != "out"},
            inputs=tuple(widen(value.tensor) for value in self.carriers),
            outputs=tuple(widen(value.tensor) for value in self.outputs),
            signals=tuple(i for i, value in enumerate(self.carriers) if value.rank == top),
            gates=tuple(i for i, value in enumerate(self.carriers) if value.is_gate),
            kept=self.kept,
            writes=self.writes,
        )


class Tape:
    """Records calls and knows which value each tensor stands for at the moment.

    Args:
        classify: Rank and name of a tensor that nothing on the tape produced.
    """

    def __init__(self, classify: Callable[[Tensor], tuple[Rank, str]]) -> None:
        self.records: list[Record] = []
        self._classify = classify
        self._current: dict[int, Value] = {}
        self._owners: dict[int, Tensor] = {}  # keeps ids and memory addresses unique while the tape lives
        self._by_memory: dict[int, list[int]] = {}

    def value_of(self, tensor: Tensor) -> Value:
        """The value that the tensor stands for now."""
        value = self._current.get(id(tensor))
        if value is None:
            rank, name = self._classify(tensor)
            return self._assign(tensor, Value(tensor.detach(), rank, name))
        if value.overwritten_by:
            value = self._resolve(tensor, value)
        return value

    def before(self, function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Pending:
        """Note the arguments of a call that is about to run, and save the values it is going to overwrite."""

        def note(leaf: Any) -> Any:
            return self.value_of(leaf) if isinstance(leaf, Tensor) else leaf

        noted = replace_leaves((arguments, keywords), note)
        written = written_tensors(function, arguments, keywords)
        for tensor in written:
            for neighbour in self._by_memory.get(_memory(tensor) or 0, ()):
                value = self._current[neighbour]
                value.tensor = value.tensor.clone()
        return Pending(function, noted[0], noted[1], written)

    def after(self, pending: Pending, result: Any, rule: Rule | None, name: str | None = None) -> None:
        """Record a call that has run; ``result`` is what it returned."""
        name = name or function_name(pending.function)
        written = pending.written
        tensors = written or tensors_in(result)
        if not tensors:
            return
        is_fresh = name in VALUE_INDEPENDENT or (bool(written) and name in RANDOM)
        carriers = () if is_fresh else _carriers((pending.arguments, pending.keywords))
        rank = max((value.rank for value in carriers), default=Rank.NOISE if name in RANDOM else Rank.CONSTANT)
        carries = [_can_carry(tensor, carriers) for tensor in tensors]
        values = [
            Value(tensor.detach(), rank if can else Rank.CONSTANT, name if rank == Rank.NOISE else "")
            for tensor, can in zip(tensors, carries, strict=True)
        ]
        kept = tuple(i for i, value in enumerate(values) if value.rank > Rank.CONSTANT)
        if carriers and kept:
            outputs = tuple(values[i] for i in kept)
            noted = pending.arguments, pending.keywords
            record = Record(pending.function, name, rule, *noted, carriers, outputs, kept, bool(written))
            self.records.append(record)
            for value in outputs:
                value.record = record
                value.is_gate = _is_gate(record)
        for tensor, value in zip(tensors, values, strict=True):
            if written:
                self._mark_views(tensor, value)
            self._assign(tensor, value)

    def _assign(self, tensor: Tensor, value: Value) -> Value:
        if id(tensor) not in self._owners:
            self._owners[id(tensor)] = tensor
            if (memory := _memory(tensor)) is not None:
                self._by_memory.setdefault(memory, []).append(id(tensor))
        self._current[id(tensor)] = value
        return value

    def _mark_views(self, tensor: Tensor, value: Value) -> None:
        for neighbour in self._by_memory.get(_memory(tensor) or 0, ()):
            if neighbour != id(tensor):
                self._current[neighbour].overwritten_by.append((value, _geometry(tensor)))

    def _resolve(self, tensor: Tensor, value: Value) -> Value:
        """A view of memory that was written to: record how its value follows from the old one and what was written."""
        place = _geometry(tensor)
        for writer, written_place in value.overwritten_by:
            if written_place == place:
                value = writer
                continue
            arguments = (value, writer, place, written_place)
            carriers = _carriers(arguments)
            value = Value(tensor.detach(), max(value.rank, writer.rank))
            if carriers:
                value.record = Record(overwrite, "view", native, arguments, {}, carriers, (value,), (0,), False)
                self.records.append(value.record)
        return self._assign(tensor, value)


@dataclass(frozen=True, slots=True)
class Pending:
    """A call between ``Tape.before`` and ``Tape.after``."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    written: list[Tensor]


def overwrite(old: Tensor, written: Tensor, old_place: Geometry, written_place: Geometry) -> Tensor:
    """What a view holds after another view of the same memory was written to."""
    extent = 1 + max(
        offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        for shape, strides, offset in (old_place, written_place)
    )
    addresses = torch.arange(extent, device=old.device)
    at_old, at_written = (addresses.as_strided(*place).flatten() for place in (old_place, written_place))
    # not as_strided_scatter: its gradient for the memory is that of the written part (torch 2.13)
    memory = old.new_zeros(extent).index_put((at_old,), old.flatten())
    return memory.index_put((at_written,), written.to(old.dtype).flatten())[at_old].reshape(old.shape)


RANDOM = frozenset(
    "rand randn randint randperm rand_like randn_like randint_like normal uniform exponential log_normal cauchy "
    "geometric bernoulli poisson multinomial random".split()
)
VALUE_INDEPENDENT = frozenset(
    "rand_like randn_like randint_like zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full "
    "new_tensor zero fill".split()
)
GATES = frozenset({"sigmoid", "softmax", "hardsigmoid"})
_GATE_KEEPING = frozenset({"add", "sub", "mul", "neg"})
_ITEM_WRITERS = frozenset(
    "__iadd__ __isub__ __imul__ __itruediv__ __idiv__ __ipow__ __iand__ __ior__ __ixor__ __ifloordiv__ __imod__ "
    "__imatmul__ __setitem__".split()
)


def written_tensors(function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[Tensor]:
    """The tensors that a call changes in place."""
    name = getattr(function, "__name__", "")
    if keywords.get("out") is not None:
        return tensors_in(keywords["out"])
    is_writer = name in _ITEM_WRITERS or (name.endswith("_") and not name.endswith("__") and name not in _NOT_WRITERS)
    if not is_writer and not _asks_in_place(function, arguments, keywords):
        return []
    first = arguments[0] if arguments else next(iter(keywords.values()), None)
    return tensors_in(first)


_NOT_WRITERS = frozenset({"requires_grad_", "retain_grad_", "share_memory_"})


def _asks_in_place(function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    if "inplace" in keywords:
        return bool(keywords["inplace"])
    position = _inplace_position(function) if inspect.isfunction(function) else None
    return position is not None and len(arguments) > position and bool(arguments[position])


@cache
def _inplace_position(function: types.FunctionType) -> int | None:
    code = function.__code__  # not inspect.signature: it follows wrappers into builtins that have none
    names = code.co_varnames[: code.co_argcount]
    return names.index("inplace") if "inplace" in names else None


def widen(tensor: Tensor) -> Tensor:
    """Half precision as float32; everything else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _can_carry(tensor: Tensor, carriers: Iterable[Value]) -> bool:
    """Floats carry relevance; integers only as tokens, not as the outcome of a comparison or an argmax."""
    if tensor.is_floating_point() or tensor.is_complex():
        return True
    return tensor.dtype != torch.bool and not any(value.tensor.is_floating_point() for value in carriers)


def _is_gate(record: Record) -> bool:
    if record.name in GATES:
        return True
    return (record.rule is native or record.name in _GATE_KEEPING) and all(v.is_gate for v in record.carriers)


def _carriers(tree: Any) -> tuple[Value, ...]:
    """The values among a call's arguments that depend on data or draws, each once."""
    found: dict[Value, None] = {}

    def note(leaf: Any) -> None:
        if isinstance(leaf, Value) and leaf.rank > Rank.CONSTANT:
            found[leaf] = None

    replace_leaves(tree, note)
    return tuple(found)


def _memory(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # sparse tensors and those inside a functorch transform have none
        return None


def _geometry(tensor: Tensor) -> Geometry:
    return tensor.shape, tensor.stride(), int(tensor.storage_offset())
