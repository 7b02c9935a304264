"""Rank 0: collects what the others post, decides which findings are right, merges rows, and writes."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dgm_tb.callback.distributed.agreement import StopProposal
from dgm_tb.callback.distributed.docket import Case, Docket
from dgm_tb.callback.distributed.letters import Array, Layout, case_in, placed_record, placed_share, shares_in
from dgm_tb.callback.distributed.mailbox import Mailbox, unpack
from dgm_tb.callback.distributed.merging import Share, merge, shares_of
from dgm_tb.callback.distributed.team import Team
from dgm_tb.callback.weights import weight_statistics
from dgm_tb.callback.windows import Row
from dgm_tb.records import Finding

if TYPE_CHECKING:
    from dgm_tb.callback.recorder import Recorder

PARTNER_SECONDS = 30.0
MAX_WAITING_BYTES = 256 << 20
"""A step is written without the ranks that have not posted it by then; after that they are not waited for."""

CLOSE_SECONDS = 5.0
FAILED_SECONDS = 3.0
"""How long the end waits for the other ranks' goodbye; if the training failed, they may hang and never say it."""


class _Partner:
    """What is known of another rank.

    Attributes:
        layout: Its slots.
        shares: Step -> what it knows of it, not merged yet.
        reached: Its last step that came.
        is_silent: Whether it is not waited for.
        has_left: Whether it said goodbye.
        n_letters: Letters that came.
        n_confirmed: Letters that it knows to be dealt with.
    """

    def __init__(self) -> None:
        self.layout: Layout = []
        self.shares: dict[int, Share] = {}
        self.reached = -1
        self.is_silent = self.has_left = False
        self.n_letters = self.n_confirmed = 0


class Leader(Team):
    """See ``Team``."""

    def __init__(self, recorder: "Recorder", mailbox: Mailbox) -> None:
        super().__init__(recorder, mailbox, self._announce)
        self._lock = threading.Condition()
        self._partners = {rank: _Partner() for rank in range(1, mailbox.world_size)}
        self._docket = Docket(range(mailbox.world_size))
        self._own: deque[tuple[Row, float]] = deque()
        self._written = -1
        self._notices: deque[Mapping[str, Any]] = deque()
        self._news: deque[Finding] = deque()
        self._proposal = StopProposal(self._partners, self._announce, self.governor.n_ahead)
        self._has_noted: set[str] = set()

    def request_stop(self) -> None:
        """Let all ranks stop, soon and after the same step."""
        self._proposal.is_wanted = True

    def add(self, row: Row) -> None:
        """See ``Team``."""
        with self._lock:
            self._own.append((row, time.monotonic()))
            self._docket.reached(0, row.step)

    def agrees_to_stop(self, step: int) -> bool:
        """See ``Team``."""
        self._tell_news()
        return self._proposal.end_step(step)

    def rows(self) -> list[Row]:
        """The steps that are complete, or that were waited for long enough, merged."""
        return self._merged(self._take_ready())

    def close(self, *, has_failed: bool) -> list[Row]:
        """Wait a little for what the others still have to say; the steps that are left, merged."""
        self.submit()
        self._note_unknown()
        with self._lock:
            self._docket.gone(0)
            self._wake.set()
            seconds = FAILED_SECONDS if has_failed else CLOSE_SECONDS
            self._lock.wait_for(self._has_heard_all, seconds)
        self._end(2.0)
        self._write_cases(is_last=True)
        self._tell_news()
        return self._merged(self._take_ready(is_last=True))

    def _has_heard_all(self) -> bool:
        have_left = all(partner.has_left for partner in self._partners.values())
        return self.is_lost or (have_left and not self._docket.is_waiting())

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _take_ready(self, *, is_last: bool = False) -> list[tuple[Row, dict[int, Share]]]:
        ready = []
        now = time.monotonic()
        with self._lock:
            while self._own:
                row, since = self._own[0]
                late = [rank for rank, partner in self._partners.items() if not _has_reached(partner, row.step)]
                if late and not (is_last or self.is_lost):
                    if now - since < PARTNER_SECONDS and len(self._own) * _size(row) < MAX_WAITING_BYTES:
                        break
                    for rank in late:
                        self._partners[rank].is_silent = True
                        self._docket.gone(rank)
                if late:
                    ranks = ", ".join(map(str, late))
                    self._note(f"steps from {row.step} on are without rank {ranks}: nothing came of them in time")
                self._own.popleft()
                self._written = row.step
                found = {rank: partner.shares.get(row.step) for rank, partner in self._partners.items()}
                ready.append((row, {rank: share for rank, share in found.items() if share is not None}))
            for partner in self._partners.values():
                partner.shares = {step: share for step, share in partner.shares.items() if step > self._written}
        return ready

    def _merged(self, ready: list[tuple[Row, dict[int, Share]]]) -> list[Row]:
        if not ready:
            return []
        slots = self._slots()
        own = shares_of([row for row, _ in ready], slots)
        merged = []
        for (row, others), share in zip(ready, own, strict=True):
            placed = [placed_share(other, self._partners[rank].layout, slots) for rank, other in others.items()]
            losses, quantities = merge([share, *placed], slots, self.world_size)
            if row.raw is None:
                quantities = {}
            if row.weights is not None:
                weights = weight_statistics(self._whole(row.weights, others))
                quantities |= {"weight": weights[:1], "update": weights[1:]}
            merged.append(replace(row, losses=losses, raw=None, quantities=quantities))
        return merged

    def _whole(self, squares: Array, others: Mapping[int, Share]) -> Array:
        """Sums of squares of the whole weights; NaN if a rank that holds a part of them is missing."""
        if not self._recorder.weights.is_sharded:
            return squares
        parts = [share.weights for share in others.values() if share.weights is not None]
        is_whole = len(parts) == len(self._partners)
        return np.asarray(np.sum([squares, *parts], 0)) if is_whole else np.full_like(squares, np.nan)

    def _note_unknown(self) -> None:
        """Say which layers only other ranks have called."""
        known = {slot.name for slot in self._slots()}
        unknown = {name: rank for rank, partner in self._partners.items() for name, _ in partner.layout}
        for name in sorted(unknown.keys() - known)[:8]:
            self._recorder.note(f"{name} was never called on rank 0, but on rank {unknown[name]}: not recorded")

    def _note(self, text: str) -> None:
        kind = text.partition(" ")[0]
        if kind not in self._has_noted:
            self._has_noted.add(kind)
            self._recorder.note(text)

    # -- cases ---------------------------------------------------------------------------------------------------------

    def _hand_in(self, case: Case) -> None:
        with self._lock:
            self._docket.add(case)
        if self.is_lost:
            self._write_cases(is_last=True)

    def _write_cases(self, *, is_last: bool = False) -> None:
        with self._lock:
            found = self._docket.decide(time.monotonic(), is_last=is_last)
        slots = self._slots()
        for case in found:
            layout = self._partners[case.rank].layout if case.rank else [(slot.name, slot.neurons) for slot in slots]
            for record in case.records:
                self._recorder.output.put(placed_record(record, case.rank, layout, slots))
            self._news.extend(case.findings)
        if found:
            self._recorder.output.sync(5.0)

    def _tell_news(self) -> None:
        """Do what the user wants done about findings, in the training's own thread."""
        while self._news:
            self._recorder.tell(self._news.popleft())

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _announce(self, notice: Mapping[str, Any]) -> None:
        self._notices.append(notice)
        self._wake.set()

    def _talk(self, *, is_last: bool = False) -> None:
        while self._notices:
            self._mailbox.announce(self._notices.popleft())
        for rank, letter in self._mailbox.collect():
            self._take_in(rank, *unpack(letter))
        self._write_cases(is_last=is_last)
        for rank, partner in self._partners.items():
            with self._lock:
                is_due = partner.n_letters > partner.n_confirmed and not self._docket.is_waiting(rank)
            if is_due:
                partner.n_confirmed = partner.n_letters
                self._mailbox.confirm(rank, partner.n_letters)
        with self._lock:
            self._lock.notify_all()

    def _say_goodbye(self) -> None:
        self._announce({"is_over": True})
        self._talk(is_last=True)

    def _on_lost(self) -> None:
        self._write_cases(is_last=True)
        with self._lock:
            self._lock.notify_all()

    def _take_in(self, rank: int, body: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        partner = self._partners[rank]
        with self._lock:
            partner.n_letters += 1
            partner.is_silent = False
            partner.layout += [(name, neurons) for name, neurons in body.get("slots", [])]
            if body["is"] == "rows":
                shares = shares_in(body, arrays, partner.layout)
                partner.shares |= {step: share for step, share in shares.items() if step > self._written}
                partner.reached = max([partner.reached, *shares])
                self._docket.reached(rank, partner.reached)
            elif body["is"] == "case":
                case = case_in(rank, body, arrays)
                case.arrived = time.monotonic()
                self._docket.add(case)
            elif body["is"] == "promise":
                self._proposal.promised(rank, body["step"])
            elif body["is"] == "goodbye":
                partner.has_left = True
                self._docket.gone(rank)


def _size(row: Row) -> int:
    """Bytes of its numbers."""
    return 0 if row.raw is None else row.raw.activation.nbytes + row.raw.gradient.nbytes


def _has_reached(partner: _Partner, step: int) -> bool:
    """Whether nothing of this step is to come any more."""
    return partner.is_silent or partner.has_left or partner.reached >= step
