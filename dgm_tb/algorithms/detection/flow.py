"""Who depends on whom in the DAG."""

from collections.abc import Iterable, Sequence

from dgm_tb.algorithms.detection.history import History, LayerHistory


def upstream(history: History, node: str) -> set[str]:
    """The node and everything it depends on."""
    return _reached(history.parents, node)


def downstream(history: History, node: str) -> set[str]:
    """The node and everything that depends on it."""
    return _reached(children(history), node)


def children(history: History) -> dict[str, list[str]]:
    """Node -> the nodes that take its output."""
    found: dict[str, list[str]] = {}
    for node, parents in history.parents.items():
        for parent in parents:
            found.setdefault(parent, []).append(node)
    return found


def _reached(edges: object, node: str) -> set[str]:
    seen, queue = {node}, [node]
    while queue:
        for other in edges.get(queue.pop(), ()):  # type: ignore[attr-defined]
            if other not in seen:
                seen.add(other)
                queue.append(other)
    return seen


def nearest_layers(history: History, node: str) -> list[LayerHistory]:
    """The recorded layers that a node takes its inputs from, through functions and modules that are not recorded."""
    by_name = {layer.name: layer for layer in history.layers}
    found, seen, queue = [], {node}, list(history.parents.get(node, ()))
    while queue:
        name = queue.pop(0)
        if name in seen:
            continue
        seen.add(name)
        if name in by_name:
            found.append(by_name[name])
        else:
            queue += history.parents.get(name, ())
    return found


def modules_around(history: History, nodes: Iterable[str]) -> set[str]:
    """Every module, and every module around it, that ran one of these nodes."""
    paths = [node.partition("@")[0].split(".") for node in nodes if history.kind(node) == "module"]
    return {".".join(path[:n]) for path in paths for n in range(1, len(path) + 1)}


def common_module(history: History, nodes: Sequence[str]) -> str:
    """The innermost module that holds all these module calls."""
    return common_path([node.partition("@")[0] for node in nodes if history.kind(node) == "module"])


def common_path(modules: Sequence[str]) -> str:
    """The innermost module around all of these; itself if there is only one."""
    common = []
    for parts in zip(*(module.split(".") for module in modules), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def losses_of(history: History) -> list[str]:
    """The DAG's nodes that a backward pass began at, in their order."""
    return [node for node in history.nodes if node == "loss" or node.startswith("loss@")]
