"""Parameters of which this process holds a part (``DTensor``, as FSDP2 makes them): the part and where it lies."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class Shard:
    """Which part of a tensor this process holds.

    Attributes:
        offset: Place of the part's first element in the whole tensor, per axis.
        n_copies: How many processes hold the same part.
    """

    offset: tuple[int, ...]
    n_copies: int


def is_distributed_tensor(tensor: Tensor) -> bool:
    """Whether it is a ``DTensor``, of which each process holds a part; loads nothing of ``torch.distributed``."""
    return type(tensor).__name__ == "DTensor" and hasattr(tensor, "placements")


def oddity(tensor: Tensor) -> str:
    """What keeps a tensor's values from being read as an ordinary one's are, or ""."""
    kind = type(tensor)
    if is_lazy(tensor):
        return "not initialised"
    if kind is not Tensor and not _is_ordinary_parameter(kind):
        return f"of type {kind.__name__}"
    if hasattr(tensor, "_fsdp_flattened"):
        return "flattened by FullyShardedDataParallel"
    if tensor.layout != torch.strided:
        return f"of layout {tensor.layout}"
    return "on no device" if tensor.is_meta else ""


def _is_ordinary_parameter(kind: type[Tensor]) -> bool:
    has_own_ways = kind.__torch_function__ is not nn.Parameter.__torch_function__
    return issubclass(kind, nn.Parameter) and not has_own_ways and kind.__torch_dispatch__ is Tensor.__torch_dispatch__


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds; the tensor itself if it holds all. Call without gradients only."""
    return tensor.to_local() if is_distributed_tensor(tensor) else tensor  # type: ignore[attr-defined]


def shard_of(tensor: Any) -> Shard:
    """Where the local part of a ``DTensor`` lies.

    Raises:
        ValueError: If the local values are addends of the whole, or a part of unknown place.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = tensor.device_mesh, tensor.placements
    if any(placement.is_partial() for placement in placements):
        raise ValueError(f"its values are spread over processes as {placements}")
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    with torch.no_grad():
        if tuple(shape) != tuple(tensor.to_local().shape):
            raise ValueError(f"its local part is {tuple(tensor.to_local().shape)}, not {tuple(shape)}")
    copies = (mesh.size(axis) for axis, placement in enumerate(placements) if placement.is_replicate())
    return Shard(tuple(offset), math.prod(copies))


def sharded_twins(modules: Iterable[Any]) -> dict[int, Tensor]:
    """Of modules whose weights FSDP2 has put together for now: ``id(whole parameter)`` -> the sharded one.

    The memory of a whole one is freed when its module has run; only the sharded one lasts.
    """
    twins = {}
    for module in modules:
        state = module._get_fsdp_state() if hasattr(module, "_get_fsdp_state") else None
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for parameter in (p for group in groups if group is not None for p in group.fsdp_params):
            if hasattr(parameter, "_unsharded_param"):
                twins[id(parameter._unsharded_param)] = parameter.sharded_param
    return twins
