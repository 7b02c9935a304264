"""Rules for functions that are affine in their inputs, and for linear layers with weights.

Montavon et al. 2019, "Layer-wise relevance propagation: an overview"; Bach et al. 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dgm_tb.algorithms.rules.call import Call, Carrier, Rule, pull_back, replace_leaves, share, times


def epsilon(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """The epsilon rule for a function that is affine in all its inputs together: ``R_i = x_i * (J^T R / stab(z))_i``.

    What the constant part of the function (a bias, an added parameter) brought to ``z`` stays behind.
    """
    shares = [share(r, z) for r, z in zip(relevance, call.outputs, strict=True)]
    return [times(x, g) for x, g in zip(call.inputs, pull_back(call, shares), strict=True)]


def product(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """The epsilon rule for a function that is linear in each of several factors: a matrix product, a convolution.

    One factor that is signal (the other being a weight, or noise beside data): it gets everything. Two: each gets
    half (Achtibat et al. 2024, AttnLRP).
    """
    places = 0

    def count(leaf: object) -> None:
        nonlocal places
        places += isinstance(leaf, Carrier) and leaf.index in call.signals

    replace_leaves((call.arguments, dict(call.keywords)), count)
    shares = [share(r, z) / max(places, 1) for r, z in zip(relevance, call.outputs, strict=True)]
    pulled = pull_back(call, shares)
    return [times(x, pulled[i]) if i in call.signals else None for i, x in enumerate(call.inputs)]


Group = tuple[float, list[tuple[Tensor, Tensor]], Tensor | None]
"""``(factor, [(x, weight), ...], bias)``: shares ``factor * R`` by the terms of ``sum x * weight + bias``."""

Decomposition = Callable[[Tensor, Tensor, Tensor | None], list[Group]]
"""How a rule splits the input, weight and bias of a linear layer into groups of terms."""


def _clamped(bias: Tensor | None, *, positive: bool) -> Tensor | None:
    if bias is None:
        return None
    return bias.clamp(min=0) if positive else bias.clamp(max=0)


def epsilon_groups(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Group]:
    """All terms share alike: ``z_ij = x_i w_ij``."""
    return [(1.0, [(x, weight)], bias)]


def z_plus_groups(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Group]:
    """Only the positive terms share: pairs ``(x+, w+)`` and ``(x-, w-)``."""
    terms = [(x.clamp(min=0), weight.clamp(min=0)), (x.clamp(max=0), weight.clamp(max=0))]
    return [(1.0, terms, _clamped(bias, positive=True))]


def alpha_beta_groups(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Group]:
    """Positive terms share ``alpha R``, negative ones ``-beta R``, with ``alpha = 2, beta = 1``."""
    ((_, positive, positive_bias),) = z_plus_groups(x, weight, bias)
    negative = [(x.clamp(min=0), weight.clamp(max=0)), (x.clamp(max=0), weight.clamp(min=0))]
    return [(2.0, positive, positive_bias), (-1.0, negative, _clamped(bias, positive=False))]


def gamma_groups(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Group]:
    """Positive weights count more: ``w + gamma w+`` with ``gamma = 0.25``."""
    grown = None if bias is None else bias + 0.25 * bias.clamp(min=0)
    return [(1.0, [(x, weight + 0.25 * weight.clamp(min=0))], grown)]


def w_square_groups(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Group]:
    """Shares follow ``w^2`` whatever the input is; for a first layer with real-valued inputs."""
    return [(1.0, [(torch.ones_like(x), weight.square())], None)]


def z_box_groups(low: float | None = None, high: float | None = None) -> Decomposition:
    """The zB rule for a first layer on pixels: shares follow ``x w - low w+ - high w-``, none of which is negative.

    Args:
        low: Smallest value that a pixel may have; None: the smallest of each example.
        high: Largest one; None: the largest of each example.
    """

    def groups(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Group]:
        axes = tuple(range(1, x.ndim)) or (0,)
        lowest = x.amin(axes, keepdim=True) if low is None else x.new_tensor(low)
        highest = x.amax(axes, keepdim=True) if high is None else x.new_tensor(high)
        bounds = [(-lowest.expand_as(x), weight.clamp(min=0)), (-highest.expand_as(x), weight.clamp(max=0))]
        return [(1.0, [(x, weight), *bounds], None)]

    return groups


DECOMPOSITIONS: dict[str, Decomposition] = {
    "epsilon": epsilon_groups,
    "z_plus": z_plus_groups,
    "alpha_beta": alpha_beta_groups,
    "gamma": gamma_groups,
    "w_square": w_square_groups,
    "z_box": z_box_groups(),
}


def decomposed(groups: Decomposition) -> Rule:
    """Make a rule for linear layers from a way to split their terms.

    As in ``rules={F.conv2d: decomposed(z_plus_groups)}``.
    """

    def rule(call: Call, relevance: tuple[Tensor, ...]) -> Sequence[Tensor | None]:
        x, weight, bias = (call.argument(i, name) for i, name in enumerate(("input", "weight", "bias")))
        keywords = {key: value for key, value in call.keywords.items() if key not in ("input", "weight", "bias")}

        def operate(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result: Tensor = call.function(x, weight, bias, *call.arguments[3:], **keywords)
            return result

        received = torch.zeros_like(x)
        for factor, terms, group_bias in groups(x, weight, bias):
            with torch.enable_grad():
                parts = [(part.detach().requires_grad_(), part_weight.detach()) for part, part_weight in terms]
                z = operate(*parts[0], group_bias)
                for part, part_weight in parts[1:]:
                    z = z + operate(part, part_weight, None)
            pulled = torch.autograd.grad(z, [part for part, _ in parts], share(relevance[0], z.detach()))
            for (part, _), sensitivity in zip(parts, pulled, strict=True):
                received = received + factor * times(part.detach(), sensitivity)
        return [received if source is x else None for source in call.inputs]

    return rule
