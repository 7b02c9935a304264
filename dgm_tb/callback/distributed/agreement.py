"""What all ranks of a training must do at the same step: observe it, and stop after it."""

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dgm_tb.callback.governor import Governor

Announce = Callable[[Mapping[str, Any]], None]

AHEAD_SECONDS = 3.0
"""A change is announced for a step that lies about so far ahead."""
AHEAD_STEPS = 8
DECISION_SECONDS = 60.0
"""How long a rank that has promised to stop waits to hear whether all have."""


class SharedGovernor(Governor):
    """Rank 0's governor, which announces its choices, or another rank's, which follows them.

    Args:
        every_n_steps: See ``Governor``.
        max_overhead: See ``Governor``.
        announce: Tells the other ranks; None on those.
    """

    def __init__(self, every_n_steps: int, max_overhead: float | None, announce: Announce | None) -> None:
        super().__init__(every_n_steps, max_overhead)
        self._announce = announce
        self._schedule = [(0, every_n_steps)]
        self._step = 0
        self._seconds_per_step = 0.0

    def is_due(self, step: int) -> bool:
        """Whether this step is observed, on every rank."""
        self._step = step
        return step % next(cadence for since, cadence in reversed(self._schedule) if since <= step or not since) == 0

    def account(self, own: float, elapsed: float) -> bool:
        """See ``Governor``; a choice holds from ``since`` on, and none is made before that."""
        weight = 0.1 if self._seconds_per_step else 1.0
        self._seconds_per_step += weight * (elapsed - self._seconds_per_step)
        if self._announce is None:
            return False
        if self._step < self.since:
            self._own, self._elapsed = self._own + own, self._elapsed + elapsed
            return False
        if not super().account(own, elapsed):
            return False
        self.since = self._step + self.n_ahead()
        self.follow(self.since, self.cadence)
        self._announce({"cadence": self.cadence, "since": self.since})
        return True

    def follow(self, since: int, cadence: int) -> None:
        """Take over a choice of rank 0."""
        self._schedule.append((since, cadence))

    def n_ahead(self) -> int:
        """Steps after which every rank will have heard an announcement."""
        return max(AHEAD_STEPS, math.ceil(AHEAD_SECONDS / max(self._seconds_per_step, 1e-6)))


class StopProposal:
    """Rank 0's side: proposes a step to stop after, and decides on it one step before.

    A rank that stopped alone would leave the others waiting in their next collective. So each promises in time to heed
    the decision, and if one did not, nobody stops, and a later step is proposed.

    Args:
        ranks: The others.
        announce: Tells them.
        n_ahead: Steps after which they will have heard.

    Attributes:
        is_wanted: Whether the training is to stop.
    """

    def __init__(self, ranks: Iterable[int], announce: Announce, n_ahead: Callable[[], int]) -> None:
        self.is_wanted = False
        self._ranks = set(ranks)
        self._announce = announce
        self._n_ahead = n_ahead
        self._step = -1
        self._promised: set[int] = set()
        self._is_on = False
        self._patience = 1

    def promised(self, rank: int, step: int) -> None:
        """A rank will heed the decision."""
        if step == self._step:
            self._promised.add(rank)

    def end_step(self, step: int) -> bool:
        """Whether to stop after this step."""
        if not self.is_wanted:
            return False
        if self._step < 0:
            self._promised = set()
            self._step = step + self._patience * self._n_ahead()
            self._announce({"stop_after": self._step})
        elif step == self._step - 1:
            self._is_on = self._promised >= self._ranks
            self._announce({"decided": self._step, "is_on": self._is_on})
            if not self._is_on:
                self._step, self._patience = -1, 2 * self._patience
        return self._is_on and step >= self._step


class StopPromise:
    """Another rank's side: promises to stop if rank 0 decides so; it is told by a thread of its own."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ended = self._step = -1
        self._decided: dict[int, bool] = {}
        self._is_lost = False

    def propose(self, step: int) -> bool:
        """Whether the promise is given: not if the step is over already."""
        with self._changed:
            if step <= self._ended:
                return False
            self._step = step
            return True

    def decide(self, step: int, is_on: bool) -> None:
        """Hear the decision."""
        with self._changed:
            self._decided[step] = is_on
            self._changed.notify_all()

    def lose(self) -> None:
        """There will be no decision."""
        with self._changed:
            self._is_lost = True
            self._changed.notify_all()

    def end_step(self, step: int) -> bool:
        """Whether to stop after this step; waits for the decision if this is the step that was promised."""
        with self._changed:
            self._ended = step
            if step != self._step:
                return False
            self._changed.wait_for(lambda: step in self._decided or self._is_lost, DECISION_SECONDS)
            return self._decided.get(step, False)
