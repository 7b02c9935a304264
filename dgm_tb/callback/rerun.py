"""Runs a step again without any of its effects on the training: a ``training_step``, or the calls of a plain loop."""

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from dgm_tb.callback.examples import RandomState
from dgm_tb.callback.loop_models import bare
from dgm_tb.callback.nested import tensors_in

MAX_EVENTS = 64
"""So many calls of a loop's step can be made again."""


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


@dataclass(frozen=True)
class _Output:
    """A tensor that an earlier call of the step gave: the number of that event, and of the tensor in its output."""

    event: int
    number: int


@dataclass
class _Call:
    """One call that a loop made, with all that is needed to make it again; tensors of earlier calls as ``_Output``."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: RandomState
    autocast: list[tuple[str, torch.dtype, bool]]

    def again(self, outputs: Mapping[int, list[Tensor]]) -> list[Tensor]:
        """Make it; ``outputs`` are those of earlier events."""
        args, kwargs = tree_map_only(_Output, lambda o: outputs[o.event][o.number], (self.args, self.kwargs))
        self.random.restore()
        with ExitStack() as stack:
            for device, dtype, is_on in self.autocast:
                stack.enter_context(torch.autocast(device, dtype, enabled=is_on))
            return list(tensors_in(self.module(*args, **kwargs)))


_Events = list[_Call | list[Tensor]]
"""The calls of a step, and between them the parameters of each optimizer that stepped."""


class LoopRerun:
    """Makes the calls of a plain loop's step again, each on what it got.

    What the loop computes between and after its calls is not run again: neither its loss nor its backward pass. Between
    two calls, parameters get the weights that their optimizer's step led to; if it made several in one step, those
    after the last one.

    Args:
        quiet: Makes a context in which nobody takes these calls for the loop's.
    """

    def __init__(self, quiet: Callable[[], AbstractContextManager[None]]) -> None:
        self._quiet = quiet
        self._of_step: dict[int, _Events] = {}
        self.begin(-1)

    def begin(self, step: int) -> None:
        """Begin a step; on a device, the one before may still have to be run again."""
        self._events: _Events = []
        self._of_step = {number: events for number, events in self._of_step.items() if number == step - 1}
        self._of_step[step] = self._events
        self._made_by: MutableMapping[Tensor, tuple[_Output, int]] = WeakIdKeyDictionary()

    def note_call(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], random: RandomState | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Note a call that is about to be made, unless there were very many already.

        Args:
            module: What is called.
            args: With this.
            kwargs: And this.
            random: Random state, if it is known.

        Returns:
            The arguments as they are kept: of tensors from outside, without the graph that they come from (which would
            be kept, too); tensors of earlier calls are left out.
        """
        args, kwargs = tuple(map(self._kept, args)), {key: self._kept(value) for key, value in kwargs.items()}
        if len(self._events) < MAX_EVENTS:
            kinds = {"cpu", *(tensor.device.type for tensor in tensors_in((args, kwargs)))}
            autocast = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds]
            self._events.append(_Call(bare(module), args, kwargs, random or RandomState(), autocast))
        return args, kwargs

    def note_output(self, output: Any) -> None:
        """Note what the last call gave."""
        event = len(self._events) - 1
        if event < MAX_EVENTS - 1:
            for number, tensor in enumerate(tensors_in(output)):
                self._made_by[tensor] = _Output(event, number), tensor._version

    def note_step(self, parameters: list[Tensor]) -> None:
        """Note that an optimizer steps."""
        self._events.append(parameters)

    def __call__(self, batch: Any, batch_idx: int, live: Mapping[int, Tensor]) -> None:
        """Make the calls again of the step of the number ``batch_idx``; see ``replay.Rerun``."""
        outputs: dict[int, list[Tensor]] = {}
        with self._quiet():
            for number, event in enumerate(self._of_step[batch_idx]):
                if isinstance(event, _Call):
                    outputs[number] = event.again(outputs)
                else:
                    for parameter in event:
                        if id(parameter) in live:
                            parameter.data.copy_(live[id(parameter)])

    def _kept(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return tree_map_only(Tensor, self._kept, value)
        output, version = self._made_by.get(value, (None, 0))
        if output is not None and value._version == version:
            return output
        return value.detach() if value.requires_grad else value
