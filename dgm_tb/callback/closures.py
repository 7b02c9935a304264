"""Optimizers that run the training step again and again within one step of theirs (LBFGS): the last time counts."""

import contextlib
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

Mark = Any


class ClosureWatch:
    """Sees the closures that optimizers evaluate, from its making until it is closed.

    Args:
        mark: Called when a closure is evaluated for the first time; what it gives back marks this place in the step.
        take_back: Called with the mark when it is evaluated again: what was observed since does not count.
    """

    def __init__(self, mark: Callable[[], Mark], take_back: Callable[[Mark], None]) -> None:
        self._mark = mark
        self._take_back = take_back
        self._handle = register_optimizer_step_pre_hook(self._on_step)

    def close(self) -> None:
        """See no more."""
        self._handle.remove()

    def _on_step(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return tuple(map(self._watched, args)), {key: self._watched(value) for key, value in kwargs.items()}

    def _watched(self, closure: Any) -> Any:
        if not callable(closure) or isinstance(closure, Optimizer):
            return closure
        marks: list[Mark] = []

        def watched(*args: Any, **kwargs: Any) -> Any:
            with contextlib.suppress(Exception):  # of ours
                if marks:
                    self._take_back(marks[0])
                else:
                    marks.append(self._mark())
            return closure(*args, **kwargs)

        return watched
