"""Records one training: knows what to do in a step, not who calls it. Lightning-free; see ``callback.py`` for when."""

import contextlib
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dgm_tb.callback.attribution import Attribution
from dgm_tb.callback.capture import Capture
from dgm_tb.callback.compiled import is_compiled
from dgm_tb.callback.distributed import Leader, join_team
from dgm_tb.callback.exact import exact_records
from dgm_tb.callback.examples import batch_size
from dgm_tb.callback.governor import Governor
from dgm_tb.callback.inquiry import Inquiry
from dgm_tb.callback.investigate import Step
from dgm_tb.callback.loss_scale import LossScale
from dgm_tb.callback.model_map import ModelMap
from dgm_tb.callback.options import Options
from dgm_tb.callback.output import Output
from dgm_tb.callback.passage import Departure
from dgm_tb.callback.reductions import N_STATISTICS
from dgm_tb.callback.replay import Before, Rerun, remember
from dgm_tb.callback.ring import Ring
from dgm_tb.callback.say import warn
from dgm_tb.callback.step_row import StepRow
from dgm_tb.callback.verdicts import on_rank
from dgm_tb.callback.vitals import Vitals, are_finite
from dgm_tb.callback.weights import WeightWatch
from dgm_tb.callback.windows import Row, Windows
from dgm_tb.graph import Graph
from dgm_tb.records import Finding, Record

FLUSH_SECONDS = 2.0
FLUSH_ROWS = 256
WEIGHED_PER_WINDOW = 4
"""Steps per window whose weights and updates are measured: weights change slowly, and there are many."""

_F = TypeVar("_F", bound=Callable[..., Any])


def never_raises(method: _F) -> _F:
    """A method whose errors end the recording, with one warning, and never the training."""

    @functools.wraps(method)
    def guarded(self: "Recorder", *args: Any, **kwargs: Any) -> Any:
        if self.is_broken:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.give_up(f"{method.__name__} failed with {type(error).__name__}: {error}")
            return None

    return guarded  # type: ignore[return-value]


class Recorder:
    """Observes one model and writes one recording.

    Args:
        root: The model.
        options: The options.
        folder: Where the recording's own folder is made; None records nothing on disk (findings still come).
        facts: What the recording says of itself, besides the options: ``versions``, ``model``, ``resume_step``.
        rerun: Runs a training step again, or None if that is impossible.

    Attributes:
        findings: Everything found so far.
        is_broken: Whether an error of ours ended the recording.
        should_stop: Whether a finding asks the training to stop.
        ring_is_due_for: Why the ring is to be written once the current step is in it, or "".
        step: Number of the current or next step.
        output: Where its records go.
        team: This process's part in a recording of several; None if it trains alone.
        lag: Steps after which one is looked into: 0 on the CPU, 1 on a device, so that nobody waits for it.
    """

    def __init__(
        self, root: nn.Module, options: Options, folder: Path | None, facts: dict[str, Any], rerun: Rerun | None = None
    ) -> None:
        self.root = root
        self.options = options
        self.findings: list[Finding] = []
        self.is_broken = False
        self.should_stop = False
        self.ring_is_due_for = ""
        self.step = int(facts.get("resume_step", 0))
        self.rerun = rerun
        self.weights = WeightWatch(root, options.max_copy_mb << 20)  # may raise: before there are hooks
        self.capture = Capture(root)
        try:
            self._prepare(folder, facts)
        except BaseException:
            self._remove_hooks()
            raise

    def _prepare(self, folder: Path | None, facts: dict[str, Any]) -> None:
        root, options = self.root, self.options
        self.loss_scale = LossScale(self.weights.parameters, self.capture.scale_gradients)
        self.vitals = Vitals(self.weights, self.loss_scale)
        self.map = ModelMap(root, self.capture, self.weights)
        self.ring = Ring(options.ring_steps)
        self.team = join_team(self)
        self._governor = self.team.governor if self.team else Governor(options.every_n_steps, options.max_overhead)
        self._windows = Windows(options.window_steps)
        self._inquiry = Inquiry(self)
        ranks = {"rank": 0, "world_size": self.team.world_size} if self.team is not None else {}
        facts = {"model": type(root).__name__, **ranks, **facts}
        self.output = Output(folder if self.is_leading else None, options, self.step, facts)
        for text in self.weights.take_notes():
            self.note(text)
        self._attribution: Attribution | None = None
        self._before: Before | None = None
        self._extra_snapshot = -1
        self._weighs = False
        self._weigh_every = max(1, options.window_steps // WEIGHED_PER_WINDOW)
        self._under_way: deque[Departure] = deque()
        self._weights_before: list[Tensor] | None = None
        self._can_look = all(parameter.device.type == "cpu" for parameter in self.weights.parameters)
        self.lag = 0
        if not self._can_look:
            self.look_late()
        self._is_closed = self._has_warned = False
        self.is_in_step = False
        self._began = self._ended = time.perf_counter()
        self._own = 0.0
        self._flushed = time.monotonic()
        self._n_fresh = 0
        if self.team is not None:
            self.team.start()

    def look_late(self) -> None:
        """From now on read nothing of a step before the next one has ended."""
        self.lag, self._can_look, self.capture.is_late = 1, False, True

    @property
    def is_leading(self) -> bool:
        """Whether this is the only process, or the one of several that writes."""
        return self.team is None or self.team.rank == 0

    @property
    def before(self) -> Before | None:
        """What the newest step started from."""
        return self._before

    @never_raises
    def begin_step(self, batch: Any, batch_idx: int, indices: list[int] | None) -> None:
        """Start observing a step.

        Args:
            batch: What ``training_step`` is going to get; kept by reference for ``ring_steps`` steps.
            batch_idx: The number it is going to get.
            indices: Dataset index of every example, or None.
        """
        self.abandon_step()
        self._began = time.perf_counter()
        is_due = self._governor.is_due(self.step) or self.map.must_trace
        self._weighs = is_due and self.step // self._governor.cadence % self._weigh_every == 0
        self.vitals.begin()
        is_snapshot = is_due and self.is_leading and self._is_snapshot()
        is_rerun = is_snapshot and self.options.exact_snapshots and self._has_links("exact")
        self.weights.begin(copy=self._weighs or self.vitals.steps_often or not self._can_look or is_rerun)
        self.loss_scale.begin()
        self._before = remember(self.step, batch, batch_idx, indices, self.map.modules)
        self.is_in_step = True
        if is_due:
            self.capture.begin(batch_size(batch))
            if is_snapshot:
                graph = self.map.graph or Graph()
                self._attribution = Attribution(self.step, graph, {"batch": None}, self.options.rules)
                self._attribution.unscaled = self.loss_scale.divided
                if not self.options.exact_snapshots:
                    self._attribution.exact.clear()
                self.capture.listener = self._attribution.on_forward
                self.capture.on_gradient = self._attribution.on_gradient
        self.map.begin(batch)
        self._own = time.perf_counter() - self._began

    @never_raises
    def abandon_step(self) -> None:
        """Forget a step that began and never ended: the training skipped the rest of its epoch."""
        if self.is_in_step:
            self._leave_step(0)

    @never_raises
    def note_loss(self, name: str, value: Any) -> None:
        """Note a loss of the current step, without its scale if it has one; whatever is no number is passed over."""
        self.vitals.note_loss(name, value)

    @never_raises
    def note_gradients(self, parameters: Iterable[Tensor], *, are_scaled: bool = False) -> None:
        """Note the gradients that an optimizer is about to use, before they are clipped.

        Args:
            parameters: The optimizer's.
            are_scaled: Whether a gradient scaler's factor is still in them.
        """
        began = time.perf_counter()
        only_if_bad = self._can_look and not self.capture.is_active
        self.vitals.note_gradients(list(parameters), are_scaled=are_scaled, if_bad=only_if_bad)
        if self._can_look and not self.weights.has_copy and self._looks_bad():
            self.vitals.secure_weights()  # before the optimizer changes them
        self._own += time.perf_counter() - began

    @never_raises
    def end_step(self, global_step: int) -> None:
        """Take in the step that has ended, and look into it if something is wrong.

        Args:
            global_step: Lightning's number of optimizer steps so far.
        """
        began = time.perf_counter()
        if not self.is_in_step:
            return
        self._under_way.append(self._leave_step(global_step))
        while len(self._under_way) > self.lag:
            self._arrive(self._under_way.popleft().arrive())
        if self.team is not None:
            self.should_stop = self.should_stop or self.team.agrees_to_stop(self.step)
        self.step += 1
        self._flush_if_due()
        now = time.perf_counter()
        own, elapsed = self._own + self.capture.take_cost() + now - began, now - self._ended
        self._ended = now
        if self._governor.account(own, elapsed):
            since = max(self.step, self._governor.since)
            self.note(f"within max_overhead, one step in {self._governor.cadence} is observed from {since} on")

    @never_raises
    def fail(self, error: BaseException, global_step: int) -> None:
        """The training raised: look into the step that did not end, and write everything."""
        row = None
        if self.is_in_step:
            departure = self._leave_step(global_step)
            self._arrive_all()
            step = self._judged(departure.arrive())
            row = Row(self.step, global_step, step.losses)
            try:
                if isinstance(error, Exception):
                    self._inquiry.look_into(step, error)
            except Exception as own:  # a signal handler's, too: several processes are being ended
                self.note(f"looking into step {self.step} ended with {type(own).__name__}: {own}")
            self.ring.add(step)
        reason = "exception" if isinstance(error, Exception) else "interrupted"
        self.close(reason, f"{type(error).__name__}: {error}"[:2000], row)

    @never_raises
    def close(self, reason: str, exception: str = "", row: Row | None = None) -> None:
        """Write what is left, end the recording and remove every hook. Safe to call twice.

        Args:
            reason: ``finished``, ``exception`` or ``interrupted``.
            exception: What was raised.
            row: The step that did not end.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._leave_tracer()
        self._arrive_all()
        self.write_ring(reason)
        if row is not None:
            self._take_in(row)
        self._flush()  # before the others are waited for: this process may be killed meanwhile
        for last in self.team.close(has_failed=reason != "finished") if self.team is not None else ():
            self._windows.add(last)
        for record in self._windows.take(is_last=True):
            self.write(record)
        body = {"reason": reason, "last_step": self.step - 1, "exception": exception}
        self.write(Record("end", self.step, self.step, body))
        self._remove_hooks()
        self.output.close()

    def write(self, record: Record) -> None:
        """Queue a record of this process for the disk."""
        if self.team is None or not self.team.takes(record):
            self.output.put(record)

    def write_ring(self, reason: str) -> None:
        """Write the last steps at full resolution; fewer of them if nothing went wrong."""
        n_steps = self.options.ring_steps if reason == "finished" else None
        record = self.ring.to_record(self.capture.slots, reason, n_steps) if self.capture.slots else None
        if record is not None:
            self.write(record)

    def note(self, text: str) -> None:
        """Say something in the recording."""
        self.write(Record("note", self.step, self.step, {"text": text}))

    def emit(self, finding: Finding, number: str) -> None:
        """Take in a finding: record it and do what the user asked for."""
        if self.team is not None:
            finding = on_rank(finding, self.team.rank)
            self.team.open_case(finding)
        self.write(Record("finding", finding.step, finding.last_step, {"id": number, "finding": finding.to_json()}))
        if self.team is None:
            self.tell(finding)

    def tell(self, finding: Finding) -> None:
        """Do what the user wants done about a finding; what is but a hint is recorded only."""
        self.findings.append(finding)
        if finding.severity == "info":
            return
        action = self.options.on_finding
        if callable(action):
            try:
                action(finding)
            except Exception as error:
                warn(f"on_finding failed with {type(error).__name__}: {error}; training goes on")
        elif action != "ignore":
            warn(f"{finding.summary}. {finding.advice}")
            if action == "stop" and finding.severity == "error":
                self._stop()

    def give_up(self, reason: str) -> None:
        """End the recording because of an error of ours; training goes on."""
        self.is_broken = True
        self._leave_tracer()
        self._remove_hooks()
        if self.team is not None:
            self.team.leave()
        warn(f"recording stops at step {self.step}, training goes on: {reason}")
        with contextlib.suppress(Exception):
            self.note(f"recording stopped: {reason}")
            body = {"reason": "exception", "last_step": self.step, "exception": reason}
            self.write(Record("end", self.step, self.step, body))
        self.output.close()

    def _stop(self) -> None:
        if isinstance(self.team, Leader):
            self.team.request_stop()
        else:
            self.should_stop = True

    def _remove_hooks(self) -> None:
        self.capture.close()
        for name in ("loss_scale", "vitals"):  # not there yet if the recording could not begin
            if name in vars(self):
                vars(self)[name].remove()

    def _looks_bad(self) -> bool:
        """Whether the step so far is not finite, or breaks with its history: then it may be run again."""
        losses, norms = self.vitals.read()
        return not (are_finite(losses, norms) and self.capture.is_finite()) or (
            self.ring.breaks_with_history(losses, norms) is not None
        )

    # -- inside a step -------------------------------------------------------------------------------------------------

    def _leave_step(self, global_step: int) -> Departure:
        self._leave_tracer()
        row = self.capture.end() or _nothing_observed()
        self.capture.listener = self.capture.on_gradient = None
        row.scale = self.loss_scale.scale
        self.is_in_step = False
        self._take_graph()
        losses, norms = self.vitals.take()
        attribution, self._attribution = self._attribution, None
        weight_norms = self.weights.norms() if self._weighs else None
        squares = weights = None
        if self.lag:  # the next step begins before this one is looked into
            squares = self.weights.end(weight_norms, keep=True) if weight_norms is not None else None
            weights = self.weights.take_before()
        overflows = self.loss_scale.overflows
        what = row, self._before, losses, norms, overflows, weight_norms, squares, weights, attribution
        return Departure(self.step, global_step, *what)

    def _arrive_all(self) -> None:
        while self._under_way:
            self._arrive(self._under_way.popleft().arrive())

    def _arrive(self, departure: Departure) -> None:
        """Look into a step whose numbers are known now, and take it in."""
        step = self._judged(departure)
        self.capture.review(step.row)
        if step.row.counts and not any(step.row.counts):
            self._on_silence(step.step)
        self._inquiry.look_into(step)
        row = Row(step.step, departure.global_step, step.losses, is_skipped=step.was_skipped)
        row.raw = step.row if any(step.row.counts) else None
        if departure.squares is not None:
            row.weights = departure.squares.numpy()
        elif departure.weight_norms is not None:  # last, since it uses up the copy of the weights before the step
            row.weights = self.weights.end(departure.weight_norms).numpy()
        for text in self.weights.take_notes():
            self.note(text)
        self.ring.add(step)
        if self.ring_is_due_for:
            self.write_ring(self.ring_is_due_for)
            self.ring_is_due_for = ""
        self._take_in(row)

    def _judged(self, departure: Departure) -> Step:
        """The step as the inquiry looks at it; from now on ``weights_before`` are its own."""
        self._weights_before = departure.weights
        if departure.before is not None and self._under_way:
            departure.before.weights_after = self._under_way[0].weights or None
        step = Step(departure.step, departure.row, departure.before, departure.losses, departure.norms)  # type: ignore[arg-type]
        step.was_skipped = any(map(bool, departure.overflows))
        if departure.weight_norms is not None and not math.isfinite(float(departure.weight_norms.sum())):
            step.bad_weights = self.weights.nonfinite_parameters()
        self._write_attribution(departure.attribution, departure.before)
        return step

    def _on_silence(self, step: int) -> None:
        """No module was seen to run, though some were before: say so once, if that is to be mended."""
        if not self._has_warned and is_compiled(self.root):
            self._has_warned = True
            text = (
                f"no module of the compiled model reported in step {step}: it was compiled before the recording began, "
                "and its neurons are not recorded; call torch.compiler.reset() before the training"
            )
            self.note(text)
            warn(text)

    def weights_before(self) -> list[Tensor]:
        """The weights before the step that is looked into; empty if they are not known."""
        return self._weights_before if self._weights_before is not None else self.vitals.secure_weights()

    def _leave_tracer(self) -> None:
        failure = self.map.leave()
        if failure:
            self.note(f"the model could not be traced to its end: {failure}")

    def _take_graph(self) -> None:
        is_first = self.map.graph is None
        if not self.map.update() or self.map.graph is None:
            return
        self._windows.slots, self._windows.layers = self.capture.slots, self.map.layout()
        self.write(Record("graph", self.step, self.step, self.map.graph.to_json()))
        if is_first and self._has_links("unflatten", *(["exact"] if self.options.exact_snapshots else [])):
            self._extra_snapshot = self.step + self._governor.cadence

    def _has_links(self, *kinds: str) -> bool:
        return self.map.graph is not None and any(link.kind in kinds for link in self.map.graph.links)

    def _is_snapshot(self) -> bool:
        first = self.options.snapshot_steps
        if self.step < first:
            return self.map.graph is None or self.step == self._extra_snapshot
        scale = 10 ** int(np.log10(self.step / first) + 1e-9)
        return any(self.step == first * scale * m for m in (1, 2, 5)) or (first == 1 and self.step < 10)

    def _write_attribution(self, attribution: Attribution | None, before: Before | None) -> None:
        if attribution is None:
            return
        for record in attribution.records():
            self.write(record)
        self.write_exact(attribution, before)
        for layer, failure in attribution.failures.items():
            self.note(f"no contributions of {layer} at step {attribution.step}: {failure}")

    def write_exact(self, attribution: Attribution, before: Before | None) -> None:
        """Run the step of an attribution again for the matrices that need it, and write them."""
        if attribution.exact and self.map.graph is not None:
            weights, slots = self.weights_before(), self.capture.slots
            what = self.root, before, weights, self.rerun, attribution, self.map.graph, slots
            records, failures = exact_records(*what)
            for record in records:
                self.write(record)
            for failure in failures:
                self.note(failure)

    def _take_in(self, row: Row) -> None:
        if self.team is None:
            self._windows.add(row)
        else:
            self.team.submit()
            self.team.add(row)

    def _flush_if_due(self) -> None:
        self._n_fresh += 1
        if time.monotonic() - self._flushed >= FLUSH_SECONDS or self._n_fresh >= FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        for row in self.team.rows() if self.team is not None else ():
            self._windows.add(row)
        for record in self._windows.take():
            self.write(record)
        now = time.monotonic()
        self.output.put_live(self._windows.unfinished(older_than=now - FLUSH_SECONDS))
        self._flushed, self._n_fresh = now, 0


def _nothing_observed() -> StepRow:
    return StepRow(_NOTHING, [], _NOTHING[0], [])


_NOTHING = torch.zeros(N_STATISTICS, 0)
