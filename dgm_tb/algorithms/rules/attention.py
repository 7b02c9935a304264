"""Rules for softmax and attention (Achtibat et al. 2024, AttnLRP)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgm_tb.algorithms.rules.call import Call, share, times


def softmax(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """``R_i = x_i (R_i - s_i sum_j R_j)``: the Taylor expansion at ``x``, which keeps a bias for itself."""
    axis = call.argument(1, "dim")
    if axis is None:  # torch's old default for F.softmax
        axis = 0 if call.inputs[0].ndim in (0, 1, 3) else 1
    return [_softmax(call.inputs[0], call.outputs[0], relevance[0], axis)]


def scaled_dot_product_attention(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """``softmax(Q K^T scale + mask) V`` as two products and a softmax; dropout inside it is not replayed."""
    query, key, value, mask = (call.argument(i, n) for i, n in enumerate(("query", "key", "value", "attn_mask")))
    n_heads, n_key_heads = query.shape[-3] if query.ndim > 3 else 1, key.shape[-3] if key.ndim > 3 else 1
    repeats = n_heads // n_key_heads
    if repeats > 1:  # grouped queries: several heads share a key
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    scale = call.keywords.get("scale") or 1 / math.sqrt(query.shape[-1])
    products = query @ key.mT * scale
    logits = products if mask is None or mask.dtype == torch.bool else products + mask
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, -torch.inf)
    if call.argument(5, "is_causal", False):
        logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), -torch.inf)
    attention = logits.softmax(-1)

    shares = share(relevance[0], call.outputs[0]) / 2
    to_value = times(value, attention.mT @ shares)
    to_logits = _softmax(logits, attention, times(attention, shares @ value.mT), -1)
    shares = share(to_logits, logits) * scale / 2
    to_query, to_key = times(query, shares @ key), times(key, shares.mT @ query)
    if repeats > 1:
        to_key, to_value = (r.reshape(*r.shape[:-3], -1, repeats, *r.shape[-2:]).sum(-3) for r in (to_key, to_value))
    return _sum_by_source(call, [(0, "query", to_query), (1, "key", to_key), (2, "value", to_value)])


def _softmax(x: Tensor, probabilities: Tensor, relevance: Tensor, axis: int) -> Tensor:
    return times(x, torch.where(probabilities == 0, 0, relevance - probabilities * relevance.sum(axis, keepdim=True)))


def _sum_by_source(call: Call, received: list[tuple[int, str, Tensor]]) -> list[Tensor | None]:
    """Query, key and value may be one tensor: it gets the sum."""
    totals: list[Tensor | None] = [None] * len(call.inputs)
    for position, keyword, part in received:
        taken = call.argument(position, keyword)
        for i, x in enumerate(call.inputs):
            if taken is x:
                totals[i] = part if (total := totals[i]) is None else total + part
    return totals
