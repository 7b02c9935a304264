"""The last steps at full resolution, and what has been usual lately."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dgm_tb.algorithms.outliers import JUMP_RATIO, is_spike, jump
from dgm_tb.callback.investigate import Step
from dgm_tb.callback.slots import Slot
from dgm_tb.callback.step_row import statistics_of
from dgm_tb.records import Record, compact

HISTORY_STEPS = 64
ROWS_PER_BATCH = 8
"""Steps whose numbers are kept for each one whose batch is."""
MAX_BYTES = 32 << 20
"""Of neurons' numbers; large models keep the numbers of fewer steps."""


class Ring:
    """Keeps the last steps whole, the numbers of every neuron for longer, and losses and gradient norms for 64 steps.

    Args:
        ring_steps: Steps kept with their batches. Every neuron's numbers and every example's largest activations are
            kept for eight times as many, as long as they take no more than 32 MB.

    Attributes:
        steps: The whole ones.
    """

    def __init__(self, ring_steps: int) -> None:
        self.steps: deque[Step] = deque(maxlen=ring_steps)
        self._rows: deque[tuple[Step, list[int] | None]] = deque(maxlen=ROWS_PER_BATCH * ring_steps)
        self._losses: dict[str, deque[float]] = {}
        self._gradient: deque[float] = deque(maxlen=HISTORY_STEPS)

    def add(self, step: Step) -> None:
        """Take in a step."""
        self.steps.append(step)
        if any(step.row.counts):
            indices = step.before.indices if step.before is not None else None
            self._rows.append((replace(step, before=None), indices))
            while len(self._rows) > len(self.steps) and len(self._rows) * _n_bytes(step) > MAX_BYTES:
                self._rows.popleft()
        for name, value in step.losses.items():
            self._losses.setdefault(name, deque(maxlen=HISTORY_STEPS)).append(value)
        if step.gradient_norms and not step.was_skipped:
            self._gradient.append(_norm(step.gradient_norms))

    def breaks_with_history(
        self, losses: Mapping[str, float], gradient_norms: Mapping[str, float]
    ) -> tuple[str, float] | None:
        """The loss (or ``"gradient norm"``) that is far above all recent ones, with the ratio; None if none is.

        Args:
            losses: Name -> value in a step not yet taken in.
            gradient_norms: Parameter -> norm of its gradient.
        """
        series = [(name, self._losses.get(name, deque()), value) for name, value in losses.items()]
        series.append(("gradient norm", self._gradient, _norm(gradient_norms)))
        # what is not that many times the value before it is not that many times all of them, either: mostly all is done
        leaps = [(n, h, v) for n, h, v in series if h and not abs(v) < JUMP_RATIO * abs(h[-1])]
        ratios = {name: jump(history, value) for name, history, value in leaps}
        name = max(ratios, key=lambda key: ratios[key], default="")
        return (name, ratios[name]) if name and ratios[name] >= JUMP_RATIO else None

    def spiking_losses(self, step: Step) -> list[str]:
        """Names of the losses that leap out of a calm history in this step."""
        return [name for name, value in step.losses.items() if is_spike(self._losses.get(name, ()), value)]

    def to_record(self, slots: list[Slot], reason: str, n_steps: int | None = None) -> Record | None:
        """The ring as a record, or None if nothing was observed.

        Args:
            slots: What was observed.
            reason: Why it is written.
            n_steps: How many of its last steps; all by default.
        """
        rows = list(self._rows)[-n_steps if n_steps is not None else 0 :]
        observed = [step for step, _ in rows]
        if not observed:
            return None
        n_examples = max((len(v) for step in observed for v in step.row.examples.values()), default=0)
        activation, gradient = statistics_of([step.row for step in observed], slots)
        examples = np.full((len(observed), len(slots), n_examples), np.nan, np.float32)
        indices = np.full((len(observed), n_examples), -1, np.int64)
        for number, (step, known) in enumerate(rows):
            for slot, largest in step.row.examples.items():
                examples[number, slot, : len(largest)] = largest.cpu().numpy()
            if known is not None:
                indices[number, : len(known[:n_examples])] = known[:n_examples]
        halved, scale = compact({"activation": activation, "gradient": gradient, "examples": examples})
        arrays: dict[str, Any] = {
            "steps": np.array([step.step for step in observed], np.int64),
            **halved,
            "indices": indices,
        }
        body = {"reason": reason, "losses": [dict(step.losses) for step in observed], **scale}
        return Record("ring", observed[0].step, observed[-1].step, body, arrays)


def _n_bytes(step: Step) -> int:
    row = step.row
    return 4 * (row.activation.numel() + row.gradient.numel() + sum(map(len, row.examples.values())))


def _norm(norms: Mapping[str, float]) -> float:
    return math.hypot(*norms.values())
