"""Contribution matrices: how much relevance each output neuron of a linear layer hands to each of its input neurons.

One weight-gradient call gives the whole matrix. With ``s = R / stab(z)``, output ``o`` hands input ``c`` the relevance
``sum x[c] * w[o, c] * s[o]`` over examples, positions and kernel taps, which is ``sum over taps of w[o, c] * dw[o, c]``
where ``dw`` is what the layer's weight gradient would be if ``s`` were the gradient of its output. Groups, strides,
dilation and transposed convolutions need nothing more.

Source: Bach et al. 2015; Montavon et al. 2019 for relevance as input times a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dgm_tb.algorithms.linear_layers import Convolution, DenseLayer, current_weight, open_layer, unsupported
from dgm_tb.algorithms.recorder import run_module
from dgm_tb.algorithms.relevance import RelevanceMode, neuron_axis
from dgm_tb.algorithms.rules import DECOMPOSITIONS, Rule, share
from dgm_tb.algorithms.rules.affine import Decomposition, epsilon_groups


def contribution_matrix(
    module: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    *,
    rule: str | Decomposition = "epsilon",
    output_relevance: Tensor | None = None,
    source_share: Tensor | None = None,
    weights: tuple[Tensor, Tensor | None] | None = None,
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
        weights: Weight and bias that the module was run with; None: those of now.
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
    layer, x, relevance, kept = open_layer(module, inputs, output_relevance, source_share, weights)
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
    weights: tuple[Tensor, Tensor | None] | None = None,
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
        weights: As in ``contribution_matrix``.

    Returns:
        ``[target neurons, source channels, *positions of the input]``, summed over examples.
    """
    layer, x, relevance, kept = open_layer(module, inputs, output_relevance, source_share, weights)
    with _plain_arithmetic(x):
        if relevance is None and rule == "epsilon":
            x = (x if kept is None else x * kept).sum(0, keepdim=True)
            return layer.by_position(layer.weight, x, None)
        total = x.new_zeros(())
        for factor, weight, source, shares in _shared_terms(layer, x, rule, relevance, kept):
            for example in range(len(source)):
                one = slice(example, example + 1)
                total = total + factor * layer.by_position(weight, source[one], shares[one])
        return total


def gradient_matrix(module: nn.Module, weight_gradient: Tensor) -> Tensor:
    """The backward contribution matrix from a weight gradient that is at hand: the sum of ``w * dL/dw`` over the taps.

    Equal to ``contribution_matrix(..., rule="gradient")`` when the gradient is that of one call of the module.

    Returns:
        ``[target neurons, source neurons]``.
    """
    weight = current_weight(module)
    if isinstance(module, nn.Linear):
        return weight * weight_gradient
    if isinstance(module, _ConvNd):
        return Convolution.of(module).matrix(weight, weight_gradient.to(weight.dtype))
    raise unsupported(module)


def _shared_terms(
    layer: DenseLayer | Convolution,
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
