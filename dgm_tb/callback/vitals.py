"""What every step is judged by, whether its neurons are observed or not: its losses and the norms of its gradients."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from dgm_tb.callback.loss_scale import LossScale
from dgm_tb.callback.weights import WeightWatch

Numbers = dict[str, float]
Measured = dict[str, Tensor | float]


class Vitals:
    """Losses and gradient norms of the current step, and whether its weights are still those from before it.

    Args:
        weights: The model's.
        loss_scale: Of its gradient scalers.

    Attributes:
        steps_often: Whether optimizers have stepped more than once in one step of the training.
    """

    def __init__(self, weights: WeightWatch, loss_scale: LossScale) -> None:
        self._weights = weights
        self._loss_scale = loss_scale
        self._losses: Measured = {}
        self._gradients: dict[str, Tensor] = {}
        self._norms: Numbers = {}
        self._names = dict(zip(map(id, weights.parameters), weights.names, strict=True))
        self._measured: dict[str, Tensor] = {}
        self._n_stepped = 0
        self.steps_often = False
        self._handle = register_optimizer_step_post_hook(self._on_optimizer_step)

    def begin(self) -> None:
        """Begin a step."""
        self._losses, self._gradients, self._norms, self._measured = {}, {}, {}, {}
        self._n_stepped = 0

    def remove(self) -> None:
        """Leave the optimizers alone. Safe to call twice."""
        self._handle.remove()

    def note_loss(self, name: str, value: Any) -> None:
        """Note a loss, without its scale if it has one; whatever is no number is passed over."""
        value = self._loss_scale.unscaled(value)
        if isinstance(value, Tensor):
            if value.numel() == 1 and not value.is_complex():
                with torch._C.DisableTorchFunction():  # copied, since the user may change it in place later
                    self._losses[name] = value.detach().clone()
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            self._losses[name] = float(value)

    def note_gradients(self, parameters: Sequence[Tensor], *, are_scaled: bool, if_bad: bool = False) -> None:
        """Note the norms of the gradients of these parameters as ``measure_gradients`` saw them, else as they are now.

        Args:
            parameters: Of an optimizer that is about to step.
            are_scaled: Whether a gradient scaler's factor is still in them.
            if_bad: Only if they are not all finite: that takes half the time to see.
        """
        if if_bad and self._weights.gradients_are_finite(parameters):
            return
        names = {id(parameter): self._names.get(id(parameter), "") for parameter in parameters}
        measured = {name: self._measured.pop(name) for name in names.values() if name in self._measured}
        others = [parameter for parameter in parameters if names[id(parameter)] not in measured]
        norms = self._weights.gradient_norms(others)
        self._gradients |= {n: self._loss_scale.divided(norms[n]) for n in norms} if are_scaled else norms
        self._gradients |= measured
        self._norms = {}

    def measure_gradients(self) -> None:
        """Measure all gradients at the end of a backward pass: before a plain loop clips them."""
        norms = self._weights.gradient_norms(self._weights.parameters)
        self._measured = {name: self._loss_scale.divided(norm) for name, norm in norms.items()}

    def read(self) -> tuple[Numbers, Numbers]:
        """Losses and gradient norms noted so far; waits for the device they are on."""
        losses = {name: float(value) for name, value in self._losses.items()}
        if len(self._norms) != len(self._gradients):
            norms = torch.stack(list(self._gradients.values())).tolist()
            self._norms = dict(zip(self._gradients, norms, strict=True))
        return losses, self._norms

    def take(self) -> tuple[Measured, Measured]:
        """Losses and gradient norms noted in this step; those on a device are not waited for."""
        return self._losses, {**self._gradients, **self._norms}

    def secure_weights(self) -> list[Tensor]:
        """The weights before this step, copied now if that has not been done; empty if it is too late for it."""
        if not self._n_stepped:
            self._weights.secure()
        return self._weights.before

    def _on_optimizer_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if any(id(parameter) in self._names for group in optimizer.param_groups for parameter in group["params"]):
            self._n_stepped += 1
            self.steps_often = self.steps_often or self._n_stepped > 1


def are_finite(*numbers: Numbers) -> bool:
    """Whether all these numbers are finite."""
    return all(math.isfinite(value) for part in numbers for value in part.values())
