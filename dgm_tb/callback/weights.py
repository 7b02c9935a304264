"""Weights before and after each step: norms and updates per neuron, and the copy that replay needs."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dgm_tb.callback.incoming import Finder, wide
from dgm_tb.callback.shards import is_distributed_tensor, local, oddity, shard_of, sharded_twins
from dgm_tb.graph import Weight

Array = np.ndarray[Any, np.dtype[Any]]

MAX_NAMES = 4
"""So many of those left out for the same reason are named."""


class WeightWatch:
    """Watches the weights of one model: ``begin`` before a step, ``norms`` and then ``end`` after it.

    Weights may be sharded over processes (FSDP2). Nothing is sent: each process gives sums of squares over its own
    part, divided by the number of processes that hold the same part; so the sum over all processes is the whole.

    Args:
        root: The model.
        max_copy_bytes: Above this the weights are not copied: no relative update and no replay (said in the recording).

    Attributes:
        names: Names of all parameters.
        parameters: The parameters, in the order of ``root.parameters()``; the sharded one where FSDP2 has put a whole
            one in its place for now.
        is_sharded: Whether this process holds only a part of the weights.
        keeps_copy: Whether the weights before a step may be kept at all.
        has_copy: Whether those before this step are.
    """

    def __init__(self, root: nn.Module, max_copy_bytes: int = 1 << 30) -> None:
        self._max_copy_bytes = max_copy_bytes
        twins = sharded_twins(root.modules())
        named = [(name, twins.get(id(parameter), parameter)) for name, parameter in root.named_parameters()]
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.is_sharded = any(map(is_distributed_tensor, self.parameters))
        self.has_copy = False
        self._n_processes = dist.get_world_size() if self.is_sharded else 1
        self._numbers = {id(parameter): number for number, parameter in enumerate(self.parameters)}
        self._finder = Finder(root, self.parameters, twins, self._n_processes)
        self._notes: list[str] = []
        self._said: set[str] = set()
        self._copies: list[Tensor] = []
        self._places: list[int] = []
        self._versions: list[int] = []
        self._computed: list[Tensor] = []
        self._now: list[Tensor] = []
        self._look()

    # -- what is watched -----------------------------------------------------------------------------------------------

    @property
    def entries(self) -> list[Weight]:
        """One per module with incoming weights (recurrent layers: one per layer); append-only."""
        self._look_again()
        return [incoming.entry for incoming in self._finder.found]

    @property
    def neurons(self) -> int:
        """Number of all their neurons."""
        return self._finder.neurons

    def take_notes(self) -> list[str]:
        """What the recording should say of weights that are left out or not copied; every sentence once."""
        notes, self._notes = self._notes, []
        return notes

    def _note(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._notes.append(text)

    def _look(self) -> None:
        self._finder.look()
        self._is_scattered = len({parameter.device for parameter in self.parameters}) > 1
        self._lazy = [parameter for parameter in self.parameters if is_lazy(parameter)]
        used = {part.number for incoming in self._finder.found for part in incoming.parts}
        odd = {n: reason for n, p in enumerate(self.parameters) if not is_lazy(p) and (reason := oddity(p))}
        self._is_whole = not self.is_sharded and not odd
        n = len(self.parameters)
        self._copied = [number for number in range(n) if self._is_whole or number in used]
        n_bytes = self._finder.computed_bytes + sum(_n_bytes(self.parameters[number]) for number in self._copied)
        self.keeps_copy = bool(self._lazy) or 0 < n_bytes <= self._max_copy_bytes
        for names, reason in _by_reason(self._finder.reasons):
            self._note(f"the weights of {names} are not recorded: {reason}")
        if n_bytes > self._max_copy_bytes:
            size = f"{n_bytes / 2**30:.1f} GB"
            lost = "no relative updates, no replay of a failing step"
            self._note(f"the weights are not copied, they are {size}, more than max_copy_mb: {lost}")
        elif self.is_sharded:
            self._note("the weights are sharded over processes: no replay of a failing step")
        elif odd:
            for names, reason in _by_reason({self.names[number]: reason for number, reason in odd.items()}):
                self._note(f"no replay of a failing step: its weights can't be copied, {names} is {reason}")

    def _look_again(self) -> None:
        """Find the weights of lazy modules, once they have some."""
        if self._lazy and not any(map(is_lazy, self._lazy)):
            self.has_copy = False
            self._look()

    # -- before the step -----------------------------------------------------------------------------------------------

    def begin(self, *, copy: bool = True) -> None:
        """Begin a step.

        Args:
            copy: Copy the weights now. If not, ``secure`` can do it as long as nothing has changed them; a step that is
                neither measured nor run again needs no copy, and then this costs nothing.
        """
        self._look_again()
        self._versions = [parameter._version for parameter in self.parameters]
        self.has_copy = False
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

    @property
    def before(self) -> list[Tensor]:
        """The weights before the step in the order of ``parameters``; empty if they are not all known."""
        return self._copies if self.has_copy and self._is_whole else []

    def take_before(self) -> list[Tensor]:
        """``before``, which from now on belongs to the caller."""
        before, self._copies, self._places, self.has_copy = self.before, [], [], False
        return before

    def _copy(self) -> None:
        if not self.keeps_copy or self._lazy:
            return
        with torch.no_grad():
            live = self._local(self._copied)
            places = [tensor.data_ptr() for tensor in live]
            if places == self._places:
                torch._foreach_copy_(self._copies, live)
            else:
                self._copies, self._places = [tensor.clone() for tensor in live], places
            self._computed = self._compute()
        self.has_copy = True

    # -- after the step ------------------------------------------------------------------------------------------------

    def norms(self) -> Tensor:
        """The norm of every neuron's incoming weights as they are now ``[neurons]``."""
        with torch.no_grad():
            self._now = [*self._local(range(len(self.parameters))), *self._compute()]
            return _joined([incoming.norms(self._now) for incoming in self._finder.found])

    def end(self, norms: Tensor, *, keep: bool = False) -> Tensor:
        """Measure the step's change; the copy of the weights before it is used up by that.

        Args:
            norms: What ``norms`` gave after the step.
            keep: Leave the copy as it is, at the cost of a further one.

        Returns:
            Sums of squares of every neuron's incoming weights ``[3, neurons]``: after the step, of its change, before
            it; NaN for the latter two if there is no copy of the weights. Of sharded weights this process's part: the
            sum over the processes is the whole. ``weight_statistics`` turns them into what is recorded.
        """
        now, self._now = self._now, []
        if not self.has_copy or not self._finder.found:
            return torch.stack([norms, *[torch.full_like(norms, float("nan"))] * 2]).square_()
        self.has_copy = keep
        with torch.no_grad():
            before, norms_before, changes = self._by_number(), [], []
            for incoming in self._finder.found:  # one after the other, so that each is in the cache all the while
                norms_before.append(incoming.norms(before))
                for part in incoming.parts:
                    old = wide(before[part.number])
                    before[part.number] = old - now[part.number] if keep else old.sub_(now[part.number])
                changes.append(incoming.norms(before))
        return torch.cat([norms, _joined(changes + norms_before)]).square_().view(3, -1)

    def _by_number(self) -> list[Tensor]:
        """The weights before the step, each where its number says."""
        before = [*self.parameters, *self._computed]  # of the former only those that were copied are looked at
        for number, tensor in zip(self._copied, self._copies, strict=True):
            before[number] = tensor
        return before

    def _local(self, numbers: Iterable[int]) -> list[Tensor]:
        if self.is_sharded:
            return [local(self.parameters[number]) for number in numbers]
        return [self.parameters[number] for number in numbers]

    def _compute(self) -> list[Tensor]:
        """The weights that are no parameters; NaN for those that can't be computed any more."""
        values = []
        for weight in self._finder.computed:
            try:
                values.append(weight.compute().clone())  # it may be a parameter itself, as it is with nn.Dropout
            except Exception as error:
                self._note(f"the weights of {weight.name} are not recorded any more: {type(error).__name__}: {error}")
                values.append(torch.full(weight.shape, float("nan")))
        return values

    def nonfinite_parameters(self) -> list[str]:
        """Names of the parameters that hold NaN or Inf now."""
        with torch.no_grad():
            named = zip(self.names, self._local(range(len(self.parameters))), strict=True)
            return [name for name, part in named if not oddity(part) and not bool(torch.isfinite(wide(part)).all())]

    # -- gradients -----------------------------------------------------------------------------------------------------

    def gradient_norms(self, parameters: Iterable[Tensor]) -> dict[str, Tensor]:
        """The L2 norm of each parameter's gradient, as it is now, by parameter name.

        They are 0-dim tensors of one type, on one device. Of sharded weights they are this process's part: the root of
        the sum of squares over the processes is the whole.
        """
        names, gradients, dtype = [], [], torch.float32
        with torch.no_grad():
            for parameter in parameters:
                number = self._numbers.get(id(parameter))
                gradient = None if number is None else _readable(parameter.grad)
                if number is not None and gradient is not None:
                    names.append(self.names[number])
                    gradients.append(gradient)
                    dtype = torch.float64 if gradient.dtype is torch.float64 else dtype
            norms = list(torch._foreach_norm(gradients, 2, dtype)) if gradients else []
            if self._is_scattered:
                device = next((norm.device for norm in norms if not norm.is_cpu), torch.device("cpu"))
                norms = [norm.to(device, non_blocking=True) for norm in norms]
            found = dict(zip(names, norms, strict=True))
            return found if not self.is_sharded else {n: found[n] / self._n_copies(n) ** 0.5 for n in found}

    def gradients_are_finite(self, parameters: Iterable[Tensor]) -> bool:
        """Whether the gradients are finite as far as their sum tells, which may overflow; waits for the device."""
        with torch.no_grad():
            found = [_readable(parameter.grad) for parameter in parameters if id(parameter) in self._numbers]
            return math.isfinite(sum(float(gradient.sum()) for gradient in found if gradient is not None))

    def _n_copies(self, name: str) -> int:
        parameter = self.parameters[self.names.index(name)]
        return shard_of(parameter).n_copies if is_distributed_tensor(parameter) else self._n_processes


def _readable(gradient: Tensor | None) -> Tensor | None:
    """What this process holds of a gradient as a real, strided tensor, if it can be had."""
    if gradient is None or (type(gradient) is Tensor and gradient.dtype is torch.float32 and not gradient.is_sparse):
        return gradient
    if is_distributed_tensor(gradient):
        is_addend = any(placement.is_partial() for placement in gradient.placements)  # type: ignore[attr-defined]
        gradient = None if is_addend else local(gradient)
    elif gradient.layout is torch.sparse_coo:
        gradient = gradient.coalesce().values()
    if gradient is None or oddity(gradient):
        return None
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient


def _by_reason(reasons: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """The names that share a reason, the first few of them."""
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, other in reasons.items() if other == reason]
        rest = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        yield ", ".join(names[:MAX_NAMES]) + rest, reason


def _joined(norms: list[Tensor]) -> Tensor:
    """All in one tensor, on their device; on the host if they have several."""
    if len({part.device for part in norms}) > 1:
        norms = [part.cpu() for part in norms]
    return torch.cat(norms) if norms else torch.zeros(0)


def _n_bytes(parameter: Tensor) -> int:
    if is_lazy(parameter):
        return 0
    with torch.no_grad():
        part = local(parameter)
    return part.numel() * part.element_size()


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
