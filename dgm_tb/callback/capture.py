"""Hooks that turn every module's output and its gradient into one row of numbers per step.

One forward hook per leaf module and ``Tensor.register_hook`` on its outputs: no full backward hooks (they forbid
in-place activations), nothing is kept of the outputs, no synchronisation with the device.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dgm_tb.callback.local import Local
from dgm_tb.callback.reductions import N_STATISTICS, SUM, needs_pivot, reduce_activation, sum_of_squares
from dgm_tb.callback.say import warn
from dgm_tb.callback.slots import MAX_CALLS, Slot, floating_outputs, new_slot, observable_modules
from dgm_tb.callback.step_row import StepRow

Listener = Callable[[Slot, nn.Module, tuple[Any, ...], Tensor], None]


class Capture:
    """Observes the modules of one model; between ``begin`` and ``end`` it fills a ``StepRow``.

    Attributes:
        slots: Every slot seen so far; append-only.
        skipped: Module -> why it is not observed.
        has_grown: Whether slots were added since the flag was last cleared.
        listener: Called with each slot's module, positional inputs and output, while a step is observed.
    """

    def __init__(self, root: nn.Module) -> None:
        self.slots: list[Slot] = []
        self.skipped: dict[str, str] = {}
        self.has_grown = False
        self.listener: Listener | None = None
        self.on_gradient: Callable[[Slot, Tensor], None] | None = None
        self._numbers: dict[tuple[str, str], int] = {}
        self._calls: dict[str, int] = {}
        self._recalls: dict[str, int] = {}
        self._axis_of: dict[int, bool] = {}
        self._row: StepRow | None = None
        self._device = torch.device("cpu")
        self._hooked: set[int] = set()
        modules, self.skipped = observable_modules(root)
        self._cost = 0.0
        self._handles = {
            name: module.register_forward_hook(Local(partial(self.on_call, name))) for name, module in modules.items()
        }
        self.n_modules = len(modules)

    @property
    def neurons(self) -> int:
        """Number of neurons of all slots."""
        return self.slots[-1].offset + self.slots[-1].neurons if self.slots else 0

    @property
    def is_active(self) -> bool:
        """Whether a step is being observed."""
        return self._row is not None

    def begin(self) -> None:
        """Start observing a step."""
        device = self._device
        self._calls.clear()
        self._recalls.clear()
        self._axis_of.clear()
        self._hooked.clear()
        self._row = StepRow(
            torch.zeros(N_STATISTICS, self.neurons, device=device),
            [0] * len(self.slots),
            torch.zeros(self.neurons, device=device),
            [0] * len(self.slots),
        )

    def end(self) -> StepRow | None:
        """Stop observing.

        Returns:
            The step's row, or None if no step was being observed.
        """
        row, self._row = self._row, None
        return row

    def take_cost(self) -> float:
        """Seconds spent in hooks since the last call."""
        cost, self._cost = self._cost, 0.0
        return cost

    def _fail(self, name: str, error: Exception) -> None:
        """An error of ours in a hook: this module is no longer observed, training goes on."""
        handle = self._handles.pop(name, None)
        if handle is not None:
            handle.remove()
            reason = f"observing it failed with {type(error).__name__}: {error}"
            self.skipped[name] = reason
            warn(f"{name} is no longer recorded, training goes on: {reason}")

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._row = None

    def on_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Observe one call of a module."""
        if self._row is None:
            return
        began = time.perf_counter()
        try:
            self._on_call(name, module, inputs, output)
        except Exception as error:
            self._fail(name, error)
        self._cost += time.perf_counter() - began

    def _on_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if torch._C._current_graph_task_id() != -1:
            self._on_recomputation(name, output)
            return
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        if call >= MAX_CALLS:
            if call == MAX_CALLS:
                self.skipped[name] = f"only its first {MAX_CALLS} calls in a step are recorded"
            return
        for suffix, tensor in floating_outputs(output):
            self._observe(self._slot(name, call, suffix, module, inputs, tensor), module, inputs, tensor)

    def _on_recomputation(self, name: str, output: Any) -> None:
        """Activation checkpointing runs the module again during backward: only its gradient is new."""
        call = self._recalls.get(name, 0)
        self._recalls[name] = call + 1
        for suffix, tensor in floating_outputs(output):
            number = self._numbers.get((_slot_name(name, call), suffix))
            if number is not None:
                self._hook_gradient(number, tensor)

    def _slot(
        self, name: str, call: int, suffix: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor
    ) -> int:
        key = (_slot_name(name, call), suffix)
        number = self._numbers.get(key)
        if number is None:
            axis = next((self._axis_of[id(x)] for x in inputs if id(x) in self._axis_of), None)
            slot = new_slot("".join(key), name, module, output, self.neurons, input_axis=axis)
            number = self._numbers[key] = len(self.slots)
            self.slots.append(slot)
            self.has_grown = True
            self._grow(slot)
        return number

    def _grow(self, slot: Slot) -> None:
        row = self._row
        if row is None:
            return
        row.activation = torch.cat([row.activation, row.activation.new_zeros(N_STATISTICS, slot.neurons)], 1)
        row.gradient = torch.cat([row.gradient, row.gradient.new_zeros(slot.neurons)])
        row.counts.append(0)
        row.gradient_counts.append(0)

    def _observe(self, number: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        row, slot = self._row, self.slots[number]
        if row is None or slot.neurons != _neurons_of(output, slot.is_last_axis):
            self.skipped.setdefault(slot.name, f"the number of its neurons changed from {slot.neurons}")
            return
        with torch.no_grad():
            x = output.detach()
            if x.dtype in (torch.float16, torch.bfloat16):
                x = x.float()
            if row.activation.device != x.device:
                self._device = x.device
                row.activation, row.gradient = row.activation.to(x.device), row.gradient.to(x.device)
            row.counts[number] = output.numel() // slot.neurons
            self._reduce(row, number, x)
            slot.n_observed += 1
            is_due = slot.n_observed & (slot.n_observed - 1) == 0  # a power of two
            if is_due and needs_pivot(row.activation[:, slot.columns], row.counts[number]):
                mean = row.activation[SUM, slot.columns] / row.counts[number]
                pivot = mean if slot.pivot is None else mean + slot.pivot
                slot.pivot = torch.where(torch.isfinite(pivot), pivot, 0.0)
                self._reduce(row, number, x)
        self._axis_of[id(output)] = slot.is_last_axis
        self._hook_gradient(number, output)
        if self.listener is not None:
            self.listener(slot, module, inputs, output)

    def _reduce(self, row: StepRow, number: int, x: Tensor) -> None:
        slot = self.slots[number]
        columns = row.activation[:, slot.columns]
        wide = columns if x.dtype == torch.float32 else columns.to(x.dtype)
        row.examples[number] = reduce_activation(x, slot.is_last_axis, slot.counts_zeros, wide, slot.pivot)
        if wide is not columns:
            columns.copy_(wide)
        if slot.pivot is not None:
            row.pivots[number] = slot.pivot

    def _hook_gradient(self, number: int, output: Tensor) -> None:
        if not output.requires_grad or number in self._hooked:
            return
        self._hooked.add(number)
        row, slot = self._row, self.slots[number]

        def on_gradient(gradient: Tensor) -> None:
            if row is None or row is not self._row:
                return
            began = time.perf_counter()
            try:
                with torch.no_grad():
                    wide = gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient
                    squares = sum_of_squares(wide.detach(), slot.is_last_axis)
                    if row.gradient_counts[number]:
                        row.gradient[slot.columns] += squares
                    else:
                        row.gradient[slot.columns] = squares
                row.gradient_counts[number] = gradient.numel() // slot.neurons
                if self.on_gradient is not None:
                    self.on_gradient(slot, gradient)
            except Exception as error:
                self._fail(slot.module, error)
            self._cost += time.perf_counter() - began

        output.register_hook(on_gradient)  # type: ignore[no-untyped-call]


def _slot_name(module: str, call: int) -> str:
    return module if call == 0 else f"{module}@{call}"


def _neurons_of(output: Tensor, is_last_axis: bool) -> int:
    if output.dim() == 1:
        return 1
    return output.shape[-1] if is_last_axis else output.shape[1]
