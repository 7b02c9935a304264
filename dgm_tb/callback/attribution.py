"""Who contributed to whom in one step: contribution matrices from hooks, and the relevance of one suspect neuron."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgm_tb.algorithms.contribution import contribution_by_position, contribution_matrix
from dgm_tb.algorithms.relevance import Relevance, RelevanceMode
from dgm_tb.callback.alone import no_collectives
from dgm_tb.callback.examples import main_input, thinned
from dgm_tb.callback.links import MATRIX_TYPES
from dgm_tb.callback.replay import Before, Rerun, as_before
from dgm_tb.callback.slots import Slot
from dgm_tb.graph import Graph
from dgm_tb.records import Record, compact

MAX_ENTRIES = 1 << 22
"""Larger matrices are not recorded."""

MAX_GRADIENT_BYTES = 1 << 28
"""So much is kept of gradients until the step has ended."""

Rules = Mapping[Any, Any]


class Attribution:
    """Takes the contribution matrices of one step while its modules run; plug it into a ``Capture``.

    Args:
        step: The step.
        graph: Tells which layers need matrices by position.
        selections: ``"batch"``, ``"abnormal"``, ``"normal"`` -> position of the example in the batch, None for all.
        rules: The user's own rules.
        finding: Id of the finding that asked for it, or "".

    Attributes:
        unscaled: Takes a loss scale out of a gradient.
        exact: Target -> sources of the links whose matrices need the step run again, see ``exact.py``.
        gradients: Target -> gradient of its output, as far as these links need it and there is room.
        failures: Target -> why it has no matrix, although it should.
    """

    def __init__(
        self, step: int, graph: Graph, selections: Mapping[str, int | None], rules: Rules, finding: str = ""
    ) -> None:
        self.step = step
        self.selections = selections
        self.unscaled: Callable[[Tensor], Tensor] = lambda gradient: gradient
        self._kept: list[tuple[dict[str, Any], Tensor, Tensor | None]] = []
        self.failures: dict[str, str] = {}
        self.rules = rules
        self.exact: dict[str, list[str]] = {}
        for link in graph.links:
            if link.kind == "exact":
                self.exact.setdefault(link.target, []).append(link.source)
        self.gradients: dict[str, Tensor] = {}
        self._gradient_bytes = 0
        self._by_position = {link.target for link in graph.links if link.kind == "unflatten"}
        self._rules = {key: rule for key, rule in rules.items() if isinstance(key, type)}
        self._finding = finding
        self._inputs: dict[str, tuple[nn.Module, Tensor]] = {}

    def on_forward(self, slot: Slot, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Take the forward matrices of one layer."""
        if not self._has_matrix(module) or not inputs or slot.name.endswith("]"):
            return
        x = inputs[0].detach() if isinstance(inputs[0], Tensor) else None
        if x is None or not x.is_floating_point():
            return
        self._inputs[slot.name] = (module, x)
        for samples, position in self.selections.items():
            chosen = _selected(slot, position, x, output)
            if chosen is not None:
                self._take(slot, "forward", samples, chosen[0], None, chosen[1])

    def on_gradient(self, slot: Slot, gradient: Tensor, is_first_turn: bool) -> None:
        """Take the backward matrix of one layer, once its gradient is known; of a loop that of its first turn."""
        if not is_first_turn or (slot.name not in self._inputs and slot.name not in self.exact):
            return
        gradient = self.unscaled(gradient.detach())
        n_bytes = gradient.numel() * gradient.element_size()
        if slot.name in self.exact and self._gradient_bytes + n_bytes <= MAX_GRADIENT_BYTES:
            self.gradients[slot.name] = gradient
            self._gradient_bytes += n_bytes
        if slot.name in self._inputs:
            _, x = self._inputs[slot.name]
            for samples, position in self.selections.items():
                chosen = _selected(slot, position, x, gradient)
                if chosen is not None:
                    self._take(slot, "backward", samples, *chosen)

    def _has_matrix(self, module: nn.Module) -> bool:
        return isinstance(module, MATRIX_TYPES) or any(isinstance(module, kind) for kind in self._rules)

    def _take(
        self, slot: Slot, direction: str, samples: str, x: Tensor, gradient: Tensor | None, output: Tensor | None = None
    ) -> None:
        module = self._inputs[slot.name][0]
        rule = "epsilon" if gradient is None else "gradient"
        try:
            with torch.no_grad(), no_collectives():
                rules = self._rules if gradient is None else None
                matrix = contribution_matrix(module, x, rule=rule, output_relevance=gradient, rules=rules)
                totals = _totals(slot, module, matrix, gradient, output)
                self._keep(slot, direction, samples, "channel", matrix, totals)
                if slot.name in self._by_position and len(matrix) * x[0].numel() <= MAX_ENTRIES:
                    by_position = contribution_by_position(module, x, rule=rule, output_relevance=gradient)
                    self._keep(slot, direction, samples, "position", by_position.flatten(1), totals)
        except Exception as error:
            self.failures[slot.name] = f"{type(error).__name__}: {error}"

    def body(self, target: str, direction: str, samples: str, columns: str) -> dict[str, Any]:
        """What a record says of its matrix."""
        return {
            "step": self.step,
            "target": target,
            "direction": direction,
            "samples": samples,
            "columns": columns,
            "finding": self._finding,
        }

    def _keep(
        self, slot: Slot, direction: str, samples: str, columns: str, matrix: Tensor, totals: Tensor | None
    ) -> None:
        if matrix.numel() <= MAX_ENTRIES:
            body = self.body(slot.name, direction, samples, columns)
            self._kept.append((body, matrix.float(), totals))

    def records(self) -> list[Record]:
        """The matrices with a finite number in them; waits for the device they are on."""
        made = [matrix_record(self.step, *kept) for kept in self._kept]
        return [record for record in made if np.isfinite(record.arrays["values"]).any()]


def matrix_record(step: int, body: dict[str, Any], matrix: Tensor, totals: Tensor | None) -> Record:
    """The record of one contribution matrix.

    Args:
        step: The step.
        body: What it says of the matrix.
        matrix: ``[targets, columns]``.
        totals: What each target neuron has to hand on ``[targets]``, if known: the row of the matrix adds up to it, but
            for what biases and stabilisers keep and what other sources get.
    """
    arrays, scale = compact({"values": matrix.detach().float().cpu().numpy()})
    if totals is not None:
        arrays["relevance"] = totals.detach().float().cpu().numpy()
    return Record("contribution", step, step, body | scale, arrays)


def _totals(
    slot: Slot, module: nn.Module, matrix: Tensor, gradient: Tensor | None, output: Tensor | None
) -> Tensor | None:
    """Relevance of each target neuron: its output, or output times gradient, which is input and bias times gradient."""
    axis = -1 if slot.is_last_axis else 1
    if gradient is None:
        return None if output is None else _per_neuron(output.detach(), axis)
    bias = getattr(module, "bias", None)
    sums = matrix.sum(1)
    return sums if bias is None else sums + bias.detach() * _per_neuron(gradient, axis)


def _per_neuron(x: Tensor, axis: int) -> Tensor:
    return x.float().movedim(axis, 0).flatten(1).sum(1)


def _selected(slot: Slot, position: int | None, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor] | None:
    """Input and output (or its gradient) of a layer, all or of one example; None if that can't be told."""
    if position is None:
        return x, output
    before, after = slot.example(x, position), slot.example(output, position)
    axis = slot.example_axis or 0
    is_same = x.dim() > axis and x.shape[axis] == output.shape[axis]
    return (before, after) if is_same and before is not None and after is not None else None


def relevance_records(
    root: nn.Module,
    before: Before,
    weights: list[Tensor],
    rerun: Rerun,
    target: Slot,
    neuron: int,
    examples: list[int],
    *,
    slots: Sequence[Slot],
    rules: Rules,
    finding: str,
    role_of: Callable[[int], str],
) -> list[Record]:
    """Run a step again up to ``target`` and propagate one neuron's relevance down to the input, example by example.

    Args:
        root: The model.
        before: What the step started from.
        weights: The weights before it.
        rerun: Runs it.
        target: The suspect layer.
        neuron: Its suspect neuron.
        examples: Positions in the batch.
        slots: All layers.
        rules: The user's own rules.
        finding: Id of the finding.
        role_of: Position -> ``"abnormal"`` or ``"normal"``.

    Raises:
        ValueError: If the examples are not the first axis of the target's output.
    """
    if target.example_axis != 0:
        raise ValueError(f"the first axis of {target.name} is not that of the examples")
    source = main_input(before.batch)
    records = []
    with as_before(root, before, weights) as live:
        sources = None if source is None and not before.inputs else {"": source, **before.inputs}
        mode = RelevanceMode(root, sources, rules=rules, stop_after=target.name)
        with mode:
            rerun(before.batch, before.batch_idx, live)
        for number, position in enumerate(examples):
            try:
                relevance = mode.propagate(target.name, neuron, examples=[position])
            except ValueError:  # not finite for this example
                continue
            record = _relevance_record(before.step, relevance, target, neuron, position, slots, source)
            body = {**record.body, "finding": finding, "sample": number, "role": role_of(position)}
            records.append(Record("relevance", before.step, before.step, body, record.arrays))
    return records


def _relevance_record(
    step: int,
    relevance: Relevance,
    target: Slot,
    neuron: int,
    position: int,
    slots: Sequence[Slot],
    source: Tensor | None,
) -> Record:
    by_name = {slot.name: slot for slot in slots}
    layers: list[tuple[str, int, int]] = []
    parts: list[np.ndarray[Any, Any]] = []
    offset = 0
    for name, of_layer in relevance.layers.items():
        slot = by_name.get(name)
        of_example = slot.example(of_layer.detach().float(), position) if slot is not None else None
        if slot is None or of_example is None or name == target.name or of_example.dim() < 2:
            continue
        per_neuron = of_example.movedim(-1 if slot.is_last_axis else 1, 0).flatten(1).sum(1)
        layers.append((name, offset, len(per_neuron)))
        parts.append(per_neuron.cpu().numpy())
        offset += len(per_neuron)
    maps = _input_map(relevance, position, source)
    total = relevance.total or 1.0
    leak = {**relevance.leaked, **relevance.stopped, "noise": relevance.noise}
    body = {
        "step": step,
        "target": target.name,
        "neuron": neuron,
        "sample": 0,
        "layers": layers,
        "total": relevance.total,
        "leak": {name: amount / total for name, amount in leak.items() if amount},
        "stopped": sorted(relevance.stopped),
    }
    arrays = {"values": np.concatenate(parts) if parts else np.zeros(0, np.float32)}
    if maps is not None:
        arrays["input"] = thinned(maps[None].detach().float())[0].cpu().numpy()
    return Record("relevance", step, step, body, arrays)


def _input_map(relevance: Relevance, position: int, source: Tensor | None) -> Tensor | None:
    """Relevance of one example's input, in the shape of the example where the model got it flattened."""
    maps = [of_input[position] for of_input in relevance.inputs.values() if of_input.dim() and position < len(of_input)]
    if maps and source is not None and maps[0].numel() == source[0].numel() and 1 in (maps[0].dim(), source[0].dim()):
        return maps[0].reshape(source[0].shape)
    return maps[0] if maps else None
