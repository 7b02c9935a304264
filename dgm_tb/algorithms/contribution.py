"""Contribution matrices: how much relevance each output neuron of a linear layer hands to each of its input neurons.

One weight-gradient call gives the whole matrix. With ``s = R / stab(z)``, output ``o`` hands input ``c`` the relevance
``sum x[c] * w[o, c] * s[o]`` over examples, positions and kernel taps, which is ``sum over taps of w[o, c] * dw[o, c]``
where ``dw`` is what the layer's weight gradient would be if ``s`` were the gradient of its output. Groups, strides,
dilation and transposed convolutions need nothing more.

Source: Bach et al. 2015 (the rules); the gradient form is in Montavon et al. 2019, section 10.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from dgm_tb.algorithms.recorder import run_module
from dgm_tb.algorithms.relevance import RelevanceMode, neuron_axis
from dgm_tb.algorithms.rules import DECOMPOSITIONS, Rule, share
from dgm_tb.algorithms.rules.affine import Decomposition, epsilon_groups
from dgm_tb.algorithms.rules.call import times
from dgm_tb.errors import UnsupportedLayerError


def contribution_matrix(
    module: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    *,
    rule: str | Decomposition = "epsilon",
    output_relevance: Tensor | None = None,
    source_share: Tensor | None = None,
    rules: Mapping[type, Rule] | None = None,
) -> Tensor:
    """Relevance that each output neuron of a module hands to each input neuron, summed over examples and positions.

    With rule ``"epsilon"`` and the output itself as relevance, ``s`` is 1 up to the stabiliser (1e-6 of the mean
    ``|z|``), so the matrix is the plain sum of ``w * x`` and costs a fraction of a forward pass.

    Args:
        module: Linear, Conv1d to Conv3d or ConvTranspose1d to ConvTranspose3d, with any groups, padding mode and so on;
            other modules need an entry in ``rules``.
        inputs: What the module was given: the tensor, or the tuple of arguments. Half precision is computed in float32.
        rule: A name in ``DECOMPOSITIONS``; ``"gradient"`` for gradient times input, where ``output_relevance`` is the
            gradient of the loss with respect to the output (the *backward* contribution); or a function that splits the
            layer, as those in ``DECOMPOSITIONS`` do.
        output_relevance: In the shape of the module's output; None: the output itself.
        source_share: Share of the relevance of each input element that goes on to the source of interest, in the
            input's shape (a residual branch gets ``branch / sum``); None: all of it.
        rules: Module class -> relevance rule, for modules that are not linear; costs one pass per output neuron.

    Returns:
        ``[target neurons, source neurons]``; entry ``[o, c]`` is what output ``o`` hands to input ``c``.

    Raises:
        UnsupportedLayerError: If there is no rule for the module.
        ValueError: If the rule is unknown, or is ``"gradient"`` without a gradient.
    """
    custom = next(((rules or {})[kind] for kind in type(module).__mro__ if kind in (rules or {})), None)
    if custom is not None:
        return _matrix_by_passes(module, inputs, custom, output_relevance)
    layer, x, relevance, kept = _open(module, inputs, output_relevance, source_share)
    with _plain_arithmetic(x):
        if relevance is None and rule == "epsilon":
            return layer.matrix(layer.weight, layer.summed_windows(x if kept is None else x * kept))
        total = x.new_zeros(())
        for factor, weight, source, shares in _shared_terms(layer, x, rule, relevance, kept):
            total = total + factor * layer.matrix(weight, layer.weight_gradient(source, shares))
        return total


def contribution_by_position(
    module: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    *,
    rule: str | Decomposition = "epsilon",
    output_relevance: Tensor | None = None,
    source_share: Tensor | None = None,
) -> Tensor:
    """``contribution_matrix`` before the sum over the positions of the source.

    For a source that is not a feature map, such as a dense layer reshaped into one: unit ``u`` is at
    ``(channel, *position) = unravel(u)``, so ``.flatten(1)`` is the matrix of the dense layer.

    Args:
        module: As in ``contribution_matrix``.
        inputs: As in ``contribution_matrix``.
        rule: As in ``contribution_matrix``.
        output_relevance: As in ``contribution_matrix``.
        source_share: As in ``contribution_matrix``.

    Returns:
        ``[target neurons, source channels, *positions of the input]``, summed over examples.
    """
    layer, x, relevance, kept = _open(module, inputs, output_relevance, source_share)
    with _plain_arithmetic(x):
        if relevance is None and rule == "epsilon":
            x = (x if kept is None else x * kept).sum(0, keepdim=True)
            return layer.unpad(layer.by_position(layer.weight, x, None))
        total = x.new_zeros(())
        for factor, weight, source, shares in _shared_terms(layer, x, rule, relevance, kept):
            for example in range(len(source)):
                one = slice(example, example + 1)
                total = total + factor * layer.by_position(weight, source[one], shares[one])
        return layer.unpad(total)


def gradient_matrix(module: nn.Module, weight_gradient: Tensor) -> Tensor:
    """The backward contribution matrix from a weight gradient that is at hand: the sum of ``w * dL/dw`` over the taps.

    Equal to ``contribution_matrix(..., rule="gradient")`` when the gradient is that of one call of the module.

    Returns:
        ``[target neurons, source neurons]``.
    """
    weight = _weight(module)
    if isinstance(module, nn.Linear):
        return weight * weight_gradient
    if isinstance(module, _ConvNd):
        return _Convolution.of(module).matrix(weight, weight_gradient.to(weight.dtype))
    raise _unsupported(module)


@dataclass(frozen=True)
class _Dense:
    """``nn.Linear`` on examples ``[examples, positions, units]``."""

    weight: Tensor
    bias: Tensor | None
    positions: tuple[int, ...]

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def weight_gradient(self, x: Tensor, shares: Tensor) -> Tensor:
        return shares.flatten(0, 1).T @ x.flatten(0, 1)

    def summed_windows(self, x: Tensor) -> Tensor:
        return x.sum((0, 1))

    def matrix(self, weight: Tensor, weight_gradient: Tensor) -> Tensor:
        return weight * weight_gradient

    def by_position(self, weight: Tensor, x: Tensor, shares: Tensor | None) -> Tensor:
        if shares is None:
            return weight[:, :, None] * x[0].T
        return torch.einsum("oc,pc,po->ocp", weight, x[0], shares[0])

    def unpad(self, relevance: Tensor) -> Tensor:
        return relevance.reshape(*relevance.shape[:2], *self.positions)


@dataclass(frozen=True)
class _Convolution:
    """A convolution or transposed convolution, of one to three axes, on input padded beforehand where needed."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    is_transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    unpad: Callable[[Tensor], Tensor] = lambda relevance: relevance

    @staticmethod
    def of(module: _ConvNd) -> _Convolution:
        """The geometry of a module; ``padding`` is 0 where the input is padded beforehand."""
        given = () if isinstance(module.padding, str) else module.padding
        padding = (0,) * len(module.stride) if _pads_beforehand(module) else tuple(int(width) for width in given)
        return _Convolution(
            weight=_weight(module),
            bias=module.bias,
            stride=module.stride,
            padding=padding,
            dilation=module.dilation,
            is_transposed=module.transposed,
            output_padding=module.output_padding,
            groups=module.groups,
        )

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        geometry = self.stride, self.padding, self.dilation, self.is_transposed, self.output_padding, self.groups
        return torch.convolution(x, weight, bias, *geometry)

    def weight_gradient(self, x: Tensor, shares: Tensor) -> Tensor:
        return self._backward(shares, x, self.weight, self.groups, wants_weight=True)

    def summed_windows(self, x: Tensor) -> Tensor:
        """The weight gradient for a gradient of ones: the same for all outputs, so of one output channel only."""
        x = x.sum(0, keepdim=True)
        one_output = self.weight[:, :1] if self.is_transposed else self.weight[:1]
        if not self.is_transposed:
            one_output = one_output.repeat(1, self.groups, *[1] * (x.ndim - 2))
        ones = x.new_ones(1, 1, *self._output_size(x))
        windows = self._backward(ones, x, one_output, 1, wants_weight=True)
        if self.is_transposed:
            return windows  # [sources, 1, *taps] against weights [sources, targets per group, *taps]
        grouped = windows.reshape(self.groups, 1, -1, *windows.shape[2:])
        n_targets = self.weight.shape[0] // self.groups
        return grouped.expand(-1, n_targets, *grouped.shape[2:]).reshape_as(self.weight)

    def matrix(self, weight: Tensor, weight_gradient: Tensor) -> Tensor:
        cells = (weight * weight_gradient).flatten(2).sum(2)
        cells = cells.reshape(self.groups, -1, cells.shape[1])
        # [groups, sources, targets per group] of a transposed convolution, [groups, targets, sources per group] else
        return self._on_diagonal(cells.mT if self.is_transposed else cells)

    def by_position(self, weight: Tensor, x: Tensor, shares: Tensor | None) -> Tensor:
        """Relevance of one example per target: the gradient of the input, with every target a group of its own."""
        if self.is_transposed:
            taps = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
            weight = taps.reshape(-1, 1, *weight.shape[2:])
            n_targets = taps.shape[0] * taps.shape[1]
        else:
            n_targets = weight.shape[0]
        if shares is None:
            shares = x.new_ones(1, n_targets, *self._output_size(x))
        n_sources = x.shape[1] // self.groups
        shape_only = x.new_empty(1).expand(1, n_targets * n_sources, *x.shape[2:])
        pulled = self._backward(shares, shape_only, weight, n_targets, wants_weight=False)
        pulled = pulled.reshape(self.groups, -1, n_sources, *x.shape[2:])
        return self._on_diagonal(times(x.reshape(self.groups, 1, n_sources, *x.shape[2:]), pulled))

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


def _shared_terms(
    layer: _Dense | _Convolution,
    x: Tensor,
    rule: str | Decomposition,
    relevance: Tensor | None,
    kept: Tensor | None,
) -> list[tuple[float, Tensor, Tensor, Tensor]]:
    """``(factor, weight, input, s)`` of every term by which a rule shares relevance."""
    if rule == "gradient":
        if relevance is None:
            raise ValueError("rule 'gradient' needs output_relevance: the gradient of the loss for the module's output")
        return [(1.0, layer.weight, x if kept is None else x * kept, relevance)]
    if isinstance(rule, str) and rule not in DECOMPOSITIONS:
        raise ValueError(f"unknown rule {rule!r}; expected one of {', '.join(DECOMPOSITIONS)}, gradient, or a function")
    split = DECOMPOSITIONS[rule] if isinstance(rule, str) else rule
    if relevance is None and split is not epsilon_groups:
        relevance = layer.operate(x, layer.weight, layer.bias)
    shared = []
    for factor, terms, bias in split(x, layer.weight, layer.bias):
        z = layer.operate(*terms[0], bias)
        for source, weight in terms[1:]:
            z = z + layer.operate(source, weight, None)
        shares = share(z if relevance is None else relevance, z)
        shared += [(factor, weight, source if kept is None else source * kept, shares) for source, weight in terms]
    return shared


def _open(
    module: nn.Module, inputs: Tensor | tuple[Any, ...], relevance: Tensor | None, kept: Tensor | None
) -> tuple[_Dense | _Convolution, Tensor, Tensor | None, Tensor | None]:
    """The layer, its input, output relevance and source share with a batch axis, in float32 or float64."""
    if not isinstance(module, nn.Linear | _ConvNd):
        raise _unsupported(module)
    x, *others = inputs if isinstance(inputs, tuple) else (inputs,)
    dtype = torch.promote_types(torch.promote_types(x.dtype, module.weight.dtype), torch.float32)
    x = x.detach().to(dtype)
    relevance, kept, bias = (_cast(tensor, dtype) for tensor in (relevance, kept, module.bias))
    weight = _weight(module).to(dtype)
    if isinstance(module, nn.Linear):
        positions = tuple(x.shape[1:-1])
        shape = x.shape[0] if x.ndim > 1 else 1, math.prod(positions), -1
        relevance, kept = (None if tensor is None else tensor.reshape(shape) for tensor in (relevance, kept))
        return _Dense(weight, bias, positions), x.reshape(shape), relevance, kept
    if x.ndim == len(module.stride) + 1:  # no batch axis
        x = x[None]
        relevance, kept = (None if tensor is None else tensor[None] for tensor in (relevance, kept))
    layer = replace(_Convolution.of(module), weight=weight, bias=bias)
    if isinstance(module, _ConvTransposeNd):
        padding = _output_padding(module, x, others[0] if others else None, relevance)
        return replace(layer, output_padding=padding), x, relevance, kept
    if _pads_beforehand(module):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        pad = partial(F.pad, pad=module._reversed_padding_repeated_twice, mode=mode)
        layer = replace(layer, unpad=partial(_unpad, pad, x.shape[1:]))
        return layer, pad(x), relevance, None if kept is None else pad(kept)
    return layer, x, relevance, kept


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(dtype)


def _unpad(pad: Callable[[Tensor], Tensor], shape: torch.Size, padded: Tensor) -> Tensor:
    """Give the relevance of padding's copies to their originals."""
    with torch.enable_grad():
        original = padded.new_zeros(len(padded), *shape, requires_grad=True)
        return torch.autograd.grad(pad(original), original, padded)[0]


def _pads_beforehand(module: _ConvNd) -> bool:
    return module.padding_mode != "zeros" or isinstance(module.padding, str)


def _output_padding(module: _ConvTransposeNd, x: Tensor, output_size: Any, relevance: Tensor | None) -> tuple[int, ...]:
    """What the call's ``output_size``, or the shape of the output's relevance, asks for."""
    n_axes = len(module.stride)
    if output_size is None and relevance is not None:
        output_size = list(relevance.shape[2:])
    geometry = module.stride, module.padding, module.kernel_size
    return tuple(module._output_padding(x, output_size, *geometry, n_axes, module.dilation))  # type: ignore[arg-type]


def _weight(module: Any) -> Tensor:
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


@contextmanager
def _plain_arithmetic(x: Tensor) -> Iterator[None]:
    """No autograd graph, and full precision whatever the caller's autocast says."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        yield


def _matrix_by_passes(
    module: nn.Module, inputs: Tensor | tuple[Any, ...], rule: Rule, output_relevance: Tensor | None
) -> Tensor:
    """One relevance pass per output neuron, for a module with a rule of its own."""
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    mode = RelevanceMode(module, {"source": arguments[0]}, rules={type(module): rule})
    with torch.no_grad(), mode:
        output = run_module(module, *arguments)
    axis = neuron_axis(module, output)
    source_axis = neuron_axis(module, arguments[0])
    rows = []
    for neuron in range(output.shape[axis]):
        received = mode.propagate("", neuron, relevance=output_relevance).inputs["source"]
        rows.append(received.sum([a for a in range(received.ndim) if a != source_axis]))
    return torch.stack(rows)


def _unsupported(module: nn.Module) -> UnsupportedLayerError:
    kind = type(module).__name__
    return UnsupportedLayerError(f"no contribution rule for {kind}; pass rules={{nn.{kind}: rule}}")
