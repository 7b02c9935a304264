"""What a tracer saw: nodes, what went into them, and the place in the code that ran each of them."""

from collections import defaultdict
from dataclasses import dataclass, field, replace

from dgm_tb.graph import Edge, Node


@dataclass
class Trace:
    """The nodes and edges of one traced batch.

    Attributes:
        nodes: Node id -> node, in the order they ran.
        inputs_of: Node id -> ids of its parents, in argument order.
        sites: Node id -> the place in the code that ran it, with all its callers; inputs and parameters have none.
        outputs: (parent, node) -> which of the parent's outputs went in, where it was not the first one alone.
        axes: Node id -> for each axis of its output the axis of its only input that it is, whole and in order, or -1.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    inputs_of: dict[str, list[str]] = field(default_factory=dict)
    sites: dict[str, int] = field(default_factory=dict)
    outputs: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    axes: dict[str, list[int]] = field(default_factory=dict)

    @property
    def edges(self) -> list[Edge]:
        """All edges."""
        return [Edge(parent, node) for node, parents in self.inputs_of.items() for parent in dict.fromkeys(parents)]

    def pruned(self) -> "Trace":
        """Without functions from which no loss and no module can be reached (metrics, logging)."""
        keep = {node.id for node in self.nodes.values() if node.kind in ("loss", "module")}
        for node in reversed(self.nodes.values()):
            if node.id in keep:
                keep.update(self.inputs_of[node.id])
        return self._ordered([name for name in self.nodes if name in keep])

    def joined(self, earlier: "Trace") -> "Trace":
        """This trace and an earlier one of the same model, in which other branches may have run.

        A function that the same code ran in both is one node; what only one of them saw is kept.
        """
        if not earlier.nodes:
            return self
        names = _names_in(earlier, self)
        nodes = {**earlier.nodes, **{names[old]: replace(node, id=names[old]) for old, node in self.nodes.items()}}
        inputs_of = {name: list(parents) for name, parents in earlier.inputs_of.items()}
        for old, parents in self.inputs_of.items():
            now = [names[parent] for parent in parents]
            before = inputs_of.get(names[old], [])
            inputs_of[names[old]] = now + [parent for parent in before if parent not in now]
        sites = {**earlier.sites, **{names[old]: site for old, site in self.sites.items()}}
        outputs = {(names[parent], names[node]): place for (parent, node), place in self.outputs.items()}
        axes = {**earlier.axes, **{names[old]: kept for old, kept in self.axes.items()}}
        joined = Trace(nodes, inputs_of, sites, {**earlier.outputs, **outputs}, axes)
        return joined._ordered(joined._with_others(list(names.values())))

    def _with_others(self, names: list[str]) -> list[str]:
        """``names`` in their order, and all other nodes: each before the first one that needs it, or at the end."""
        own, entered = set(names), set[str]()
        done: dict[str, None] = {}
        for name in [*names, *self.nodes]:
            stack = [name]
            while stack:
                node = stack[-1]
                parents = self.inputs_of[node] if node not in entered else []
                waiting = [parent for parent in parents if parent not in entered and parent not in own]
                entered.add(node)
                if waiting:
                    stack.extend(reversed(waiting))
                else:
                    done.setdefault(stack.pop())
        return list(done)

    def _ordered(self, names: list[str]) -> "Trace":
        """Only the nodes ``names``, in this order, and the edges that lead forwards in it."""
        rank = {name: number for number, name in enumerate(names)}
        inputs_of = {
            name: [parent for parent in self.inputs_of[name] if rank.get(parent, len(rank)) < rank[name]]
            for name in names
        }
        sites = {name: site for name, site in self.sites.items() if name in rank}
        return Trace({name: self.nodes[name] for name in names}, inputs_of, sites, self.outputs, self.axes)


def _names_in(earlier: Trace, later: Trace) -> dict[str, str]:
    """Names for the nodes of ``later``: functions get those that the same code had in ``earlier``, or new ones."""
    known: defaultdict[int, list[str]] = defaultdict(list)
    for name, node in reversed(earlier.nodes.items()):
        if name in earlier.sites and not node.layer:
            known[earlier.sites[name]].append(name)
    taken = {*earlier.nodes, *later.nodes}
    names = {}
    for name, node in later.nodes.items():
        same = known.get(later.sites[name]) if name in later.sites and not node.layer else None
        if same:
            names[name] = same.pop()
        elif name in later.sites and not node.layer and name in earlier.nodes:
            base = name.partition(":")[0]
            names[name] = next(new for n in range(1, len(taken) + 2) if (new := f"{base}:{n}") not in taken)
        else:
            names[name] = name
        taken.add(names[name])
    return names
