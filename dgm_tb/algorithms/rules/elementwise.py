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


def kept_scaled_units(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Alpha dropout, which sets dropped units to one negative value: as ``kept_units``, less what the shift brought."""
    p = call.argument(1, "p", 0.5)
    if not call.argument(2, "training", False) or p == 0:
        return [relevance[0]]
    dropped = -1.7580993408473766  # the limit of SELU: -scale * alpha
    factor = ((1 - p) * (1 + p * dropped**2)) ** -0.5
    (x,), z = call.inputs, call.outputs[0]
    is_kept = (z - factor * dropped * (1 - p)).abs() > 1e-6 * factor
    return [torch.where(is_kept, times(factor * x, share(relevance[0], z)), 0)]


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


def token_of_bag(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """``F.embedding_bag``: each token gets its share of the sum or mean; of the largest, what it brought.

    Raises:
        NotImplementedError: If vectors are scaled down to ``max_norm``.
    """
    if call.argument(3, "max_norm") is not None:
        raise NotImplementedError("embedding_bag with max_norm has no rule")
    tokens, weight = call.argument(0, "input"), call.argument(1, "weight")
    mode, offsets = call.argument(6, "mode", "mean"), call.argument(2, "offsets")
    flat = tokens.flatten()
    if offsets is None:
        bag = torch.arange(len(tokens), device=flat.device).repeat_interleave(tokens.shape[1])
    else:
        bag = (
            torch.searchsorted(offsets[: len(relevance[0])], torch.arange(len(flat), device=flat.device), right=True)
            - 1
        )
    vectors, z = weight[flat], call.outputs[0]
    if mode == "max":
        is_largest = (vectors == z[bag]) & (z[bag] != 0)
        n_largest = torch.zeros_like(z).index_add(0, bag, is_largest.to(z.dtype))
        shares = torch.where(is_largest, (relevance[0] / n_largest.clamp(min=1))[bag], 0)
    else:
        scales = call.argument(8, "per_sample_weights")
        vectors = vectors if scales is None else vectors * scales.flatten()[:, None]
        counts = torch.zeros_like(z[:, 0]).index_add(0, bag, torch.ones_like(vectors[:, 0])) if mode == "mean" else None
        drawn = share(relevance[0], z) if counts is None else share(relevance[0], z) / counts[:, None]
        shares = times(vectors, drawn[bag])
    received = shares.sum(-1).reshape_as(tokens)
    return [received if x is tokens else None for x in call.inputs]


def gaussian_draw(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """``z = normal(mean, std)`` as ``mean + std * noise`` with the noise fixed to the one drawn."""
    mean, std = call.argument(0, "mean", 0.0), call.argument(1, "std", 1.0)
    drawn = share(relevance[0], call.outputs[0])
    parts = {id(mean): mean, id(std): call.outputs[0] - mean}
    return [fit(times(parts[id(x)], drawn), x) if id(x) in parts else None for x in call.inputs]
