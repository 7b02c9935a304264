"""Assembles the graph record: the traced DAG, the layout of neurons, and which layers a contribution matrix joins."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from dgm_tb.callback.loops import folded
from dgm_tb.callback.slots import Slot
from dgm_tb.callback.trace import Trace
from dgm_tb.graph import Graph, Link, Node, Weight

MATRIX_TYPES = (nn.Linear, nn.modules.conv._ConvNd)
"""Modules with a contribution matrix between their input and output neurons."""

_SAME_CHANNELS_MODULES = (
    "ReLU ReLU6 LeakyReLU PReLU RReLU ELU SELU CELU GELU SiLU Mish Softplus Softsign Tanh Sigmoid Hardtanh Hardsigmoid "
    "Hardswish Hardshrink Softshrink Tanhshrink LogSigmoid Threshold Identity Dropout Dropout1d Dropout2d Dropout3d "
    "AlphaDropout BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d "
    "GroupNorm LayerNorm RMSNorm MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d "
    "AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d Upsample "
    "UpsamplingNearest2d UpsamplingBilinear2d ZeroPad2d ConstantPad2d ReflectionPad2d ReplicationPad2d"
).split()
_SAME_CHANNELS_OPS = (
    "relu leaky_relu elu selu gelu silu mish softplus softsign tanh sigmoid hardtanh logsigmoid dropout dropout2d "
    "clamp clip clamp_min clamp_max exp log sqrt abs neg max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d "
    "adaptive_avg_pool2d interpolate upsample pad batch_norm layer_norm group_norm instance_norm detach square pow "
    "mul div add sub rsub truediv __truediv__ __mul__ __rmul__ __add__ __radd__ __sub__ __rsub__"
).split()
_RESHAPES = "Flatten Unflatten flatten unflatten view reshape squeeze unsqueeze view_as".split()
_CONCATENATIONS = ("cat", "concat", "concatenate")


def build_graph(
    root: nn.Module, trace: Trace, slots: Sequence[Slot], weights: Sequence[Weight], unrecorded: dict[str, str]
) -> Graph:
    """The graph record of one traced batch.

    Args:
        root: The model.
        trace: What the tracer saw.
        slots: Every slot with neurons.
        weights: Modules with incoming weights.
        unrecorded: Module -> why its neurons are not recorded.
    """
    pruned = folded(trace.pruned())
    names = {slot.name for slot in slots}
    nodes = [node if node.layer in names else replace(node, layer="") for node in pruned.nodes.values()]
    graph = Graph(
        nodes=nodes,
        edges=pruned.edges,
        modules={path: type(module).__name__ for path, module in root.named_modules() if path},
        layers=[slot.to_layer() for slot in slots],
        weights=list(weights),
        unrecorded=dict(unrecorded),
    )
    modules = dict(root.named_modules())
    finder = _LinkFinder(pruned, {slot.name: slot for slot in slots})
    for slot in slots:
        module = modules.get(slot.module)
        if isinstance(module, MATRIX_TYPES):
            links, reason = finder.sources_of(slot, _in_channels(module))
            graph.links.extend(links)
            if not links:
                graph.no_contribution[slot.name] = reason
        elif slot.type in _SAME_CHANNELS_MODULES:
            graph.no_contribution[slot.name] = f"{slot.type} keeps its neurons apart: each comes from its own one"
        else:
            graph.no_contribution[slot.name] = f"no contribution rule for {slot.type}"
    return graph


def _in_channels(module: nn.Module) -> int:
    return int(module.in_features if isinstance(module, nn.Linear) else module.in_channels)  # type: ignore[arg-type]


class _LinkFinder:
    """Walks upstream from a layer's input through operations that keep its channels."""

    def __init__(self, trace: Trace, slots: dict[str, Slot]) -> None:
        self.trace = trace
        self.slots = slots

    def sources_of(self, target: Slot, in_channels: int) -> tuple[list[Link], str]:
        """Links into ``target``, the nearest layer with weights of each branch first; or why there are none."""
        parents = self.trace.inputs_of.get(target.name)
        if not parents:
            return [], "its input was not seen by the tracer"
        return self._walk(parents[0], target.name, in_channels, 0)

    def _walk(self, name: str, target: str, width: int, start: int) -> tuple[list[Link], str]:
        """Links from the node ``name``, whose output is the target's columns ``start ... start + width - 1``."""
        found: list[Link] = []
        while True:
            node = self.trace.nodes[name]
            slot = self.slots.get(node.layer)
            if slot is not None:
                link = _join(slot, target, width, start)
                if link is None:
                    return found, f"{slot.neurons} neurons of {slot.name} do not map onto {width} inputs"
                if node.op not in _SAME_CHANNELS_MODULES:
                    return [link, *found], ""
                found.append(link)
            parents = self.trace.inputs_of[name]
            if node.op in _CONCATENATIONS and len(parents) > 1:
                return self._concatenation(node, parents, target, width, start, found)
            if node.kind == "input":
                return found, "its source is the input of the model"
            if not _keeps_channels(node) or len(set(parents)) != 1:
                return found, f"{node.op} between it and its source joins or mixes neurons"
            name = parents[0]

    def _concatenation(
        self, node: Node, parents: list[str], target: str, width: int, start: int, found: list[Link]
    ) -> tuple[list[Link], str]:
        widths = [shape[1] if len(shape := self.trace.nodes[parent].shape) > 1 else 0 for parent in parents]
        if sum(widths) != width or len(node.shape) < 2:
            return found, "it takes a concatenation along another axis"
        for parent, part in zip(parents, widths, strict=True):
            links, _ = self._walk(parent, target, part, start)
            found = [*found, *links]
            start += part
        return found, "" if found else "none of the concatenated tensors comes from a layer"


def _keeps_channels(node: Node) -> bool:
    names = _SAME_CHANNELS_MODULES if node.kind == "module" else _SAME_CHANNELS_OPS
    return node.op in names or node.op in _RESHAPES


def _join(slot: Slot, target: str, width: int, start: int) -> Link | None:
    if slot.neurons == width:
        return Link(slot.name, target, "channels", start, 1)
    if width % slot.neurons == 0 and start == 0:
        return Link(slot.name, target, "flatten", 0, width // slot.neurons)
    if slot.neurons % width == 0 and start == 0:
        return Link(slot.name, target, "unflatten", 0, 1)
    return None
