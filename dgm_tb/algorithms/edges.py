"""Contributions along the edges of a network: which neurons of the layers just before drove the neurons of one layer.

Between two neuron layers stand normalisation, activations, pooling, residual sums, concatenation, sampling, attention.
Relevance passes them by their rules, element by element. The walk from the target back to the nearest layers is linear
in the relevance that it starts with, so one adjoint pass gives a whole column of a matrix: what every target neuron
hands to one source neuron. Where no function on the way mixes neurons, two adjoint passes do for all columns: the
matrix of an edge is then that of the target layer, with every input element's relevance weighted by the share that
reaches the source, and its columns renamed to the source's neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dgm_tb.algorithms.contribution import contribution_by_position, contribution_matrix
from dgm_tb.algorithms.relevance import RelevanceMode, Slot, Walk, neuron_axis
from dgm_tb.algorithms.rules.affine import Decomposition
from dgm_tb.algorithms.rules.call import times
from dgm_tb.algorithms.tape import Rank, Value, widen
from dgm_tb.errors import UnknownNameError

NEURON_FUNCTIONS = frozenset(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d embedding embedding_bag "
    "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split()
)
"""Functions whose outputs are neurons: an edge ends there, unless the mode knows its layers."""

MAX_MIXED_ELEMENTS = 1 << 24
"""Where neurons are mixed on an edge, each source neuron costs an adjoint pass: elements of all passes together."""

_PASS_ELEMENTS = 1 << 22
"""Elements of the adjoint passes that are made at once."""


@dataclass(frozen=True)
class Wanted:
    """Relevance that a target layer starts with.

    Attributes:
        rule: As in ``contribution_matrix``, for the target layer if it is linear. ``"gradient"``: ``relevance`` is the
            gradient of the loss for the target's output, and relevance starts as output times gradient.
        relevance: In the shape of the target's output; None: the output itself.
        examples: Positions along ``axis`` to sum over; None: all.
        axis: The axis of the examples, in the target's output and its input.
    """

    rule: str | Decomposition = "epsilon"
    relevance: Tensor | None = None
    examples: Sequence[int] | None = None
    axis: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        """The chosen examples of a tensor."""
        if self.examples is None:
            return tensor
        return tensor.index_select(self.axis, torch.tensor(list(self.examples), device=tensor.device))

    def start(self, z: Tensor) -> Tensor:
        """Relevance of the target's output, zero for the other examples."""
        start = z if self.relevance is None else self.relevance.to(z.dtype)
        start = z * start if self.rule == "gradient" else start
        if self.examples is None:
            return start
        mask = torch.zeros(z.shape[self.axis], dtype=torch.bool, device=z.device)
        mask[list(self.examples)] = True
        return torch.where(mask.reshape(-1, *[1] * (z.ndim - 1 - self.axis)), start, 0)


@dataclass
class Edges:
    """Where the relevance of one layer went, up to the nearest layers.

    ``total`` equals the sum of ``arrived``, ``leaked`` and ``stopped`` and ``noise``, up to rounding.

    Attributes:
        matrices: Source -> ``[target neurons, source neurons]``.
        reasons: Source -> why it has no matrix.
        totals: Relevance of each target neuron ``[target neurons]``.
        total: Their sum.
        arrived: Source or input -> relevance that reached it.
        leaked: Function -> relevance that its bias and stabiliser kept.
        stopped: Function without a rule -> relevance that stopped there.
        noise: Relevance that ended at random draws.
        n_mixed: Elements of the adjoint passes that it took, for all of ``wanted`` together.
    """

    matrices: dict[str, Tensor]
    reasons: dict[str, str]
    totals: Tensor
    total: float
    arrived: dict[str, float] = field(default_factory=dict)
    leaked: dict[str, float] = field(default_factory=dict)
    stopped: dict[str, float] = field(default_factory=dict)
    noise: float = 0.0
    n_mixed: int = 0


Ends = dict[Value, tuple[str, int]]
"""Values at which an edge ends, with the name of their layer and the axis of its neurons."""


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
        target: Any slot.
        rule: As in ``Wanted``.
        output_relevance: As ``Wanted.relevance``.
        examples: Positions in the batch to sum over; None: all.

    Returns:
        Name of a source layer or of an input -> ``[target neurons, source neurons]``. Sources whose relevance all
        stopped on the way (at a function without a rule) are absent.

    Raises:
        UnknownNameError: If the target was not called.
    """
    (found,) = edges_into(mode, target, [Wanted(rule, output_relevance, examples)], with_inputs=True)
    return found.matrices


def edges_into(
    mode: RelevanceMode,
    target: str,
    wanted: Sequence[Wanted],
    *,
    axis: int | None = None,
    with_inputs: bool = False,
    max_mixed: int = MAX_MIXED_ELEMENTS,
) -> list[Edges]:
    """Contribution matrices of every edge into a layer.

    Args:
        mode: Has recorded a run.
        target: Any slot.
        wanted: What relevance starts with; most of the work is done once for all of them.
        axis: The axis of the target's neurons; None: ``neuron_axis``.
        with_inputs: Whether inputs are sources, too.
        max_mixed: Elements of all adjoint passes together; sources that would need more get a reason.

    Returns:
        One for each of ``wanted``.

    Raises:
        UnknownNameError: If the target was not called.
    """
    if target not in mode.slots:
        raise UnknownNameError(
            f"layer {target!r} was not called in this run; layers that were: {', '.join(mode.slots)}"
        )
    slot = mode.slots[target]
    value = next(value for value in slot.outputs if value.tensor.is_floating_point())
    axis = neuron_axis(slot.module, value.tensor) if axis is None else axis % value.tensor.ndim
    ends = _ends(mode, slot, with_inputs=with_inputs)
    edges = [_accounted(mode, value, axis, ends, one) for one in wanted]
    parts: list[_Part] = []
    if _is_linear_call(slot):
        parts = _renamed(mode, slot, ends, wanted)
    mixed = {part.value for part in parts if part.matrices is None}
    if mixed or not _is_linear_call(slot):
        kept = {end: place for end, place in ends.items() if not parts or end in mixed}
        parts = [part for part in parts if part.matrices is not None]
        parts += _by_adjoints(mode, value, axis, ends, kept, wanted, max_mixed)
    for part in parts:
        name = ends[part.value][0]
        for one in edges:
            one.n_mixed += part.n_elements
        for one, matrix in zip(edges, part.matrices or [], strict=False):
            known = one.matrices.get(name)  # of another turn of a loop
            one.matrices[name] = matrix if known is None else known + matrix
        if part.reason:
            for one in edges:
                one.reasons[name] = part.reason
    return edges


@dataclass
class _Part:
    """What one source value gets: a matrix for each of the wanted relevances, or None and perhaps a reason."""

    value: Value
    matrices: list[Tensor] | None
    reason: str = ""
    n_elements: int = 0


def _ends(mode: RelevanceMode, target: Slot, *, with_inputs: bool) -> Ends:
    own = set(target.outputs)
    ends: Ends = {}
    for name, slot in mode.slots.items():
        values = [value for value in slot.outputs if value.tensor.is_floating_point() and value.tensor.numel()]
        if mode.layers is None:
            is_layer = bool(values) and values[0].record is not None and values[0].record.name in NEURON_FUNCTIONS
            places = [(name, neuron_axis(slot.module, values[0].tensor))] if is_layer else []
        else:
            places = list(mode.layers(name))
        for value, (place, axis) in zip(values, places, strict=False):
            if value not in own and value.tensor.ndim:
                ends.setdefault(value, (place, axis % value.tensor.ndim))
    if with_inputs:
        for record in mode.records:
            for value in record.carriers:
                if value.record is None and value.rank == Rank.DATA and value.tensor.is_floating_point():
                    ends.setdefault(value, (value.name, 1 if value.tensor.ndim > 1 else 0))
    return ends


def _walk(mode: RelevanceMode, begin: Value, start: Tensor, ends: Ends) -> tuple[Walk, dict[Value, Tensor]]:
    """Walk back to the nearest ends; also what arrived there, apart from what is left in the walk."""
    walk, arrived = Walk(begin, start), {}
    for record in reversed(mode.records):
        for value in record.outputs:
            if value in ends and value in walk.received:
                arrived[value] = walk.received.pop(value)
        walk.step(record)
    arrived |= {value: walk.received.pop(value) for value in list(walk.received) if value in ends}
    return walk, arrived


def _accounted(mode: RelevanceMode, value: Value, axis: int, ends: Ends, wanted: Wanted) -> Edges:
    """Follow the relevance of all target neurons together, to know where it ends."""
    start = wanted.start(widen(value.tensor))
    with torch.no_grad():
        walk, arrived = _walk(mode, value, start, ends)
        totals = start.movedim(axis, 0).flatten(1).sum(1) if start.ndim > 1 else start
    amounts: dict[str, float] = {}
    for end, relevance in arrived.items():
        amounts[ends[end][0]] = amounts.get(ends[end][0], 0.0) + _amount(relevance)
    noise = 0.0
    for left, relevance in walk.received.items():
        if left.record is None and left.rank == Rank.NOISE:
            noise += _amount(relevance)
        elif left.record is None:
            amounts[left.name] = amounts.get(left.name, 0.0) + _amount(relevance)
    return Edges({}, {}, totals, walk.total, amounts, dict(walk.leaked), dict(walk.stopped), noise)


def _amount(relevance: Tensor) -> float:
    return float(relevance.detach().sum(dtype=torch.float64))


# -- layers whose inputs stay apart on their way from the source ------------------------------------------------------


def _is_linear_call(slot: Slot) -> bool:
    """Whether the slot is one call of a linear layer, with nothing after it."""
    record = slot.outputs[0].record if slot.outputs else None
    is_linear = isinstance(slot.module, nn.Linear | _ConvNd)
    return is_linear and record is not None and record.name in NEURON_FUNCTIONS and bool(slot.inputs)


def _renamed(mode: RelevanceMode, slot: Slot, ends: Ends, wanted: Sequence[Wanted]) -> list[_Part]:
    """The matrices of a linear layer for each source, where each of its inputs belongs to one source neuron."""
    start = torch.ones_like(widen(slot.inputs[0].tensor), requires_grad=True)
    with torch.enable_grad():
        _, arrived = _walk(mode, slot.inputs[0], start, ends)
    parts = []
    for value, relevance in arrived.items():
        reached = relevance if relevance.requires_grad else start  # the source is the target's input itself
        axis = ends[value][1]
        n_sources = reached.shape[axis]
        numbers = torch.arange(1, n_sources + 1, dtype=reached.dtype, device=reached.device)
        numbers = numbers.reshape(-1, *[1] * (reached.ndim - axis - 1)).expand_as(reached)
        share, numbered = (_adjoint(reached, start, weights) for weights in (torch.ones_like(numbers), numbers))
        channels = _owners(share, numbered, neuron_axis(slot.module, start))
        elements = _owners(share, numbered, None) if channels is None else None
        owners = channels if channels is not None else elements
        matrices = None
        if owners is not None:
            matrices = [_gathered(slot, share, owners, n_sources, one, by_position=channels is None) for one in wanted]
        parts.append(_Part(value, matrices))
    return parts


def _gathered(
    slot: Slot, share: Tensor, owners: Tensor, n_sources: int, wanted: Wanted, *, by_position: bool
) -> Tensor:
    """A layer's matrix with the columns of each source neuron added up."""
    record = slot.outputs[0].record
    assert record is not None
    weight, bias = (_constant(record, i, name) for i, name in ((1, "weight"), (2, "bias")))
    x, z = slot.inputs[0].tensor, slot.outputs[0].tensor
    inputs: tuple[Any, ...] = (wanted.of(x),)
    if isinstance(slot.module, _ConvTransposeNd):
        inputs = (*inputs, list(z.shape[-len(slot.module.stride) :]))
    spread = (contribution_by_position if by_position else contribution_matrix)(
        slot.module,
        inputs,
        rule=wanted.rule,
        output_relevance=None if wanted.relevance is None else wanted.of(wanted.relevance),
        source_share=wanted.of(share),
        weights=None if weight is None else (weight, bias),
    ).flatten(1)
    return spread.new_zeros(len(spread), n_sources).index_add_(1, owners, spread)


def _constant(record: Any, position: int, keyword: str) -> Tensor | None:
    """A weight as the call had it: an optimizer may have changed it since."""
    arguments, keywords = record.arguments, record.keywords
    value = arguments[position] if len(arguments) > position else keywords.get(keyword)
    return value.tensor if isinstance(value, Value) else None


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


# -- any other layer --------------------------------------------------------------------------------------------------


def _by_adjoints(
    mode: RelevanceMode, target: Value, axis: int, ends: Ends, kept: Ends, wanted: Sequence[Wanted], max_mixed: int
) -> list[_Part]:
    """Matrices column by column, for what mixes neurons: one adjoint pass from each source neuron to the target."""
    z = widen(target.tensor)
    start = torch.ones_like(z, requires_grad=True)
    with torch.enable_grad():
        _, arrived = _walk(mode, target, start, ends)
    relevances = [one.of(one.start(z)) for one in wanted]
    parts = []
    for value, reached in arrived.items():
        if value not in kept:
            continue
        n_sources = reached.shape[ends[value][1]]
        n_elements = n_sources * max(z.numel(), reached.numel())
        if n_elements > max_mixed:
            parts.append(_Part(value, None, f"its {n_sources} neurons are mixed on the way, and too many for a matrix"))
            continue
        max_mixed -= n_elements
        columns: list[list[Tensor]] = [[] for _ in wanted]
        for adjoint in _adjoints(reached, start, ends[value][1]):
            for one, relevance, found in zip(wanted, relevances, columns, strict=True):
                handed = times(relevance, one.of(adjoint)).movedim(axis, 0)
                found.append(handed.reshape(len(handed), -1).sum(1))
        parts.append(_Part(value, [torch.stack(found, 1) for found in columns], n_elements=n_elements))
    return parts


def _adjoints(arrived: Tensor, start: Tensor, axis: int) -> Iterator[Tensor]:
    """For each source neuron: how much of the relevance of each element of the start arrives there."""
    n_sources = arrived.shape[axis]
    each = torch.eye(n_sources, dtype=arrived.dtype, device=arrived.device)
    each = each.reshape(n_sources, *[1] * axis, n_sources, *[1] * (arrived.ndim - axis - 1))
    if not arrived.requires_grad:  # the source is the target itself
        yield from each * torch.ones_like(start)
        return
    n_at_once = max(1, _PASS_ELEMENTS // max(arrived.numel(), start.numel()))
    for first in range(0, n_sources, n_at_once):
        weights = each[first : first + n_at_once].expand(-1, *arrived.shape)
        try:
            yield from torch.autograd.grad(arrived, start, weights, retain_graph=True, is_grads_batched=True)[0]
        except RuntimeError:  # a function that knows no batches
            yield from (torch.autograd.grad(arrived, start, one, retain_graph=True)[0] for one in weights)
