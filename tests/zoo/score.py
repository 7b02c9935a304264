"""How right findings are."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dgm_tb.records import Finding

from .cases import Case

ALARMING = ("error", "warning")


@dataclass(frozen=True)
class Score:
    """What was right; None where the truth says nothing.

    Attributes:
        kind: Whether a finding has a right kind.
        first: Whether the first one has.
        top1: Whether the first finding has a right module.
        top3: Whether one of the first three has.
        step: Distance of the first right finding to the true step.
        sample: Whether the first right finding with examples names a guilty one first.
        neurons: Intersection over union, the best of all findings.
        alarms: Findings of a healthy training.
    """

    kind: bool | None = None
    first: bool | None = None
    top1: bool | None = None
    top3: bool | None = None
    step: int | None = None
    sample: bool | None = None
    neurons: float | None = None
    alarms: int = 0


def score(case: Case, findings: Sequence[Finding]) -> Score:
    """Judge the findings of a case."""
    found = [finding for finding in findings if finding.severity in ALARMING]
    if not case.kind:
        return Score(alarms=len(found))
    right = [finding for finding in found if finding.kind in (case.kind, *case.also)]
    hits = [any(fnmatchcase(finding.module, pattern) for pattern in case.modules) for finding in found]
    named = [finding.samples[0] for finding in found if finding.samples]
    overlaps = [_overlap(finding.neurons, case.neurons) for finding in found if finding.neurons]
    step = None
    if case.step is not None:
        distances = [max(case.step[0] - f.step, f.step - case.step[1], 0) for f in right]
        step = distances[0] if distances else 10**6
    return Score(
        kind=bool(right),
        first=bool(found) and found[0] in right,
        top1=any(hits[:1]) if case.modules else None,
        top3=any(hits[:3]) if case.modules else None,
        step=step,
        sample=bool(named) and named[0] in case.samples if case.samples else None,
        neurons=max(overlaps, default=0.0) if case.neurons else None,
    )


def _overlap(got: Sequence[int], wanted: Sequence[int]) -> float:
    return len(set(got) & set(wanted)) / len(set(got) | set(wanted))
