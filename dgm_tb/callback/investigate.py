"""From a step that went wrong to a verdict: the layer, the neurons, the examples and the operation behind it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgm_tb.algorithms.outliers import OUTLIER_RATIO, Outliers, worst_neurons
from dgm_tb.callback.capture import Capture
from dgm_tb.callback.example_table import ExampleTable
from dgm_tb.callback.reductions import MAX, MIN
from dgm_tb.callback.replay import Before, Origin, OriginFinder, Rerun, bad_gradient_rows, find_origin
from dgm_tb.callback.slots import Slot
from dgm_tb.callback.step_row import StepRow
from dgm_tb.callback.trace import Trace

Array = np.ndarray[Any, np.dtype[Any]]

_AMPLIFIERS = ("exp", "exp2", "expm1", "sinh", "cosh", "pow", "square", "div", "reciprocal", "rsqrt", "log", "sqrt")
"""Functions that turn a large but finite value into a non-finite one, the most violent first."""


@dataclass
class Step:
    """Everything known about one step.

    Attributes:
        step: The callback's batch counter.
        row: Sums of every neuron and largest activation of every example.
        before: What the step started from; None if it can't be replayed.
        losses: Name -> value.
        gradient_norms: Parameter -> norm of its gradient, before clipping.
        bad_weights: Parameters that are not finite after the step.
        was_skipped: Whether a gradient scaler left an optimizer step out, since a gradient had overflowed.
    """

    step: int
    row: StepRow
    before: Before | None
    losses: dict[str, float] = field(default_factory=dict)
    gradient_norms: dict[str, float] = field(default_factory=dict)
    bad_weights: list[str] = field(default_factory=list)
    was_skipped: bool = False


@dataclass
class Verdict:
    """Who is to blame for a step.

    Attributes:
        step: The step that holds the cause.
        symptom: Where it showed first: ``forward``, ``loss``, ``backward``, ``weights`` or ``outlier``.
        module: Best suspect.
        modules: Further ones.
        layer: Its slot, if its neurons are recorded, to attribute; else "".
        neurons: The worst neurons of ``layer``.
        positions: Positions of the abnormal examples in the batch, worst first.
        normal: Position of an ordinary example.
        op: Function that produced the first non-finite value.
        everywhere: Whether every example is affected, so that no single one can be blamed in this step.
        evidence: Numbers.
    """

    step: int
    symptom: str
    module: str = ""
    modules: list[str] = field(default_factory=list)
    layer: str = ""
    neurons: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    normal: int | None = None
    op: str = ""
    everywhere: bool = False
    evidence: dict[str, Any] = field(default_factory=dict)


class Investigator:
    """Looks into single steps of one model.

    Args:
        root: The model.
        leaves: Fully-qualified name -> module, for every module that is one node of the DAG.
        capture: The hooks on it.
    """

    def __init__(self, root: nn.Module, leaves: Mapping[str, nn.Module], capture: Capture) -> None:
        self.root = root
        self.leaves = leaves
        self.capture = capture
        self.slots = capture.slots

    def nonfinite(self, step: Step, weights: list[Tensor], rerun: Rerun | None, trace: Trace) -> Verdict:
        """Find where a step's first NaN or Inf came from.

        Args:
            step: The step.
            weights: The weights before it; empty if they were not kept.
            rerun: Runs it again; None if that is impossible.
            trace: The DAG.
        """
        table = ExampleTable(step, self.slots)
        finder = self.run_again(step, weights, rerun)
        if finder is not None and finder.origin is not None:
            return self._from_origin(step, finder, finder.origin, table)
        verdict = self._from_row(step, table, self.bad_gradient_rows(step, weights, rerun))
        if finder is not None and verdict.symptom == "forward" and verdict.positions:
            self._blame_feeder(verdict, step, table, trace)
        return verdict

    def run_again(self, step: Step, weights: list[Tensor], rerun: Rerun | None) -> OriginFinder | None:
        """Run a step again up to its first NaN or Inf; None if that is impossible. Arguments as of ``nonfinite``."""
        if rerun is None or not weights or step.before is None or not step.before.is_unchanged():
            return None
        return find_origin(self.root, self.leaves, step.before, weights, rerun)

    def bad_gradient_rows(self, step: Step, weights: list[Tensor], rerun: Rerun | None) -> dict[str, list[int]]:
        """Run a step with its backward pass again; slot -> examples whose gradient is not finite, in its order."""
        if rerun is None or not weights or step.before is None or not step.before.is_unchanged():
            return {}
        return bad_gradient_rows(self.root, step.before, weights, rerun, self.capture)

    def outlier(self, step: Step, trace: Trace) -> Verdict | None:
        """Find the example behind a step whose loss or gradient broke with its history, all finite.

        Returns:
            The verdict, or None if no example is out of line.
        """
        table = ExampleTable(step, self.slots)
        outliers = table.outliers()
        if not outliers.positions:
            return None
        slot = self._amplified(trace, table, outliers)[0] or table.slot(outliers.layer)
        verdict = Verdict(step.step, "outlier", everywhere=False)
        self._blame(verdict, step, table, outliers, slot)
        return verdict

    def _from_origin(self, step: Step, finder: OriginFinder, origin: Origin, table: ExampleTable) -> Verdict:
        verdict = Verdict(step.step, "forward" if origin.bad.dim() else "loss", op=origin.op)
        node = finder.trace.nodes.get(origin.node)
        own = next((slot for slot in self.slots if node is not None and slot.name == node.layer), None)
        rows = self._bad_rows(own, origin.bad, table.n_examples)
        verdict.everywhere = len(rows) in (0, table.n_examples)
        outliers = table.outliers()
        slot = self._suspect(own, finder, origin, table, outliers)
        self._blame(verdict, step, table, outliers, slot, [] if verdict.everywhere else rows)
        if slot is not None and origin.bad.dim() > 1:
            verdict.neurons = _bad_neurons(origin, slot) or verdict.neurons
        if origin.op_inputs:
            verdict.evidence["largest_input"] = max(float(tensor.abs().max()) for tensor in origin.op_inputs)
        place = origin.module or (verdict.module if slot is None else "")
        if slot is None:
            verdict.module = place
        elif place and place not in (verdict.module, *verdict.modules):
            verdict.modules.insert(0, place)
        return verdict

    def _from_row(self, step: Step, table: ExampleTable, gradient_rows: Mapping[str, list[int]]) -> Verdict:
        """Without a replay, or when the forward pass is finite: what the recorded numbers say.

        Args:
            step: The step.
            table: Its examples.
            gradient_rows: Slot -> examples whose gradient was not finite, in the order of the backward pass.
        """
        row, outliers = step.row, table.outliers()
        called = [slot for slot, count in zip(self.slots, row.counts, strict=False) if count]
        forward = [slot for slot in called if not row.extremes_finite(slot)]
        slot: Slot | None
        if forward:
            verdict, slot = Verdict(step.step, "forward"), forward[0]
        else:
            first = next(iter(gradient_rows), "")
            bad = self._bad_gradients(step) or [slot for slot in self.slots if slot.name == first]
            has_bad_norm = not np.isfinite(list(step.gradient_norms.values())).all()
            verdict = Verdict(step.step, "backward" if bad or has_bad_norm else "weights")
            slot = bad[-1] if bad else self._slot_of(self._worst_parameter(step)) or table.slot(outliers.layer)
            if not np.isfinite(list(step.losses.values())).all():
                verdict.symptom = "loss"
        first_rows = next(iter(gradient_rows.values()), [])
        rows = first_rows if 0 < len(first_rows) < table.n_examples else []
        verdict.everywhere = not outliers.positions and not rows
        self._blame(verdict, step, table, outliers, slot, rows)
        if slot is None:
            verdict.module = self._worst_parameter(step).rpartition(".")[0]
        return verdict

    def _blame(
        self,
        verdict: Verdict,
        step: Step,
        table: ExampleTable,
        outliers: Outliers,
        slot: Slot | None,
        rows: Sequence[int] = (),
    ) -> None:
        """Fill in examples, layer and neurons."""
        ranked = [p for p in outliers.positions if not rows or p in rows]
        verdict.positions = (ranked + [row for row in rows if row not in ranked])[:16]
        verdict.normal = outliers.normal if outliers.normal not in verdict.positions else None
        if outliers.positions:
            verdict.evidence["ratio_to_median_example"] = outliers.ratios[0]
            verdict.evidence["first_out_of_line"] = table.name(outliers.layer)
        if slot is None:
            return
        verdict.module, verdict.layer = slot.module, slot.name
        verdict.neurons = worst_neurons(_extremes(step.row, slot))
        if verdict.positions and (values := table.values(slot)) is not None:
            verdict.evidence["largest_activation"] = float(values[verdict.positions[0]])
            verdict.evidence["median_activation"] = _median(values)
        first = table.slot(outliers.layer)
        if first is not None and outliers.positions and first.module != verdict.module:
            verdict.modules.append(first.module)

    def _blame_feeder(self, verdict: Verdict, step: Step, table: ExampleTable, trace: Trace) -> None:
        """No module failed by itself, so what went into the failing one did: blame the layer that it was made of."""
        node = next((node.id for node in trace.nodes.values() if node.layer == verdict.layer), "")
        feeders = [slot for parent in trace.inputs_of.get(node, []) for slot in self._upstream(trace, parent)]
        finite = [slot for slot in feeders if step.row.extremes_finite(slot)]
        if not finite:
            return
        outliers, victim = table.outliers(), verdict.module
        slot, op = self._amplified(trace, table, outliers)
        if slot not in finite:
            slot, op = max(finite, key=lambda slot: table.ratio(slot, verdict.positions[0])), ""
        verdict.op, verdict.modules = op, [victim]
        self._blame(verdict, step, table, outliers, slot)

    def _bad_rows(self, own: Slot | None, bad: Tensor, n_examples: int) -> list[int]:
        """The examples at which an output is not finite, of a layer or else a function; [] if that can't be told."""
        axes = [axis for axis, size in enumerate(bad.shape[:2]) if size == n_examples]
        if own is not None and bad.dim() > 1:
            axes = [axis for axis in axes if axis == own.example_axis]
        if not axes or (len(axes) > 1 and any(slot.example_axis == 1 for slot in self.slots)):
            return []
        return [int(n) for n in torch.nonzero(bad.movedim(axes[0], 0).reshape(n_examples, -1).any(1))]

    def _suspect(
        self, own: Slot | None, finder: OriginFinder, origin: Origin, table: ExampleTable, outliers: Outliers
    ) -> Slot | None:
        """The layer whose output, finite but extreme, made the function fail; or the layer that failed itself."""
        if own is not None and any(True for _ in self.leaves[own.module].parameters()):
            return own
        parents = _explaining(origin) or origin.parents
        found = [slot for parent in parents for slot in self._upstream(finder.trace, parent)]
        if not found:
            return own
        worst = outliers.positions[0] if outliers.positions else None
        return max(found, key=lambda slot: table.ratio(slot, worst)) if len(found) > 1 else found[0]

    def _amplified(self, trace: Trace, table: ExampleTable, outliers: Outliers) -> tuple[Slot | None, str]:
        """The out-of-line layer that feeds the most violent function of the DAG, and that function."""
        worst = outliers.positions[0]
        for op in _AMPLIFIERS:
            fed = [
                slot
                for node in trace.nodes.values()
                if node.op == op
                for parent in trace.inputs_of[node.id]
                for slot in self._upstream(trace, parent)
                if table.ratio(slot, worst) >= OUTLIER_RATIO
            ]
            if fed:
                return max(fed, key=lambda slot: table.ratio(slot, worst)), op
        return None, ""

    def _upstream(self, trace: Trace, node: str) -> list[Slot]:
        """The nearest layers at or above a node that have weights (or, lacking those, neurons)."""
        by_name = {slot.name: slot for slot in self.slots}
        found: list[Slot] = []
        seen, queue = {node}, [node]
        while queue:
            name = queue.pop(0)
            slot = by_name.get(trace.nodes[name].layer)
            if slot is not None and any(True for _ in self.leaves[slot.module].parameters()):
                found.append(slot)
                continue
            parents = [parent for parent in trace.inputs_of.get(name, []) if parent not in seen]
            if slot is not None and not parents:
                found.append(slot)
            seen.update(parents)
            queue += parents
        return found

    def _bad_gradients(self, step: Step) -> list[Slot]:
        row = step.row
        return [
            slot
            for number, slot in enumerate(self.slots[: len(row.gradient_counts)])
            if row.gradient_counts[number] and not bool(torch.isfinite(row.gradient[slot.columns]).all())
        ]

    @staticmethod
    def _worst_parameter(step: Step) -> str:
        bad = [name for name, norm in step.gradient_norms.items() if not np.isfinite(norm)] or step.bad_weights
        if bad:
            return bad[-1]
        norms = step.gradient_norms
        return max(norms, key=lambda name: norms[name]) if norms else ""

    def _slot_of(self, parameter: str) -> Slot | None:
        module = parameter.rpartition(".")[0]
        return next((slot for slot in self.slots if slot.module == module), None)


def _median(values: Array) -> float:
    """The median of the finite values; Inf if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.inf


def _extremes(row: StepRow, slot: Slot) -> Array:
    """The value of largest magnitude of every neuron of a slot."""
    low, high = row.activation[MIN, slot.columns].cpu().numpy(), row.activation[MAX, slot.columns].cpu().numpy()
    return np.where(np.abs(low) > np.abs(high), low, high)


def _explaining(origin: Origin) -> list[str]:
    """The parents whose tensors are proportional to what went into the failing function, best first."""
    scores: dict[str, float] = {}
    if len(origin.parents) < 2 or len(origin.parents) != len(origin.inputs):
        return []
    for parent, tensor in zip(origin.parents, origin.inputs, strict=True):
        for other in origin.op_inputs:
            if tensor.numel() == other.numel() and tensor.numel() > 1:
                a, b = tensor.flatten().double(), other.flatten().double()
                score = float(torch.abs(a @ b) / (a.norm() * b.norm()).clamp_min(1e-300))
                scores[parent] = max(scores.get(parent, 0.0), score)
    best = max(scores.values(), default=0.0)
    return [parent for parent, score in scores.items() if score >= max(0.999, best - 1e-6)]


def _bad_neurons(origin: Origin, slot: Slot, limit: int = 8) -> list[int]:
    """Neurons of ``slot`` at which the function's output is not finite, the largest input first."""
    bad = origin.bad
    axis = bad.dim() - 1 if slot.is_last_axis else 1
    if bad.shape[axis] != slot.neurons:
        return []
    others = [n for n in range(bad.dim()) if n != axis]
    neurons = torch.nonzero(bad.any(dim=others) if others else bad).flatten().tolist()
    same = next((tensor for tensor in origin.op_inputs if tensor.shape == bad.shape), None)
    if same is not None:
        size = torch.where(bad, same.abs(), torch.zeros_like(same)).amax(others) if others else same.abs()
        neurons.sort(key=lambda n: -float(size[n]))
    return [int(n) for n in neurons[:limit]]
