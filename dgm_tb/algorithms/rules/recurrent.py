"""Rules for recurrent layers and their cells: relevance goes back through time, step by step.

A gate takes nothing, its signal all (Arras et al. 2017); sums and matrix products follow the epsilon rule. So relevance
reaches the input and the state before through the candidate value alone, and the state before also directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_tb.algorithms.rules.call import Call, Carrier, replace_leaves, share, times

State = tuple[Tensor, ...]
"""What a cell hands on: ``(h,)``, or ``(h, c)`` of an LSTM; the first is its output."""

Back = Callable[[State], tuple[Tensor, State]]
"""Relevance of a step's new state -> relevance of its input and of the state before."""

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Of input and state, their biases, and of the projection of an LSTM's output."""


def recurrent_layer(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """``lstm``, ``gru``, ``rnn_tanh`` and ``rnn_relu``: any number of layers, both directions, packed sequences.

    Raises:
        ValueError: If there is dropout between the layers, whose mask nobody knows.
    """
    arguments = replace_leaves(call.arguments, lambda leaf: call.inputs[leaf.index] if _is_carrier(leaf) else leaf)
    is_packed = not isinstance(arguments[3], bool)
    x, *others = arguments
    lengths = others.pop(0) if is_packed else None
    start, parameters, has_biases, n_layers, dropout, is_training, is_bidirectional = others[:7]
    if dropout and is_training and n_layers > 1:
        raise ValueError("dropout between recurrent layers has no rule")
    is_batch_first = not is_packed and others[7]
    n_directions = 2 if is_bidirectional else 1
    mask = None if lengths is None else _mask(lengths, x.device)
    x = x.transpose(0, 1) if is_batch_first else x if mask is None else _padded(x, mask)
    states = list(zip(*((start,) if isinstance(start, Tensor) else start), strict=True))  # one per layer and direction
    weights = _weights(parameters, has_biases, len(states))

    layers: list[list[Callable[..., tuple[Tensor, State]]]] = []
    for layer in range(n_layers):
        outputs, backs = [], []
        for direction in range(n_directions):
            number = layer * n_directions + direction
            run = _run(_STEPS[call.name], x, states[number], weights[number], mask, is_reverse=direction == 1)
            outputs.append(run[0])
            backs.append(run[1])
        x = torch.cat(outputs, -1)
        layers.append(backs)

    given = dict(zip(call.kept, relevance, strict=True))
    received = given.get(0)
    received = torch.zeros_like(x) if received is None else received.transpose(0, 1) if is_batch_first else received
    received = received if mask is None or 0 not in given else _padded(received, mask)
    last = [given.get(1 + i) for i in range(len(states[0]))]
    of_states: list[State] = [()] * len(states)
    for layer, backs in reversed(list(enumerate(layers))):
        to_inputs = []
        for direction, (back, part) in enumerate(zip(backs, received.chunk(n_directions, -1), strict=True)):
            number = layer * n_directions + direction
            ends = tuple(
                torch.zeros_like(s) if r is None else r[number] for r, s in zip(last, states[number], strict=True)
            )
            to_input, of_states[number] = back(part, ends)
            to_inputs.append(to_input)
        received = torch.stack(to_inputs).sum(0)
    received = received.transpose(0, 1) if is_batch_first else received if mask is None else received[mask]
    of_start = [torch.stack(parts) for parts in zip(*of_states, strict=True)]
    hx = call.arguments[2 if is_packed else 1]
    return _to_carriers(call, [(call.arguments[0], received), *_pairs(hx, of_start)])


def recurrent_cell(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
    """``lstm_cell``, ``gru_cell``, ``rnn_tanh_cell`` and ``rnn_relu_cell``: one step."""
    arguments = replace_leaves(call.arguments, lambda leaf: call.inputs[leaf.index] if _is_carrier(leaf) else leaf)
    x, start, w_input, w_state, *biases = arguments
    state = (start,) if isinstance(start, Tensor) else tuple(start)
    b_input, b_state = (*biases, None, None)[:2]
    step = _STEPS[call.name.removesuffix("_cell")]
    _, back = step(x, state, (w_input, w_state, b_input, b_state, None))
    given = dict(zip(call.kept, relevance, strict=True))
    received, of_start = back(tuple(given.get(i, torch.zeros_like(part)) for i, part in enumerate(state)))
    return _to_carriers(call, [(call.arguments[0], received), *_pairs(call.arguments[1], of_start)])


def _lstm_step(x: Tensor, state: State, weights: Weights) -> tuple[State, Back]:
    h, c = state
    w_input, w_state, b_input, b_state, w_projection = weights
    gates = F.linear(x, w_input, b_input) + F.linear(h, w_state, b_state)
    to_enter, to_keep, candidate, to_leave = gates.chunk(4, -1)
    entering = to_enter.sigmoid() * candidate.tanh()
    kept = to_keep.sigmoid() * c
    new_c = kept + entering
    hidden = to_leave.sigmoid() * new_c.tanh()
    new_h = hidden if w_projection is None else F.linear(hidden, w_projection)
    rows = slice(2 * candidate.shape[-1], 3 * candidate.shape[-1])

    def back(received: State) -> tuple[Tensor, State]:
        of_h, of_c = received
        of_hidden = of_h if w_projection is None else times(hidden, share(of_h, new_h) @ w_projection)
        shares = share(of_c + of_hidden, new_c)
        drawn = share(times(entering, shares), candidate)
        return times(x, drawn @ w_input[rows]), (times(h, drawn @ w_state[rows]), times(kept, shares))

    return (new_h, new_c), back


def _gru_step(x: Tensor, state: State, weights: Weights) -> tuple[State, Back]:
    (h,) = state
    w_input, w_state, b_input, b_state, _ = weights
    of_input, of_state = F.linear(x, w_input, b_input).chunk(3, -1), F.linear(h, w_state, b_state).chunk(3, -1)
    to_reset, to_keep = (of_input[0] + of_state[0]).sigmoid(), (of_input[1] + of_state[1]).sigmoid()
    candidate = of_input[2] + to_reset * of_state[2]
    entering = (1 - to_keep) * candidate.tanh()
    new_h = entering + to_keep * h
    rows = slice(2 * h.shape[-1], 3 * h.shape[-1])

    def back(received: State) -> tuple[Tensor, State]:
        shares = share(received[0], new_h)
        drawn = share(times(entering, shares), candidate)
        to_state = (to_reset * drawn) @ w_state[rows] + to_keep * shares
        return times(x, drawn @ w_input[rows]), (times(h, to_state),)

    return (new_h,), back


def _plain_step(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor, State, Weights], tuple[State, Back]]:
    def step(x: Tensor, state: State, weights: Weights) -> tuple[State, Back]:
        (h,) = state
        w_input, w_state, b_input, b_state, _ = weights
        z = F.linear(x, w_input, b_input) + F.linear(h, w_state, b_state)

        def back(received: State) -> tuple[Tensor, State]:
            drawn = share(received[0], z)
            return times(x, drawn @ w_input), (times(h, drawn @ w_state),)

        return (activation(z),), back

    return step


_STEPS = {
    "lstm": _lstm_step,
    "gru": _gru_step,
    "rnn_tanh": _plain_step(torch.tanh),
    "rnn_relu": _plain_step(torch.relu),
}


def _run(
    step: Callable[[Tensor, State, Weights], tuple[State, Back]],
    x: Tensor,
    state: State,
    weights: Weights,
    mask: Tensor | None,
    *,
    is_reverse: bool,
) -> tuple[Tensor, Callable[[Tensor, State], tuple[Tensor, State]]]:
    """One layer in one direction over ``[times, examples, units]``: its outputs, and the way back of their relevance.

    ``mask`` ``[times, examples]`` says which examples are that long; the others keep their state.
    """
    order = list(range(len(x)))[:: -1 if is_reverse else 1]
    backs: dict[int, Back] = {}
    outputs: dict[int, Tensor] = {}
    for t in order:
        new, backs[t] = step(x[t], state, weights)
        state = (
            new if mask is None else tuple(torch.where(mask[t][:, None], a, b) for a, b in zip(new, state, strict=True))
        )
        outputs[t] = state[0]

    def back(of_outputs: Tensor, of_state: State) -> tuple[Tensor, State]:
        to_inputs: dict[int, Tensor] = {}
        for t in reversed(order):
            of_state = (of_state[0] + of_outputs[t], *of_state[1:])
            if mask is None:
                to_inputs[t], of_state = backs[t](of_state)
                continue
            active = mask[t][:, None]
            to_inputs[t], before = backs[t](tuple(torch.where(active, r, 0) for r in of_state))
            of_state = tuple(b + torch.where(active, 0, r) for b, r in zip(before, of_state, strict=True))
        return torch.stack([to_inputs[t] for t in range(len(x))]), of_state

    return torch.stack([outputs[t] for t in range(len(x))]), back


def _weights(parameters: Sequence[Tensor], has_biases: bool, n_runs: int) -> list[Weights]:
    """The flat list of parameters, one tuple for each layer and direction."""
    size = len(parameters) // n_runs
    found: list[Weights] = []
    for first in range(0, len(parameters), size):
        w_input, w_state, *others = parameters[first : first + size]
        b_input, b_state = others[:2] if has_biases else (None, None)
        projection = others[-1] if len(others) % 2 else None
        found.append((w_input, w_state, b_input, b_state, projection))
    return found


def _mask(lengths: Tensor, device: torch.device) -> Tensor:
    """``[times, examples]`` of a packed sequence from how many examples there are at each time."""
    return torch.arange(int(lengths[0]), device=device)[None] < lengths.to(device)[:, None]


def _padded(data: Tensor, mask: Tensor) -> Tensor:
    """Packed data ``[sum of lengths, units]`` as ``[times, examples, units]``, with zeros."""
    where = mask.nonzero(as_tuple=True)
    return data.new_zeros(*mask.shape, data.shape[-1]).index_put(where, data)


def _is_carrier(leaf: Any) -> bool:
    return isinstance(leaf, Carrier)


def _pairs(start: Any, of_start: Sequence[Tensor]) -> list[tuple[Any, Tensor]]:
    return list(zip(start if isinstance(start, tuple | list) else (start,), of_start, strict=True))


def _to_carriers(call: Call, received: list[tuple[Any, Tensor]]) -> list[Tensor | None]:
    """What each input of the call gets; a tensor that was given twice gets the sum."""
    totals: list[Tensor | None] = [None] * len(call.inputs)
    for leaf, part in received:
        if isinstance(leaf, Carrier):
            total = totals[leaf.index]
            totals[leaf.index] = part if total is None else total + part
    return totals
