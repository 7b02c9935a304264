"""The model as it ran: the DAG of one training batch, its module tree, and which neurons live where.

Shared by the callback, which traces it, and the plugin, which draws it; travels as the body of a ``graph`` record.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, TypeVar

from dgm_tb.errors import RecordError

NODE_KINDS = ("module", "op", "random", "loss", "input", "detach", "parameter")
LINK_KINDS = ("channels", "flatten", "unflatten", "exact")


@dataclass(frozen=True)
class Node:
    """One vertex of the DAG.

    Attributes:
        id: Unique; for a module call the layer's name (``encoder.0``, ``discriminator.net.0@1``).
        kind: One of ``NODE_KINDS``. ``random`` are sampling operations, ``op`` parameterless functions.
        op: Class or function name: ``Conv2d``, ``exp``, ``randn_like``, ``binary_cross_entropy``.
        module: Path of the module whose ``forward`` ran it ("" is the LightningModule itself); groups the drawing.
        shape: Shape of its (first) output.
        layer: Name of its layer if its neurons are recorded, else "".
        repeats: How often it ran, each time on what came out of it before: turns of a loop in the code, time steps of a
            recurrent layer. A cycle is one node; no edge leads from a node to itself or to an earlier one.
    """

    id: str
    kind: str
    op: str
    module: str = ""
    shape: list[int] = field(default_factory=list)
    layer: str = ""
    repeats: int = 1


@dataclass(frozen=True)
class Edge:
    """A tensor that flows from the node ``source`` to the node ``target``."""

    source: str
    target: str


@dataclass(frozen=True)
class Layer:
    """One call of a module whose outputs' neurons are recorded (a *slot*).

    Attributes:
        name: ``module``, with ``@1``, ``@2`` for further calls in one step and ``[1]``, ``[key]`` for further outputs.
        module: Fully-qualified module name.
        type: Class name of the module.
        neurons: Number of neurons: channels of a convolution, units of a dense layer.
        offset: Number of its first neuron in arrays over all neurons.
        shape: Shape of the output in the first traced batch.
    """

    name: str
    module: str
    type: str
    neurons: int
    offset: int
    shape: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Weight:
    """The incoming weights of one module's neurons; rows of the quantities ``weight`` and ``update``.

    Attributes:
        module: Path of the module. Earlier layers of a recurrent module follow in brackets (``lstm[l0]``), since its
            output is the last layer's; so do hidden units that are projected (``lstm[l0.hidden]``).
        parameter: Attributes of the module that hold the weights.
        neurons: Number of neurons; of attention's input projections three times its size (queries, keys, values).
        offset: Number of the first neuron in arrays over all neurons with weights.
    """

    module: str
    parameter: str
    neurons: int
    offset: int


@dataclass(frozen=True)
class Link:
    """Two layers whose neurons a contribution matrix joins.

    The columns of the target's matrix are its input channels (or features). Source neuron ``c`` owns the columns
    ``start + c * group ... start + (c + 1) * group - 1``. ``kind`` says what lies between: ``channels`` (group 1,
    element-wise operations, normalisation, pooling), ``flatten`` (feature maps flattened into features, group =
    positions), ``unflatten`` (units reshaped into feature maps; the matrix has one column per channel and position),
    ``exact`` (anything: the pair has a matrix of its own, with one column per source neuron).
    """

    source: str
    target: str
    kind: str
    start: int
    group: int


@dataclass(frozen=True)
class Graph:
    """The DAG, the module tree and the layout of all recorded neurons.

    Attributes:
        nodes: In the order they ran, which is an order of the data flow.
        edges: Between nodes, by id.
        modules: Path -> class name, for every module of the tree.
        layers: Slots with neurons, append-only: offsets never change once given.
        weights: Modules with weights, append-only likewise.
        links: Pairs of layers with a contribution matrix.
        unrecorded: Module path -> why its neurons are not recorded.
        no_contribution: Layer -> why it has no contribution matrix.
    """

    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    unrecorded: dict[str, str] = field(default_factory=dict)
    no_contribution: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The body of a ``graph`` record; ``repeats`` only where it is not 1."""
        body = asdict(self)
        for node in body["nodes"]:
            if node["repeats"] == 1:
                del node["repeats"]
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Graph":
        """The graph in the body of a ``graph`` record.

        Raises:
            RecordError: If the body has another form.
        """
        try:
            return cls(
                [_known(Node, item) for item in body["nodes"]],
                [_known(Edge, item) for item in body["edges"]],
                {str(path): str(name) for path, name in body["modules"].items()},
                [_known(Layer, item) for item in body["layers"]],
                [_known(Weight, item) for item in body["weights"]],
                [_known(Link, item) for item in body["links"]],
                dict(body.get("unrecorded", {})),
                dict(body.get("no_contribution", {})),
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise RecordError(f"a graph record of another form: {error}") from error

    @cached_property
    def layer_rows(self) -> dict[str, int]:
        """Layer -> its number in arrays over all layers; of layers of one name, the first."""
        return {layer.name: number for number, layer in reversed(list(enumerate(self.layers)))}

    @cached_property
    def weight_rows(self) -> dict[str, int]:
        """Module -> its number in arrays over all modules with weights; of modules of one name, the first."""
        return {weight.module: number for number, weight in reversed(list(enumerate(self.weights)))}

    def flow_order(self) -> list[Layer]:
        """Layers in data-flow order: further outputs follow the first one; those outside the DAG come last."""
        rank = {node.layer: number for number, node in enumerate(self.nodes) if node.layer}
        return sorted(self.layers, key=lambda layer: rank.get(layer.name.partition("[")[0], len(self.nodes)))

    def parents(self) -> dict[str, list[str]]:
        """Node id -> ids of the nodes whose output it takes."""
        parents: dict[str, list[str]] = {node.id: [] for node in self.nodes}
        for edge in self.edges:
            if edge.target in parents:
                parents[edge.target].append(edge.source)
        return parents


_T = TypeVar("_T")


def _known(cls: type[_T], item: Mapping[str, Any]) -> _T:
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    return cls(**{key: value for key, value in item.items() if key in names})
