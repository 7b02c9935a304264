"""What a relevance rule is given: one recorded function call, and the few operations that rules share.

A rule answers one question: the outputs of this call carry relevance; how much of it goes to each input? Relevance
propagation (LRP) in one sentence: output ``z_j = sum_i z_ij + b_j`` hands input ``i`` the share ``z_ij / z_j``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6
"""The stabiliser of every rule, as a fraction of the mean ``|z|``."""


@dataclass(frozen=True)
class Carrier:
    """The place of ``Call.inputs[index]`` inside the arguments of a call."""

    index: int


@dataclass(frozen=True)
class Call:
    """One call of a floating-point function, as it was when the model ran.

    Attributes:
        name: The bare name of the function: ``"conv2d"``, ``"add"``; for a module with its own rule, its class's name.
        function: What ran; ``run`` calls it again.
        arguments: Positional arguments; an input that can carry relevance is replaced by a ``Carrier``.
        keywords: The same for keyword arguments.
        inputs: The tensors that depend on data (an example or a random draw), each once, with the values they had
            before the call. Half precision is widened to float32.
        outputs: The tensors that carry relevance out of the call.
        signals: Indices of the inputs that are signal: data, or draws where there is no data.
        gates: Indices of the inputs that are sigmoids, softmaxes, or made only of such.
        kept: Positions of ``outputs`` among all tensors that the function returns.
        writes: The function changes its first argument in place.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    signals: tuple[int, ...]
    gates: tuple[int, ...]
    kept: tuple[int, ...]
    writes: bool = False

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Call the function again with other inputs in the carriers' places; returns what stands for ``outputs``."""

        def fill(leaf: Any) -> Any:
            return inputs[leaf.index] if isinstance(leaf, Carrier) else leaf

        arguments = replace_leaves(self.arguments, fill)
        result = self.function(*arguments, **replace_leaves(self.keywords, fill))
        tensors = tensors_in(arguments[0] if result is None else result)  # None: x[i] = y changes its first argument
        return tuple(tensors[position] for position in self.kept)

    def argument(self, position: int, keyword: str, default: Any = None) -> Any:
        """The argument given at ``position`` or as ``keyword``, with inputs in their carriers' places."""
        value = self.arguments[position] if len(self.arguments) > position else self.keywords.get(keyword, default)
        return self.inputs[value.index] if isinstance(value, Carrier) else value


Rule = Callable[[Call, tuple[Tensor, ...]], Sequence[Tensor | None]]
"""``rule(call, relevance)``: relevance of each of ``call.outputs`` -> of each of ``call.inputs`` (None: nothing)."""


def stabilise(z: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Move ``z`` away from zero: ``z + epsilon * mean|z| * sign(z)`` with ``sign(0) = +1``.

    The mean runs over the finite values of one example (all axes but the first; over everything for a vector), so that
    an example on another scale does not drown the shares of its neighbours in the batch.
    """
    size = z.abs().flatten(1) if z.ndim > 1 else z.abs()[None] if z.ndim else z.abs().reshape(1, 1)
    mean = size.mean(1)
    if not bool(mean.isfinite().all()):  # NaN, infinity, or a sum that overflows float32 before its values do
        mean = torch.where(size.isfinite(), size, 0).mean(1, dtype=torch.float64)
    step = torch.where(mean > 0, epsilon * mean, 1.0).to(z.dtype)
    step = step.reshape(-1, *[1] * (z.ndim - 1)) if z.ndim > 1 else step.reshape([1] * z.ndim)
    return torch.where(z < 0, z - step, z + step)


def share(relevance: Tensor, z: Tensor) -> Tensor:
    """``s = R / stab(z)``, and 0 where there is no relevance to hand on, whatever ``z`` is."""
    return torch.where(relevance == 0, 0, relevance / stabilise(z))


def times(x: Tensor, sensitivity: Tensor) -> Tensor:
    """``x * sensitivity``, and 0 where the sensitivity is 0: a NaN in an example not asked about stays there."""
    return torch.where(sensitivity == 0, 0, x * sensitivity)


def pull_back(call: Call, cotangents: Sequence[Tensor], function: Any = None) -> list[Tensor]:
    """Vector-Jacobian products ``J^T cotangents`` of the call, at its recorded inputs.

    Linear in ``cotangents`` and differentiable in them where they require it.

    Args:
        call: The recorded call.
        cotangents: One tensor per output.
        function: Runs instead of ``call.run``; maps the inputs to a tuple of tensors that stand for the outputs.
    """
    with torch.enable_grad():
        inputs = [x.detach().to(x.dtype if x.is_floating_point() else cotangents[0].dtype) for x in call.inputs]
        inputs = [x.requires_grad_() for x in inputs]
        # an in-place function may neither write to a leaf nor to the recorded values
        outputs = (function or call.run)([x.clone() for x in inputs] if call.writes else inputs)
        reached = [(z, s) for z, s in zip(outputs, cotangents, strict=True) if z.requires_grad]
        if not reached:
            return [torch.zeros_like(x) for x in inputs]
        return list(
            torch.autograd.grad(
                [z for z, _ in reached],
                inputs,
                [s.to(z.dtype) for z, s in reached],
                create_graph=any(s.requires_grad for _, s in reached),
                allow_unused=True,
                materialize_grads=True,
            )
        )


def fit(relevance: Tensor, x: Tensor) -> Tensor:
    """Sum relevance over the axes along which ``x`` was broadcast."""
    return relevance.sum_to_size(x.shape) if relevance.shape != x.shape else relevance


def replace_leaves(tree: Any, replace: Callable[[Any], Any]) -> Any:
    """Rebuild nested tuples, lists and dicts with every other object replaced."""
    if isinstance(tree, tuple):
        parts = [replace_leaves(part, replace) for part in tree]
        # not the class itself: that of packed sequences looks at what it is given
        return type(tree)._make(parts) if hasattr(tree, "_make") else tuple(parts)
    if isinstance(tree, list):
        return [replace_leaves(part, replace) for part in tree]
    if isinstance(tree, Mapping):
        return {key: replace_leaves(part, replace) for key, part in tree.items()}
    return replace(tree)


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors inside nested tuples, lists, dicts and dataclasses, in order."""
    found: list[Tensor] = []

    def note(leaf: Any) -> None:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found.extend(tensors_in(vars(leaf)))

    replace_leaves(tree, note)
    return found


_ALIASES = {  # operators and old spellings that compute the same as another name
    "iadd": "add", "radd": "add", "isub": "sub", "rsub": "sub", "subtract": "sub",
    "imul": "mul", "rmul": "mul", "multiply": "mul", "rmatmul": "matmul", "imatmul": "matmul",
    "truediv": "div", "itruediv": "div", "idiv": "div", "divide": "div", "true_divide": "div", "rtruediv": "rdiv",
    "ipow": "pow", "negative": "neg", "concat": "cat", "concatenate": "cat",
}  # fmt: skip


def function_name(function: Any) -> str:
    """The bare name under which rules know a function: ``Tensor.__iadd__`` and ``torch.add`` are both ``"add"``."""
    name = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":  # a property of Tensor: x.T, x.data
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    bare = name.strip("_")
    return _ALIASES.get(bare, bare)
