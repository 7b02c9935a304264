"""Rules for normalisation layers: the deviation is a constant, what remains is affine and follows the epsilon rule.

BatchNorm takes its mean for a constant too, so that it is the same as folding it into the layer before.
The others centre each example by its own mean, which is a linear function of their input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_tb.algorithms.rules.call import Call, share, times


def batch_norm(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """``F.batch_norm``: statistics as constants, those of the batch in training and the running ones otherwise."""
    x = call.argument(0, "input")
    running_variance = call.argument(2, "running_var")
    if call.argument(5, "training", False) or running_variance is None:
        variance = x.var([axis for axis in range(x.ndim) if axis != 1], correction=0)
    else:
        variance = running_variance
    scale = (variance + call.argument(7, "eps", 1e-5)).rsqrt()
    scale = _per_channel(scale, x) * _per_channel(call.argument(3, "weight"), x)
    return _give_to(x, call, times(x, scale * share(relevance[0], call.outputs[0])))


def instance_norm(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """``F.instance_norm``: each channel of each example on its own."""
    x = call.argument(0, "input")
    if not call.argument(5, "use_input_stats", True):  # running statistics: the arguments of a batch_norm in eval mode
        scale = (call.argument(2, "running_var") + call.argument(7, "eps", 1e-5)).rsqrt()
        scale = _per_channel(scale, x) * _per_channel(call.argument(3, "weight"), x)
        return _give_to(x, call, times(x, scale * share(relevance[0], call.outputs[0])))
    return _centred(x, call, relevance[0], groups=x.shape[1], eps=call.argument(7, "eps", 1e-5), weight_at=3)


def group_norm(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """``F.group_norm``: groups of channels of each example."""
    x = call.argument(0, "input")
    groups = call.argument(1, "num_groups")
    return _centred(x, call, relevance[0], groups=groups, eps=call.argument(4, "eps", 1e-5), weight_at=2)


def layer_norm(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """``F.layer_norm``: all units of each position."""
    x = call.argument(0, "input")
    axes = _last_axes(call.argument(1, "normalized_shape"))
    scale = (x.var(axes, correction=0, keepdim=True) + call.argument(4, "eps", 1e-5)).rsqrt()
    weight = call.argument(2, "weight")
    pulled = share(relevance[0], call.outputs[0]) * scale * (1 if weight is None else weight)
    return _give_to(x, call, times(x, pulled - pulled.mean(axes, keepdim=True)))


def rms_norm(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """``F.rms_norm``: like ``layer_norm`` without centring."""
    x = call.argument(0, "input")
    axes = _last_axes(call.argument(1, "normalized_shape"))
    eps = call.argument(3, "eps")
    scale = (x.square().mean(axes, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    weight = call.argument(2, "weight")
    return _give_to(x, call, times(x, share(relevance[0], call.outputs[0]) * scale * (1 if weight is None else weight)))


def _centred(
    x: Tensor, call: Call, relevance: Tensor, *, groups: int, eps: float, weight_at: int
) -> list[Tensor | None]:
    """``R = x * (u - mean u)`` per group, with ``u = w s / deviation``."""
    grouped = x.reshape(x.shape[0], groups, -1)
    scale = (grouped.var(2, correction=0, keepdim=True) + eps).rsqrt()
    weighted = share(relevance, call.outputs[0]) * _per_channel(call.argument(weight_at, "weight"), x)
    pulled = weighted.reshape_as(grouped) * scale
    return _give_to(x, call, times(x, (pulled - pulled.mean(2, keepdim=True)).reshape_as(x)))


def _per_channel(vector: Tensor | None, x: Tensor) -> Any:
    return 1 if vector is None else vector.to(x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))


def _last_axes(normalized_shape: Any) -> list[int]:
    n_axes = 1 if isinstance(normalized_shape, int) else len(normalized_shape)
    return list(range(-n_axes, 0))


def _give_to(x: Tensor, call: Call, received: Tensor) -> list[Tensor | None]:
    return [received if source is x else None for source in call.inputs]
