"""Contribution matrices along edges that no layer's own matrix covers: sums, sampling, attention, gates, cells.

The step runs once more, as it was, on a tape of every function; see ``dgm_tb.algorithms.edges``.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dgm_tb.algorithms.edges import MAX_MIXED_ELEMENTS, Edges, Wanted, edges_into
from dgm_tb.algorithms.relevance import RelevanceMode
from dgm_tb.callback.attribution import MAX_ENTRIES, Attribution, matrix_record
from dgm_tb.callback.links import is_neuron_layer
from dgm_tb.callback.nested import tensors_in
from dgm_tb.callback.replay import Before, Rerun, as_before
from dgm_tb.callback.slots import Slot
from dgm_tb.graph import Graph
from dgm_tb.records import Record

MAX_TAPE_BYTES = 2 << 30
"""Estimated size of what a tape keeps, beyond which there is none."""

Layers = Callable[[str], Sequence[tuple[str, int]]]


def exact_records(
    root: nn.Module,
    before: Before | None,
    weights: list[Tensor],
    rerun: Rerun | None,
    attribution: Attribution,
    graph: Graph,
    slots: Sequence[Slot],
) -> tuple[list[Record], list[str]]:
    """The matrices of all ``exact`` links of one step.

    Args:
        root: The model.
        before: What the step started from.
        weights: The weights before it.
        rerun: Runs it.
        attribution: What was taken while it ran: which examples, and gradients.
        graph: The links.
        slots: All layers.

    Returns:
        Records, and what could not be had and why. Nothing of it raises.
    """
    wanted = attribution.exact
    if not wanted:
        return [], []
    lost = f"no contributions along {sum(map(len, wanted.values()))} edges at step {attribution.step}"
    n_bytes = 4 * sum(math.prod(node.shape) for node in graph.nodes)
    if n_bytes > MAX_TAPE_BYTES:
        return [], [f"{lost}: its activations take {n_bytes / 2**30:.1f} GB"]
    if rerun is None or not weights or before is None or not before.is_unchanged():
        return [], [f"{lost}: the step can't be run again"]
    try:
        with as_before(root, before, weights) as live:
            mode = _taped(root, before, rerun, live, attribution, graph, slots)
            return _matrices(mode, attribution, slots)
    except Exception as error:
        return [], [f"{lost}: {type(error).__name__}: {error}"]


def _taped(
    root: nn.Module,
    before: Before,
    rerun: Rerun,
    live: Mapping[int, Tensor],
    attribution: Attribution,
    graph: Graph,
    slots: Sequence[Slot],
) -> RelevanceMode:
    last = [node.layer for node in graph.nodes if node.layer in attribution.exact][-1]
    inputs = list(tensors_in((before.batch, before.inputs)))
    layers = _layers(root, graph, slots)
    mode = RelevanceMode(root, inputs, rules=attribution.rules, stop_after=last, layers=layers)
    with torch.compiler.set_stance("force_eager"), mode:
        rerun(before.batch, before.batch_idx, live)
    return mode


def _layers(root: nn.Module, graph: Graph, slots: Sequence[Slot]) -> Layers:
    """Which outputs of which calls are neuron layers; all turns of a loop are one."""
    modules = dict(root.named_modules())
    loops = {node.layer for node in graph.nodes if node.repeats > 1}
    of_call: dict[str, list[tuple[str, int]]] = {}
    for slot in slots:
        if is_neuron_layer(slot, modules.get(slot.module)):
            call = slot.module + slot.name[len(slot.module) :].partition("[")[0]
            of_call.setdefault(call, []).append((slot.name, -1 if slot.is_last_axis else 1))

    def layers(call: str) -> Sequence[tuple[str, int]]:
        module = call.partition("@")[0]
        return of_call.get(module if module in loops else call, ())

    return layers


def _matrices(mode: RelevanceMode, attribution: Attribution, slots: Sequence[Slot]) -> tuple[list[Record], list[str]]:
    by_name = {slot.name: slot for slot in slots}
    assert mode.layers is not None
    ran = {name for call in mode.slots for name, _ in mode.layers(call)}
    records: list[Record] = []
    failures: list[str] = []
    room = MAX_MIXED_ELEMENTS
    for target, sources in attribution.exact.items():
        slot = by_name[target]
        if target not in mode.slots:
            continue  # it did not run in this step
        try:
            names, wanted = _wanted(mode, slot, attribution)
            found = edges_into(mode, target, wanted, axis=-1 if slot.is_last_axis else 1, max_mixed=room)
            room -= found[0].n_mixed if found else 0
        except Exception as error:
            failures.append(
                f"no contributions into {target} at step {attribution.step}: {type(error).__name__}: {error}"
            )
            continue
        for (samples, direction), edges in zip(names, found, strict=True):
            of_target = (source for source in sources if source in ran)
            records += [_record(attribution, target, source, direction, samples, edges) for source in of_target]
    return records, failures


def _wanted(mode: RelevanceMode, slot: Slot, attribution: Attribution) -> tuple[list[tuple[str, str]], list[Wanted]]:
    """The relevance to start with, for all examples chosen and both directions; and what each is called."""
    names, wanted = [], []
    gradient = attribution.gradients.get(slot.name)
    shape = mode.slots[slot.name].outputs[0].tensor.shape
    for samples, position in attribution.selections.items():
        if position is not None and (slot.example_axis is None or position >= shape[slot.example_axis]):
            continue
        examples, axis = None if position is None else [position], slot.example_axis or 0
        names.append((samples, "forward"))
        wanted.append(Wanted(examples=examples, axis=axis))
        if gradient is not None and gradient.shape == shape:
            names.append((samples, "backward"))
            wanted.append(Wanted("gradient", gradient, examples, axis))
    return names, wanted


def _record(attribution: Attribution, target: str, source: str, direction: str, samples: str, edges: Edges) -> Record:
    matrix, reason = edges.matrices.get(source), edges.reasons.get(source, "")
    if matrix is not None and matrix.numel() > MAX_ENTRIES:
        reason = f"the matrix would have {matrix.numel()} entries"
    elif matrix is not None and not bool(matrix.isfinite().any()):
        reason = "none of its contributions is finite"
    elif matrix is None and not reason:
        reason = f"no relevance reaches it from {target}: " + (
            f"it stops at {', '.join(edges.stopped)}, which has no rule"
            if edges.stopped
            else "only as a gate, a scale or an index"
        )
    body = attribution.body(target, direction, samples, "neurons") | {"source": source, "reason": reason}
    parts = {"arrived": edges.arrived, "leaked": edges.leaked, "stopped": edges.stopped}
    amounts = [edges.total, edges.noise, *(amount for part in parts.values() for amount in part.values())]
    if all(map(math.isfinite, amounts)):
        body |= {"total": edges.total, "noise": edges.noise}
        body |= {key: {name: amount for name, amount in part.items() if amount} for key, part in parts.items()}
    values = edges.totals.new_zeros(len(edges.totals), 0) if reason or matrix is None else matrix
    return matrix_record(attribution.step, body, values, edges.totals)
