"""A rank above 0: posts what it has, and writes nothing."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dgm_tb.callback.distributed.agreement import StopPromise
from dgm_tb.callback.distributed.docket import Case
from dgm_tb.callback.distributed.letters import case_letter, rows_letter
from dgm_tb.callback.distributed.mailbox import Mailbox, pack
from dgm_tb.callback.distributed.team import Team
from dgm_tb.callback.windows import Row

if TYPE_CHECKING:
    from dgm_tb.callback.recorder import Recorder

POST_SECONDS = 1.0
"""Rows are posted this often, cases at once."""

GOODBYE_SECONDS = 5.0
CONFIRM_SECONDS = 10.0
"""How long the end waits for everything to be posted, and if the training failed, for rank 0 to have written it."""

MAX_UNCONFIRMED_BYTES = 64 << 20
"""While so much has not been collected, only losses and cases are posted."""


class Member(Team):
    """See ``Team``."""

    def __init__(self, recorder: "Recorder", mailbox: Mailbox) -> None:
        super().__init__(recorder, mailbox, None)
        self._outbox: deque[Row | Case] = deque()
        self._promise = StopPromise()
        self._n_slots = 0
        self._posted = 0.0
        self._unconfirmed: deque[tuple[int, int]] = deque()
        self._last_case = 0
        self._has_failed = False

    def add(self, row: Row) -> None:
        """See ``Team``."""
        if not self.is_lost:
            self._outbox.append(row)

    def agrees_to_stop(self, step: int) -> bool:
        """See ``Team``; waits for rank 0's decision if this is the step it has proposed."""
        return self._promise.end_step(step)

    def rows(self) -> list[Row]:
        """Nothing: rank 0 writes."""
        return []

    def close(self, *, has_failed: bool) -> list[Row]:
        """Post what is left, and if the training failed, stay until rank 0 has written what was found."""
        self.submit()
        self._has_failed = has_failed
        self._end(GOODBYE_SECONDS + CONFIRM_SECONDS if has_failed else GOODBYE_SECONDS)
        return []

    def _hand_in(self, case: Case) -> None:
        if self.is_lost:
            for finding in case.findings:
                self._recorder.tell(finding)
        else:
            self._outbox.append(case)

    def _talk(self) -> None:
        for notice in self._mailbox.notices():
            self._hear(notice)
        if self._unconfirmed:
            n_confirmed = self._mailbox.n_confirmed()
            while self._unconfirmed and self._unconfirmed[0][0] <= n_confirmed:
                self._unconfirmed.popleft()
        is_due = time.monotonic() - self._posted >= POST_SECONDS
        if is_due or any(isinstance(item, Case) for item in list(self._outbox)):
            self._post_outbox()

    def _say_goodbye(self) -> None:
        self._post_outbox()
        self._mailbox.post(pack({"is": "goodbye"}, {}))
        until = time.monotonic() + CONFIRM_SECONDS
        while self._has_failed and self._mailbox.n_confirmed() < self._last_case and time.monotonic() < until:
            time.sleep(0.05)

    def _on_lost(self) -> None:
        self._outbox.clear()
        self._promise.lose()

    def _hear(self, notice: Mapping[str, Any]) -> None:
        if "cadence" in notice:
            self.governor.follow(notice["since"], notice["cadence"])
        elif "stop_after" in notice:
            if self._promise.propose(notice["stop_after"]):
                self._mailbox.post(pack({"is": "promise", "step": notice["stop_after"]}, {}))
        elif "decided" in notice:
            self._promise.decide(notice["decided"], notice["is_on"])
        elif "is_over" in notice:
            raise ConnectionError("rank 0 has stopped recording")

    def _post_outbox(self) -> None:
        self._posted = time.monotonic()
        while self._outbox:
            first = self._outbox.popleft()
            if isinstance(first, Case):
                slots = self._slots()
                self._post(case_letter(first, slots, self._n_slots), len(slots))
                self._last_case = self._mailbox.n_posted
                continue
            rows = [first]
            while self._outbox and isinstance(row := self._outbox[0], Row):
                rows.append(row)
                self._outbox.popleft()
            if sum(size for _, size in self._unconfirmed) > MAX_UNCONFIRMED_BYTES:
                rows = [replace(row, raw=None, weights=None) for row in rows]
            slots = self._slots()
            is_sharded = self._recorder.weights.is_sharded
            self._post(rows_letter(rows, slots, self._n_slots, with_weights=is_sharded), len(slots))

    def _post(self, letter: bytes, n_slots: int) -> None:
        self._mailbox.post(letter)
        self._unconfirmed.append((self._mailbox.n_posted, len(letter)))
        self._n_slots = n_slots
