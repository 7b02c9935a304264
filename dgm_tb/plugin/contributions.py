"""The neuron view: a layer between its neighbours, and who contributed to whom. See http_api.md."""

from collections import deque
from typing import Any

import numpy as np

from dgm_tb.errors import DgmError, UnknownNameError
from dgm_tb.graph import Graph, Link
from dgm_tb.plugin.rows import find_layer
from dgm_tb.plugin.run import DIRECTIONS, EXAMPLES, Run
from dgm_tb.plugin.series import ContributionMatrix
from dgm_tb.plugin.views import Answer, float32
from dgm_tb.plugin.wire import Arguments, BadArgument

Array = np.ndarray[Any, np.dtype[Any]]

MAX_NEIGHBOURS = 6
MAX_SIDE = 256
"""Neurons on a side of the matrix that a route answers with: half a megabyte."""


def contributions(run: Run, arguments: Arguments) -> Answer:
    """Route ``contributions``."""
    layer = arguments.text("layer")
    graph = run.graph
    focus = find_layer(graph, layer)
    if focus is None:
        raise run.missing(layer, "activation")
    neuron = arguments.optional_number("neuron")
    if neuron is not None and neuron >= focus.neurons:
        raise BadArgument(f"{layer} has {focus.neurons} neurons, counted from 0; got {neuron}")
    step = arguments.number("step", (run.steps or (0, 0))[1], 0, 1 << 53)
    samples = arguments.text("samples", "batch", EXAMPLES)
    columns: list[dict[str, Any]] = []
    arrays: dict[str, Array] = {}
    for role, name, link in _columns(graph, layer):
        column, parts = _column(run, layer, role, name, link, neuron, step, samples)
        arrays |= {f"{key}_{len(columns)}": part for key, part in parts.items()}
        columns.append(column)
    return {"layer": layer, "neuron": neuron, "step": step, "samples": samples, "columns": columns}, arrays


def matrix(run: Run, arguments: Arguments) -> Answer:
    """Route ``matrix``."""
    source, target = arguments.text("source"), arguments.text("target")
    direction = arguments.text("direction", "forward", DIRECTIONS)
    samples = arguments.text("samples", "batch", EXAMPLES)
    step = arguments.number("step", (run.steps or (0, 0))[1], 0, 1 << 53)
    k = arguments.number("k", MAX_SIDE, 1, MAX_SIDE)
    for layer in (source, target):
        if find_layer(run.graph, layer) is None:
            raise run.missing(layer, "activation")
    link = run.link(source, target)
    snapshot = _nearest(_steps(run, link, direction, samples), step)
    if snapshot is None:
        raise UnknownNameError(f"no {direction} contributions of {samples} from {source!r} to {target!r} are recorded")
    found = run.contribution(source, target, snapshot, direction, samples)
    values, scaled = np.asarray(found), np.asarray(found.scaled)
    targets = _strongest(np.abs(values).sum(1), k)
    sources = _strongest(np.abs(scaled[targets]).sum(0), k)
    facts = {
        "source": source,
        "target": target,
        "step": found.step,
        "direction": direction,
        "samples": samples,
        "kind": found.kind,
        "neurons": list(values.shape),
        "largest": found.largest[targets],
        "ended": found.ended,
    }
    shown = np.ix_(targets, sources)
    is_left_out = np.isin(np.arange(values.shape[1]), sources, invert=True)
    arrays = {
        "values": float32(values[shown]),
        "scaled": float32(scaled[shown]),
        "targets": targets,
        "sources": sources,
        "rest": float32(values[np.ix_(targets, is_left_out)].sum(1)),
    }
    return facts, arrays


def _strongest(strength: Array, k: int) -> Array:
    """Numbers of the ``k`` largest, those that are not finite first, in ascending order."""
    order = np.argsort(-np.nan_to_num(strength, nan=np.inf), kind="stable")
    return np.sort(order[:k])


def _columns(graph: Graph, layer: str) -> list[tuple[str, str, Link | None]]:
    """Role, layer and link of each column: the sources, the focus, the targets."""
    weighted = {weight.module for weight in graph.weights}
    modules = {known.name: known.module for known in graph.layers}
    sources = [link for link in graph.links if link.target == layer]
    main = [link for link in sources if modules.get(link.source) in weighted] or sources
    targets = [link for link in graph.links if link.source == layer]
    columns: list[tuple[str, str, Link | None]] = [("source", link.source, link) for link in main[:MAX_NEIGHBOURS]]
    if not columns:
        columns += [("source", name, None) for name in _neighbours(graph, layer, upstream=True)]
    columns.append(("focus", layer, None))
    if not targets:
        columns += [("target", name, None) for name in _neighbours(graph, layer, upstream=False)]
    return columns + [("target", link.target, link) for link in targets[:MAX_NEIGHBOURS]]


def _neighbours(graph: Graph, layer: str, *, upstream: bool) -> list[str]:
    """The nearest layers along the data flow, where no matrix joins them."""
    layers = {known.name for known in graph.layers}
    steps: dict[str, list[str]] = {}
    for edge in graph.edges:
        start, end = (edge.target, edge.source) if upstream else (edge.source, edge.target)
        steps.setdefault(start, []).append(end)
    found: list[str] = []
    seen, queue = {layer}, deque(steps.get(layer, []))
    while queue and len(found) < MAX_NEIGHBOURS:
        node = queue.popleft()
        if node in seen:
            continue
        seen.add(node)
        if node in layers:
            found.append(node)
        else:
            queue += steps.get(node, [])
    return found


def _column(
    run: Run, focus: str, role: str, name: str, link: Link | None, neuron: int | None, step: int, samples: str
) -> tuple[dict[str, Any], dict[str, Array]]:
    layer = find_layer(run.graph, name)
    column: dict[str, Any] = {
        "layer": name,
        "role": role,
        "neurons": layer.neurons if layer is not None else 0,
        "kind": link.kind if link is not None else None,
        "step": None,
        "directions": [],
        "ended": {},
        "reason": None,
    }
    arrays: dict[str, Array] = {}
    if role == "focus":
        return column, arrays
    if link is None:
        reason = run.graph.no_contribution.get(name if role == "target" else focus, "")
        column["reason"] = reason or "no contribution matrix joins these layers"
        return column, arrays
    steps = {direction: _steps(run, link, direction, samples) for direction in DIRECTIONS}
    snapshot = _nearest(sorted({*steps["forward"], *steps["backward"]}), step)
    if snapshot is None:
        column["reason"] = f"no contributions of the {samples} example{'' if samples != 'batch' else 's'} are recorded"
        return column, arrays
    column["step"] = snapshot
    for direction in (known for known in DIRECTIONS if snapshot in steps[known]):
        try:
            found = run.contribution(link.source, link.target, snapshot, direction, samples)
        except DgmError as error:  # one damaged matrix leaves the other columns
            column["reason"] = str(error)
            continue
        raw, scaled = _of_focus(found, role, neuron)
        column["directions"].append(direction)
        column["ended"][direction] = found.ended
        arrays[direction], arrays[f"{direction}_scaled"] = float32(raw), float32(scaled)
    return column, arrays


def _of_focus(found: ContributionMatrix, role: str, neuron: int | None) -> tuple[Array, Array]:
    """Raw and scaled contributions between the focus neuron (or all of them) and a column's neurons."""
    values = np.asarray(found)
    if neuron is None:
        totals = values.sum(0 if role == "source" else 1)
        finite = np.abs(totals[np.isfinite(totals)])
        return totals, totals / (finite.max(initial=0.0) or 1.0)
    if role == "source":
        return values[neuron], np.asarray(found.scaled)[neuron]
    return values[:, neuron], np.asarray(found.scaled)[:, neuron]


def _steps(run: Run, link: Link, direction: str, samples: str) -> list[int]:
    """Steps with a matrix for this link."""
    return run.contribution_steps(link, direction, samples)


def _nearest(steps: list[int], step: int) -> int | None:
    """The newest of ``steps`` at or before ``step``, else the first; None if there is none."""
    before = [known for known in steps if known <= step]
    return before[-1] if before else next(iter(steps), None)
