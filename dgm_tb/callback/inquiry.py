"""What to do about a step: nothing, remember a suspicion, or make a finding with all its evidence."""

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dgm_tb.algorithms.outliers import OUTLIER_RATIO, is_extreme
from dgm_tb.callback.attribution import Attribution, relevance_records
from dgm_tb.callback.example_table import ExampleTable
from dgm_tb.callback.examples import axes_of, labels, main_input, thinned
from dgm_tb.callback.explosions import GradientWatch
from dgm_tb.callback.idle import IdleWatch
from dgm_tb.callback.investigate import Investigator, Step, Verdict
from dgm_tb.callback.replay import as_before
from dgm_tb.callback.ring import HISTORY_STEPS
from dgm_tb.callback.verdicts import (
    explosion_finding,
    idle_finding,
    nonfinite_finding,
    outlier_finding,
    spike_finding,
)
from dgm_tb.graph import Graph
from dgm_tb.records import Record

if TYPE_CHECKING:
    from dgm_tb.callback.recorder import Recorder

MAX_FINDINGS = 16
N_EXAMPLES = 4
SPIKE_STEPS = 2
SPIKE_FALL = 3.0
MAX_SKIPS = 24
"""So many steps in a row a gradient scaler may skip: from 65536, its scale falls to 1 in 16."""


@dataclass
class _Suspicion:
    """A finite step that broke with its history, with the example out of line in it."""

    step: Step
    verdict: Verdict
    finding: str


class Inquiry:
    """Looks into every step of one recording.

    The true cause may lie before the step that shows it: an abnormal example whose gradient is finite but huge spoils
    the weights, and the next, innocent batch is the first to give NaN. So steps that break with their history are
    looked into while their weights are still known.

    Args:
        recorder: Whose steps they are.
    """

    def __init__(self, recorder: "Recorder") -> None:
        self._recorder = recorder
        self._suspicion: _Suspicion | None = None
        self._spike: tuple[Step, str] | None = None
        self._is_armed = True
        self._n_findings = 0
        self._n_skips = 0
        self._strongest: deque[float] = deque(maxlen=HISTORY_STEPS)
        self._gradients = GradientWatch(recorder.weights.names, recorder.weights.parameters)
        self._idle = IdleWatch(recorder.root, recorder.weights.names, recorder.weights.parameters)

    def look_into(self, step: Step, error: Exception | None = None) -> None:
        """Judge one step, before it enters the ring.

        Args:
            step: The step.
            error: What it raised, perhaps about a NaN that no layer has given yet.
        """
        if self._suspicion is not None and not self._is_in_ring(self._suspicion.step):
            self._suspicion = None  # and its batch with it
        self._n_skips = self._n_skips + 1 if step.was_skipped else 0
        if not self._is_finite(step) or (error is not None and self._gives_nonfinite(step, error)):
            if self._is_armed and self._n_findings < MAX_FINDINGS:
                self._is_armed = False
                self._on_nonfinite(step)
            return
        self._is_armed = True
        if self._n_findings >= MAX_FINDINGS or step.was_skipped:
            return
        if error is not None:
            self._on_error(step, error)
            return
        n_before = self._n_findings
        jump = self._recorder.ring.breaks_with_history(step.losses, step.gradient_norms)
        is_extreme_batch = self._has_extreme_example(step)
        if is_extreme_batch or jump is not None:
            self._on_break(step)
        is_explained = self._n_findings > n_before
        self._watch_spike(step, is_explained=is_explained)
        if self._recorder.is_leading and not self._recorder.weights.is_sharded:
            self._watch_gradients(step, jump[1] if jump and jump[0] == "gradient norm" and not is_explained else 0.0)

    def _watch_gradients(self, step: Step, leap: float) -> None:
        """Gradients that exploded without an example to blame, and parameters that get none."""
        explosion = self._gradients.note(step.gradient_norms, leap)
        if explosion is not None:
            self._recorder.emit(explosion_finding(explosion, step), self._next_number())
        idle = self._idle.note(step.gradient_norms)
        if idle:
            self._recorder.emit(idle_finding(idle, step.step), self._next_number())

    def _has_extreme_example(self, step: Step) -> bool:
        """Whether an example is far out of this batch and the recent ones in the first layer that tells of examples."""
        largest = next(iter(step.row.examples.values()), None)
        if largest is None or not len(largest):
            return False
        values = largest.cpu().numpy()
        found = is_extreme(self._strongest, values)
        self._strongest.append(float(values.max()))
        return found

    def _watch_spike(self, step: Step, *, is_explained: bool) -> None:
        """A loss that leaps and is back two steps later: its batch is to blame, not the training."""
        spike = self._spike
        if spike is not None and step.step >= spike[0].step + SPIKE_STEPS:
            self._spike = None
            before, name = spike
            if step.losses.get(name, np.inf) < before.losses[name] / SPIKE_FALL:
                self._recorder.emit(spike_finding(before, name, step.step), self._next_number())
        if self._spike is None and not is_explained:
            names = self._recorder.ring.spiking_losses(step)
            self._spike = (step, names[0]) if names else None

    def _is_finite(self, step: Step) -> bool:
        gradients = () if self._may_overflow(step) else step.gradient_norms.values()
        is_finite = all(map(math.isfinite, (*step.losses.values(), *gradients))) and not step.bad_weights
        return is_finite and step.row.is_finite(with_gradients=not self._may_overflow(step))

    def _may_overflow(self, step: Step) -> bool:
        """Whether gradients that are not finite are the loss scale's fault: its scaler lowers it and skips the step."""
        return step.row.scale is not None and float(step.row.scale) > 1 and self._n_skips < MAX_SKIPS

    def _gives_nonfinite(self, step: Step, error: Exception) -> bool:
        if isinstance(error, torch.OutOfMemoryError):
            return False
        investigator, rerun = self._investigator(), self._recorder.rerun
        weights = self._recorder.weights_before()
        finder = investigator.run_again(step, weights, rerun)
        if finder is not None and finder.origin is not None:
            return True
        return bool(investigator.bad_gradient_rows(step, weights, rerun))  # as where anomalies are detected

    def _on_error(self, step: Step, error: Exception) -> None:
        """A step of finite numbers raised: an example may be behind it, as when a variance underflows to zero."""
        if not isinstance(error, (ValueError, ArithmeticError, AssertionError)):
            return
        own, earlier = self._investigator().outlier(step, self._recorder.map.trace), self._earlier_cause(step)
        cause = _Suspicion(step, own, "") if own is not None else None
        if earlier is not None and self._is_innocent(step, own or Verdict(step.step, "outlier"), earlier):
            cause = earlier
        if cause is not None:
            self._claim(step, cause.verdict, has_own_cause=True)
            number = cause.finding or self._next_number()
            finding = outlier_finding(cause.verdict, cause.step, last_step=step.step, did_damage=True)
            self._recorder.emit(finding, number)
            if cause.step is step:
                self._write_evidence(step, cause.verdict, number)

    def _on_break(self, step: Step) -> None:
        recorder = self._recorder
        if not step.row.examples:
            return
        verdict = self._investigator().outlier(step, recorder.map.trace)
        if verdict is None:
            return
        number = self._next_number()
        recorder.emit(outlier_finding(verdict, step, last_step=step.step, did_damage=False), number)
        self._write_evidence(step, verdict, number)
        self._suspicion = _Suspicion(step, verdict, number)

    def _on_nonfinite(self, step: Step) -> None:
        recorder = self._recorder
        weights = recorder.weights_before()
        verdict = self._investigator().nonfinite(step, weights, recorder.rerun, recorder.map.trace)
        cause, known = step, ""
        earlier = self._earlier_cause(step)
        if earlier is not None and self._is_innocent(step, verdict, earlier):
            cause, known = earlier.step, earlier.finding
            verdict = _merged(verdict, earlier.verdict)
        shows_here = verdict.symptom != "weights" or not step.row.is_finite()
        self._claim(step, verdict, has_own_cause=shows_here or not all(map(math.isfinite, step.losses.values())))
        number = self._next_number()
        recorder.emit(nonfinite_finding(verdict, step, cause), number)
        if cause is step:
            self._write_evidence(step, verdict, number)
        if verdict.positions:
            found = outlier_finding(verdict, cause, last_step=step.step, did_damage=True)
            if float(found.evidence.get("ratio_to_median_example", 0.0)) >= OUTLIER_RATIO:
                recorder.emit(found, known or self._next_number())
        recorder.ring_is_due_for = f"finding {number}"

    def _is_innocent(self, step: Step, verdict: Verdict, earlier: _Suspicion) -> bool:
        """Whether an earlier step explains a NaN better than the examples of the step that shows it.

        They are to blame if they are out of line as early in the network as the earlier example, the input first. Else
        the earlier one is, if it has spoilt the weights: then ordinary examples get extreme answers, too.
        """
        own, other = self._rank(verdict), self._rank(earlier.verdict)
        has_suspects = bool(verdict.positions) and not verdict.everywhere
        if (has_suspects and own[0] == 0) or own <= other:
            return False
        slots = self._recorder.capture.slots
        return ExampleTable(step, slots).is_spoilt_since(ExampleTable(earlier.step, slots))

    def _rank(self, verdict: Verdict) -> tuple[float, float]:
        """How early in the network, then how far, an example is out of line; the more suspicious the smaller."""
        names = ["input", *(slot.name for slot in self._recorder.capture.slots)]
        name = verdict.evidence.get("first_out_of_line")
        return names.index(name) if name in names else math.inf, -verdict.evidence.get("ratio_to_median_example", 0.0)

    def _earlier_cause(self, step: Step) -> _Suspicion | None:
        """The step in the ring whose batch holds an example out of line, the one under suspicion first."""
        recorder = self._recorder
        if self._suspicion is not None and self._is_in_ring(self._suspicion.step):
            return self._suspicion
        for known in reversed(list(recorder.ring.steps)[-3:]):
            verdict = self._investigator().outlier(known, recorder.map.trace) if known.row.examples else None
            if verdict is not None:
                return _Suspicion(known, verdict, "")
        return None

    def _is_in_ring(self, step: Step) -> bool:
        return any(known is step for known in self._recorder.ring.steps)

    def _investigator(self) -> Investigator:
        recorder = self._recorder
        leaves, _ = recorder.map.leaves()
        return Investigator(recorder.root, leaves, recorder.capture)

    def _next_number(self) -> str:
        self._n_findings += 1
        team = self._recorder.team
        return f"{team.prefix if team else ''}f{self._n_findings}"

    def _claim(self, step: Step, verdict: Verdict, *, has_own_cause: bool) -> None:
        """Among several ranks that report one failure, the one is believed that explains it best."""
        if self._recorder.team is not None:
            has_suspects = bool(verdict.positions) and not verdict.everywhere
            self._recorder.team.claim(not has_own_cause, step.step, not has_suspects, *self._rank(verdict))

    # -- evidence ------------------------------------------------------------------------------------------------------

    def _write_evidence(self, step: Step, verdict: Verdict, finding: str) -> None:
        """The examples, the contributions and the relevance behind a finding, as far as they can be had."""
        recorder, before = self._recorder, step.before
        if before is None:
            return
        table = ExampleTable(step, recorder.capture.slots)
        abnormal = verdict.positions[:N_EXAMPLES]
        normal = _ordinary(verdict, table.n_examples)
        roles = {**dict.fromkeys(normal, "normal"), **dict.fromkeys(abnormal, "abnormal")}
        self._write_samples(step, table, [*abnormal, *normal], roles, finding)
        if recorder.rerun is None or not recorder.weights_before() or not before.is_unchanged():
            recorder.note(f"finding {finding}: the step can't be run again, so there are no contributions for it")
            return
        try:
            self._write_contributions(step, abnormal, normal, finding)
            slot = next((slot for slot in recorder.capture.slots if slot.name == verdict.layer), None)
            if slot is not None and verdict.neurons:
                found = relevance_records(
                    recorder.root,
                    before,
                    recorder.weights_before(),
                    recorder.rerun,
                    slot,
                    verdict.neurons[0],
                    [*abnormal, *normal],
                    slots=recorder.capture.slots,
                    rules=recorder.options.rules,
                    finding=finding,
                    role_of=roles.__getitem__,
                )
                for record in found:
                    recorder.write(record)
        except Exception as error:
            recorder.note(f"finding {finding}: no full attribution, {type(error).__name__}: {error}")

    def _write_samples(
        self, step: Step, table: ExampleTable, positions: list[int], roles: dict[int, str], finding: str
    ) -> None:
        recorder, before = self._recorder, step.before
        source = main_input(before.batch) if before is not None else None
        if source is None or before is None or not positions:
            return
        inputs = thinned(source.detach()[positions].float())
        of_batch = labels(before.batch)
        examples = [
            {
                "index": before.indices[p] if before.indices is not None else None,
                "position": p,
                "role": roles[p],
                "label": int(of_batch[p]) if of_batch is not None else None,
            }
            for p in positions
        ]
        names, values = table.by_layer(positions)
        body = {"step": step.step, "finding": finding, "examples": examples, "layers": names, "axes": axes_of(inputs)}
        arrays = {"inputs": inputs.cpu().numpy(), "statistics": values.astype(np.float32)}
        recorder.write(Record("samples", step.step, step.step, body, arrays))

    def _write_contributions(self, step: Step, abnormal: list[int], normal: list[int], finding: str) -> None:
        recorder, before = self._recorder, step.before
        if before is None or recorder.rerun is None:
            return
        chosen: dict[str, int | None] = {"batch": None}
        chosen.update({"abnormal": abnormal[0]} if abnormal else {})
        chosen.update({"normal": normal[0]} if normal else {})
        attribution = Attribution(step.step, recorder.map.graph or Graph(), chosen, recorder.options.rules, finding)
        with as_before(recorder.root, before, recorder.weights_before()) as live:
            recorder.capture.begin()
            recorder.capture.listener, recorder.capture.on_gradient = attribution.on_forward, attribution.on_gradient
            try:
                loss = recorder.rerun(before.batch, before.batch_idx, live)
                if loss is not None and loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
            except Exception as error:
                recorder.note(f"finding {finding}: running the step again ended with {type(error).__name__}: {error}")
            finally:
                recorder.capture.end()
                recorder.capture.listener = recorder.capture.on_gradient = None
        for record in attribution.records():
            recorder.write(record)
        recorder.write_exact(attribution, before)


def _merged(symptom: Verdict, cause: Verdict) -> Verdict:
    """The verdict about the step that holds the cause, with what the step that showed it adds."""
    modules = [m for m in (*cause.modules, symptom.module) if m != cause.module]
    evidence = {**cause.evidence, "first_nonfinite_module": symptom.module}
    return Verdict(
        step=cause.step,
        symptom="outlier",
        module=cause.module,
        modules=list(dict.fromkeys(modules)),
        layer=cause.layer,
        neurons=cause.neurons,
        positions=cause.positions,
        normal=cause.normal,
        op=symptom.op,
        evidence=evidence,
    )


def _ordinary(verdict: Verdict, n_examples: int) -> list[int]:
    """A few examples to compare with: the most ordinary one first."""
    if verdict.normal is None:
        return []
    others = [p for p in range(n_examples) if p not in verdict.positions and p != verdict.normal]
    return [verdict.normal, *others[: N_EXAMPLES - 1]]
