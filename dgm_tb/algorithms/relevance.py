"""Relevance of everything that came before a neuron, in one exact pass: layer-wise relevance propagation (LRP).

The model runs once under ``RelevanceMode``, which writes a tape of every floating-point function call. The relevance of
the chosen neuron then travels the tape backwards, function by function, each by its rule (``rules.RULES``), so modules
and functional code (``z = mu + std * eps``) are served alike.

Source: Bach et al. 2015; Montavon et al. 2019. The pass is exact for the network, unlike products of layer-to-layer
contribution matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from dgm_tb.algorithms.recorder import CallRecorder, Rules
from dgm_tb.algorithms.rules import RULES, Call
from dgm_tb.algorithms.rules.call import tensors_in
from dgm_tb.algorithms.tape import Rank, Record, Value, widen
from dgm_tb.errors import UnknownNameError


@dataclass(frozen=True)
class Relevance:
    """Where the relevance of one target went.

    ``total`` equals ``sum(inputs) + noise + sum(leaked) + sum(stopped)`` up to rounding.

    Attributes:
        target: Slot of the target layer.
        total: Relevance at the target, summed over everything: the activation of the neuron.
        layers: Slot -> relevance of its output, in the shape of that output; without slots that have no path to the
            target.
        inputs: Name of an example tensor -> relevance, in its shape (``[examples, channels, height, width]``).
        noise: Relevance that ended at random draws (the latent vector of a GAN, dropout of an addend).
        leaked: Function -> relevance its bias and stabiliser kept.
        stopped: Function without a rule -> relevance that stopped there.
    """

    target: str
    total: float
    layers: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    noise: float = 0.0
    leaked: dict[str, float] = field(default_factory=dict)
    stopped: dict[str, float] = field(default_factory=dict)


class TargetReached(BaseException):
    """Leaves the forward pass right after ``stop_after``; not an Exception, so that no model code swallows it."""


@dataclass(frozen=True)
class Slot:
    """One call of one layer: its module and the values it was given and gave."""

    module: nn.Module
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


class RelevanceMode:
    """Record a forward pass so that relevance can be propagated through it.

    Use it as a context around anything that runs the model: ``model(x)``, ``model.training_step(batch, 0)``. Values,
    gradients and graph of the run are those without it. Whoever replays a training step puts buffers (BatchNorm's
    running statistics) and random state back. Afterwards every layer call has a *slot*: its name in
    ``model.named_modules()``, with ``@1``, ``@2`` for further calls.

    Args:
        model: The module whose layers get slots; its parameters and buffers are constants.
        inputs: The examples (any nesting of tensors). Only they and random draws receive relevance. None: every tensor
            that is neither parameter nor buffer does.
        rules: More rules, or other ones. A module class makes the whole module one function.
        stop_after: A slot: the run is left as soon as it has its output, without an error, so later NaNs do not matter.
        layers: Slot -> name and axis of the neurons of each of its floating-point outputs that are neuron layers; these
            carry relevance whatever made them (the codes that an ``argmin`` chose). None: nobody says.

    Example:
        >>> with RelevanceMode(model, batch, stop_after="decoder.lv2") as mode:
        ...     model.training_step(batch, 0)
        >>> relevance = mode.propagate("decoder.lv2", neuron=5, examples=[3])
        >>> relevance.inputs["0"][3], relevance.layers["encoder.conv1"][3], relevance.leaked
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any = None,
        *,
        rules: Rules | None = None,
        stop_after: str | None = None,
        layers: Callable[[str], Sequence[tuple[str, int]]] | None = None,
    ) -> None:
        self.slots: dict[str, Slot] = {}
        self.layers = layers
        self._model = model
        self._stop_after = stop_after
        self._constants = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._examples = None if inputs is None else {id(t): name for name, t in _named_tensors(inputs)}
        self._held = inputs  # ids stay unique while the mode lives
        self._recorder = CallRecorder(self._classify, rules or {})
        self._handles: list[RemovableHandle] = []
        self._counts: dict[str, int] = defaultdict(int)

    def __enter__(self) -> RelevanceMode:
        for name, module in self._model.named_modules():
            self._handles += self._recorder.watch(module)
            note = partial(self._note_slot, name)
            self._handles.append(module.register_forward_hook(note, with_kwargs=True))
        self._recorder.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        self._recorder.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return kind is TargetReached

    def propagate(
        self,
        target: str | Tensor,
        neuron: int | None = None,
        *,
        examples: int | Sequence[int] | None = None,
        relevance: Tensor | None = None,
    ) -> Relevance:
        """Relevance of all layers and inputs before the target, in one pass.

        Args:
            target: A slot, or a tensor that was computed under the mode.
            neuron: Channel of a convolution or unit of a dense layer; None: all of them.
            examples: Positions in the batch to start from; None: all. Maps keep the batch axis either way.
            relevance: Start from this instead of the activation (same shape as the target's output).

        Raises:
            UnknownNameError: If the target was not reached.
            ValueError: If the neuron does not exist, its activation is not finite, or it depends on no input.
        """
        records = self.records
        value, name, axis = self._find(target)
        if value.rank == Rank.CONSTANT:
            raise ValueError(f"{name!r} depends on neither inputs nor random draws; pass what it is made of as inputs")
        start = widen(value.tensor) if relevance is None else relevance
        start = _restrict(start, name, axis, neuron, examples)
        with torch.no_grad():
            walk = Walk(value, start)
            for record in reversed(records):
                walk.step(record)
        return self._collect(name, walk)

    @property
    def records(self) -> list[Record]:
        """The function calls of the run, in order.

        Raises:
            RuntimeError: Inside the block, where propagation itself would be recorded.
        """
        if self._handles:
            raise RuntimeError("the run is still being recorded; leave the RelevanceMode block first")
        return self._recorder.tape.records

    # -- recording ---------------------------------------------------------------------------------------------------

    def _classify(self, tensor: Tensor) -> tuple[Rank, str]:
        if self._examples is not None and id(tensor) in self._examples:
            return Rank.DATA, self._examples[id(tensor)]
        if id(tensor) in self._constants or isinstance(tensor, nn.Parameter) or self._examples is not None:
            return Rank.CONSTANT, ""
        self._counts["input"] += 1
        return Rank.DATA, f"input{self._counts['input'] - 1}"

    def _note_slot(self, name: str, module: nn.Module, arguments: Any, keywords: Any, result: Any) -> None:
        if self._recorder.is_inside_module_rule:
            return
        call = self._counts[f"layer {name}"]
        self._counts[f"layer {name}"] += 1
        slot = f"{name}@{call}" if call else name
        given, gave = tensors_in((arguments, keywords)), tensors_in(result)
        value_of = self._recorder.tape.value_of
        with self._recorder.paused():
            self.slots[slot] = Slot(module, tuple(map(value_of, given)), tuple(map(value_of, gave)))
            floating = [value for value in self.slots[slot].outputs if value.tensor.is_floating_point()]
            for value, _ in zip(floating, self.layers(slot) if self.layers is not None else (), strict=False):
                value.rank = Rank.DATA
        if slot == self._stop_after:
            raise TargetReached(slot)

    # -- propagating -------------------------------------------------------------------------------------------------

    def _find(self, target: str | Tensor) -> tuple[Value, str, int]:
        if isinstance(target, Tensor):
            value = self._recorder.tape.value_of(target)
            return value, "the target", 1 if target.ndim > 1 else 0
        if target not in self.slots:
            ran = ", ".join(slot for slot in self.slots if slot) or "none"
            raise UnknownNameError(f"layer {target!r} was not called in this run; layers that were: {ran}")
        for value in self.slots[target].outputs:
            if value.tensor.is_floating_point():
                return value, target, neuron_axis(self.slots[target].module, value.tensor)
        raise ValueError(f"layer {target!r} returned no floating-point tensor, so it has no neurons")

    def _collect(self, name: str, walk: Walk) -> Relevance:
        layers: dict[str, Tensor] = {}
        for name_of_slot, slot in self.slots.items():
            reached = next((walk.received[v] for v in slot.outputs if v in walk.received), None)
            if reached is not None and name_of_slot:
                layers[name_of_slot] = reached
        leaves = {value: r for value, r in walk.received.items() if value.record is None}
        return Relevance(
            target=name,
            total=walk.total,
            layers=layers,
            inputs={value.name: r for value, r in leaves.items() if value.rank == Rank.DATA},
            noise=sum(_amount(r) for value, r in leaves.items() if value.rank == Rank.NOISE),
            leaked=dict(walk.leaked),
            stopped=dict(walk.stopped),
        )


class Walk:
    """Relevance on its way back along a tape."""

    def __init__(self, target: Value, start: Tensor) -> None:
        self.received: dict[Value, Tensor] = {target: start}
        self.total = _amount(start)
        self.leaked: dict[str, float] = defaultdict(float)
        self.stopped: dict[str, float] = defaultdict(float)

    def step(self, record: Record) -> None:
        """Hand the relevance of one call's outputs to its inputs."""
        if not any(value in self.received for value in record.outputs):
            return
        call = record.call()
        relevance = tuple(
            self.received[value] if value in self.received else torch.zeros_like(z)
            for value, z in zip(record.outputs, call.outputs, strict=True)
        )
        amount = sum(_amount(r) for r in relevance)
        handed = self._apply(record, call, relevance)
        if handed is None:
            self.stopped[record.name] += amount
            return
        for value, r in zip(record.carriers, handed, strict=True):
            if r is not None:
                amount -= _amount(r)
                before = self.received.get(value)
                self.received[value] = r if before is None else before + r
        self.leaked[record.name] += amount

    @staticmethod
    def _apply(record: Record, call: Call, relevance: tuple[Tensor, ...]) -> Sequence[Tensor | None] | None:
        if record.rule is None:
            return None
        try:
            return record.rule(call, relevance)
        except Exception:
            if record.rule not in _BUILT_IN:
                raise  # a user's own rule shows its own error
            return None  # an unusual use of a known function: relevance stops there and is reported


_BUILT_IN = frozenset(RULES.values())


def relevance(
    model: nn.Module,
    target: str,
    neuron: int | None,
    inputs: Any,
    *,
    forward: Callable[[], Any] | None = None,
    rules: Rules | None = None,
    examples: int | Sequence[int] | None = None,
) -> Relevance:
    """Run the model once and say who made a neuron do what it did.

    Args:
        model: Any module; it is run in the mode (train or eval) it is in.
        target: Slot of the layer: a name in ``model.named_modules()``, with ``@1`` for its second call.
        neuron: Channel or unit; None: all of them.
        inputs: The examples: a tensor, or a tuple, list or dict of them.
        forward: Runs the model on ``inputs``; default ``model(inputs)``, or ``model(*inputs)`` for a tuple or list.
        rules: More rules, or other ones: module classes or functions -> rule.
        examples: Positions in the batch to start from; None: all.

    Returns:
        Relevance of every earlier layer and of the inputs.

    Raises:
        UnknownNameError: If the run did not reach the target.
        ValueError: If the neuron does not exist or its activation is not finite.
    """
    mode = RelevanceMode(model, inputs, rules=rules, stop_after=target)
    with torch.no_grad(), mode:
        if forward is not None:
            forward()
        elif isinstance(inputs, tuple | list):
            model(*inputs)
        else:
            model(inputs)
    return mode.propagate(target, neuron, examples=examples)


def neuron_axis(module: nn.Module, output: Tensor) -> int:
    """The axis of a layer's output along which its neurons lie: channels of a convolution, units of anything else."""
    if isinstance(module, _ConvNd):
        return output.ndim - len(module.stride) - 1
    if isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding | nn.RNNBase | nn.MultiheadAttention):
        return output.ndim - 1
    return 1 if output.ndim > 1 else 0


def _restrict(start: Tensor, name: str, axis: int, neuron: int | None, examples: int | Sequence[int] | None) -> Tensor:
    """The starting relevance: zero outside the chosen neuron and examples."""
    if neuron is not None and not 0 <= neuron < start.shape[axis]:
        raise ValueError(f"neuron {neuron} of {name!r} does not exist; it has {start.shape[axis]} (counted from 0)")
    mask = torch.zeros_like(start, dtype=torch.bool)
    index: list[Any] = [slice(None)] * start.ndim
    if examples is not None and axis > 0:
        index[0] = [examples] if isinstance(examples, int) else list(examples)
    if neuron is not None:
        index[axis] = slice(neuron, neuron + 1)
    mask[tuple(index)] = True
    start = torch.where(mask, start, 0)
    if not bool(start.detach().isfinite().all()):
        rows = sorted({int(row[0]) for row in (~start.detach().isfinite()).nonzero()})
        raise ValueError(
            f"neuron {neuron} of {name!r} is not finite in examples {rows}; choose other examples or an earlier layer"
        )
    return start


def _amount(relevance: Tensor) -> float:
    rows = relevance.detach().flatten(1).sum(1) if relevance.ndim > 1 else relevance.detach()
    return float(rows.sum(dtype=torch.float64))


def _named_tensors(tree: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        return [(prefix or "input", tree)]
    if isinstance(tree, Mapping):
        parts = [(str(key), part) for key, part in tree.items()]
    elif isinstance(tree, tuple | list):
        parts = [(str(i), part) for i, part in enumerate(tree)]
    else:
        return []
    return [found for key, part in parts for found in _named_tensors(part, f"{prefix}.{key}" if prefix else key)]
