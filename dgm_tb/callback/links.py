"""Which layers a contribution matrix joins: from a layer's input upstream, through all that keeps neurons apart.

The axis of the neurons is followed through every function, so that neurons that were permuted, split or mixed on the
way are never joined with the wrong columns.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from operator import mul

from torch import nn

from dgm_tb.callback.slots import Slot
from dgm_tb.callback.trace import Trace
from dgm_tb.graph import Link, Node

MATRIX_TYPES = (nn.Linear, nn.modules.conv._ConvNd)
"""Modules with a contribution matrix between their input and output neurons."""

SAME_CHANNELS_MODULES = frozenset(
    "ReLU ReLU6 LeakyReLU PReLU RReLU ELU SELU CELU GELU SiLU Mish Softplus Softsign Tanh Sigmoid Hardtanh Hardsigmoid "
    "Hardswish Hardshrink Softshrink Tanhshrink LogSigmoid Threshold Identity Dropout Dropout1d Dropout2d Dropout3d "
    "AlphaDropout BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d "
    "GroupNorm LayerNorm RMSNorm MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d "
    "AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d Upsample "
    "UpsamplingNearest2d UpsamplingBilinear2d ZeroPad2d ConstantPad2d ReflectionPad2d ReplicationPad2d "
    "Sequential".split()  # an empty one
)
_SAME_CHANNELS_OPS = frozenset(
    "relu leaky_relu elu selu gelu silu mish softplus softsign tanh sigmoid hardtanh logsigmoid dropout dropout2d "
    "clamp clip clamp_min clamp_max exp log sqrt abs neg max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d "
    "adaptive_avg_pool2d interpolate upsample pad batch_norm layer_norm group_norm instance_norm detach square pow "
    "mul div add sub".split()
)
_RESHAPES = frozenset("Flatten Unflatten flatten unflatten view reshape squeeze unsqueeze view_as".split())
_CONCATENATIONS = frozenset(("cat", "concat", "concatenate"))

MAX_SOURCES = 12
"""Sources of one layer with a matrix of their own: in a long residual stream every layer is fed by all before it."""

_MAX_STEPS = 10_000
"""Nodes looked at for one target: nested concatenations of the same tensors branch without end."""


def is_neuron_layer(slot: Slot, module: nn.Module | None) -> bool:
    """Whether a layer makes neurons of its own: it has weights, and does not just keep those before it apart."""
    if module is None or slot.type in SAME_CHANNELS_MODULES:
        return False
    return next(module.parameters(), None) is not None


@dataclass(frozen=True)
class _Columns:
    """The columns of a target's matrix that a tensor upstream fills, and where in the tensor they come from.

    Attributes:
        target: The target layer.
        axes: The tensor's axes that the columns run over, from the first to before the last; its neurons are the first.
        width: Number of columns.
        start: The first of them.
        positions: Not 1 where the target is a convolution and its channels and positions were made from one axis.
        is_resized: Whether positions were pooled, padded or interpolated since.
    """

    target: str
    axes: tuple[int, int]
    width: int
    start: int = 0
    positions: int = 1
    is_resized: bool = False


class LinkFinder:
    """Walks upstream from a layer's input through operations that keep its neurons apart."""

    def __init__(self, trace: Trace, slots: Sequence[Slot]) -> None:
        self._trace = trace
        self._slots = {slot.name: slot for slot in slots}
        self._steps = 0

    def sources_of(self, target: Slot, module: nn.Module) -> tuple[list[Link], str]:
        """Links into a layer, the nearest layer with weights of each branch first; or why there are none.

        Args:
            target: A layer whose module has a contribution matrix.
            module: Its module.
        """
        node = self._trace.nodes.get(target.name)
        parents = list(self._parents(target.name)) if node is not None else []
        if node is None or not parents:
            return [], "its input was not seen by the tracer"
        self._steps = 0
        n_axes = len(self._shape(*parents[0]))
        is_dense = isinstance(module, nn.Linear)
        width = int(module.in_features if is_dense else module.in_channels)  # type: ignore[arg-type]
        axis = n_axes - (1 if is_dense else len(module.kernel_size) + 1)  # type: ignore[arg-type]
        if axis < 1:
            return [], "its input has no axis of examples"
        return self._walk(*parents[0], _Columns(target.name, (axis, axis + 1), width))

    def exact_sources_of(self, target: Slot, modules: Mapping[str, nn.Module], known: Sequence[Link]) -> list[Link]:
        """Links into any layer from the nearest neuron layers that ``known`` ones do not come from, the nearest first.

        Args:
            target: The layer.
            modules: All modules of the model.
            known: Links into it.
        """
        if target.name not in self._trace.nodes:
            return []
        joined = {link.source for link in known}
        found: dict[str, None] = {}
        seen, queue = {(target.name, "")}, deque(self._parents(target.name))
        while queue and len(found) < MAX_SOURCES:
            name, place = queue.popleft()
            if (name, place) in seen:
                continue
            seen.add((name, place))
            slot = self._slots.get(self._trace.nodes[name].layer + place)
            if slot is None or not is_neuron_layer(slot, modules.get(slot.module)):
                queue.extend(self._parents(name))
            elif slot.name not in joined and slot.name != target.name:
                found[slot.name] = None
        return [Link(source, target.name, "exact", 0, 1) for source in found]

    def _walk(self, name: str, place: str, columns: _Columns) -> tuple[list[Link], str]:
        """Links from the output at ``place`` of the node ``name``, and those upstream of it."""
        found: list[Link] = []
        while True:
            self._steps += 1
            node = self._trace.nodes[name]
            slot = self._slots.get(node.layer + place)
            if slot is not None:
                link = _join(slot, self._shape(name, place), columns)
                if link is None:
                    return found, f"the {slot.neurons} neurons of {slot.name} are not its {columns.width} inputs"
                if node.op not in SAME_CHANNELS_MODULES:
                    return [link, *found], ""
                found.append(link)
            parents = list(self._parents(name))
            if node.op in _CONCATENATIONS and len(parents) > 1:
                links, reason = self._concatenation(node, parents, columns)
                return [*found, *links], reason
            further = self._through(node, parents, columns)
            if isinstance(further, str):
                return found, further
            (name, place), columns = parents[0], further

    def _concatenation(self, node: Node, parents: list[tuple[str, str]], columns: _Columns) -> tuple[list[Link], str]:
        found: list[Link] = []
        shapes, first = [self._shape(*parent) for parent in parents], columns.axes[0]
        sizes = [shape[first] if len(shape) == len(node.shape) else 0 for shape in shapes]
        if sum(sizes) != node.shape[first] or columns.positions > 1 or self._steps > _MAX_STEPS:
            return found, "it takes a concatenation along another axis, or with something that no layer made"
        start, group = columns.start, columns.width // node.shape[first]
        for parent, size in zip(parents, sizes, strict=True):
            part = replace(columns, width=size * group, start=start)
            links, _ = self._walk(*parent, part)
            found.extend(links)
            start += part.width
        return found, "" if found else "none of the concatenated tensors comes from a layer"

    def _through(self, node: Node, parents: list[tuple[str, str]], columns: _Columns) -> _Columns | str:
        """The same columns in what went into a node; or why they can't be told there."""
        if node.kind in _ORIGINS:
            return f"its source is {_ORIGINS[node.kind]} ({node.id})"
        if len(set(parents)) != 1:
            return f"{node.op} between it and its source joins neurons"
        before, after, (first, last) = self._shape(*parents[0]), node.shape, columns.axes
        kept = self._trace.axes.get(node.id, [])[first:last]
        if kept and kept == list(range(kept[0], kept[0] + len(kept))) and kept[0] >= 0:
            return replace(columns, axes=(kept[0], kept[0] + len(kept)))
        if node.op in _RESHAPES:
            return _before_reshape(before, after, columns) or f"{node.op} between it and its source mixes neurons"
        known = SAME_CHANNELS_MODULES if node.kind == "module" else _SAME_CHANNELS_OPS
        if node.op not in known:
            return f"{node.op} between it and its source mixes or splits neurons"
        if before == after:
            return columns
        if len(before) != len(after) or before[first] != after[first] or columns.positions > 1:
            return f"{node.op} between it and its source changes the number of neurons"
        return replace(columns, is_resized=True)

    def _parents(self, name: str) -> Iterator[tuple[str, str]]:
        """What went into a node: nodes and which of their outputs."""
        for parent in self._trace.inputs_of[name]:
            places = self._trace.outputs.get((parent, name), {""})
            yield from ((parent, place) for place in sorted(places))

    def _shape(self, name: str, place: str) -> list[int]:
        node = self._trace.nodes[name]
        slot = self._slots.get(node.layer + place) if place else None
        return node.shape if slot is None else list(slot.shape)


_ORIGINS: Mapping[str, str] = {
    "input": "the input of the model",
    "random": "a random variable",
    "parameter": "a parameter",
}


def _join(slot: Slot, shape: Sequence[int], columns: _Columns) -> Link | None:
    """The link from a layer whose output has the columns; None if they are not its neurons, one after the other."""
    axis = len(shape) - 1 if slot.is_last_axis else 1
    first, last = columns.axes
    if not first <= axis < last or prod(shape[first:axis]) != 1 or shape[axis] != slot.neurons:
        return None
    if columns.positions > 1:
        fits = slot.neurons == columns.width * columns.positions
        return Link(slot.name, columns.target, "unflatten", 0, 1) if fits else None
    if columns.width % slot.neurons or (last - first == 1 and columns.width != slot.neurons):
        return None
    group = columns.width // slot.neurons
    return Link(slot.name, columns.target, "channels" if group == 1 else "flatten", columns.start, group)


def _before_reshape(before: Sequence[int], after: Sequence[int], columns: _Columns) -> _Columns | None:
    """The columns before a reshape; None if they don't run over whole axes there, in order."""
    first, last = columns.axes
    if columns.is_resized and last - first > 1:
        return None
    starts = list(accumulate(before, mul, initial=1))  # elements of all axes in front of each
    begin = prod(after[:first])
    if begin not in starts:
        return None
    end = begin * prod(after[first:last])
    if end in starts:
        low, high = starts.index(begin), len(starts) - 1 - starts[::-1].index(end)
        return replace(columns, axes=_without_ones(before, low, high))
    whole = prod(after[1:])
    if (first, last) != (1, 2) or columns.start or columns.is_resized or columns.positions > 1:
        return None
    if begin * whole not in starts:
        return None
    low, high = starts.index(begin), len(starts) - 1 - starts[::-1].index(begin * whole)
    axes = _without_ones(before, low, high)
    return replace(columns, axes=axes, positions=whole // after[1]) if axes[1] - axes[0] == 1 else None


def _without_ones(shape: Sequence[int], low: int, high: int) -> tuple[int, int]:
    """The axes from ``low`` to before ``high`` without those at the end that have one index only."""
    while high - low > 1 and shape[high - 1] == 1:
        high -= 1
    return low, high
