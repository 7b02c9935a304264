"""Watch a model run: a TorchFunctionMode that writes every floating-point function call to a tape."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from dgm_tb.algorithms.rules import Rule, function_name, rule_for
from dgm_tb.algorithms.tape import Pending, Rank, Tape

Rules = Mapping[Any, Rule]
"""More rules, or other ones: module classes (``nn.GroupNorm``) or functions (``F.group_norm``) -> rule."""


class CallRecorder(TorchFunctionMode):
    """Records function calls while entered; a module class with a rule of its own is recorded as one function.

    Args:
        classify: Rank and name of a tensor that no recorded call produced.
        rules: Take precedence over the table ``RULES``.
    """

    def __init__(self, classify: Callable[[Tensor], tuple[Rank, str]], rules: Rules) -> None:
        super().__init__()
        self.tape = Tape(classify)
        self._rules = {function_name(key): rule for key, rule in rules.items() if not isinstance(key, type)}
        self._module_rules = {key: rule for key, rule in rules.items() if isinstance(key, type)}
        self._opaque: list[Pending] = []
        self._is_paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not record what hooks compute for themselves."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    @property
    def is_inside_module_rule(self) -> bool:
        """A module that is one function to its rule is running now."""
        return bool(self._opaque)

    def watch(self, module: nn.Module) -> list[RemovableHandle]:
        """If the module's class has a rule, record its calls as one function."""
        rule = next((self._module_rules[kind] for kind in type(module).__mro__ if kind in self._module_rules), None)
        if rule is None:
            return []
        leave = partial(self._leave_module, rule)
        return [
            module.register_forward_pre_hook(self._enter_module, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True),
        ]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._is_paused or self._opaque or _is_query(func):
            return func(*args, **kwargs)
        rule = self._rules.get(function_name(func)) or rule_for(func)
        if rule is None and _is_composite(func):
            with self:  # what it is made of may have rules
                return _undispatched(func)(*args, **kwargs)
        pending = self.tape.before(func, args, kwargs)
        result = func(*args, **kwargs)
        self.tape.after(pending, result, rule)
        return result

    def _enter_module(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        with self.paused():
            self._opaque.append(self.tape.before(partial(run_module, module), arguments, keywords))

    def _leave_module(
        self, rule: Rule, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], result: Any
    ) -> None:
        pending = self._opaque.pop()
        if self._opaque:
            return  # a module inside another one with a rule
        with self.paused():
            self.tape.after(pending, result, rule, type(module).__name__)


def run_module(module: nn.Module, *arguments: Any, **keywords: Any) -> Any:
    """Run a module again without touching its buffers or its parameters' gradients."""
    state = {name: p.detach() for name, p in module.named_parameters()}
    state |= {name: b.clone() for name, b in module.named_buffers()}
    return torch.func.functional_call(module, state, arguments, keywords)


@cache
def _is_query(function: Any) -> bool:
    """Functions that return no new values: most properties, sizes, autograd's own."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return rule_for(function) is None
    return name in _QUERIES or name == "__set__"


_QUERIES = frozenset(
    "size dim ndimension numel stride storage_offset is_contiguous is_floating_point is_complex data_ptr element_size "
    "untyped_storage get_device item tolist numpy __len__ __bool__ __hash__ __repr__ __format__ __contains__ "
    "__reduce_ex__ __deepcopy__ backward register_hook retain_grad grad _set_grad_enabled is_nonzero result_type "
    "allclose equal".split()
)


@cache
def _is_composite(function: Any) -> bool:
    """A Python function of torch made of other torch functions."""
    return inspect.isfunction(function) and function.__module__ in ("torch.nn.functional", "torch.functional")


@cache
def _undispatched(function: types.FunctionType) -> Callable[..., Any]:
    """The function without its own test for function modes, so that its body runs and is recorded."""
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    namespace = {**function.__globals__, **{name: lambda *_: False for name in checks}}
    name, defaults, closure = function.__name__, function.__defaults__, function.__closure__
    bare = types.FunctionType(function.__code__, namespace, name, defaults, closure)
    bare.__kwdefaults__ = function.__kwdefaults__
    return bare
