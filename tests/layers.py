"""One sample call per entry of the rule table: the contract test runs each of them, and fails for an entry without one.

A sample is ``(function of the inputs, *inputs)``; everything else (weights, masks) is a constant of the sample.
``LAYERS`` are modules with the input they are given, for contribution matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

_rng = torch.Generator().manual_seed(7)


def normal(*shape: int) -> Tensor:
    """Standard normal numbers, float64, the same in every run."""
    return torch.randn(*shape, generator=_rng, dtype=torch.float64)


def positive(*shape: int) -> Tensor:
    """Numbers in (0.1, 2)."""
    return torch.rand(*shape, generator=_rng, dtype=torch.float64) * 1.9 + 0.1


X1, X2, X3 = normal(2, 4, 6), normal(2, 4, 6, 6), normal(2, 2, 4, 4, 4)
M, N = normal(2, 3, 4), normal(2, 4, 5)
GRID = torch.rand(2, 3, 3, 2, generator=_rng, dtype=torch.float64) * 1.6 - 0.8
MASK = torch.rand(2, 4, 6, generator=_rng) > 0.4
LENGTHS = torch.tensor([3, 4, 2])
INDEX = torch.tensor([2, 0, 1])
TOKENS = torch.tensor([[1, 3, 0], [2, 2, 4]])


def _fixed(*shape: int) -> nn.Parameter:
    """A weight: relevance never goes to parameters."""
    return nn.Parameter(normal(*shape), requires_grad=False)


def _set_item(x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    z[:, 1] = y
    return z


def _copied(x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    z[:, :2].copy_(y)  # through a view: z changes too
    return z


def _padded_again(data: Tensor) -> Tensor:
    packed = PackedSequence(data, torch.tensor([3, 3, 2, 1]))
    return pad_packed_sequence(packed, batch_first=True)[0]


Sample = tuple[Any, ...]
W = {n: _fixed(*n) for n in [(5, 6), (3, 4, 6), (6, 4, 3), (6, 2, 3, 3), (3, 2, 2, 2, 2), (4, 6), (6,), (4,), (6, 5)]}
W |= {n: _fixed(*n) for n in [(4, 3, 3), (4, 3, 3, 3), (2, 3, 2, 2, 2), (3, 6, 5), (5, 4)]}

UNPOOL = F.max_pool2d(X2, 2, return_indices=True)[1]
RECURRENT = normal(2, 4, 6), normal(4, 2, 3), normal(4, 2, 3)
LSTM = [_fixed(*n) for n in [(12, 6), (12, 3), (12,), (12,)] * 4]
"""Two layers in both directions, three units; ``[:4]`` is a cell."""
GRU = [_fixed(9, 6), _fixed(9, 3), _fixed(9), _fixed(9)]
RNN = [_fixed(3, 6), _fixed(3, 3)]

SAMPLES: dict[str, Sample] = {
    "linear": (lambda x: F.linear(x, W[5, 6], W[5, 6][:, 0]), X1),
    "bilinear": (lambda x, y: F.bilinear(x, y, W[3, 6, 5]), X1, normal(2, 4, 5)),
    "conv1d": (lambda x: F.conv1d(x, W[6, 4, 3], W[6,], stride=2, padding=1), X1),
    "conv2d": (lambda x: F.conv2d(x, W[6, 2, 3, 3], W[6,], padding=2, dilation=2, groups=2), X2),
    "conv3d": (lambda x: F.conv3d(x, W[3, 2, 2, 2, 2]), X3),
    "conv_transpose1d": (lambda x: F.conv_transpose1d(x, W[4, 3, 3], stride=2), X1),
    "conv_transpose2d": (lambda x: F.conv_transpose2d(x, W[4, 3, 3, 3], None, 2, 1, 1, 2), X2[:, :, :3, :3]),
    "conv_transpose3d": (lambda x: F.conv_transpose3d(x, W[2, 3, 2, 2, 2]), X3[..., :2, :2, :2]),
    "matmul": (lambda x, y: x @ y, M, N),
    "mm": (lambda x, y: torch.mm(x, y), M[0], N[0]),
    "bmm": (lambda x, y: torch.bmm(x, y), M, N),
    "mv": (lambda x, y: torch.mv(x, y), M[0], N[0, :, 0]),
    "dot": (lambda x, y: torch.dot(x, y), normal(6), normal(6)),
    "outer": (lambda x, y: torch.outer(x, y), normal(3), normal(4)),
    "inner": (lambda x: torch.inner(x, W[5, 6]), X1),
    "tensordot": (lambda x: torch.tensordot(x, W[4, 6], 2), X1),
    "einsum": (lambda x, y: torch.einsum("bij,bjk->bki", x, y), M, N),
    "mul": (lambda x, y: x * y, X1, normal(4, 1)),
    "div": (lambda x, y: x / y, X1, positive(4, 1)),
    "rdiv": (lambda x: 2 / x, positive(2, 4)),
    "add": (lambda x, y: x + y, X1, normal(4, 1)),
    "sub": (lambda x, y: x - y, X1, normal(2, 4, 6)),
    "sum": (lambda x: x.sum((1, 2)), X1),
    "mean": (lambda x: x.mean(1), X1),
    "cumsum": (lambda x: x.cumsum(1), X1),
    "addmm": (lambda x, y: torch.addmm(y, x, W[4, 6]), M[0], normal(3, 6)),
    "baddbmm": (lambda x: torch.baddbmm(W[4, 6][:3, :5], x, N[0].expand(2, -1, -1)), M),
    "addbmm": (lambda x: torch.addbmm(W[3, 4, 6][0, :3, :5], x, N[0].expand(2, -1, -1)), M),
    "lerp": (lambda x, y: torch.lerp(x, y, 0.3), X1, normal(2, 4, 6)),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), X1),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), X2),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), X3),
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 4), X1),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (1, 4)), X2),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 1), X3),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), X2),
    "grid_sample": (lambda x: F.grid_sample(x, nn.Parameter(GRID), align_corners=False), X2),
    "fold": (lambda x: F.fold(x, (3, 3), (2, 2)), normal(2, 8, 4)),
    "batch_norm": (lambda x: F.batch_norm(x, None, None, W[4,], W[4,], training=True), X2),
    "instance_norm": (lambda x: F.instance_norm(x, weight=W[4,], bias=W[4,]), X2),
    "group_norm": (lambda x: F.group_norm(x, 2, W[4,], W[4,]), X2),
    "layer_norm": (lambda x: F.layer_norm(x, (6,), W[6,], W[6,]), X1),
    "rms_norm": (lambda x: F.rms_norm(x, (6,), W[6,]), X1),
    "relu": (lambda x: F.relu(x), X1),
    "relu6": (lambda x: F.relu6(x), X1),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), X1),
    "rrelu": (lambda x: F.rrelu(x, training=True), X1),
    "prelu": (lambda x: F.prelu(x, W[4,]), X1),
    "elu": (lambda x: F.elu(x), X1),
    "selu": (lambda x: F.selu(x), X1),
    "celu": (lambda x: F.celu(x), X1),
    "gelu": (lambda x: F.gelu(x), X1),
    "silu": (lambda x: F.silu(x), X1),
    "mish": (lambda x: F.mish(x), X1),
    "softplus": (lambda x: F.softplus(x), X1),
    "softsign": (lambda x: F.softsign(x), X1),
    "log_sigmoid": (lambda x: F.logsigmoid(x), X1),
    "hardswish": (lambda x: F.hardswish(x), X1),
    "hardtanh": (lambda x: F.hardtanh(x), X1),
    "hardsigmoid": (lambda x: F.hardsigmoid(x), X1),
    "threshold": (lambda x: F.threshold(x, 0.1, 0.0), X1),
    "hardshrink": (lambda x: F.hardshrink(x), X1),
    "softshrink": (lambda x: F.softshrink(x), X1),
    "tanhshrink": (lambda x: F.tanhshrink(x), X1),
    "sigmoid": (lambda x: torch.sigmoid(x), X1),
    "tanh": (lambda x: x.tanh(), X1),
    "exp": (lambda x: x.exp(), X1),
    "exp2": (lambda x: x.exp2(), X1),
    "log2": (lambda x: x.log2(), positive(2, 4)),
    "log10": (lambda x: x.log10(), positive(2, 4)),
    "atan": (lambda x: x.atan(), X1),
    "sinh": (lambda x: x.sinh(), X1),
    "asinh": (lambda x: x.asinh(), X1),
    "sign": (lambda x: x.sign(), X1),
    "round": (lambda x: x.round(), X1),
    "expm1": (lambda x: x.expm1(), X1),
    "log": (lambda x: x.log(), positive(2, 4)),
    "log1p": (lambda x: x.log1p(), positive(2, 4)),
    "sqrt": (lambda x: x.sqrt(), positive(2, 4)),
    "rsqrt": (lambda x: x.rsqrt(), positive(2, 4)),
    "square": (lambda x: x.square(), X1),
    "pow": (lambda x: x**3, X1),
    "reciprocal": (lambda x: x.reciprocal(), positive(2, 4)),
    "abs": (lambda x: x.abs(), X1),
    "neg": (lambda x: -x, X1),
    "sin": (lambda x: x.sin(), X1),
    "cos": (lambda x: x.cos(), X1),
    "erf": (lambda x: x.erf(), X1),
    "clamp": (lambda x: x.clamp(-1, 1), X1),
    "nan_to_num": (lambda x: x.nan_to_num(), X1),
    "dropout": (lambda x: F.dropout(x, 0.4), X1),
    "dropout1d": (lambda x: F.dropout1d(x, 0.4), X1),
    "dropout2d": (lambda x: F.dropout2d(x, 0.4), X2),
    "dropout3d": (lambda x: F.dropout3d(x, 0.4), X3),
    "alpha_dropout": (lambda x: F.alpha_dropout(x, 0.4, training=True), X1),
    "feature_alpha_dropout": (lambda x: F.feature_alpha_dropout(x, 0.4, training=True), X2),
    "embedding_bag": (lambda tokens: F.embedding_bag(tokens, W[5, 4], mode="mean"), TOKENS),
    "embedding": (lambda tokens: F.embedding(tokens, W[5, 4]), TOKENS),
    "one_hot": (lambda tokens: F.one_hot(tokens, 5), TOKENS),
    "normal": (lambda x, y: torch.normal(x, y), X1, positive(2, 4, 6)),
    "glu": (lambda x: F.glu(x, 1), X1),
    "softmax": (lambda x: F.softmax(x, -1), X1),
    "scaled_dot_product_attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        normal(2, 2, 3, 4),
        normal(2, 2, 3, 4),
        normal(2, 2, 3, 4),
    ),
    "lstm": (lambda x, h, c: torch.lstm(x, (h, c), LSTM, True, 2, 0.0, True, True, True)[0], *RECURRENT),
    "gru": (lambda x, h: torch.gru(x, h, GRU, True, 1, 0.0, True, False, True)[0], X1, normal(1, 2, 3)),
    "rnn_tanh": (lambda x, h: torch.rnn_tanh(x, h, RNN, False, 1, 0.0, True, False, True)[0], X1, normal(1, 2, 3)),
    "rnn_relu": (lambda x, h: torch.rnn_relu(x, h, RNN, False, 1, 0.0, True, False, True)[0], X1, normal(1, 2, 3)),
    "lstm_cell": (lambda x, h, c: torch.lstm_cell(x, (h, c), *LSTM[:4])[0], normal(2, 6), normal(2, 3), normal(2, 3)),
    "gru_cell": (lambda x, h: torch.gru_cell(x, h, *GRU), normal(2, 6), normal(2, 3)),
    "rnn_tanh_cell": (lambda x, h: torch.rnn_tanh_cell(x, h, *RNN), normal(2, 6), normal(2, 3)),
    "rnn_relu_cell": (lambda x, h: torch.rnn_relu_cell(x, h, *RNN), normal(2, 6), normal(2, 3)),
    "pack_padded_sequence": (lambda x: pack_padded_sequence(x, LENGTHS, True, False).data, normal(3, 4, 6)),
    "pad_packed_sequence": (_padded_again, normal(9, 6)),
    "detach": (lambda x: x.detach(), X1),
    "clone": (lambda x: x.clone(), X1),
    "contiguous": (lambda x: x.mT.contiguous(), X1),
    "to": (lambda x: x.to(torch.float64), X1),
    "float": (lambda x: x.float(), X1),
    "double": (lambda x: x.double(), X1),
    "half": (lambda x: x.half(), X1),
    "bfloat16": (lambda x: x.bfloat16(), X1),
    "type": (lambda x: x.type(torch.float64), X1),
    "type_as": (lambda x: x.type_as(X2), X1),
    "cpu": (lambda x: x.cpu(), X1),
    "requires_grad": (lambda x: x.clone().requires_grad_(), X1),
    "data": (lambda x: x.data, X1),
    "reshape": (lambda x: x.reshape(2, -1), X1),
    "view": (lambda x: x.view(2, 24), X1),
    "view_as": (lambda x: x.view_as(X1.reshape(2, 24)), X1),
    "flatten": (lambda x: x.flatten(1), X1),
    "unflatten": (lambda x: x.unflatten(1, (2, 2)), X1),
    "squeeze": (lambda x: x[:, :1].squeeze(1), X1),
    "unsqueeze": (lambda x: x.unsqueeze(1), X1),
    "permute": (lambda x: x.permute(2, 0, 1), X1),
    "transpose": (lambda x: x.transpose(1, 2), X1),
    "movedim": (lambda x: x.movedim(1, 2), X1),
    "moveaxis": (lambda x: torch.moveaxis(x, 1, 2), X1),
    "swapaxes": (lambda x: x.swapaxes(1, 2), X1),
    "swapdims": (lambda x: x.swapdims(1, 2), X1),
    "ravel": (lambda x: x.ravel(), X1),
    "diagonal": (lambda x: x.diagonal(dim1=1, dim2=2), X1),
    "tile": (lambda x: x.tile(2, 1, 1), X1),
    "hstack": (lambda x, y: torch.hstack([x, y]), X1, normal(2, 2, 6)),
    "vstack": (lambda x, y: torch.vstack([x, y]), X1, normal(1, 4, 6)),
    "tensor_split": (lambda x: x.tensor_split(2, 1)[1], X1),
    "take_along_dim": (lambda x: x.take_along_dim(torch.tensor([[2], [0]]), 1), normal(2, 4)),
    "scatter": (lambda x, y: x.scatter(1, torch.tensor([[2], [0]]), y), normal(2, 4), normal(2, 1)),
    "scatter_add": (lambda x, y: x.scatter_add(1, torch.tensor([[2], [0]]), y), normal(2, 4), normal(2, 1)),
    "index_add": (lambda x, y: x.index_add(1, INDEX, y), normal(2, 4), normal(2, 3)),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), X2),
    "max_unpool2d": (lambda x: F.max_unpool2d(x, UNPOOL, 2), normal(2, 4, 3, 3)),
    "t": (lambda x: x.t(), M[0]),
    "T": (lambda x: x.T, M[0]),
    "mT": (lambda x: x.mT, M),
    "expand": (lambda x: x.expand(3, 4), normal(3, 1)),
    "expand_as": (lambda x: x.expand_as(M[0]), normal(3, 1)),
    "repeat": (lambda x: x.repeat(2, 1, 1), X1),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), X1),
    "broadcast_to": (lambda x: torch.broadcast_to(x, (3, 4)), normal(3, 1)),
    "broadcast_tensors": (lambda x, y: torch.broadcast_tensors(x, y)[0], normal(3, 1), normal(4)),
    "cat": (lambda x, y: torch.cat([x, y], 1), X1, normal(2, 2, 6)),
    "stack": (lambda x, y: torch.stack((x, y)), X1, normal(2, 4, 6)),
    "chunk": (lambda x: x.chunk(2, 1)[1], X1),
    "split": (lambda x: x.split([1, 3], 1)[1], X1),
    "unbind": (lambda x: x.unbind(1)[2], X1),
    "narrow": (lambda x: x.narrow(1, 1, 2), X1),
    "select": (lambda x: x.select(1, 2), X1),
    "index_select": (lambda x: x.index_select(1, INDEX), X1),
    "gather": (lambda x: x.gather(1, torch.tensor([[2], [0]])), normal(2, 4)),
    "masked_select": (lambda x: x.masked_select(MASK), X1),
    "masked_fill": (lambda x: x.masked_fill(MASK, 0.0), X1),
    "where": (lambda x, y: torch.where(MASK, x, y), X1, normal(2, 4, 6)),
    "getitem": (lambda x: x[:, INDEX, ::2], X1),
    "setitem": (_set_item, X1, normal(2, 6)),
    "copy": (_copied, X1, normal(2, 2, 6)),
    "flip": (lambda x: x.flip(1), X1),
    "roll": (lambda x: x.roll(1, 2), X1),
    "tril": (lambda x: x.tril(), X1),
    "triu": (lambda x: x.triu(), X1),
    "maximum": (lambda x, y: torch.maximum(x, y), X1, normal(2, 4, 6)),
    "minimum": (lambda x, y: torch.minimum(x, y), X1, normal(2, 4, 6)),
    "max": (lambda x: x.max(1).values, X1),
    "min": (lambda x: x.min(1)[0], X1),
    "amax": (lambda x: x.amax(2), X1),
    "amin": (lambda x: x.amin(2), X1),
    "topk": (lambda x: x.topk(2).values, X1),
    "sort": (lambda x: x.sort(1)[0], X1),
    "pad": (lambda x: F.pad(x, (1, 2), mode="reflect"), X1),
    "unfold": (lambda x: F.unfold(x, 2), X2),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), X2),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), X2),
    "max_pool1d": (lambda x: F.max_pool1d(x, 2), X1),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), X2),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), X3),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x, 2), X1),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 2), X2),
    "adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(x, 2), X3),
    "max_pool2d_with_indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], X2),
}

NEEDS_ACCELERATOR = {"cuda"}
"""Entries that cannot run on the CPU; they share their rule with ``cpu``."""


def _layer(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make().double()


LAYERS: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "linear": (_layer(lambda: nn.Linear(6, 5)), (normal(3, 6),)),
    "linear without batch": (_layer(lambda: nn.Linear(6, 5)), (normal(6),)),
    "linear over positions": (_layer(lambda: nn.Linear(6, 5, bias=False)), (X1,)),
    "conv1d": (_layer(lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2)), (X1,)),
    "conv2d": (_layer(lambda: nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2)), (X2,)),
    "conv2d depthwise": (_layer(lambda: nn.Conv2d(4, 8, 3, padding="same", groups=4)), (X2,)),
    "conv2d same": (_layer(lambda: nn.Conv2d(4, 6, (5, 3), padding="same", dilation=(1, 2))), (X2,)),
    "conv2d valid": (_layer(lambda: nn.Conv2d(4, 6, 3, padding="valid")), (X2,)),
    "conv2d reflect": (_layer(lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect")), (X2,)),
    "conv2d circular": (_layer(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular")), (X2,)),
    "conv2d without batch": (_layer(lambda: nn.Conv2d(4, 6, 3, padding=1)), (X2[0],)),
    "conv3d replicate": (_layer(lambda: nn.Conv3d(2, 3, 3, padding=1, padding_mode="replicate")), (X3,)),
    "deconv1d": (_layer(lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1)), (X1,)),
    "deconv2d": (_layer(lambda: nn.ConvTranspose2d(4, 6, 4, 2, 1, output_padding=1, groups=2)), (X2,)),
    "deconv2d output size": (_layer(lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1)), (X2, [12, 11])),
    "deconv3d": (_layer(lambda: nn.ConvTranspose3d(2, 3, 3, stride=2, dilation=2)), (X3,)),
}
