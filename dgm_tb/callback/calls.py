"""The calls that a plain loop itself makes: of a model or of a part of it, not those that these make in turn."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from dgm_tb.callback.compiled import never_compile_alone
from dgm_tb.callback.local import Local

BeforeCall = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
AfterCall = Callable[[nn.Module, Any], None]


class Calls:
    """Tells of every outermost call of some models until ``remove``.

    A compiled model is hooked from outside: inside, the compiler would take the hooks into its graph.

    Args:
        models: The models, as the loop calls them.
        before: Called with a module, its positional and its keyword arguments. Hooks that it puts up see this call too.
        after: Called with the module and what it gave, None if it raised.
    """

    def __init__(self, models: Iterable[nn.Module], before: BeforeCall, after: AfterCall) -> None:
        self._before, self._after = before, after
        self._depth = 0
        self._is_off = False
        self._handles: list[Any] = []
        self._compiled: list[tuple[nn.Module, Any]] = []
        never_compile_alone(Local.__call__)
        for module in {id(module): module for model in models for module in model.modules()}.values():
            if not isinstance(module, torch.jit.ScriptModule):
                self._hook(module)

    def remove(self) -> None:
        """Leave the models alone. Safe to call twice."""
        for handle in self._handles:
            handle.remove()
        for module, original in self._compiled:
            module._compiled_call_impl = original
        self._handles, self._compiled = [], []

    def reset(self) -> None:
        """No call is under way."""
        self._depth = 0

    @contextmanager
    def off(self) -> Iterator[None]:
        """Tell of nothing for a while."""
        self._is_off, before = True, self._is_off
        try:
            yield
        finally:
            self._is_off = before

    def _hook(self, module: nn.Module) -> None:
        compiled = getattr(module, "_compiled_call_impl", None)
        if compiled is not None:  # by module.compile(): its hooks are compiled with it
            self._compiled.append((module, compiled))
            module._compiled_call_impl = Local(partial(self._run_compiled, module, compiled))
            return
        enter, leave = Local(_unless_compiling(self._enter)), Local(_unless_compiling(self._leave))
        self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        self._handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))

    def _run_compiled(self, module: nn.Module, compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = None
        self._begin(module, args, kwargs)
        try:
            output = compiled(*args, **kwargs)
            return output
        finally:
            self._leave(module, args, kwargs, output)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        known = set(module._forward_pre_hooks)
        self._begin(module, args, kwargs)
        fresh = {number: hook for number, hook in module._forward_pre_hooks.items() if number not in known}
        for number, hook in fresh.items():  # torch runs only those that were there when the call began
            with_kwargs = number in module._forward_pre_hooks_with_kwargs
            hook(module, args, *([kwargs] if with_kwargs else []))

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._is_off and not _is_in_backward():
            self._depth += 1
            if self._depth == 1:
                self._before(module, args, kwargs)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._depth and not self._is_off and not _is_in_backward():
            self._depth -= 1
            if not self._depth:
                self._after(module, output)


def _unless_compiling(hook: Callable[..., None]) -> Callable[..., None]:
    def checked(*args: Any) -> None:
        if not torch.compiler.is_compiling():
            hook(*args)

    return checked


def _is_in_backward() -> bool:
    """Whether activation checkpointing runs a module again."""
    return torch._C._current_graph_task_id() != -1
