"""Runs a step again on one rank of several, without the others noticing.

A collective that only one rank takes part in would wait for ever, and a gradient that reaches a parameter of a
``DistributedDataParallel`` model would set off its all-reduce. So the second run works on stand-ins of the parameters,
synchronised batch normalisation takes this rank's examples only, and any other collective raises.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

_COLLECTIVES = ("c10d", "_c10d_functional", "c10d_functional", "_c10d_functional_autograd", "_dtensor")


def is_distributed() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def alone(root: nn.Module) -> Iterator[None]:
    """Keep what ``root`` does inside to this rank; does nothing in a training of one process.

    Raises:
        RuntimeError: From inside, where the other ranks would be needed.
    """
    with ExitStack() as stack:
        if is_distributed():
            stack.enter_context(_stand_ins(root))
            stack.enter_context(_local_batch_norm(root))
        with no_collectives():
            yield


@contextmanager
def no_collectives() -> Iterator[None]:
    """Let nothing inside wait for other ranks; does nothing in a training of one process.

    Raises:
        RuntimeError: From inside, instead of waiting.
    """
    with _NoCollectives() if is_distributed() else nullcontext():  # type: ignore[no-untyped-call]
        yield


class _NoCollectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where something would wait for other ranks."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # first let it become operations on its part, and collectives
        if func.namespace in _COLLECTIVES:
            raise RuntimeError(f"{func} needs the other ranks, and the step is run again on one of them only")
        return func(*args, **(kwargs or {}))


@contextmanager
def _stand_ins(root: nn.Module) -> Iterator[None]:
    """Parameters of the same values and memory, whose gradients reach none of the real ones' hooks."""
    twins = {id(parameter): _twin(parameter) for parameter in root.parameters()}
    owners = [(module._parameters, dict(module._parameters)) for module in root.modules()]
    lists = [  # recurrent layers hold a second list of their weights
        (value, list(value))
        for module in root.modules()
        for value in vars(module).values()
        if isinstance(value, list) and any(isinstance(item, nn.Parameter) for item in value)
    ]
    try:
        for parameters, saved in owners:
            parameters.update({name: p if p is None else twins[id(p)] for name, p in saved.items()})
        for value, items in lists:
            value[:] = [twins.get(id(item), item) for item in items]
        yield
    finally:
        for parameters, saved in owners:
            parameters.update(saved)
        for value, items in lists:
            value[:] = items


def _twin(parameter: nn.Parameter) -> nn.Parameter:
    twin = nn.Parameter(parameter.detach(), parameter.requires_grad)
    twin.__dict__.update(parameter.__dict__)
    return twin


@contextmanager
def _local_batch_norm(root: nn.Module) -> Iterator[None]:
    """Let ``SyncBatchNorm`` take the statistics of this rank's examples."""
    modules = [module for module in root.modules() if isinstance(module, nn.SyncBatchNorm)]
    try:
        for module in modules:
            module.__dict__["forward"] = _LocalForward(module)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


class _LocalForward:
    def __init__(self, module: nn.SyncBatchNorm) -> None:
        self._module = module

    def __call__(self, x: Tensor) -> Tensor:
        m = self._module
        uses_batch = m.training or m.running_mean is None
        mean, variance = (None, None) if uses_batch else (m.running_mean, m.running_var)
        return functional.batch_norm(x, mean, variance, m.weight, m.bias, uses_batch, 0.0, m.eps)
