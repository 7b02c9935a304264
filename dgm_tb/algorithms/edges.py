"""Contributions along the edges of a network: which neurons of the layers just before drove the neurons of one layer.

Between two neuron layers stand normalisation, activations, pooling, residual sums, concatenation, reshaping. Relevance
passes them by their rules, element by element, so the matrix of an edge is the matrix of the target layer with every
input element's relevance weighted by the share that reaches the source, and its columns renamed to the source's
neurons. Both come from one relevance walk from the target's input, differentiated with respect to its start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_tb.algorithms.contribution import contribution_by_position, contribution_matrix
from dgm_tb.algorithms.relevance import RelevanceMode, Slot, Walk, neuron_axis
from dgm_tb.algorithms.rules.affine import Decomposition
from dgm_tb.algorithms.tape import Rank, Value, widen
from dgm_tb.errors import UnknownNameError

NEURON_FUNCTIONS = frozenset(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d embedding "
    "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split()
)
"""Functions whose outputs are neurons: an edge ends there."""


def edge_contributions(
    mode: RelevanceMode,
    target: str,
    *,
    rule: str | Decomposition = "epsilon",
    output_relevance: Tensor | None = None,
    examples: list[int] | None = None,
) -> dict[str, Tensor]:
    """Contribution matrices from every neuron layer and input just before a layer to that layer.

    Args:
        mode: Has recorded a run.
        target: Slot of a Linear, convolution or transposed convolution.
        rule: As in ``contribution_matrix``, for the target layer.
        output_relevance: In the shape of the target's output; None: the output itself.
        examples: Positions in the batch to sum over; None: all.

    Returns:
        Slot of a source layer, or name of an input -> ``[target neurons, source neurons]``. Sources whose relevance all
        stopped on the way (at a function without a rule) are absent.

    Raises:
        UnknownNameError: If the target was not called.
        UnsupportedLayerError: If there is no contribution rule for the target.
    """
    if target not in mode.slots:
        raise UnknownNameError(
            f"layer {target!r} was not called in this run; layers that were: {', '.join(mode.slots)}"
        )
    slot = mode.slots[target]
    start, received = _walk_to_sources(mode, slot.inputs[0])
    edges = {}
    for name, (value, axis) in _sources(mode, received).items():
        edges[name] = _edge(slot, start, received[value], axis, rule, output_relevance, examples)
    return edges


def _walk_to_sources(mode: RelevanceMode, value: Value) -> tuple[Tensor, dict[Value, Tensor]]:
    """Walk from the target's input back to the nearest neuron layers, differentiable in the relevance of the start."""
    start = torch.ones_like(widen(value.tensor), requires_grad=True)
    with torch.enable_grad():
        walk = Walk(value, start)
        for record in reversed(mode.records):
            if record.name not in NEURON_FUNCTIONS:
                walk.step(record)
    return start, walk.received


def _sources(mode: RelevanceMode, received: dict[Value, Tensor]) -> dict[str, tuple[Value, int]]:
    """Neuron layers and inputs that relevance has reached, with the axis of their neurons."""
    found: dict[str, tuple[Value, int]] = {}
    for name, slot in mode.slots.items():
        for value in slot.outputs:
            is_layer = value.record is not None and value.record.name in NEURON_FUNCTIONS
            if is_layer and value in received and value not in [known for known, _ in found.values()]:
                found[name] = value, neuron_axis(slot.module, value.tensor)
    for value in received:
        if value.record is None and value.rank == Rank.DATA and value.tensor.is_floating_point():
            found[value.name] = value, 1 if value.tensor.ndim > 1 else 0
    return found


def _edge(
    slot: Slot,
    start: Tensor,
    arrived: Tensor,
    axis: int,
    rule: str | Decomposition,
    output_relevance: Tensor | None,
    examples: list[int] | None,
) -> Tensor:
    chosen = slice(None) if examples is None else examples
    x = slot.inputs[0].tensor[chosen]
    n_sources = arrived.shape[axis]
    options = {
        "rule": rule,
        "output_relevance": None if output_relevance is None else output_relevance[chosen],
    }
    if not arrived.requires_grad:  # the source is the target's input itself
        arrived = start
    numbers = torch.arange(1, n_sources + 1, dtype=arrived.dtype, device=arrived.device)
    numbers = numbers.reshape(-1, *[1] * (arrived.ndim - axis - 1)).expand_as(arrived)
    share, numbered = (_adjoint(arrived, start, weights)[chosen] for weights in (torch.ones_like(numbers), numbers))

    channels = _owners(share, numbered, neuron_axis(slot.module, x))
    if channels is not None:
        matrix = contribution_matrix(slot.module, x, source_share=share, **options)  # type: ignore[arg-type]
        return matrix.new_zeros(len(matrix), n_sources).index_add_(1, channels, matrix)
    elements = _owners(share, numbered, None)
    if elements is not None:
        spread = contribution_by_position(slot.module, x, source_share=share, **options).flatten(1)  # type: ignore[arg-type]
        return spread.new_zeros(len(spread), n_sources).index_add_(1, elements, spread)
    columns = []  # neurons are mixed on the way, by a LayerNorm for instance: one adjoint pass for each of them
    for neuron in range(1, n_sources + 1):
        share = _adjoint(arrived, start, (numbers == neuron).to(arrived.dtype))[chosen]
        columns.append(contribution_matrix(slot.module, x, source_share=share, **options).sum(1))  # type: ignore[arg-type]
    return torch.stack(columns, 1)


def _adjoint(arrived: Tensor, start: Tensor, weights: Tensor) -> Tensor:
    """For each element of the start: how much of its relevance arrives, weighted by where."""
    if arrived is start:
        return weights.detach()
    return torch.autograd.grad(arrived, start, weights, retain_graph=True)[0]


def _owners(share: Tensor, numbered: Tensor, axis: int | None) -> Tensor | None:
    """The source neuron that each channel of the input (axis None: each element of an example) belongs to, or None.

    ``numbered`` is ``share`` times the number of the source neuron, counted from 1, wherever there is just one.
    """
    if axis is None:
        share, numbered = share.flatten(1), numbered.flatten(1)
    else:
        share, numbered = (tensor.movedim(axis, -1).flatten(0, -2) for tensor in (share, numbered))
    share, numbered = share.nan_to_num(0, 0, 0), numbered.nan_to_num(0, 0, 0)
    largest = share.abs().argmax(0, keepdim=True)
    owner = (numbered.gather(0, largest) / share.gather(0, largest)).nan_to_num(1).round().clamp(min=1)
    # far from the 1.0 of a wrong owner, far above the rounding of float32 for 100 000 neurons
    if bool(((numbered - share * owner).abs() > 0.05 * share.abs() + 1e-6 * numbered.abs().amax(0)).any()):
        return None
    return owner[0].long() - 1
