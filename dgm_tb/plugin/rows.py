"""Where a layer's numbers lie in arrays over all neurons or layers, and what their columns mean."""

from typing import Any

import numpy as np

from dgm_tb.graph import Graph, Layer

Array = np.ndarray[Any, np.dtype[Any]]


def aggregate_columns(aggregates: list[str], statistic: str) -> dict[str, int]:
    """Columns of a statistic: ``main`` (the first one), ``min``, ``max``."""
    columns: dict[str, int] = {}
    for number, aggregate in enumerate(aggregates):
        name, _, window = str(aggregate).partition("/")
        if name == statistic:
            columns.setdefault("main" if "main" not in columns else window, number)
    return columns


def statistic_names(aggregates: list[str]) -> list[str]:
    """Statistics that the aggregates are of, in order."""
    return list(dict.fromkeys(str(name).partition("/")[0] for name in aggregates))


def find_layer(graph: Graph, name: str) -> Layer | None:
    """The layer of that name."""
    number = graph.layer_rows.get(name)
    return None if number is None else graph.layers[number]


def neuron_span(graph: Graph, layer: str, quantity: str) -> tuple[int, int] | None:
    """First and last + 1 row of a layer in arrays over all neurons."""
    found = find_layer(graph, layer)
    if found is None:
        return None
    if quantity in ("activation", "gradient"):
        return found.offset, found.offset + found.neurons
    number = graph.weight_rows.get(found.module)
    if number is None:
        return None
    weight = graph.weights[number]
    return weight.offset, weight.offset + weight.neurons


def row_number(graph: Graph, layer: str, quantity: str) -> int | None:
    """Number of a layer in arrays over all layers."""
    found = find_layer(graph, layer)
    if found is None:
        return None
    if quantity in ("activation", "gradient"):
        return graph.layer_rows[layer]
    return graph.weight_rows.get(found.module)
