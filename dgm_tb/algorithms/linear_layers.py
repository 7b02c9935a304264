"""The layers whose output is linear in their input, seen as one family: the pieces a contribution matrix is made of.

``DenseLayer`` and ``Convolution`` offer the same methods; every tensor has a batch axis, in float32 or float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from dgm_tb.algorithms.rules.call import times
from dgm_tb.errors import UnsupportedLayerError


@dataclass(frozen=True)
class DenseLayer:
    """``nn.Linear`` on examples ``[examples, positions, units]``."""

    weight: Tensor
    bias: Tensor | None
    positions: tuple[int, ...]

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output for another input, weight and bias."""
        return F.linear(x, weight, bias)

    def weight_gradient(self, x: Tensor, shares: Tensor) -> Tensor:
        """Gradient of ``sum output * shares`` with respect to the weight."""
        return shares.flatten(0, 1).T @ x.flatten(0, 1)

    def summed_windows(self, x: Tensor) -> Tensor:
        """The weight gradient for a gradient of ones: the same for all outputs."""
        return x.sum((0, 1))

    def matrix(self, weight: Tensor, weight_gradient: Tensor) -> Tensor:
        """``weight * weight_gradient`` summed over taps, ``[targets, sources]``."""
        return weight * weight_gradient

    def by_position(self, weight: Tensor, x: Tensor, shares: Tensor | None) -> Tensor:
        """Relevance of one example, ``[targets, sources, *positions]``; shares None: ones."""
        spread = weight[:, :, None] * x[0].T
        spread = spread if shares is None else spread * shares[0].T[:, None]
        return spread.reshape(*weight.shape, *self.positions)


@dataclass(frozen=True)
class Convolution:
    """A convolution or transposed convolution, of one to three axes.

    Padding other than the same number of zeros on both sides is a function of its own, ``pad``, before a convolution
    without padding.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    is_transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    pad: Callable[[Tensor], Tensor] | None = None

    @staticmethod
    def of(module: _ConvNd) -> Convolution:
        """The geometry, weight and bias of a module."""
        padding: tuple[Any, ...] = module.padding if isinstance(module.padding, tuple) else ()
        pad = None
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            padding = (0,) * len(module.stride)
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            pad = partial(F.pad, pad=module._reversed_padding_repeated_twice, mode=mode)
        return Convolution(
            weight=current_weight(module),
            bias=module.bias,
            stride=module.stride,
            padding=padding,
            dilation=module.dilation,
            is_transposed=module.transposed,
            output_padding=module.output_padding,
            groups=module.groups,
            pad=pad,
        )

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output for another input, weight and bias."""
        geometry = self.stride, self.padding, self.dilation, self.is_transposed, self.output_padding, self.groups
        return torch.convolution(self._padded(x), weight, bias, *geometry)

    def weight_gradient(self, x: Tensor, shares: Tensor) -> Tensor:
        """Gradient of ``sum output * shares`` with respect to the weight."""
        return self._backward(shares, self._padded(x), self.weight, self.groups, wants_weight=True)

    def summed_windows(self, x: Tensor) -> Tensor:
        """The weight gradient for a gradient of ones: the same for all outputs, so of one output channel only."""
        x = self._padded(x.sum(0, keepdim=True))
        shape = (x.shape[1], 1) if self.is_transposed else (1, x.shape[1])
        one_output = x.new_empty(1).expand(*shape, *self.weight.shape[2:])
        ones = x.new_ones(1, 1, *self._output_size(x))
        windows = self._backward(ones, x, one_output, 1, wants_weight=True)
        if self.is_transposed or self.groups == 1:
            return windows  # goes with any target: [sources, 1, *taps] or [1, sources, *taps]
        grouped = windows.reshape(self.groups, 1, -1, *windows.shape[2:])
        n_targets = self.weight.shape[0] // self.groups
        return grouped.expand(-1, n_targets, *grouped.shape[2:]).reshape_as(self.weight)

    def matrix(self, weight: Tensor, weight_gradient: Tensor) -> Tensor:
        """``weight * weight_gradient`` summed over taps, ``[targets, sources]``."""
        cells = (weight * weight_gradient).flatten(2).sum(2)
        cells = cells.reshape(self.groups, -1, cells.shape[1])
        # [groups, sources, targets per group] of a transposed convolution, [groups, targets, sources per group] else
        return self._on_diagonal(cells.mT if self.is_transposed else cells)

    def by_position(self, weight: Tensor, x: Tensor, shares: Tensor | None) -> Tensor:
        """Relevance of one example, ``[targets, sources, *positions]``; shares None: ones.

        It is the input times its gradient, with every target a group of its own.
        """
        if self.is_transposed:
            taps = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
            weight = taps.reshape(-1, 1, *weight.shape[2:])
            n_targets = taps.shape[0] * taps.shape[1]
        else:
            n_targets = weight.shape[0]
        padded = self._padded(x)
        if shares is None:
            shares = x.new_ones(1, n_targets, *self._output_size(padded))
        n_sources = x.shape[1] // self.groups
        shape_only = x.new_empty(1).expand(1, n_targets * n_sources, *padded.shape[2:])
        pulled = self._backward(shares, shape_only, weight, n_targets, wants_weight=False)
        pulled = self._unpadded(pulled, x.shape[2:]).reshape(self.groups, -1, n_sources, *x.shape[2:])
        return self._on_diagonal(times(x.reshape(self.groups, 1, n_sources, *x.shape[2:]), pulled))

    def _padded(self, x: Tensor) -> Tensor:
        return x if self.pad is None else self.pad(x)

    def _unpadded(self, gradient: Tensor, positions: torch.Size) -> Tensor:
        """Give the gradient of padding's copies to their originals."""
        if self.pad is None:
            return gradient
        with torch.enable_grad():
            original = gradient.new_zeros(*gradient.shape[:2], *positions, requires_grad=True)
            return torch.autograd.grad(self.pad(original), original, gradient)[0]

    def _backward(self, shares: Tensor, x: Tensor, weight: Tensor, groups: int, *, wants_weight: bool) -> Tensor:
        geometry = self.stride, self.padding, self.dilation, self.is_transposed, self.output_padding, groups
        mask = [not wants_weight, wants_weight, False]
        gradients = torch.ops.aten.convolution_backward(shares, x, weight, None, *geometry, mask)
        gradient: Tensor = gradients[1 if wants_weight else 0]
        return gradient

    def _output_size(self, x: Tensor) -> list[int]:
        sizes = []
        for axis, length in enumerate(x.shape[2:]):
            stride, padding = self.stride[axis], self.padding[axis]
            reach = self.dilation[axis] * (self.weight.shape[2 + axis] - 1) + 1
            if self.is_transposed:
                sizes.append((length - 1) * stride - 2 * padding + reach + self.output_padding[axis])
            else:
                sizes.append((length + 2 * padding - reach) // stride + 1)
        return sizes

    def _on_diagonal(self, blocks: Tensor) -> Tensor:
        """``[groups, targets, sources, ...]`` -> ``[all targets, all sources, ...]``, zero between different groups."""
        groups, n_targets, n_sources = blocks.shape[:3]
        if groups == 1:
            return blocks[0]
        whole = blocks.new_zeros(groups, n_targets, groups, n_sources, *blocks.shape[3:])
        each = torch.arange(groups, device=blocks.device)
        whole[each, :, each] = blocks
        return whole.reshape(groups * n_targets, groups * n_sources, *blocks.shape[3:])


def open_layer(
    module: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    relevance: Tensor | None,
    kept: Tensor | None,
    weights: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[DenseLayer | Convolution, Tensor, Tensor | None, Tensor | None]:
    """The layer, its input, output relevance and source share with a batch axis, in float32 or float64."""
    if not isinstance(module, nn.Linear | _ConvNd):
        raise unsupported(module)
    x, *others = inputs if isinstance(inputs, tuple) else (inputs,)
    weight, bias = weights if weights is not None else (current_weight(module), module.bias)
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    x, weight = x.detach().to(dtype), weight.to(dtype)
    relevance, kept, bias = (_cast(tensor, dtype) for tensor in (relevance, kept, bias))
    if isinstance(module, nn.Linear):
        positions = tuple(x.shape[1:-1])
        shape = x.shape[0] if x.ndim > 1 else 1, math.prod(positions), -1
        relevance, kept = (None if tensor is None else tensor.reshape(shape) for tensor in (relevance, kept))
        return DenseLayer(weight, bias, positions), x.reshape(shape), relevance, kept
    if x.ndim == len(module.stride) + 1:  # no batch axis
        x = x[None]
        relevance, kept = (None if tensor is None else tensor[None] for tensor in (relevance, kept))
    layer = replace(Convolution.of(module), weight=weight, bias=bias)
    if isinstance(module, _ConvTransposeNd):
        padding = _output_padding(module, x, others[0] if others else None, relevance)
        return replace(layer, output_padding=padding), x, relevance, kept
    return layer, x, relevance, kept


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(dtype)


def _output_padding(module: _ConvTransposeNd, x: Tensor, output_size: Any, relevance: Tensor | None) -> tuple[int, ...]:
    """What the call's ``output_size``, or the shape of the output's relevance, asks for."""
    n_axes = len(module.stride)
    if output_size is None and relevance is not None:
        output_size = list(relevance.shape[2:])
    geometry = module.stride, module.padding, module.kernel_size
    return tuple(module._output_padding(x, output_size, *geometry, n_axes, module.dilation))  # type: ignore[arg-type]


def current_weight(module: Any) -> Tensor:
    """The weight as the last forward pass used it; reading a spectral norm must not advance its power iteration."""
    if not parametrize.is_parametrized(module, "weight"):
        weight: Tensor = module.weight.detach()
        return weight
    training = [part for part in module.parametrizations.weight.modules() if part.training]
    for part in training:
        part.training = False
    try:
        with torch.no_grad():
            parametrized: Tensor = module.weight
            return parametrized
    finally:
        for part in training:
            part.training = True


def unsupported(module: nn.Module) -> UnsupportedLayerError:
    """The error for a module outside this family."""
    kind = type(module).__name__
    return UnsupportedLayerError(f"no contribution rule for {kind}; pass rules={{nn.{kind}: rule}}")
