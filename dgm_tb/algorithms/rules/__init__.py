"""The table of relevance rules: which rule each floating-point function follows.

A new rule is one small function in the file of its family, one line here, and one sample call in ``tests/layers.py``.
Functions are known by their bare name (``function_name``): ``x + y``, ``x.add_(y)`` and ``torch.add`` share a line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_tb.algorithms.rules.affine import DECOMPOSITIONS, decomposed, epsilon, product
from dgm_tb.algorithms.rules.attention import scaled_dot_product_attention, softmax
from dgm_tb.algorithms.rules.call import EPSILON, Call, Rule, function_name, pull_back, share, stabilise
from dgm_tb.algorithms.rules.elementwise import (
    first_half_takes_all,
    gaussian_draw,
    kept_units,
    native,
    numerator_takes_all,
    pass_through,
    signal_takes_all,
    token,
)
from dgm_tb.algorithms.rules.norms import batch_norm, group_norm, instance_norm, layer_norm, rms_norm

RULES: dict[Callable[..., Any], Rule] = {
    # linear layers and products
    F.linear: product,
    F.bilinear: product,
    F.conv1d: product,
    F.conv2d: product,
    F.conv3d: product,
    F.conv_transpose1d: product,
    F.conv_transpose2d: product,
    F.conv_transpose3d: product,
    torch.matmul: product,
    torch.mm: product,
    torch.bmm: product,
    torch.mv: product,
    torch.einsum: product,
    torch.mul: signal_takes_all,
    torch.div: numerator_takes_all,
    Tensor.__rtruediv__: numerator_takes_all,
    # sums: each addend gets its share of the sum
    torch.add: epsilon,
    torch.sub: epsilon,
    torch.sum: epsilon,
    torch.mean: epsilon,
    torch.cumsum: epsilon,
    torch.addmm: epsilon,
    torch.lerp: epsilon,
    F.avg_pool1d: epsilon,
    F.avg_pool2d: epsilon,
    F.avg_pool3d: epsilon,
    F.adaptive_avg_pool1d: epsilon,
    F.adaptive_avg_pool2d: epsilon,
    F.adaptive_avg_pool3d: epsilon,
    F.interpolate: epsilon,
    F.grid_sample: epsilon,
    F.fold: epsilon,
    # normalisation
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    F.group_norm: group_norm,
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    # element-wise functions of one signal
    F.relu: pass_through,
    F.relu6: pass_through,
    F.leaky_relu: pass_through,
    F.rrelu: pass_through,
    F.prelu: pass_through,
    F.elu: pass_through,
    F.selu: pass_through,
    F.celu: pass_through,
    F.gelu: pass_through,
    F.silu: pass_through,
    F.mish: pass_through,
    F.softplus: pass_through,
    F.softsign: pass_through,
    F.logsigmoid: pass_through,
    F.hardswish: pass_through,
    F.hardtanh: pass_through,
    F.hardsigmoid: pass_through,
    F.threshold: pass_through,
    torch.sigmoid: pass_through,
    torch.tanh: pass_through,
    torch.exp: pass_through,
    torch.expm1: pass_through,
    torch.log: pass_through,
    torch.log1p: pass_through,
    torch.sqrt: pass_through,
    torch.rsqrt: pass_through,
    torch.square: pass_through,
    torch.pow: pass_through,
    torch.reciprocal: pass_through,
    torch.abs: pass_through,
    torch.neg: pass_through,
    torch.sin: pass_through,
    torch.cos: pass_through,
    torch.erf: pass_through,
    torch.clamp: pass_through,
    torch.nan_to_num: pass_through,
    # dropout, codes, draws, gates
    F.dropout: kept_units,
    F.dropout1d: kept_units,
    F.dropout2d: kept_units,
    F.dropout3d: kept_units,
    F.embedding: token,
    F.one_hot: token,
    torch.normal: gaussian_draw,
    F.glu: first_half_takes_all,
    F.softmax: softmax,
    F.scaled_dot_product_attention: scaled_dot_product_attention,
    # the same values under another name or type
    torch.detach: pass_through,
    torch.clone: pass_through,
    torch.Tensor.contiguous: pass_through,
    torch.Tensor.to: pass_through,
    torch.Tensor.float: pass_through,
    torch.Tensor.double: pass_through,
    torch.Tensor.half: pass_through,
    torch.Tensor.bfloat16: pass_through,
    torch.Tensor.type: pass_through,
    torch.Tensor.type_as: pass_through,
    torch.Tensor.cpu: pass_through,
    torch.Tensor.cuda: pass_through,
    torch.Tensor.requires_grad_: pass_through,
    torch.Tensor.data.__get__: pass_through,  # type: ignore[attr-defined]
    # elements moved, joined or chosen
    torch.reshape: native,
    torch.Tensor.view: native,
    torch.Tensor.view_as: native,
    torch.flatten: native,
    torch.unflatten: native,
    torch.squeeze: native,
    torch.unsqueeze: native,
    torch.permute: native,
    torch.transpose: native,
    torch.movedim: native,
    torch.t: native,
    torch.Tensor.T.__get__: native,  # type: ignore[attr-defined]
    torch.Tensor.mT.__get__: native,  # type: ignore[attr-defined]
    torch.Tensor.expand: native,
    torch.Tensor.expand_as: native,
    torch.Tensor.repeat: native,
    torch.repeat_interleave: native,
    torch.broadcast_to: native,
    torch.broadcast_tensors: native,
    torch.cat: native,
    torch.stack: native,
    torch.chunk: native,
    torch.split: native,
    torch.unbind: native,
    torch.narrow: native,
    torch.select: native,
    torch.index_select: native,
    torch.gather: native,
    torch.masked_select: native,
    torch.Tensor.masked_fill: native,
    torch.where: native,
    torch.Tensor.__getitem__: native,
    torch.Tensor.__setitem__: native,
    torch.Tensor.copy_: native,
    torch.flip: native,
    torch.roll: native,
    torch.tril: native,
    torch.triu: native,
    torch.maximum: native,
    torch.minimum: native,
    torch.max: native,
    torch.min: native,
    torch.amax: native,
    torch.amin: native,
    torch.topk: native,
    torch.sort: native,
    F.pad: native,
    F.unfold: native,
    F.pixel_shuffle: native,
    F.pixel_unshuffle: native,
    F.max_pool1d: native,
    F.max_pool2d: native,
    F.max_pool3d: native,
    F.adaptive_max_pool1d: native,
    F.adaptive_max_pool2d: native,
    F.adaptive_max_pool3d: native,
    F.max_pool2d_with_indices: native,
}

_BY_NAME = {function_name(function): rule for function, rule in RULES.items()}


def rule_for(function: Any) -> Rule | None:
    """The rule of a function, under whichever of its spellings it was called; None if there is none."""
    return _BY_NAME.get(function_name(function))


__all__ = [
    "DECOMPOSITIONS",
    "EPSILON",
    "RULES",
    "Call",
    "Rule",
    "decomposed",
    "epsilon",
    "function_name",
    "native",
    "pass_through",
    "product",
    "pull_back",
    "rule_for",
    "share",
    "stabilise",
]
