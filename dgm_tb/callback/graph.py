"""Assembles the graph record: the traced DAG, the layout of neurons, and which layers a contribution matrix joins."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from dgm_tb.callback.links import MATRIX_TYPES, SAME_CHANNELS_MODULES, LinkFinder
from dgm_tb.callback.loops import folded
from dgm_tb.callback.slots import Slot, type_name
from dgm_tb.callback.trace import Trace
from dgm_tb.graph import Graph, Link, Weight


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
        modules={path: type_name(module) for path, module in root.named_modules() if path},
        layers=[slot.to_layer() for slot in slots],
        weights=list(weights),
        unrecorded=dict(unrecorded),
    )
    modules = dict(root.named_modules())
    finder = LinkFinder(pruned, slots)
    for slot in slots:
        links, reason = _links(finder, slot, modules)
        graph.links.extend(links)
        if not links:
            graph.no_contribution[slot.name] = reason
    return graph


def _links(finder: LinkFinder, slot: Slot, modules: dict[str, nn.Module]) -> tuple[list[Link], str]:
    """Links into one layer, or why there are none."""
    module = modules.get(slot.module)
    if slot.type in SAME_CHANNELS_MODULES:
        return [], f"{slot.type} keeps its neurons apart: each comes from its own one"
    if "[" in slot.name[len(slot.module) :]:
        return [], f"a further output of {slot.module}; contributions are those to its first one"
    links: list[Link] = []
    reason = "no layer with weights comes before it"
    if isinstance(module, MATRIX_TYPES):
        links, reason = finder.sources_of(slot, module)
    return links + finder.exact_sources_of(slot, modules, links), reason
