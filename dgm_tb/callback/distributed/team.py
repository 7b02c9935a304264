"""What all ranks of a recording have in common: cases, and a thread that talks."""

import atexit
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dgm_tb.callback.distributed.agreement import SharedGovernor
from dgm_tb.callback.distributed.docket import Case
from dgm_tb.callback.distributed.mailbox import Mailbox
from dgm_tb.callback.say import warn
from dgm_tb.callback.slots import Slot
from dgm_tb.callback.windows import Row
from dgm_tb.records import Finding, Record

if TYPE_CHECKING:
    from dgm_tb.callback.recorder import Recorder

POLL_SECONDS = 0.25


class Team:
    """One rank of several. The training's thread calls the public methods, a thread of its own does the talking.

    Args:
        recorder: The rank's recorder.
        mailbox: To the other ranks.
        announce: Tells the other ranks of a cadence; None on those that follow.

    Attributes:
        rank: This rank.
        world_size: Number of ranks.
        prefix: What the ids of this rank's findings begin with.
        governor: Chooses the observed steps, the same on all ranks.
        is_lost: Whether the ranks can't talk any more, so that each is on its own.
    """

    def __init__(
        self, recorder: "Recorder", mailbox: Mailbox, announce: Callable[[Mapping[str, Any]], None] | None
    ) -> None:
        self.rank = mailbox.rank
        self.world_size = mailbox.world_size
        self.prefix = f"r{self.rank}" if self.rank else ""
        self.governor = SharedGovernor(recorder.options.every_n_steps, recorder.options.max_overhead, announce)
        self.is_lost = False
        self._recorder = recorder
        self._mailbox = mailbox
        self._case: Case | None = None
        self._claim: tuple[float, ...] = ()
        self._is_ending = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dgm_tb-team", daemon=True)

    def start(self) -> None:
        """Begin to talk, once the recorder is complete."""
        self._thread.start()
        atexit.register(self.leave)  # a thread that is still in the store's code when Python ends aborts the process

    # -- cases ---------------------------------------------------------------------------------------------------------

    def open_case(self, finding: Finding) -> None:
        """A finding was made: its record and what is written after it belong to one case, until ``submit``."""
        if self._case is None:
            self._case = Case(self.rank, finding.last_step)
        self._case.findings.append(finding)

    def takes(self, record: Record) -> bool:
        """Whether a record is not to be written now: it belongs to the open case, or this is not rank 0."""
        if self._case is not None:
            self._case.records.append(record)
        return self._case is not None or self.rank > 0

    def claim(self, *numbers: float) -> None:
        """Say of the next case that it is a failure, and how well this rank explains it; see ``Case``."""
        self._claim = numbers

    def submit(self) -> None:
        """Hand the open case in, if there is one."""
        case, self._case = self._case, None
        claim, self._claim = self._claim, ()
        if case is not None:
            case.claim = claim
            case.arrived = time.monotonic()
            self._hand_in(case)
            self._wake.set()

    def _hand_in(self, case: Case) -> None:
        raise NotImplementedError

    # -- steps ---------------------------------------------------------------------------------------------------------

    def add(self, row: Row) -> None:
        """Take in a step."""
        raise NotImplementedError

    def rows(self) -> list[Row]:
        """Steps that can be written now."""
        raise NotImplementedError

    def agrees_to_stop(self, step: int) -> bool:
        """Whether all ranks stop after this step, which has just ended."""
        raise NotImplementedError

    def close(self, *, has_failed: bool) -> list[Row]:
        """End within a few seconds; the steps that are left to be written."""
        raise NotImplementedError

    def leave(self) -> None:
        """End at once: this rank has given up."""
        self._end(1.0)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _talk(self) -> None:
        """Once every quarter of a second, or when there is something urgent."""
        raise NotImplementedError

    def _say_goodbye(self) -> None:
        """At the end."""
        raise NotImplementedError

    def _on_lost(self) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        try:
            seconds = 0.0
            while not self._is_ending:
                self._wake.wait(max(POLL_SECONDS, 10 * seconds))  # with many ranks, a poll takes its time
                self._wake.clear()
                began = time.perf_counter()
                self._talk()
                seconds = time.perf_counter() - began
            self._say_goodbye()
        except Exception as error:
            self.is_lost = True
            if not self._is_ending:
                lost = f"rank {self.rank} is not recorded" if self.rank else "rank 0 records its own numbers only"
                warn(f"the ranks can't talk any more, {lost}, training goes on: {type(error).__name__}: {error}")
            self._on_lost()

    def _end(self, seconds: float) -> None:
        """Let the thread say goodbye, and leave it to itself if it takes too long."""
        atexit.unregister(self.leave)
        self._is_ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _slots(self) -> list[Slot]:
        return list(self._recorder.capture.slots)
