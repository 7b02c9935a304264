"""Recurrent layers spelled out from their formulas, with gates as constants: one function per sum, so rules apply."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def lstm_step(x: Tensor, h: Tensor, c: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    w_input, w_state, bias = _joined(parameters)
    entering, keeping, _, leaving = _constant(_all(x, h, w_input, w_state, bias)).chunk(4, 1)
    rows = slice(2 * h.shape[1], 3 * h.shape[1])
    candidate = torch.tanh(F.linear(torch.cat([x, h], 1), torch.cat([w_input, w_state], 1)[rows], bias[rows]))
    c = torch.sigmoid(keeping) * c + torch.sigmoid(entering) * candidate
    return torch.sigmoid(leaving) * torch.tanh(c), c


def gru_step(x: Tensor, h: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    w_input, w_state, b_input, b_state = parameters
    of_input, of_state = (
        _constant(F.linear(a, w, b)).chunk(3, 1) for a, w, b in ((x, w_input, b_input), (h, w_state, b_state))
    )
    reset, keep = torch.sigmoid(of_input[0] + of_state[0]), torch.sigmoid(of_input[1] + of_state[1])
    rows = slice(2 * h.shape[1], 3 * h.shape[1])
    # the candidate is linear in input and state once the reset gate is a constant: a matrix of its own per example
    weight = torch.cat([w_input[rows].expand(len(x), -1, -1), reset[:, :, None] * w_state[rows]], 2)
    bias = b_input[rows] + reset * b_state[rows]
    joined = torch.cat([x, h, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    candidate = (torch.cat([weight, bias[:, :, None]], 2) @ joined[:, :, None]).squeeze(2)
    return (1 - keep) * torch.tanh(candidate) + keep * h


def plain_step(x: Tensor, h: Tensor, parameters: Sequence[Tensor], activation: str) -> Tensor:
    w_input, w_state, bias = _joined(parameters)
    z = F.linear(torch.cat([x, h], 1), torch.cat([w_input, w_state], 1), bias)
    return torch.tanh(z) if activation == "tanh" else torch.relu(z)


def lstm(x: Tensor, h: Tensor, c: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Two layers in both directions, ``x`` with the examples first."""
    inputs = list(x.unbind(1))
    for layer in range(2):
        both = []
        for direction in range(2):
            number = 2 * layer + direction
            state, outputs = (h[number], c[number]), {}
            for t in reversed(range(len(inputs))) if direction else range(len(inputs)):
                outputs[t] = state = lstm_step(inputs[t], *state, parameters[4 * number : 4 * number + 4])
            both.append([outputs[t][0] for t in range(len(inputs))])
        inputs = [torch.cat(pair, 1) for pair in zip(*both, strict=True)]
    return torch.stack(inputs, 1)


def one_layer(step: str, x: Tensor, h: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """A GRU or plain recurrent layer, ``x`` with the examples first."""
    state, outputs = h[0], []
    for part in x.unbind(1):
        state = gru_step(part, state, parameters) if step == "gru" else plain_step(part, state, parameters, step[4:])
        outputs.append(state)
    return torch.stack(outputs, 1)


def _joined(parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    w_input, w_state, *biases = parameters
    return w_input, w_state, sum(biases, torch.zeros(len(w_input), dtype=w_input.dtype))


def _all(x: Tensor, h: Tensor, w_input: Tensor, w_state: Tensor, bias: Tensor) -> Tensor:
    return x @ w_input.T + h @ w_state.T + bias


def _constant(x: Tensor) -> Tensor:
    return torch.tensor(x.tolist(), dtype=x.dtype)
