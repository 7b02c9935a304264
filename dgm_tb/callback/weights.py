"""Weights before and after each step: norms and relative updates per neuron, and the copy that replay needs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgm_tb.callback.reductions import rows_norm
from dgm_tb.graph import Weight

Array = np.ndarray[Any, np.dtype[Any]]

MAX_COPY_BYTES = 1 << 30
"""Above this the weights are not copied: no relative update and no replay (said in the recording)."""


@dataclass
class _Incoming:
    """The weights of one module's neurons."""

    entry: Weight
    number: int
    neuron_axis: int
    groups: int

    @property
    def rows(self) -> slice:
        return slice(self.entry.offset, self.entry.offset + self.entry.neurons)

    def norm(self, weight: Tensor) -> Tensor:
        return rows_norm(_wide(weight), self.neuron_axis, self.groups)


class WeightWatch:
    """Watches the parameters of one model.

    Attributes:
        entries: One per module with incoming weights; append-only order of ``named_modules``.
        neurons: Number of all their neurons.
        keeps_copy: Whether the weights before a step may be kept at all.
        has_copy: Whether those before this step are.
        is_sharded: Whether this rank holds only a part of the weights: squares are to be added up over the ranks.
    """

    def __init__(self, root: nn.Module) -> None:
        self.names = [name for name, _ in root.named_parameters()]
        self.parameters = [parameter for _, parameter in root.named_parameters()]
        n_bytes = sum(p.numel() * p.element_size() for p in self.parameters if _is_plain(p))
        self.keeps_copy = 0 < n_bytes <= MAX_COPY_BYTES and all(map(_is_plain, self.parameters))
        self._numbers = {id(parameter): number for number, parameter in enumerate(self.parameters)}
        self._incoming = list(_incoming_weights(root, self._numbers))
        self.entries = [incoming.entry for incoming in self._incoming]
        self.neurons = self.entries[-1].offset + self.entries[-1].neurons if self.entries else 0
        self.is_sharded = False
        self.has_copy = False
        self._copies: list[Tensor] = []
        self._versions: list[int] = []
        self._measured: tuple[list[int], Tensor] | None = None

    def begin(self, *, copy: bool = True) -> None:
        """Begin a step.

        Args:
            copy: Copy the weights now. If not, ``secure`` can do it as long as nothing has changed them.
        """
        self._versions = [parameter._version for parameter in self.parameters]
        self.has_copy = False
        if self._measured is not None and self._measured[0] != self._versions:
            self._measured = None
        if copy:
            self._copy()

    def secure(self) -> bool:
        """Copy the weights if that was not done yet and they are still as they were when the step began.

        Returns:
            Whether there is a copy of the weights before the step.
        """
        if not self.has_copy and self._versions == [parameter._version for parameter in self.parameters]:
            self._copy()
        return self.has_copy

    def _copy(self) -> None:
        if not self.keeps_copy:
            return
        with torch.no_grad():
            live = [parameter.detach() for parameter in self.parameters]
            if [tensor.device for tensor in self._copies] != [tensor.device for tensor in live]:
                self._copies = [tensor.clone() for tensor in live]
            else:
                torch._foreach_copy_(self._copies, live)
        self.has_copy = True

    @property
    def before(self) -> list[Tensor]:
        """The weights before the step in the order of ``parameters``; empty if they are not known."""
        return self._copies if self.has_copy else []

    def norms(self) -> Tensor:
        """The norm of every neuron's incoming weights as they are now ``[neurons]``, float32."""
        with torch.no_grad():
            return self._norms_of([self.parameters[incoming.number].detach() for incoming in self._incoming])

    def end(self, norms: Tensor) -> Tensor:
        """Measure the step's change; the copy of the weights before it is used up by that.

        Args:
            norms: What ``norms`` gave after the step.

        Returns:
            Sums of squares of every neuron's incoming weights ``[3, neurons]``: after the step, of its change, before
            it; NaN for the latter two if no copy of the weights is kept. Of sharded weights this rank's part: the sum
            over the ranks is the whole. ``weight_statistics`` turns them into what is recorded.
        """
        if not self.before or not self._incoming:
            return torch.stack([norms, *[torch.full_like(norms, float("nan"))] * 2]).square_()
        with torch.no_grad():
            weights = [self.parameters[incoming.number].detach() for incoming in self._incoming]
            before = [self.before[incoming.number] for incoming in self._incoming]
            norms_before = self._norms_of(before) if self._measured is None else self._measured[1]
            torch._foreach_sub_(before, weights)
            changes = self._norms_of(before)
        self.has_copy = False
        self._measured = [parameter._version for parameter in self.parameters], norms
        return torch.stack([norms, changes, norms_before]).square_()

    def _norms_of(self, weights: list[Tensor]) -> Tensor:
        """Norms of all neurons ``[neurons]``, float32."""
        norms = [incoming.norm(weight) for incoming, weight in zip(self._incoming, weights, strict=True)]
        return torch.cat(norms).float().cpu() if norms else torch.zeros(0)

    def nonfinite_parameters(self) -> list[str]:
        """Names of the parameters that hold NaN or Inf now."""
        finite = _all_finite([parameter.detach() for parameter in self.parameters])
        return [name for name, ok in zip(self.names, finite, strict=True) if not ok]

    def gradient_norms(self, parameters: Iterable[Tensor]) -> dict[str, Tensor]:
        """The L2 norm of each parameter's gradient, as it is now, by parameter name (a 0-dim tensor each)."""
        chosen = [(p, p.grad) for p in parameters if id(p) in self._numbers and p.grad is not None]
        chosen = [(p, gradient) for p, gradient in chosen if _is_plain(gradient)]
        if not chosen:
            return {}
        with torch.no_grad():
            norms = torch._foreach_norm([gradient for _, gradient in chosen])
        return {self.names[self._numbers[id(p)]]: norm for (p, _), norm in zip(chosen, norms, strict=True)}


def weight_statistics(squares: Array) -> Array:
    """Turn sums of squares of weights into what is recorded of them.

    Args:
        squares: ``[..., 3, neurons]``: of the weights after the step, of their change, of the weights before it.

    Returns:
        ``[..., 3, neurons]``, float32: norm; norm of the change over the norm before it (0 for unchanged weights); norm
        before it.
    """
    with np.errstate(all="ignore"):
        after, change, before = np.moveaxis(np.sqrt(squares), -2, 0)
        return np.stack([after, change / np.maximum(before, 1e-30), before], -2).astype(np.float32)


def _incoming_weights(root: nn.Module, numbers: dict[int, int]) -> Iterable[_Incoming]:
    offset = 0
    seen: set[int] = set()
    for path, module in root.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or id(weight) in seen or id(weight) not in numbers or not weight.is_floating_point():
            continue
        seen.add(id(weight))
        if not weight.numel():
            continue
        axis = _neuron_axis(module)
        groups = int(getattr(module, "groups", 1)) if axis == 1 else 1
        neurons = weight.shape[axis] * groups
        yield _Incoming(Weight(path, "weight", neurons, offset), numbers[id(weight)], axis, groups)
        offset += neurons


def _neuron_axis(module: nn.Module) -> int:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return 1
    return -1 if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else 0


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is an ordinary, initialised, strided tensor (no DTensor, no lazy parameter)."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _all_finite(tensors: list[Tensor]) -> list[bool]:
    plain = [tensor for tensor in tensors if _is_plain(tensor) and tensor.is_floating_point()]
    norms = iter(torch._foreach_norm(plain, float("inf"))) if plain else iter(())
    return [
        bool(torch.isfinite(next(norms))) if _is_plain(tensor) and tensor.is_floating_point() else True
        for tensor in tensors
    ]
