"""Where hooks are, and where the numbers they take go."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dgm_tb.callback import compiled
from dgm_tb.callback.slots import Slot

if TYPE_CHECKING:
    from dgm_tb.callback.capture import Capture


class Target:
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
        self.targets: dict[tuple[int, str], Target] = {}
        self.number = compiled.register(self)

    def on_call(self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        """The forward hook."""
        if options:
            inputs = (*inputs, *options.values())
        if torch.compiler.is_compiling():
            compiled.observe(self.number, module, inputs, output)
        else:
            self.capture.on_call(self, inputs, output)
