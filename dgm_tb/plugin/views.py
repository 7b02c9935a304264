"""What each route answers with: from a run and arguments to facts and arrays. See http_api.md."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dgm_tb.errors import UnknownNameError
from dgm_tb.graph import Graph, Layer, Node
from dgm_tb.plugin import tracks
from dgm_tb.plugin.rows import find_layer, neuron_span, statistic_names
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.wire import Arguments
from dgm_tb.records import STATISTICS, as_json

Array = np.ndarray[Any, np.dtype[Any]]
Answer = tuple[dict[str, Any], dict[str, Array]]

QUANTITIES = tuple(STATISTICS)


MAX_FINDINGS = 1000
MAX_NOTES = 200
"""Shown at most; a page with more of them helps nobody."""

UNREAD: dict[str, Any] = {
    "recorded": True,
    "indexing": True,
    "revision": "",
    "first_step": None,
    "last_step": None,
    "last_wall_time": None,
    "ended": False,
    "reason": None,
    "layers": 0,
    "model": "",
    "findings": {"error": 0, "warning": 0, "info": 0},
}
"""The facts of a run of which nothing has been read yet."""


def summary(run: Run) -> dict[str, Any]:
    """The facts of a run in a list of runs."""
    steps, findings = run.steps, run.findings
    facts = run.recordings[-1].facts if run.recordings else {}
    return {
        "run": run.name,
        "recorded": True,
        "indexing": False,
        "revision": run.revision,
        "first_step": steps[0] if steps else None,
        "last_step": steps[1] if steps else None,
        "last_wall_time": run.last_wall_time,
        "ended": run.ended is not None,
        "reason": run.ended,
        "layers": len(run.graph.layers),
        "model": str(facts.get("model", "")),
        "findings": {s: sum(f.severity == s for f in findings) for s in ("error", "warning", "info")},
    }


def run_facts(run: Run, arguments: Arguments) -> Any:
    """Route ``run``."""
    graph = run.graph
    facts = run.recordings[-1].facts if run.recordings else {}
    with_weights = {weight.module for weight in graph.weights}
    layers = [
        {
            "name": layer.name,
            "module": layer.module,
            "type": layer.type,
            "neurons": layer.neurons,
            "shape": layer.shape,
            "has_weights": layer.module in with_weights,
            "contribution": graph.no_contribution.get(layer.name),
        }
        for layer in graph.flow_order()
    ]
    return as_json(
        {
            **summary(run),
            "layers": layers,
            "losses": list(run.losses),
            "statistics": recorded_statistics(run, "dynamics"),
            "layer_statistics": recorded_statistics(run, "layer_statistics"),
            "snapshots": run.snapshots,
            "finding_snapshots": _finding_snapshots(run),
            "window_steps": facts.get("window_steps"),
            "options": facts.get("options", {}),
            "versions": facts.get("versions", {}),
            "notes": _first_notes(run.notes),
            "gaps": run.gaps,
            "recordings": [_recording_facts(recording) for recording in run.recordings],
        }
    )


def graph(run: Run, arguments: Arguments) -> Any:
    """Route ``graph``."""
    found = run.graph
    if not found.nodes and not found.layers:
        raise UnknownNameError(f"no graph of {run.name!r} is recorded yet: it comes with the first training batch")
    return as_json(_drawable(found).to_json())


def _drawable(graph: Graph) -> Graph:
    """The graph without what no tracer writes and no layout ends with: nodes twice, edges that lead back or nowhere."""
    place: dict[str, int] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if place.setdefault(node.id, len(nodes)) == len(nodes):
            nodes.append(node)
    edges = [edge for edge in graph.edges if place.get(edge.source, len(nodes)) < place.get(edge.target, -1)]
    return replace(graph, nodes=nodes, edges=edges)


def findings(run: Run, arguments: Arguments) -> Any:
    """Route ``findings``."""
    layers = run.graph.flow_order()
    found = run.numbered_findings()[:MAX_FINDINGS]
    focus = {module: _layer_of(module, layers) for module in {finding.module for _, finding in found}}
    return [
        {
            "id": number,
            **finding.to_json(),
            "layer": focus[finding.module],
            "has_samples": bool(run.evidence("samples", number)),
        }
        for number, finding in found
    ]


def _layer_of(module: str, layers: Sequence[Layer]) -> str:
    """The slot to focus for a module: its own first one, else the first one inside it; "" if there is none."""
    own = (layer.name for layer in layers if layer.module == module)
    inside = (layer.name for layer in layers if module and layer.module.startswith(f"{module}."))
    return next(own, next(inside, ""))


def neurons(run: Run, arguments: Arguments) -> Answer:
    """Route ``neurons``."""
    layer = arguments.text("layer")
    found = find_layer(run.graph, layer)
    if found is None:
        raise run.missing(layer, "activation")
    step = arguments.number("step", (run.steps or (0, 0))[1], 0, 1 << 53)
    arrays: dict[str, Array] = {}
    window: dict[str, list[int]] = {}
    for quantity, names in recorded_statistics(run, "dynamics").items():
        near = _record_near(run, layer, quantity, step)
        if near is None:
            continue
        for name in names:
            windows = tracks.windows(list(run.spans()), layer, quantity, name, first=near, last=max(near, step))
            if windows is not None and len(windows.bounds):
                window[quantity] = windows.bounds[-1].tolist()
                arrays[f"{quantity}.{name}"] = float32(windows.values[-1, :, 0])
    names = list(arrays)
    low, high = arrays.get("activation.min"), arrays.get("activation.max")
    dead = (low == 0) & (high == 0) if low is not None and high is not None else np.zeros(found.neurons, np.bool_)
    facts = {"layer": layer, "neurons": found.neurons, "step": step, "window": window}
    return {**facts, "names": names, "shape": found.shape}, {**arrays, "dead": dead.astype(np.uint8)}


def samples(run: Run, arguments: Arguments) -> Answer:
    """Route ``samples``."""
    finding = arguments.text("finding")
    found = run.evidence("samples", finding)
    if not found:
        known = ", ".join(number for number, _ in run.numbered_findings() if run.evidence("samples", number)) or "none"
        raise UnknownNameError(f"finding {finding[:60]!r} has no examples; findings that have some: {known}")
    entry = found[-1]
    body, inputs, axes = entry.body, entry.read("inputs"), entry.body["axes"]
    if not inputs.size:
        inputs = np.zeros((len(inputs), 0), np.float32)
    if len(axes) != inputs.ndim:
        axes = "N" + "x" * (inputs.ndim - 1)
    finite = inputs[np.isfinite(inputs)]
    arrays = {"inputs": float32(inputs), "statistics": float32(entry.read("statistics"))}
    relevance: list[dict[str, Any]] = []
    for record in run.evidence("relevance", finding):
        if "input" not in record.arrays:
            continue
        number, maps = len(relevance), record.read("input")
        of = record.body
        largest = np.abs(maps[np.isfinite(maps)]).max(initial=0.0)
        relevance.append(
            {
                "example": of["sample"],
                "target": of["target"],
                "neuron": of["neuron"],
                "leak": of["leak"],
                "layers": of["layers"],
                "largest": float(largest),
            }
        )
        arrays[f"relevance_{number}"] = float32(maps)
        arrays[f"relevance_layers_{number}"] = float32(record.read("values"))
    facts = {
        "finding": finding,
        "step": body["step"],
        "axes": axes,
        "low": float(finite.min()) if finite.size else float("nan"),
        "high": float(finite.max()) if finite.size else float("nan"),
        "examples": body["examples"],
        "layers": body["layers"],
        "relevance": relevance,
    }
    return facts, arrays


# -- helpers -----------------------------------------------------------------------------------------------------------


def _record_near(run: Run, layer: str, quantity: str, step: int) -> int | None:
    """First step of the newest record of windows that begins at or before a step, else of the first one."""
    begins = [
        entry.first_step
        for recording, limit in run.spans()
        if neuron_span(recording.graph, layer, quantity) is not None
        for entry in recording.entries("dynamics", quantity=quantity)
        if entry.first_step < limit
    ]
    return max((begin for begin in begins if begin <= step), default=min(begins, default=None))


def recorded_statistics(run: Run, kind: str) -> dict[str, list[str]]:
    """Quantity -> statistics that records of this kind hold."""
    found: dict[str, list[str]] = {}
    for quantity in QUANTITIES:
        for recording in run.recordings:
            entries = recording.entries(kind, quantity=quantity)
            if entries:
                body = entries[-1].body
                names = statistic_names(body["aggregates"]) if kind == "dynamics" else body["statistics"]
                found[quantity] = list(names)
    return found


def _first_notes(notes: list[str]) -> list[str]:
    left = len(notes) - MAX_NOTES
    return notes if left <= 0 else [*notes[:MAX_NOTES], f"{left} more notes: `dgm-tb inspect` prints all of them"]


def _finding_snapshots(run: Run) -> list[int]:
    """Steps with contributions of single examples."""
    entries = (
        (entry.last_step, limit)
        for recording, limit in run.spans()
        for samples in ("abnormal", "normal")
        for entry in recording.entries("contribution", samples=samples)
    )
    return sorted({step for step, limit in entries if step < limit})


def _recording_facts(recording: Any) -> dict[str, Any]:
    entries = [*recording.entries("loss"), *recording.entries("layer_statistics")]
    end = recording.entries("end")
    return {
        "recording": recording.name,
        "started": recording.started,
        "resume_step": recording.resume_step,
        "first_step": min((entry.first_step for entry in entries), default=None),
        "last_step": max((entry.last_step for entry in entries), default=None),
        "schema": recording.facts.get("schema"),
        "ended": bool(end),
        "reason": end[-1].body["reason"] if end else None,
    }


def float32(values: Array) -> Array:
    """As float32; what is too large becomes Inf."""
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)
