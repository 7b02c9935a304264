"""Weights that a module computes from its parameters (weight norm, spectral norm, ...), read without side effects."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from dgm_tb.callback.examples import RandomState

Compute = Callable[[], Tensor]


def effective_weight(module: nn.Module, name: str) -> Compute | None:
    """How to compute a weight of a module that is no parameter.

    Args:
        module: The module.
        name: Attribute that holds the weight.

    Returns:
        A function that gives ``module.name`` as it would be in evaluation: no power iteration is run, no buffer and no
        random state changed; it raises whatever the user's code raises. None if the module computes no such weight.
    """
    if is_parametrized(module, name):
        return _Parametrized(module.parametrizations[name])  # type: ignore[index,arg-type]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name:
            return lambda hook=hook: hook.compute_weight(module)  # type: ignore[misc]
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return lambda hook=hook: hook.compute_weight(module, do_power_iteration=False)  # type: ignore[misc]
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return lambda hook=hook: hook.apply_mask(module)  # type: ignore[misc]
    return None


class _Parametrized:
    """A parametrized weight. Those of torch change nothing in evaluation; a user's own ones run on a copy."""

    def __init__(self, chain: ParametrizationList) -> None:
        self._chain = chain
        self._is_known = all(type(module).__module__.startswith("torch.") for module in chain.modules())

    def __call__(self) -> Tensor:
        if self._is_known:
            with _evaluating(self._chain):
                return self._chain.forward()
        random = RandomState()
        try:
            with _evaluating(chain := copy.deepcopy(self._chain)):
                return chain.forward()
        finally:
            random.restore()


@contextmanager
def _evaluating(root: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode, set without a call of ``eval``: the user may have put something in its place."""
    flags = [(module, module.training) for module in root.modules()]
    try:
        for module, _ in flags:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag
