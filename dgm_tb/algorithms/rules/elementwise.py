"""Rules for functions that act on single elements, move elements around, or draw random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_tb.algorithms.rules.call import Call, Carrier, fit, pull_back, share, times


def pass_through(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Hand relevance to the first signal unchanged: activations, casts, scaling by a constant."""
    taker = call.signals[0]
    return [fit(relevance[0], x) if i == taker else None for i, x in enumerate(call.inputs)]


def native(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Hand relevance to the elements that were taken: reshaping, indexing, padding, joining, maximum."""
    return list(pull_back(call, relevance))


def kept_units(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Dropout: hand relevance to the units that were kept; the mask is the recorded one."""
    return [torch.where(call.outputs[0] == 0, 0, relevance[0])]


def signal_takes_all(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Element-wise product: the signal gets all, the gate, noise or scale none; two signals get half each.

    A gate is a sigmoid or softmax, or anything made only of such; noise is a random draw that meets data.
    """
    takers = [i for i in call.signals if i not in call.gates] or call.signals
    part = relevance[0] / len(takers)
    return [fit(part, x) if i in takers else None for i, x in enumerate(call.inputs)]


def numerator_takes_all(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Element-wise quotient: the denominator is a scale and gets relevance only when the numerator is constant."""
    numerator = call.arguments[1 if call.name == "rdiv" else 0]
    taker = numerator.index if isinstance(numerator, Carrier) and numerator.index in call.signals else call.signals[0]
    return [fit(relevance[0], x) if i == taker else None for i, x in enumerate(call.inputs)]


def first_half_takes_all(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Gated linear unit ``a * sigmoid(b)``, with a and b the halves of one tensor: a gets all."""
    axis = call.argument(1, "dim", -1)
    return [torch.cat([relevance[0], torch.zeros_like(relevance[0])], dim=axis)]


def token(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Embedding or one-hot code: the token gets what its vector has."""
    return [relevance[0].sum(-1) if x.shape == relevance[0].shape[:-1] else None for x in call.inputs]


def gaussian_draw(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """``z = normal(mean, std)`` as ``mean + std * noise`` with the noise fixed to the one drawn."""
    mean, std = call.argument(0, "mean", 0.0), call.argument(1, "std", 1.0)
    drawn = share(relevance[0], call.outputs[0])
    parts = {id(mean): mean, id(std): call.outputs[0] - mean}
    return [fit(times(parts[id(x)], drawn), x) if id(x) in parts else None for x in call.inputs]
