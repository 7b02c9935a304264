"""Hooks that turn every module's output and its gradient into one row of numbers per step.

One forward hook per leaf module and ``Tensor.register_hook`` on its outputs: no full backward hooks (they forbid
in-place activations), nothing is kept of the outputs, no synchronisation with the device. Under ``torch.compile`` the
same hooks become operators of the compiled graph; see ``compiled.py``.
"""

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dgm_tb.callback import compiled
from dgm_tb.callback.axes import batch_orders
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
from dgm_tb.callback.slots import MAX_CALLS, Slot, floating_outputs, new_slot, observable_modules
from dgm_tb.callback.step_row import StepRow

Listener = Callable[[Slot, nn.Module, tuple[Any, ...], Tensor], None]

GRADIENT = N_STATISTICS
_HALF = (torch.float16, torch.bfloat16)


class _Target:
    """Where the numbers of one slot go in the current step.

    Attributes:
        slot: The slot.
        number: Its number.
        sums: Its columns of the buffer, one view per statistic, the gradient's sum of squares last.
        count: Values per neuron in this step; 0 until it is called.
        gradient_count: Values per neuron of its gradient in this step.
        is_hooked: Whether its output's gradient is waited for.
        with_gradient: The calls whose gradient has come; more than one if the module is called in a loop.
    """

    __slots__ = ("count", "gradient_count", "is_hooked", "number", "slot", "sums", "with_gradient")

    def __init__(self, slot: Slot, number: int) -> None:
        self.slot = slot
        self.number = number
        self.sums: list[Tensor] = []
        self.with_gradient: set[int] = set()
        self.clear()

    def clear(self) -> None:
        """Begin a step."""
        self.count = self.gradient_count = 0
        self.is_hooked = False
        self.with_gradient.clear()


class Site:
    """One hooked module.

    Attributes:
        name: Fully-qualified name.
        module: The module.
        calls: Its calls in this step so far.
        recalls: Of these, those that only recompute activations in the backward pass.
        targets: (number of the call, place in the output) -> target.
    """

    __slots__ = ("calls", "capture", "module", "name", "number", "recalls", "targets")

    def __init__(self, capture: "Capture", name: str, module: nn.Module) -> None:
        self.capture = capture
        self.name = name
        self.module = module
        self.calls = self.recalls = 0
        self.targets: dict[tuple[int, str], _Target] = {}
        self.number = compiled.register(self)

    def on_call(self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        """The forward hook."""
        if options:
            inputs = (*inputs, *options.values())
        if torch.compiler.is_compiling():
            compiled.observe(self.number, module, inputs, output)
        else:
            self.capture.on_call(self, inputs, output)


class Capture:
    """Observes the modules of one model; between ``begin`` and ``end`` it fills a ``StepRow``.

    Attributes:
        slots: Every slot seen so far; append-only.
        skipped: Module -> why it is not observed.
        has_grown: Whether slots were added since the flag was last cleared.
        listener: Called with each slot's module, inputs and output, while a step is observed.
        on_gradient: Called with each slot, its gradient, and whether it is that of a loop's first turn, likewise.
        loops: Modules that are called in a loop on their own last output: all their calls in a step are one slot.
        n_modules: Number of modules observed.
        is_active: Whether a step is being observed.
    """

    def __init__(self, root: nn.Module) -> None:
        self.slots: list[Slot] = []
        self.has_grown = False
        self.listener: Listener | None = None
        self.on_gradient: Callable[[Slot, Tensor, bool], None] | None = None
        self.loops: set[str] = set()
        self.is_active = False
        compiled.never_compile_alone(Local.__call__)
        modules, self.skipped = observable_modules(root)
        self.n_modules = len(modules)
        self._targets: list[_Target] = []
        self._buffer = torch.zeros(N_STATISTICS + 1, 0, dtype=torch.float32)
        self._examples: dict[int, Tensor] = {}
        self._pivots: dict[int, Tensor] = {}
        self._axis_of: dict[int, bool] = {}
        self._orders = batch_orders(root)
        self._n_examples: int | None = None
        self._epoch = 0
        self._cost = 0.0
        self._sites = {name: Site(self, name, module) for name, module in modules.items()}
        self._handles = {
            name: site.module.register_forward_hook(Local(site.on_call), with_kwargs=True)
            for name, site in self._sites.items()
        }

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

    def end(self) -> StepRow | None:
        """Stop observing.

        Returns:
            The step's row, or None if no step was being observed.
        """
        if not self.is_active:
            return None
        self.is_active = False
        with torch.no_grad():
            sums = self._buffer[:, : self.neurons].clone()
            for target in self._targets:
                if not target.count:
                    sums[:, target.slot.columns] = 0
                elif not target.gradient_count:
                    sums[GRADIENT, target.slot.columns] = 0
        counts = [target.count for target in self._targets]
        gradient_counts = [target.gradient_count for target in self._targets]
        return StepRow(sums[:GRADIENT], counts, sums[GRADIENT], gradient_counts, self._examples, self._pivots)

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply this step's gradients so far (0-dim)."""
        if self.is_active:
            with torch.inference_mode():
                self._buffer[GRADIENT].mul_((factor * factor).to(self._buffer.device, non_blocking=True))

    def is_finite(self) -> bool:
        """Whether all that was observed in this step so far was finite; may be wrong if it was nearly infinite."""
        return not self.is_active or math.isfinite(float(self._buffer[MIN:].sum()))

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
        self.is_active = False

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

    def _observe(self, target: _Target, site: Site, inputs: tuple[Any, ...], output: Tensor) -> None:
        slot = target.slot
        if slot.neurons != _neurons_of(output, slot.is_last_axis):
            self.skipped.setdefault(slot.name, f"the number of its neurons changed from {slot.neurons}")
            return
        is_further_turn = target.count > 0
        target.count += output.numel() // slot.neurons
        with torch.inference_mode():
            x = output.float() if output.dtype in _HALF else output.detach()
            self._reduce(target, x, is_further_turn)
            slot.n_observed += not is_further_turn
            is_due = slot.n_observed & (slot.n_observed - 1) == 0 and not is_further_turn  # a power of two
            if is_due and not x.is_cuda and needs_pivot(target.sums, target.count):
                mean = target.sums[SUM] / target.count
                pivot = mean if slot.pivot is None else mean + slot.pivot
                slot.pivot = torch.where(torch.isfinite(pivot), pivot, 0.0)
                self._reduce(target, x, is_further_turn)
        self._axis_of[id(output)] = slot.is_last_axis
        if self.listener is not None and not is_further_turn:
            self.listener(slot, site.module, inputs, output)

    def _reduce(self, target: _Target, x: Tensor, is_further_turn: bool) -> None:
        slot, sums = target.slot, target.sums
        if is_further_turn or x.dtype != sums[0].dtype or x.device != sums[0].device:
            sums = [torch.zeros_like(row, dtype=x.dtype, device=x.device) for row in sums]
        how = slot.is_last_axis, slot.counts_zeros
        largest = reduce_activation(x, *how, sums, slot.pivot, slot.example_axis)
        if largest is not None:
            before = self._examples.get(target.number) if is_further_turn else None
            if before is not None and len(before) == len(largest):
                largest = torch.maximum(before, largest)
            self._examples[target.number] = largest
        if is_further_turn:
            join_turns(target.sums, sums)
        elif sums is not target.sums:
            for row, wide in zip(target.sums[:N_STATISTICS], sums, strict=False):
                row.copy_(wide, non_blocking=True)
        if slot.pivot is not None:
            self._pivots[target.number] = slot.pivot

    def _hook_gradient(self, target: _Target, call: int, output: Tensor) -> bool:
        if not output.requires_grad or not target.count:
            return False
        output.register_hook(partial(self._on_gradient, target, self._epoch, call))  # type: ignore[no-untyped-call]
        return True

    def _on_gradient(self, target: _Target, epoch: int, call: int, gradient: Tensor) -> None:
        if epoch != self._epoch or not self.is_active or torch.is_grad_enabled():
            return  # or the gradient will be derived itself (a penalty on its norm): it is not yet that of the loss
        began, slot = time.perf_counter(), target.slot
        try:
            with torch.inference_mode():
                wide = gradient.float() if gradient.dtype in _HALF else gradient
                squares = sum_of_squares(wide, slot.is_last_axis)
                if target.gradient_count:
                    target.sums[GRADIENT].add_(squares)
                else:
                    target.sums[GRADIENT].copy_(squares, non_blocking=True)
            if call not in target.with_gradient:
                target.with_gradient.add(call)
                target.gradient_count += gradient.numel() // slot.neurons
            if self.on_gradient is not None:
                self.on_gradient(slot, gradient, call == 0 or slot.module not in self.loops)
        except Exception as error:
            self._fail(slot.module, error)
        self._cost += time.perf_counter() - began

    # -- layout --------------------------------------------------------------------------------------------------------

    def _target(self, site: Site, call: int, place: str, inputs: tuple[Any, ...], output: Tensor) -> _Target:
        call = self._key(site, call)
        target = site.targets.get((call, place))
        if target is None:
            axis = next((self._axis_of[id(x)] for x in inputs if id(x) in self._axis_of), None)
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
            target = site.targets[call, place] = _Target(slot, len(self.slots))
            self.slots.append(slot)
            self._targets.append(target)
            self.has_grown = True
            self._place(target, output.device)
        return target

    def _place(self, target: _Target, device: torch.device) -> None:
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

    def _view(self, targets: Iterable[_Target]) -> None:
        rows = list(self._buffer)
        for target in targets:
            target.sums = [row[target.slot.columns] for row in rows]

    def _fail(self, name: str, error: Exception) -> None:
        """An error of ours in a hook: this module is no longer observed, training goes on."""
        handle = self._handles.pop(name, None)
        if handle is not None:
            handle.remove()
            compiled.forget(self._sites[name])
            reason = f"observing it failed with {type(error).__name__}: {error}"
            self.skipped[name] = reason
            warn(f"{name} is no longer recorded, training goes on: {reason}")


def _outputs(module: nn.Module, output: Any) -> Iterable[tuple[str, Tensor]]:
    if type(output) is Tensor and output.is_floating_point() and output.numel() and output.dim():
        return (("", output),)
    return floating_outputs(output, module)


def _neurons_of(output: Tensor, is_last_axis: bool) -> int:
    if output.dim() == 1:
        return 1
    return output.shape[-1] if is_last_axis else output.shape[1]
