"""Runs a recorded training step again, with the weights, buffers and random state it had, and leaves no trace.

Everything the second run may change is put back: parameters, gradients, buffers, module attributes, random state,
training flags. Whoever runs the step (``Rerun``) keeps the optimizers from stepping and the loggers from logging.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dgm_tb.callback.alone import alone
from dgm_tb.callback.capture import Capture
from dgm_tb.callback.examples import RandomState
from dgm_tb.callback.nested import tensors_in
from dgm_tb.callback.slots import Slot
from dgm_tb.callback.tracer import Tracer

Rerun = Callable[[Any, int, Mapping[int, Tensor]], Tensor | None]
"""Runs the training step on a batch and its number. The mapping gives, by ``id(parameter)``, the weights that the step
really led to, for an optimizer that steps in the middle of it. Returns the loss in automatic optimization."""

_MASKING = ("masked_fill", "masked_fill_", "where", "full", "full_like", "new_full", "fill_", "triu", "tril")
"""Functions whose -Inf is meant: scores that softmax is to make zero of."""

_INTERNAL = ("_parameters", "_buffers", "_modules")
_CONTAINERS = (list, dict, set, deque, OrderedDict)


@dataclass
class Before:
    """What a step started from.

    Attributes:
        step: The step.
        batch: The batch, by reference.
        batch_idx: Lightning's number of it.
        indices: Dataset indices of its examples, if known.
        versions: Version counters of the batch's tensors: a batch changed in place can't be replayed.
        random: Random state.
        buffers: The model's buffers.
        weights_after: The weights that the step led to, if they are not those of now.
        inputs: Further tensors that come from outside the model, by name: what a plain loop calls it with.
    """

    step: int
    batch: Any
    batch_idx: int
    indices: list[int] | None
    versions: list[int]
    random: RandomState
    buffers: list["_Buffer"]
    weights_after: list[Tensor] | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)

    def is_unchanged(self) -> bool:
        """Whether the batch and the inputs still hold what they held."""
        return self.versions == [tensor._version for tensor in tensors_in((self.batch, self.inputs))]

    def replace_batch(self, batch: Any, indices: list[int] | None) -> None:
        """Take another batch for the step's: a plain loop names it when the step ends."""
        versions = [tensor._version for tensor in tensors_in((batch, self.inputs))]
        if self.is_unchanged():
            self.versions = versions
        self.batch, self.indices = batch, indices

    def add_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        """Note further tensors from outside."""
        self.inputs |= inputs
        self.versions += [tensor._version for tensor in inputs.values()]


def remember(step: int, batch: Any, batch_idx: int, indices: list[int] | None, modules: Iterable[nn.Module]) -> Before:
    """What is needed to run this step again, besides the weights; ``modules`` are all those of the model."""
    versions = [tensor._version for tensor in tensors_in(batch)]
    return Before(step, batch, batch_idx, indices, versions, RandomState(), _buffers_of(modules))


@dataclass
class _Buffer:
    """One buffer: where it is kept, the tensor that was kept there, and a copy of what it held."""

    owner: nn.Module
    name: str
    tensor: Tensor
    value: Tensor

    def put_back(self) -> None:
        """Keep the same tensor with the same value again."""
        self.tensor.data.copy_(self.value)
        self.owner._buffers[self.name] = self.tensor


def _buffers_of(modules: Iterable[nn.Module]) -> list[_Buffer]:
    with torch.no_grad():
        return [
            _Buffer(module, name, tensor, tensor.detach().clone())
            for module in modules
            if module._buffers
            for name, tensor in module._buffers.items()
            if tensor is not None
        ]


@contextmanager
def as_before(root: nn.Module, before: Before, weights: list[Tensor]) -> Iterator[dict[int, Tensor]]:
    """Put the model back to how it was before the step; on leaving, to how it was on entering.

    What runs inside stays on this rank (``alone.py``).

    Yields:
        ``id(parameter)`` -> the weights that the step really led to.
    """
    live_random = RandomState()
    parameters = list(root.parameters())
    live_weights = [parameter.detach().clone() for parameter in parameters]
    live_buffers = _buffers_of(root.modules())
    gradients = [parameter.grad for parameter in parameters]
    flags = [parameter.requires_grad for parameter in parameters]
    attributes = [(module, _attributes(module)) for module in root.modules()]
    try:
        for parameter in parameters:
            parameter.grad = None
        _load(parameters, weights)
        for buffer in before.buffers:
            buffer.put_back()
        before.random.restore()
        with torch.enable_grad(), torch.autograd.set_detect_anomaly(False), alone(root):
            after = before.weights_after or live_weights
            yield {id(parameter): led_to for parameter, led_to in zip(parameters, after, strict=True)}
    finally:
        for module, saved in attributes:
            _restore_attributes(module, saved)
        _load(parameters, live_weights)
        for buffer in live_buffers:
            buffer.put_back()
        for parameter, gradient, flag in zip(parameters, gradients, flags, strict=True):
            parameter.grad = gradient
            parameter.requires_grad_(flag)
        live_random.restore()


def _load(tensors: list[Any], values: list[Tensor]) -> None:
    """Copy values in without raising version counters: a live graph may still hold these tensors."""
    for tensor, value in zip(tensors, values, strict=False):
        tensor.data.copy_(value)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Every own attribute of a module with a copy of what it holds."""
    return {
        name: (value, _shallow(value))
        for name, value in vars(module).items()
        if name not in _INTERNAL and not name.endswith("_hooks") and "_hooks_" not in name
    }


def _shallow(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if type(value) in _CONTAINERS else None


def _restore_attributes(module: nn.Module, saved: dict[str, tuple[Any, Any]]) -> None:
    own = vars(module)
    for name in [name for name in own if name not in saved and name not in _INTERNAL and "_hooks" not in name]:
        del own[name]
    for name, (value, copy) in saved.items():
        own[name] = value
        if isinstance(value, Tensor):
            value.data.copy_(copy)
        elif type(value) in _CONTAINERS:
            value.clear()
            (value.extend if isinstance(value, (list, deque)) else value.update)(copy)


class _Found(BaseException):
    """Leaves the training step once the origin is known; no Exception, so that no model code swallows it."""


@dataclass
class Origin:
    """The first function with finite inputs and a non-finite output.

    Attributes:
        node: Id of the DAG node it belongs to.
        op: Name of the function, as deep inside a leaf module as it happened.
        module: Leaf module that ran it, or the innermost module whose ``forward`` did.
        is_leaf: Whether ``module`` is a leaf module.
        parents: Ids of the DAG nodes whose outputs went in, one per tensor of ``inputs``.
        bad: Where the output is not finite, bool, in its shape.
        inputs: The floating-point tensors that went in, detached.
        op_inputs: Those that went into ``op`` itself (other ones if it ran inside a leaf module).
    """

    node: str
    op: str
    module: str
    is_leaf: bool
    parents: list[str]
    bad: Tensor
    inputs: list[Tensor]
    op_inputs: list[Tensor]


class OriginFinder(Tracer):
    """Watches a forward pass for the first non-finite value that no input explains, and stops the pass there.

    Attributes:
        origin: What was found, or None if the whole pass stayed finite.
    """

    origin: Origin | None = None
    _inner: tuple[str, list[Tensor]] | None = None
    _leaf_inputs: list[Tensor] | None = None
    _has_masked = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and look at what came out."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._suspended or name in ("backward", "__get__", "__set__"):
            return super().__torch_function__(func, types, args, kwargs)
        self._has_masked = self._has_masked or name in _MASKING
        inputs = _finite_inputs((args, kwargs), self._has_masked)
        masks = name in _MASKING or _is_masked(inputs)
        if self._depth:
            output = func(*args, **kwargs)
            if self._inner is None and inputs and _is_bad(output, masks):
                self._inner = (name.strip("_"), inputs)
            return output
        parents = self._parents((args, kwargs))
        output = super().__torch_function__(func, types, args, kwargs)
        if inputs and parents and _is_bad(output, masks):
            node, path = self._node(output), self._path[-1]
            self._report(Origin(node, name.strip("_"), path, False, parents, _bad(output), inputs, inputs))
        return output

    def before_leaf(self, arguments: Any) -> None:
        """Look at what goes into a leaf module."""
        self._inner = None
        self._leaf_inputs = _finite_inputs(arguments, self._has_masked)

    def after_leaf(self, slot: str, module: str, output: Any) -> None:
        """Look at what comes out of it."""
        if self._leaf_inputs is None or not _is_bad(output, _is_masked(self._leaf_inputs)):
            return
        op, op_inputs = self._inner or ("", self._leaf_inputs)
        parents = self.trace.inputs_of.get(slot, [])
        self._report(Origin(slot, op, module, True, parents, _bad(output), self._leaf_inputs, op_inputs))

    def _node(self, output: Any) -> str:
        return next((node for tensor in tensors_in(output) if (node := self.node_of(tensor))), "")

    def _report(self, origin: Origin) -> None:
        self.origin = origin
        raise _Found


def find_origin(
    root: nn.Module, leaves: Mapping[str, nn.Module], before: Before, weights: list[Tensor], rerun: Rerun
) -> OriginFinder:
    """Run a step again up to its first non-finite value.

    Returns:
        The finder: its ``origin`` is None if the forward pass stays finite, its ``trace`` ends there.
    """
    with as_before(root, before, weights) as live:
        finder = OriginFinder(root, leaves, before.batch)
        finder.note_inputs(before.inputs)
        try:
            with finder:
                rerun(before.batch, before.batch_idx, live)
        except _Found:
            pass
        except Exception:
            return finder  # the step raises by itself, as it did when it was live
        return finder


def bad_gradient_rows(
    root: nn.Module, before: Before, weights: list[Tensor], rerun: Rerun, capture: Capture
) -> dict[str, list[int]]:
    """Run a step again with its backward pass and note whose gradients are not finite.

    Args:
        root: The model.
        before: What the step started from.
        weights: The weights before it.
        rerun: Runs it.
        capture: The hooks on the model; must not be in a step.

    Returns:
        Slot name -> positions of the examples whose gradient holds NaN or Inf, in the order of the backward pass.
    """
    rows: dict[str, list[int]] = {}

    def on_gradient(slot: Slot, gradient: Tensor, _: bool) -> None:
        if slot.example_axis is None:
            return
        by_example = gradient.detach().movedim(slot.example_axis, 0)
        bad = ~torch.isfinite(by_example.reshape(len(by_example), -1)).all(1)
        if bool(bad.any()):
            rows.setdefault(slot.name, torch.nonzero(bad).flatten().tolist())

    with as_before(root, before, weights) as live:
        capture.begin()
        capture.on_gradient = on_gradient
        try:
            loss = rerun(before.batch, before.batch_idx, live)
            if loss is not None and loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        except Exception:
            return rows  # it raises by itself, as it did when it was live
        finally:
            capture.end()
            capture.on_gradient = None
    return rows


def _finite_inputs(arguments: Any, may_mask: bool = False) -> list[Tensor] | None:
    """The floating-point tensors among the arguments, or None if one has NaN or Inf; -Inf may be a mask."""
    tensors = [tensor for tensor in tensors_in(arguments) if tensor.is_floating_point() and tensor.numel()]
    return None if any(_has_bad(tensor, may_mask) for tensor in tensors) else [tensor.detach() for tensor in tensors]


def _is_masked(inputs: list[Tensor] | None) -> bool:
    return inputs is not None and any(map(_has_bad, inputs))


def _is_bad(output: Any, may_mask: bool = False) -> bool:
    return any(
        _has_bad(tensor, may_mask) for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.numel()
    )


def _has_bad(tensor: Tensor, may_mask: bool = False) -> bool:
    """Whether a tensor has NaN or Inf; if ``may_mask``, -Inf does not count."""
    with torch._C.DisableTorchFunction():
        is_fine = torch.isfinite(tensor.detach())
        return not bool(is_fine.all()) and not (may_mask and bool((is_fine | (tensor.detach() == -torch.inf)).all()))


def _bad(output: Any) -> Tensor:
    with torch._C.DisableTorchFunction():
        tensors = [tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.numel()]
        return next(~torch.isfinite(tensor.detach()) for tensor in tensors if _has_bad(tensor))
