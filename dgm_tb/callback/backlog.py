"""What waits for the disk: records between the training's threads and the writer's, up to a limit of memory.

Nobody who puts a record waits. Where the disk is slower than the training, the oldest detail is left out and counted;
alarm records (losses, findings, what belongs to them) are not. When there is room again, one note says what is missing.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from dgm_tb.callback.say import warn
from dgm_tb.records import Record

DETAIL = ("polylines", "contribution", "ring", "layer_statistics", "dynamics")
"""Kinds that may be left out, the most dispensable first. All others are alarm records."""

MAX_BYTES = 256 << 20
SPARE_BYTES = 64 << 20
"""Of alarm records beyond ``MAX_BYTES``; after that the newest are left out, too."""
RECORD_BYTES = 1 << 10
"""What a record counts besides its arrays."""

_ALARM = ""
_SLOW = "the disk was slower than the training"


@dataclass(frozen=True, slots=True)
class Entry:
    """What the writer takes: a record, or a set of live records.

    Attributes:
        number: Place in the order in which everything was put.
        records: One, or all of a live set.
        is_live: Whether it is a live set.
        n_bytes: What it counts.
    """

    number: int
    records: Sequence[Record]
    is_live: bool = False
    n_bytes: int = 0


@dataclass
class _LeftOut:
    """Records of one kind that are missing."""

    n_records: int
    first_step: int
    last_step: int


class Backlog:
    """A queue that drops by kind. One thread takes, any number put.

    A signal handler may run in the middle of a call and make calls itself, or raise: the lock is re-entrant, whoever
    waits gives it up as a whole, and sizes are counted before the queue is changed (a handler runs after calls only).

    Args:
        max_bytes: Of arrays that wait, and ``RECORD_BYTES`` each.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = self._limit = max_bytes
        self._lock = threading.RLock()  # entered as such: a handler can't run between its being taken and the block
        self._changed = threading.Condition(self._lock)
        self._lanes: dict[str, deque[Entry]] = {kind: deque() for kind in (*DETAIL, _ALARM)}
        self._live: Entry | None = None
        self._numbers = itertools.count()
        self._in_hand: Entry | None = None
        self._n_bytes = 0
        self._left_out: dict[str, _LeftOut] = {}
        self._reason = _SLOW
        self._has_warned = self._is_failing = False
        self._is_closed = self._has_ended = False

    # -- those who put -------------------------------------------------------------------------------------------------

    def put(self, record: Record) -> None:
        """Queue a record; returns at once. Records that come after ``close`` are dropped."""
        n_bytes = RECORD_BYTES + sum(array.nbytes for array in record.arrays.values())
        is_first_loss = False
        with self._lock:
            if self._is_closed:
                return
            if record.kind not in DETAIL and not self._make_room(record, n_bytes):
                self._leave_out(record)
                is_first_loss, self._has_warned = not self._has_warned, True
            else:
                self._append(Entry(next(self._numbers), (record,), n_bytes=n_bytes))
                self._changed.notify_all()
        if is_first_loss:
            size = (self._max_bytes + SPARE_BYTES) >> 20
            warn(f"{size} MB of losses and findings wait for the disk; further ones are lost, training goes on")

    def put_live(self, records: Sequence[Record]) -> None:
        """Queue a set of live records, in place of one that still waits."""
        with self._lock:
            if not self._is_closed:
                self._live = Entry(next(self._numbers), records, is_live=True)
                self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until everything put so far has been dealt with, but not longer, and not for a disk that fails.

        Returns:
            Whether it has.
        """
        with self._lock:
            newest = next(self._numbers)
            self._changed.wait_for(lambda: self._has_ended or self._is_held or self._oldest() > newest, seconds)
            return self._oldest() > newest

    def close(self) -> None:
        """Nothing more is coming."""
        with self._lock:
            self._is_closed = True
            self._changed.notify_all()

    def wait_for_end(self, seconds: float) -> bool:
        """Wait until the writer has ended, but not longer; whether it has."""
        with self._lock:
            return self._changed.wait_for(lambda: self._has_ended, seconds)

    # -- the one that takes --------------------------------------------------------------------------------------------

    def take(self) -> Entry | None:
        """The next entry, once there is one; None if nothing is left and nothing more is coming."""
        with self._lock:
            self._in_hand = None
            while True:
                self._tell_what_is_missing()
                waiting = [lane for lane in self._lanes.values() if lane]
                lane = min(waiting, key=lambda lane: lane[0].number, default=None)
                live = self._live
                if live is not None and (lane is None or live.number < lane[0].number):
                    self._in_hand, self._live = live, None
                elif lane is not None:
                    self._n_bytes -= lane[0].n_bytes
                    self._in_hand = lane.popleft()
                if self._in_hand is not None or self._is_closed:
                    return self._in_hand
                self._changed.wait()

    def done(self) -> None:
        """What was taken is on the disk, or given up."""
        with self._lock:
            self._in_hand = None
            self._changed.notify_all()

    def put_back(self, entry: Entry, reason: str) -> None:
        """What was taken could not be written: it is the next again, and all detail is left out until ``allow``."""
        with self._lock:
            self._limit, self._reason, self._is_failing = 0, reason, True
            self._in_hand = None
            lane = self._lane(entry)
            self._n_bytes += entry.n_bytes
            lane.appendleft(entry)
            self._thin()
            self._changed.notify_all()

    def allow(self) -> None:
        """Take in detail again, to see whether it can be written; until ``release`` no note tells what is missing."""
        with self._lock:
            self._limit = self._max_bytes

    def release(self) -> None:
        """Detail was written: all is well again."""
        with self._lock:
            self._limit, self._is_failing = self._max_bytes, False

    def wait_for_close(self, seconds: float) -> bool:
        """Wait until nothing more is coming, but not longer; whether that is so."""
        with self._lock:
            return self._changed.wait_for(lambda: self._is_closed, seconds)

    def has_work(self) -> bool:
        """Whether something waits to be taken, or nothing more is coming."""
        return self._is_closed or self._live is not None or any(self._lanes.values())

    def end(self) -> None:
        """Nothing is taken any more: forget what waits, and what will be put."""
        with self._lock:
            self._is_closed = self._has_ended = True
            self._live = self._in_hand = None
            self._n_bytes = 0
            for lane in self._lanes.values():
                lane.clear()
            self._changed.notify_all()

    # -- internals -----------------------------------------------------------------------------------------------------

    @property
    def _is_held(self) -> bool:
        return self._limit < self._max_bytes

    def _lane(self, entry: Entry) -> deque[Entry]:
        return self._lanes.get(entry.records[0].kind, self._lanes[_ALARM])

    def _oldest(self) -> float:
        """Number of the oldest entry that is not dealt with."""
        waiting = [lane[0] for lane in self._lanes.values() if lane]
        return min((entry.number for entry in (*waiting, self._live, self._in_hand) if entry), default=float("inf"))

    def _make_room(self, record: Record, n_bytes: int) -> bool:
        """Make room for an alarm record; whether there is."""
        self._thin(n_bytes)
        return self._n_bytes + n_bytes <= self._max_bytes + SPARE_BYTES or record.kind == "end"

    def _append(self, entry: Entry) -> None:
        lane = self._lane(entry)
        self._n_bytes += entry.n_bytes
        lane.append(entry)
        self._thin()

    def _thin(self, room: int = 0) -> None:
        """Leave out detail, the oldest of the most dispensable kind first, until there is ``room`` within the limit."""
        for kind in DETAIL:
            lane = self._lanes[kind]
            while lane and self._n_bytes + room > self._limit:
                self._n_bytes -= lane[0].n_bytes
                self._leave_out(lane.popleft().records[0])

    def _leave_out(self, record: Record) -> None:
        missing = self._left_out.setdefault(record.kind, _LeftOut(0, record.first_step, record.last_step))
        missing.n_records += 1
        missing.first_step = min(missing.first_step, record.first_step)
        missing.last_step = max(missing.last_step, record.last_step)

    def _tell_what_is_missing(self) -> None:
        """When there is room again, or it is the end, queue one note of all that was left out since there was none."""
        has_room = self._n_bytes <= self._max_bytes // 2 and not self._is_failing
        is_last = self._is_closed and not any(self._lanes.values())
        if not self._left_out or not (has_room or is_last):
            return
        missing, self._left_out = self._left_out, {}
        reason, self._reason = self._reason, _SLOW
        kinds = [f"{m.n_records} of {kind} (steps {m.first_step} to {m.last_step})" for kind, m in missing.items()]
        first = min(m.first_step for m in missing.values())
        last = max(m.last_step for m in missing.values())
        text = f"records were left out because {reason}: {', '.join(kinds)}"
        note = Record("note", first, last, {"text": text}, wall_time=time.time())
        self._append(Entry(next(self._numbers), (note,), n_bytes=RECORD_BYTES))
