"""Mixed precision: by how much the loss of a step was scaled, and whether its optimizer step was left out.

A ``GradScaler`` multiplies the loss before its backward pass, so that small gradients survive in float16, and leaves an
optimizer step out if a gradient has overflowed. Both are seen here, whether Lightning calls the scaler or a plain loop.
"""

from collections.abc import Callable, Iterable, MutableMapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.utils.weak import WeakIdKeyDictionary

from dgm_tb.callback.patch import Patch
from dgm_tb.callback.say import warn


class LossScale:
    """Follows the gradient scalers of one training, without a synchronisation with the device.

    Args:
        parameters: Those of the model: scalers of other models' optimizers are none of ours.
        on_change: Called with the factor by which the scale has changed, if it changes within a step (0-dim).

    Attributes:
        scale: The factor on the loss in this step (0-dim), or None if it was not scaled.
    """

    def __init__(self, parameters: Iterable[Tensor], on_change: Callable[[Tensor], None]) -> None:
        self.scale: Tensor | None = None
        self._parameters = {id(parameter) for parameter in parameters}
        self._on_change = on_change
        self._overflows: list[Tensor] = []
        self._unscaled: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()
        self._is_watching = False
        kinds: list[type[Any]] = [GradScaler, *_subclasses(GradScaler)]
        self._patches = [Patch(kind, "scale", self._watch_scale) for kind in kinds if "scale" in vars(kind)]
        self._patches += [Patch(kind, "step", self._watch_step) for kind in kinds if "step" in vars(kind)]

    def remove(self) -> None:
        """Leave the scalers alone. Safe to call twice."""
        self._is_watching = False
        for patch in self._patches:
            patch.remove()

    def begin(self) -> None:
        """Begin a step."""
        self.scale = None
        self._overflows = []
        self._is_watching = True

    def unscaled(self, loss: Any) -> Any:
        """The loss that a scaler has made ``loss`` of; ``loss`` itself if none has."""
        is_scaled = self.scale is not None and isinstance(loss, Tensor)
        return self._unscaled.get(loss, loss) if is_scaled else loss

    def divided(self, gradient: Tensor) -> Tensor:
        """A gradient, or the norm of one, as it would be without the scale."""
        return gradient if self.scale is None else gradient.float() / self.scale.to(gradient.device, non_blocking=True)

    @property
    def overflows(self) -> list[Tensor]:
        """Of every optimizer step in this step whether it was left out because of an overflow (0-dim, 0 or 1)."""
        return self._overflows

    def _watch_scale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def scale(scaler: GradScaler, outputs: Any) -> Any:
            scaled = original(scaler, outputs)
            self._guarded(self._note_scale, scaler, outputs, scaled)
            return scaled

        return scale

    def _watch_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def step(scaler: GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(scaler, optimizer, *args, **kwargs)
            self._guarded(self._note_step, scaler, optimizer)
            return result

        return step

    def _guarded(self, note: Callable[..., None], scaler: GradScaler, *args: Any) -> None:
        if self._is_watching and scaler.is_enabled():
            try:
                note(scaler, *args)
            except Exception as error:
                self.remove()
                warn(f"gradients are recorded scaled, training goes on: {type(error).__name__}: {error}")

    def _note_scale(self, scaler: GradScaler, outputs: Any, scaled: Any) -> None:
        if scaler._scale is None:
            return
        before, self.scale = self.scale, scaler._scale.detach().clone()
        if before is not None:
            self._on_change(self.scale / before)
        if isinstance(outputs, Tensor):
            self._unscaled[scaled] = outputs.detach()

    def _note_step(self, scaler: GradScaler, optimizer: torch.optim.Optimizer) -> None:
        if self._is_ours(optimizer):
            found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
            self._overflows += [overflow.detach().clone() for overflow in found.values()]

    def _is_ours(self, optimizer: torch.optim.Optimizer) -> bool:
        return any(id(p) in self._parameters for group in optimizer.param_groups for p in group["params"])


def _subclasses(kind: type[Any]) -> list[type[Any]]:
    children: list[type[Any]] = kind.__subclasses__()
    return [found for child in children for found in (child, *_subclasses(child))]
