"""Hooks that turn every module's output and its gradient into one row of numbers per step.

One forward hook per leaf module and ``Tensor.register_hook`` on its outputs: no full backward hooks (they forbid
in-place activations), nothing is kept of the outputs, no synchronisation with the device. Under ``torch.compile`` the
same hooks become operators of the compiled graph; see ``compiled.py``.
"""

import math
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dgm_tb.callback import compiled
from dgm_tb.callback.axes import batch_orders
from dgm_tb.callback.closures import ClosureWatch
from dgm_tb.callback.local import Local
from dgm_tb.callback.reductions import (
    MIN,
    N_STATISTICS,
    SUM,
    join_turns,
    needs_pivot,
    reduce_activation,
    sum_of_squares,
)
from dgm_tb.callback.say import warn
from dgm_tb.callback.sites import Site, Target
from dgm_tb.callback.slots import MAX_CALLS, Slot, floating_outputs, new_slot, observable_modules
from dgm_tb.callback.step_row import StepRow

Listener = Callable[[Slot, nn.Module, tuple[Any, ...], Tensor], None]

GRADIENT = N_STATISTICS
_HALF = (torch.float16, torch.bfloat16)


class Capture:
    """Observes the modules of one model; between ``begin`` and ``end`` it fills a ``StepRow``.

    Attributes:
        slots: Every slot seen so far; append-only.
        skipped: Module -> why it is not observed.
        has_grown: Whether slots were added since the flag was last cleared.
        listener: Called with each slot's module, inputs and output, while a step is observed.
        on_gradient: Called with each slot, its gradient, and whether it is that of a loop's first turn, likewise.
        loops: Modules that are called in a loop on their own last output: all their calls in a step are one slot.
        is_active: Whether a step is being observed.
        is_late: Whether rows are looked at only after the next step: then nothing is read while one is made.
    """

    def __init__(self, root: nn.Module) -> None:
        self.slots: list[Slot] = []
        self.has_grown = False
        self.listener: Listener | None = None
        self.on_gradient: Callable[[Slot, Tensor, bool], None] | None = None
        self.loops: set[str] = set()
        self.is_active = self.is_late = False
        compiled.never_compile_alone(Local.__call__)
        modules, self.skipped = observable_modules(root)
        self._of_leaves: list[Any] = []
        self._targets: list[Target] = []
        self._buffer = torch.zeros(N_STATISTICS + 1, 0, dtype=torch.float32)
        self._examples: dict[int, Tensor] = {}
        self._pivots: dict[int, Tensor] = {}
        self._axis_of: dict[int, tuple[weakref.ref[Tensor], bool]] = {}  # a dead tensor's id may be given again
        self._orders = batch_orders(root)
        self._n_examples: int | None = None
        self._epoch = 0
        self._cost = 0.0
        self._sites = {name: Site(self, name, module) for name, module in modules.items()}
        self._handles = {
            name: site.module.register_forward_hook(Local(site.on_call), with_kwargs=True)
            for name, site in self._sites.items()
        }
        self._closures = ClosureWatch(lambda: {site.name: site.calls for site in self._sites.values()}, self.take_back)

    @property
    def neurons(self) -> int:
        """Number of neurons of all slots."""
        return self.slots[-1].offset + self.slots[-1].neurons if self.slots else 0

    def begin(self, n_examples: int | None = None) -> None:
        """Start observing a step.

        Args:
            n_examples: Number of examples in its batch, if known.
        """
        self._epoch += 1
        self._n_examples = n_examples
        self.is_active = True
        self._examples, self._pivots = {}, {}
        self._axis_of.clear()
        for site in self._sites.values():
            site.calls = site.recalls = 0
        for target in self._targets:
            target.clear()

    def take_back(self, calls: dict[str, int]) -> None:
        """Forget what was observed since each module had been called so often: the step is evaluated again."""
        self.listener = self.on_gradient = None
        for site in self._sites.values():
            site.calls, site.recalls = calls.get(site.name, 0), 0
            for (call, _), target in site.targets.items():
                if call >= site.calls:
                    target.clear()

    def end(self) -> StepRow | None:
        """Stop observing.

        Returns:
            The step's row, or None if no step was being observed.
        """
        self._free_leaves()
        if not self.is_active:
            return None
        self.is_active = False
        with torch.no_grad():
            for target in self._targets:  # of what is left of earlier steps
                if not target.count:
                    self._buffer[:, target.slot.columns] = 0
                elif not target.gradient_count:
                    self._buffer[GRADIENT, target.slot.columns] = 0
            sums = self._buffer[:, : self.neurons].clone()
        counts = [target.count for target in self._targets]
        gradient_counts = [target.gradient_count if target.count else 0 for target in self._targets]
        return StepRow(sums[:GRADIENT], counts, sums[GRADIENT], gradient_counts, self._examples, self._pivots)

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply this step's gradients so far (0-dim)."""
        if self.is_active:
            with torch.inference_mode():
                self._buffer[GRADIENT].mul_((factor * factor).to(self._buffer.device, non_blocking=True))

    def is_finite(self) -> bool:
        """Whether all that was observed in this step so far was finite; may be wrong if it was nearly infinite."""
        return not self.is_active or math.isfinite(float(self._buffer[MIN:].sum()))

    def review(self, row: StepRow) -> None:
        """Choose pivots from a row on the host, if that was not done when the row was made."""
        for number, count in enumerate(row.counts) if self.is_late else ():
            slot = self.slots[number]
            sums = row.activation[:, slot.columns]
            if count and _is_power_of_two(slot.n_observed) and needs_pivot(list(sums), count):
                pivot = _pivot(row.pivots.get(number), list(sums), count)
                slot.pivot = pivot.to(self._buffer.device, non_blocking=True)

    def take_cost(self) -> float:
        """Seconds spent in hooks since the last call."""
        cost, self._cost = self._cost, 0.0
        return cost

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles.values():
            handle.remove()
        for site in self._sites.values():
            compiled.forget(site)
        self._handles.clear()
        self._closures.close()
        self._free_leaves()
        self.is_active = False

    def _free_leaves(self) -> None:
        for handle in self._of_leaves:
            handle.remove()
        self._of_leaves.clear()

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def on_call(self, site: Site, inputs: tuple[Any, ...], output: Any) -> None:
        """Observe one call of a module."""
        if not self.is_active:
            return
        began = time.perf_counter()
        try:
            is_again = torch._C._current_graph_task_id() != -1
            call = self._count(site, is_again)
            if is_again:
                self._on_recomputation(site, call, output)
            elif self._key(site, call) < MAX_CALLS:
                self._on_call(site, call, inputs, output)
        except Exception as error:
            self._fail(site.name, error)
        self._cost += time.perf_counter() - began

    def on_compiled_call(self, site: Site, source: Tensor | None, output: Tensor, place: str) -> int:
        """Observe one output of a module inside a compiled graph; the number of the call, to be told its gradient."""
        if not self.is_active:
            return -1
        began, call = time.perf_counter(), -1
        try:
            is_again = torch._C._current_graph_task_id() != -1
            call = self._count(site, is_again) if not place else (site.recalls if is_again else site.calls) - 1
            if not is_again and self._key(site, call) < MAX_CALLS:
                self._observe(self._target(site, call, place, (source,), output), site, (source,), output)
        except Exception as error:
            self._fail(site.name, error)
        self._cost += time.perf_counter() - began
        return call

    def on_compiled_gradient(self, site: Site, call: int, place: str, gradient: Tensor) -> None:
        """Observe the gradient of one output inside a compiled graph."""
        target = site.targets.get((self._key(site, call), place))
        if target is not None and self.is_active and target.count:
            self._on_gradient(target, self._epoch, call, gradient)

    def _count(self, site: Site, is_again: bool) -> int:
        """The number of this call; activation checkpointing runs modules again during the backward pass."""
        if is_again:
            site.recalls += 1
            return site.recalls - 1
        site.calls += 1
        if site.calls == MAX_CALLS + 1 and site.name not in self.loops:
            self.skipped[site.name] = f"only its first {MAX_CALLS} calls in a step are recorded"
        return site.calls - 1

    def _key(self, site: Site, call: int) -> int:
        """The number of the slot that a call belongs to."""
        return 0 if site.name in self.loops else call

    def _on_call(self, site: Site, call: int, inputs: tuple[Any, ...], output: Any) -> None:
        for place, tensor in _outputs(site.module, output):
            target = self._target(site, call, place, inputs, tensor)
            self._observe(target, site, inputs, tensor)
            target.is_hooked |= self._hook_gradient(target, call, tensor)

    def _on_recomputation(self, site: Site, call: int, output: Any) -> None:
        """Only the gradient is new."""
        for place, tensor in _outputs(site.module, output):
            target = site.targets.get((self._key(site, call), place))
            if target is not None and not target.is_hooked:
                self._hook_gradient(target, call, tensor)

    def _observe(self, target: Target, site: Site, inputs: tuple[Any, ...], output: Tensor) -> None:
        slot = target.slot
        if slot.neurons != _neurons_of(output, slot.is_last_axis):
            self.skipped.setdefault(slot.name, f"the number of its neurons changed from {slot.neurons}")
            return
        turn, x = target.count, output.detach()
        target.count += x.numel() // slot.neurons
        if x.dtype in _HALF:
            x = x.float()
        if turn or x.dtype != torch.float32 or x.device != self._buffer.device:
            self._reduce_apart(target, x, is_further_turn=turn > 0)
        else:
            self._reduce(target, x)
        if not turn:
            slot.n_observed += 1
            if not self.is_late and _is_power_of_two(slot.n_observed) and needs_pivot(target.sums, target.count):
                slot.pivot = _pivot(slot.pivot, target.sums, target.count)
                self._reduce_apart(target, x, is_further_turn=False)
        self._axis_of[id(output)] = weakref.ref(output), slot.is_last_axis
        if self.listener is not None and not turn:
            self.listener(slot, site.module, inputs, output)

    def _reduce(self, target: Target, x: Tensor) -> None:
        slot = target.slot
        how = slot.is_last_axis, slot.counts_zeros, target.sums, slot.pivot, slot.example_axis
        largest = reduce_activation(x, *how)
        if largest is not None:
            self._examples[target.number] = largest
        if slot.pivot is not None:
            self._pivots[target.number] = slot.pivot

    def _reduce_apart(self, target: Target, x: Tensor, *, is_further_turn: bool) -> None:
        """Of a tensor of another type or device than the buffer's, or of a further turn of a loop."""
        slot = target.slot
        sums = [torch.zeros_like(row, dtype=x.dtype, device=x.device) for row in target.sums]
        pivot = None if slot.pivot is None else slot.pivot.to(x.device, non_blocking=True)
        largest = reduce_activation(x, slot.is_last_axis, slot.counts_zeros, sums, pivot, slot.example_axis)
        if largest is not None:
            before = self._examples.get(target.number) if is_further_turn else None
            is_alike = before is not None and len(before) == len(largest)
            self._examples[target.number] = (
                torch.maximum(before, largest) if before is not None and is_alike else largest
            )
        if is_further_turn:
            join_turns(target.sums, sums)
        else:
            for row, wide in zip(target.sums[:N_STATISTICS], sums, strict=False):
                row.copy_(wide, non_blocking=True)
        if slot.pivot is not None:
            self._pivots[target.number] = slot.pivot

    def _hook_gradient(self, target: Target, call: int, output: Tensor) -> bool:
        if not output.requires_grad or not target.count:
            return False
        on_gradient = partial(self._on_gradient, target, self._epoch, call)
        handle = output.register_hook(on_gradient)  # type: ignore[no-untyped-call]
        if output.is_leaf:  # a parameter that its module gives back outlives the step, and so would its hook
            self._of_leaves.append(handle)
        return True

    def _on_gradient(self, target: Target, epoch: int, call: int, gradient: Tensor) -> None:
        if epoch != self._epoch or not self.is_active or torch.is_grad_enabled():
            return  # or the gradient will be derived itself (a penalty on its norm): it is not yet that of the loss
        began, slot = time.perf_counter(), target.slot
        try:
            row = target.sums[GRADIENT]
            wide = gradient.float() if gradient.dtype in _HALF else gradient
            if target.gradient_count:
                row.add_(sum_of_squares(wide, slot.is_last_axis).to(row, non_blocking=True))
            elif wide.dtype == row.dtype and wide.device == row.device:
                sum_of_squares(wide, slot.is_last_axis, out=row)
            else:
                row.copy_(sum_of_squares(wide, slot.is_last_axis), non_blocking=True)
            if call not in target.with_gradient:
                target.with_gradient.add(call)
                target.gradient_count += gradient.numel() // slot.neurons
            if self.on_gradient is not None:
                self.on_gradient(slot, gradient, call == 0 or slot.module not in self.loops)
        except Exception as error:
            self._fail(slot.module, error)
        self._cost += time.perf_counter() - began

    # -- layout --------------------------------------------------------------------------------------------------------

    def _target(self, site: Site, call: int, place: str, inputs: tuple[Any, ...], output: Tensor) -> Target:
        call = self._key(site, call)
        target = site.targets.get((call, place))
        if target is None:
            known = (self._axis_of[id(x)] for x in inputs if id(x) in self._axis_of)
            axis = next((is_last for made, is_last in known if made() is not None), None)
            name = f"{site.name}@{call}" if call else site.name
            slot = new_slot(
                name + place,
                site.name,
                site.module,
                output,
                self.neurons,
                input_axis=axis,
                order=self._orders[site.name],
                n_examples=self._n_examples,
            )
            target = site.targets[call, place] = Target(slot, len(self.slots))
            self.slots.append(slot)
            self._targets.append(target)
            self.has_grown = True
            self._place(target, output.device)
        return target

    def _place(self, target: Target, device: torch.device) -> None:
        """Give a new target its columns of the buffer, which doubles when it is full."""
        held, needed = self._buffer.shape[1], self.neurons
        if needed <= held:
            self._view([target])
            return
        device = self._buffer.device if held else device
        bigger = torch.zeros(N_STATISTICS + 1, max(2 * held, needed), device=device, dtype=torch.float32)
        bigger[:, :held] = self._buffer
        self._buffer = bigger
        self._view(self._targets)

    def _view(self, targets: Iterable[Target]) -> None:
        rows = list(self._buffer)
        for target in targets:
            target.sums = [row[target.slot.columns] for row in rows]

    def _fail(self, name: str, error: Exception) -> None:
        """An error of ours in a hook: this module is no longer observed, training goes on."""
        handle = self._handles.pop(name, None)
        if handle is not None:
            handle.remove()
            compiled.forget(self._sites[name])
            for target in self._sites[name].targets.values():
                target.clear()
            reason = f"observing it failed with {type(error).__name__}: {error}"
            self.skipped[name] = reason
            warn(f"{name} is no longer recorded, training goes on: {reason}")


def _outputs(module: nn.Module, output: Any) -> Iterable[tuple[str, Tensor]]:
    if type(output) is Tensor and output.is_floating_point() and output.numel() and output.dim():
        return (("", output),)
    return floating_outputs(output, module)


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _pivot(subtracted: Tensor | None, sums: Sequence[Tensor], count: int) -> Tensor:
    """What to subtract from values before they are squared, given what was: so their standard deviation is kept."""
    mean = sums[SUM] / count
    pivot = mean if subtracted is None else mean + subtracted.to(mean.device)
    return torch.where(torch.isfinite(pivot), pivot, 0.0)


def _neurons_of(output: Tensor, is_last_axis: bool) -> int:
    if output.dim() == 1:
        return 1
    return output.shape[-1] if is_last_axis else output.shape[1]
