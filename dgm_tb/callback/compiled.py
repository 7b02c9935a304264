"""Observing modules inside graphs that ``torch.compile`` made.

A hook that keeps books in Python breaks a graph or makes it compile anew at every step. So while the compiler traces,
the hook calls two operators that it takes into the graph as they are: they run in Python when the graph runs, on the
values the module really gave, and call the same code as the eager hooks. Which call of its module an output came from
is known only then; the forward operator gives it as a tensor, which the graph keeps for the backward one.
"""

import contextlib
import itertools
import weakref
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import has_side_effect

from dgm_tb.callback.slots import floating_outputs

_SITES: dict[int, Any] = {}
_NUMBERS: MutableMapping[nn.Module, int] = weakref.WeakKeyDictionary()
_COUNTER = itertools.count()

_LIBRARY = torch.library.Library("dgm_tb", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("observe(Tensor output, Tensor? source, int site, str place) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define("observe_gradient(Tensor gradient, Tensor call, int site, str place) -> ()")  # type: ignore[no-untyped-call]


def register(site: Any) -> int:
    """A number by which compiled graphs know a site (``capture.Site``): that of its module, for good.

    Graphs outlive a recording and are not compiled again for the next one.
    """
    if site.module not in _NUMBERS:
        _NUMBERS[site.module] = next(_COUNTER)
    number = _NUMBERS[site.module]
    _SITES[number] = site
    return number


def is_compiled(root: nn.Module) -> bool:
    """Whether the model, or a part of it, is to run compiled."""
    if getattr(root, "_compiler_ctx", None) is not None:  # Lightning's mark of a compiled LightningModule
        return True
    return any(
        "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        for module in root.modules()
    )


def forget(site: Any) -> None:
    """Graphs that still observe this site do nothing from now on."""
    number: int = site.number
    if _SITES.get(number) is site:
        del _SITES[number]


def observe(number: int, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    """What a forward hook does while the compiler traces it."""
    source = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
    for place, tensor in floating_outputs(output, module):
        values = source.detach() if source is not None else None
        call = torch.ops.dgm_tb.observe(tensor.detach(), values, number, place)
        if tensor.requires_grad:
            _observe_gradient(tensor, call, number, place)


def _observe_gradient(tensor: Tensor, call: Tensor, number: int, place: str) -> None:
    def on_gradient(gradient: Tensor) -> None:
        torch.ops.dgm_tb.observe_gradient(gradient, call, number, place)

    tensor.register_hook(on_gradient)  # type: ignore[no-untyped-call]


def _run_observe(output: Tensor, source: Tensor | None, site: int, place: str) -> Tensor:
    found = _SITES.get(site)
    return torch.tensor(-1 if found is None else found.capture.on_compiled_call(found, source, output, place))


def _run_observe_gradient(gradient: Tensor, call: Tensor, site: int, place: str) -> None:
    found = _SITES.get(site)
    if found is not None:
        found.capture.on_compiled_gradient(found, int(call), place, gradient)


_LIBRARY.impl("observe", _run_observe, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("observe_gradient", _run_observe_gradient, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("dgm_tb::observe", lambda *_: torch.empty((), dtype=torch.int64), lib=_LIBRARY)
torch.library.register_fake("dgm_tb::observe_gradient", lambda *_: None, lib=_LIBRARY)
for _operator in (torch.ops.dgm_tb.observe.default, torch.ops.dgm_tb.observe_gradient.default):
    has_side_effect(_operator)


def never_compile_alone(function: Any) -> None:
    """Keep the compiler from compiling a hook by itself, with all that it calls, where its module runs eagerly.

    That would happen in parts of a compiled model that the compiler leaves out, and compile anew for every module.
    Hooks of modules that are compiled are still traced with them.
    """
    with contextlib.suppress(ImportError, AttributeError):  # not public in torch 2.13
        from torch._C._dynamo.eval_frame import set_code_exec_strategy
        from torch._dynamo.types import FrameAction, FrameExecStrategy  # type: ignore[attr-defined]

        set_code_exec_strategy(function.__code__, FrameExecStrategy(FrameAction.SKIP, FrameAction.SKIP))
