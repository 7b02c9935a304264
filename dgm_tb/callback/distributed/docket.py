"""Which of several ranks' findings about one failure is the right one.

A NaN on one rank reaches all others within a step: the gradients are averaged, then the weights are spoilt. Every rank
reports what it sees, and would name an innocent example of its own; only the rank where it began knows the cause. So
findings wait here until every rank has said what it knows, or for a bounded time.
"""

import math
from dataclasses import dataclass, field

from dgm_tb.records import Finding, Record

EPISODE_STEPS = 2
"""A failure that shows on several ranks within so many steps is one and the same."""

WAIT_SECONDS = 3.0
"""How long a rank that knows a cause is held back for one that may know a better."""

INNOCENT_SECONDS = 30.0
"""How long a rank is held back that knows no cause of its own."""


@dataclass
class Case:
    """All that one rank says about one step: findings, and the records of their evidence.

    Attributes:
        rank: The rank.
        step: The step that showed it.
        claim: How well the rank explains the failure, the smaller the better: 0 if it has a cause of its own, else 1;
            then the step that showed it, and so on. Empty if the case is no failure: then it competes with no other.
        findings: The findings.
        records: Finding records and evidence, in order.
        arrived: When it came, in seconds.
    """

    rank: int
    step: int
    claim: tuple[float, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    arrived: float = 0.0

    @property
    def is_guilty(self) -> bool:
        """Whether the rank has a cause of its own."""
        return self.claim[:1] != (1,)

    def order(self) -> tuple[float, ...]:
        """Sort key: the one to believe first."""
        return *self.claim, self.rank


class Docket:
    """Collects the cases of all ranks; free of clocks and threads.

    Args:
        ranks: All ranks.
    """

    def __init__(self, ranks: range) -> None:
        self._cases: list[Case] = []
        self._reached = dict.fromkeys(ranks, -1.0)
        self._failures: list[tuple[int, int, bool]] = []
        self._explained: list[tuple[int, int]] = []

    def add(self, case: Case) -> None:
        """Take in a case."""
        self._cases.append(case)

    def reached(self, rank: int, step: float) -> None:
        """A rank has said all it will ever say of the steps up to this one."""
        self._reached[rank] = max(self._reached[rank], step)

    def gone(self, rank: int) -> None:
        """A rank will say nothing more."""
        self._reached[rank] = math.inf

    def is_waiting(self, rank: int | None = None) -> bool:
        """Whether something (of this rank) is undecided."""
        return any(rank is None or case.rank == rank for case in self._cases)

    def decide(self, now: float, *, is_last: bool = False) -> list[Case]:
        """The cases to write.

        Args:
            now: The time, in seconds.
            is_last: Whether to wait for nothing more.
        """
        plain = [case for case in self._cases if not case.claim]
        waiting = sorted((case for case in self._cases if case.claim), key=lambda case: case.step)
        self._cases, found = [], []
        while waiting:
            first = waiting[0].step
            group = [case for case in waiting if case.step <= first + EPISODE_STEPS]
            waiting = waiting[len(group) :]
            best = min(group, key=Case.order)
            if self._is_decided(best):
                continue
            if is_last or self._is_due(group, best, now):
                found.append(best)
                self._failures.append((first, group[-1].step, best.is_guilty))
                self._explained.append((first, group[-1].step))
            else:
                self._cases += group
        return found + [case for case in plain if not self._is_echo(case)]

    def _is_due(self, group: list[Case], best: Case, now: float) -> bool:
        accounted = {case.rank for case in group}
        if all(rank in accounted or step >= best.step for rank, step in self._reached.items()):
            return True
        limit = WAIT_SECONDS if best.is_guilty else INNOCENT_SECONDS
        return now >= min(case.arrived for case in group) + limit

    def _is_decided(self, case: Case) -> bool:
        """Whether its failure was decided before; a rank with a cause may still overrule those without."""
        return any(
            first <= case.step <= last + EPISODE_STEPS and (is_guilty or not case.is_guilty)
            for first, last, is_guilty in self._failures
        )

    def _is_echo(self, case: Case) -> bool:
        """Whether it only tells of a leap in the losses that another rank has explained."""
        steps = [finding.step for finding in case.findings]
        if all(finding.kind == "loss_spike" for finding in case.findings) and any(
            first <= step <= last + EPISODE_STEPS for first, last in self._explained for step in steps
        ):
            return True
        self._explained += [(step, step) for step in steps]
        return False
