"""Runs a LightningModule's ``training_step`` again without any of its effects on the training."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class LightningRerun:
    """Calls ``training_step`` with logging, optimizers and schedulers kept still.

    Args:
        module: The LightningModule, attached to its trainer.
        precision: Makes the context that the trainer runs the step in (autocast).
    """

    def __init__(self, module: Any, precision: Any) -> None:
        self.module = module
        self.precision = precision
        names = list(inspect.signature(module.training_step).parameters)
        self.can_run = "dataloader_iter" not in names
        self._n_arguments = min(len(names), 2)

    def __call__(self, batch: Any, batch_idx: int, live: Mapping[int, Tensor]) -> Tensor | None:
        """Run the step; see ``replay.Rerun``."""
        arguments = (batch, batch_idx)[: self._n_arguments]
        with _still(self.module, live), self.precision():
            output = self.module.training_step(*arguments)
        if isinstance(output, Mapping):
            output = output.get("loss")
        return output if isinstance(output, Tensor) and self.module.automatic_optimization else None


@contextmanager
def _still(module: Any, live: Mapping[int, Tensor]) -> Iterator[None]:
    """Shadow, on this instance only, the methods through which a step acts on the training."""
    optimizers, schedulers = module.optimizers, module.lr_schedulers
    shadows = {
        "log": lambda *_, **__: None,
        "log_dict": lambda *_, **__: None,
        "optimizers": lambda *_, **__: _each(optimizers, lambda optimizer: _StillOptimizer(optimizer, live)),
        "lr_schedulers": lambda: _each(schedulers, _StillScheduler),
        "manual_backward": lambda loss, *args, **kwargs: loss.backward(*args, **kwargs),
    }
    saved = {name: module.__dict__[name] for name in shadows if name in module.__dict__}
    module.__dict__.update(shadows)
    try:
        yield
    finally:
        for name in shadows:
            module.__dict__.pop(name, None)
        module.__dict__.update(saved)


def _each(get: Any, wrap: Any) -> Any:
    found = get()
    return [wrap(item) for item in found] if isinstance(found, (list, tuple)) else found and wrap(found)


class _StillOptimizer:
    """An optimizer whose step puts in the weights that its real step led to."""

    def __init__(self, optimizer: Any, live: Mapping[int, Tensor]) -> None:
        self._optimizer = optimizer
        self._live = live

    def step(self, closure: Any = None, **_: Any) -> Any:
        result = closure() if closure is not None else None
        with torch.no_grad():
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    if id(parameter) in self._live:
                        parameter.data.copy_(self._live[id(parameter)])
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


class _StillScheduler:
    """A learning-rate scheduler that does not step."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def step(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)
