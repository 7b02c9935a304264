"""Every relevance rule against a replica written from its formula, in float64."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dgm_tb.algorithms.relevance import RelevanceMode
from dgm_tb.algorithms.rules import (
    RULES,
    attention,
    elementwise,
    epsilon,
    function_name,
    native,
    norms,
    pass_through,
    product,
    recurrent,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
import recurrence
from layers import GRU, LSTM, NEEDS_ACCELERATOR, RNN, SAMPLES, TOKENS, W

FLOAT = torch.float64


class Function(nn.Module):
    """A bare function as a model."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def record(model: nn.Module, *inputs: Tensor) -> tuple[RelevanceMode, Tensor]:
    named = {f"x{i}": x for i, x in enumerate(inputs)}
    with torch.no_grad(), RelevanceMode(model, named) as mode:
        output = model(*inputs)
    return mode, output


def like(x: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT)


# -- replicas of the rules, one dense Jacobian each -----------------------------------------------------------------


def jacobians(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    dense = torch.autograd.functional.jacobian(function, inputs)
    return [j.reshape(-1, x.numel()) for j, x in zip(dense, inputs, strict=True)]


def shares(r: Tensor, z: Tensor) -> Tensor:
    rows = z.flatten(1) if z.ndim > 1 else z.reshape(1, -1)
    step = 1e-6 * rows.abs().mean(1, keepdim=True) * torch.where(rows < 0, -1.0, 1.0)
    return (r.reshape(rows.shape) / (rows + step)).flatten()


def replica_epsilon(name: str, f: Callable[..., Tensor], xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    return [x * (shares(r, z) @ j).reshape(x.shape) for x, j in zip(xs, jacobians(f, xs), strict=True)]


def replica_product(name: str, f: Callable[..., Tensor], xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    return [part / len(xs) for part in replica_epsilon(name, f, xs, z, r)]


def replica_native(name: str, f: Callable[..., Tensor], xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    return [(r.flatten() @ j).reshape(x.shape) for x, j in zip(xs, jacobians(f, xs), strict=True)]


def replica_pass(name: str, f: Callable[..., Tensor], xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    return [r.mT if name == "contiguous" else r]


def replica_split(name: str, f: Callable[..., Tensor], xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    return [r / 2, (r / 2).sum((0, 2)).reshape(4, 1)]


def replica_numerator(name: str, f: Any, xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    return [r] + [torch.zeros_like(x) for x in xs[1:]]


def replica_kept(name: str, f: Any, xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    return [r * (z != 0)]


def replica_token(name: str, f: Any, xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    return [r.sum(-1)]


def replica_draw(name: str, f: Any, xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    s = shares(r, z).reshape(z.shape)
    return [xs[0] * s, (z - xs[0]) * s]


def replica_glu(name: str, f: Any, xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    return [torch.cat([r, 0 * r], 1)]


def replica_softmax(name: str, f: Any, xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    return [torch.stack([xs[0][..., i] * (r[..., i] - z[..., i] * r.sum(-1)) for i in range(z.shape[-1])], -1)]


def replica_batch_norm(name: str, f: Any, xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    """The scale of a channel is the slope between any two of its elements."""
    channels, outputs = xs[0].movedim(1, 0).flatten(1), z.movedim(1, 0).flatten(1)
    scale = (outputs[:, 1] - outputs[:, 0]) / (channels[:, 1] - channels[:, 0])
    return [xs[0] * scale.reshape(1, -1, 1, 1) * shares(r, z).reshape(z.shape)]


def replica_norm(name: str, f: Any, xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    """The same normalisation with its deviation frozen, as a function of its own."""
    (x,) = xs
    groups = {"group_norm": x.reshape(2, 2, -1), "instance_norm": x.flatten(2)}.get(name, x)
    if name == "rms_norm":
        deviation = (groups**2).mean(-1, keepdim=True).sqrt().expand_as(groups).reshape_as(x)
    else:
        deviation = (groups.var(-1, correction=0, keepdim=True) + 1e-5).sqrt().expand_as(groups).reshape_as(x)
    weight = W[4,].reshape(1, 4, 1, 1) if x.ndim == 4 else W[6,]

    def frozen(x: Tensor) -> Tensor:
        parts = x.reshape(groups.shape)
        mean = 0.0 if name == "rms_norm" else parts.mean(-1, keepdim=True)
        return (parts - mean).reshape(deviation.shape) / deviation * weight

    return replica_epsilon(name, frozen, xs, z, r)


def replica_kept_scaled(name: str, f: Any, xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    """A scale and a shift that keep mean and variance where 0.4 of the units are set to the lowest value of SELU."""
    low = -1.6732632423543772 * 1.0507009873554805
    scale = (0.6 + low**2 * 0.6 * 0.4) ** -0.5
    dropped = (z - (scale * low - scale * 0.4 * low)).abs() < 1e-9
    return [torch.where(dropped, 0, xs[0] * scale * shares(r, z).reshape(z.shape))]


def replica_token_of_bag(name: str, f: Any, xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    s = shares(r, z).reshape(z.shape)
    return [torch.stack([torch.stack([(W[5, 4][t] / 3 * s[i]).sum() for t in row]) for i, row in enumerate(TOKENS)])]


def replica_recurrent(name: str, f: Any, xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    """The same layer out of sums and products, whose rules have replicas of their own."""
    run = {
        "lstm": lambda x, h, c: recurrence.lstm(x, h, c, LSTM),
        "lstm_cell": lambda x, h, c: recurrence.lstm_step(x, h, c, LSTM[:4])[0],
        "gru_cell": lambda x, h: recurrence.gru_step(x, h, GRU),
        "rnn_tanh_cell": lambda x, h: recurrence.plain_step(x, h, RNN, "tanh"),
        "rnn_relu_cell": lambda x, h: recurrence.plain_step(x, h, RNN, "relu"),
    }.get(name, lambda x, h: recurrence.one_layer(name, x, h, GRU if name == "gru" else RNN))
    mode, output = record(Function(run), *xs)
    assert torch.allclose(output, z)
    found = mode.propagate(output, relevance=r).inputs
    return [found[f"x{i}"] for i in range(len(xs))]


def replica_attention(name: str, f: Any, xs: tuple[Tensor, ...], z: Tensor, r: Tensor) -> list[Tensor]:
    """The same function out of matrix products and a softmax, whose rules have replicas of their own."""

    def spelled_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = q @ k.transpose(-1, -2) / 2  # sqrt(4 units per head)
        future = torch.ones(3, 3, dtype=torch.bool).triu(1)
        return logits.masked_fill(future, -torch.inf).softmax(-1) @ v

    mode, output = record(Function(spelled_out), *xs)
    assert torch.allclose(output, z)
    found = mode.propagate(output, relevance=r).inputs
    return [found[f"x{i}"] for i in range(3)]


REPLICAS: dict[Any, Callable[..., list[Tensor]]] = {
    epsilon: replica_epsilon,
    product: replica_product,
    native: replica_native,
    pass_through: replica_pass,
    elementwise.signal_takes_all: replica_split,
    elementwise.numerator_takes_all: replica_numerator,
    elementwise.kept_units: replica_kept,
    elementwise.token: replica_token,
    elementwise.gaussian_draw: replica_draw,
    elementwise.first_half_takes_all: replica_glu,
    elementwise.kept_scaled_units: replica_kept_scaled,
    elementwise.token_of_bag: replica_token_of_bag,
    recurrent.recurrent_layer: replica_recurrent,
    recurrent.recurrent_cell: replica_recurrent,
    attention.softmax: replica_softmax,
    attention.scaled_dot_product_attention: replica_attention,
    norms.batch_norm: replica_batch_norm,
    norms.instance_norm: replica_norm,
    norms.group_norm: replica_norm,
    norms.layer_norm: replica_norm,
    norms.rms_norm: replica_norm,
}


@pytest.mark.parametrize("function", RULES, ids=function_name)
def test_every_rule_equals_its_replica(function: Any) -> None:
    name, rule = function_name(function), RULES[function]
    if name in NEEDS_ACCELERATOR:
        pytest.skip("runs on an accelerator only")
    assert name in SAMPLES, f"add a sample call of {name} to tests/layers.py"
    assert rule in REPLICAS, f"add a replica of rule {rule.__name__} to this file"
    run, *inputs = SAMPLES[name]
    torch.manual_seed(0)
    mode, output = record(Function(run), *inputs)
    assert (name, rule) in [(r.name, r.rule) for r in mode.records]
    start = like(output)
    found = mode.propagate(output, relevance=start)
    assert not found.stopped
    truth = REPLICAS[rule](name, run, tuple(inputs), output.to(FLOAT), start)
    for i, expected in enumerate(truth):
        got = found.inputs.get(f"x{i}", torch.zeros_like(expected))
        assert got.shape == inputs[i].shape
        # the replica of attention is made of more functions, each with a stabiliser of its own
        tolerance = 1e-4 if rule is attention.scaled_dot_product_attention else 1e-10
        assert (got - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


def test_no_sample_is_left_over() -> None:
    assert set(SAMPLES) == {function_name(f) for f in RULES} - NEEDS_ACCELERATOR
