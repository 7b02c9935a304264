"""What waits for a disk that does not keep up: which records stay, what the note says, and that nobody waits."""

import contextlib
import dis
import itertools
import re
import sys
import threading
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np

from dgm_tb.callback import backlog as backlog_module
from dgm_tb.callback.backlog import DETAIL, RECORD_BYTES, SPARE_BYTES, Backlog
from dgm_tb.records import KINDS, Record

KB = 1 << 10
ALARM = [kind for kind in KINDS if kind not in DETAIL]


def _record(kind: str, step: int, n_bytes: int = KB) -> Record:
    """A record that counts ``n_bytes``."""
    return Record(kind, step, step, arrays={"values": np.zeros(n_bytes - RECORD_BYTES, np.uint8)})


def _taken(backlog: Backlog) -> list[tuple[str, int]]:
    """Kind and step of everything that is left in a backlog, which is closed."""
    backlog.close()
    taken = []
    while (entry := backlog.take()) is not None:
        taken += [(record.kind, record.last_step) for record in entry.records]
        backlog.done()
    return taken


def _notes(backlog: Backlog) -> list[str]:
    backlog.close()
    texts = []
    while (entry := backlog.take()) is not None:
        texts += [record.body["text"] for record in entry.records if record.kind == "note"]
        backlog.done()
    return texts


def test_what_fits_in_is_taken_in_the_order_it_was_put() -> None:
    backlog = Backlog()
    put = [(kind, step) for step, kind in enumerate([*KINDS, *reversed(KINDS)])]
    for kind, step in put:
        backlog.put(_record(kind, step))
    assert _taken(backlog) == put


def test_alarm_records_are_never_left_out_for_detail() -> None:
    backlog = Backlog(100 * KB)
    for step in range(400):
        backlog.put(_record(DETAIL[step % len(DETAIL)], step, 10 * KB))
        if step % 40 == 0:
            backlog.put(_record(ALARM[step // 40 % len(ALARM)], step, 5 * KB))
    taken = _taken(backlog)
    assert [(kind, step) for kind, step in taken if kind in ALARM and kind != "note"] == [
        (ALARM[number % len(ALARM)], number * 40) for number in range(10) if ALARM[number % len(ALARM)] != "note"
    ]


def test_the_oldest_of_the_most_dispensable_kind_goes_first() -> None:
    kept = {}
    for n_kept in range(11):
        backlog = Backlog(n_kept * 10 * KB)
        for step in range(2):
            for kind in reversed(DETAIL):
                backlog.put(_record(kind, step, 10 * KB))
        kept[n_kept] = {item for item in _taken(backlog) if item[0] != "note"}
    order = [(kind, step) for kind in DETAIL for step in range(2)]
    assert kept == {n_kept: set(order[10 - n_kept :]) for n_kept in range(11)}


def test_one_note_says_what_an_episode_left_out() -> None:
    backlog = Backlog(100 * KB)
    for step in range(30):
        backlog.put(_record("polylines", step, 10 * KB))
    for step in range(30, 36):
        backlog.put(_record("dynamics", step, 10 * KB))
    (text,) = _notes(backlog)
    assert text.startswith("records were left out because the disk was slower than the training")
    assert re.findall(r"(\d+) of (\w+) \(steps (\d+) to (\d+)\)", text) == [("26", "polylines", "0", "25")]


def test_every_episode_has_its_note_in_its_place() -> None:
    taken = []
    backlog = Backlog(100 * KB)
    for episode in range(3):
        for step in range(15):
            backlog.put(_record("ring", 100 * episode + step, 10 * KB))
        backlog.put(_record("loss", 100 * episode + 50))
        while (entry := backlog.take()) is not None:
            taken.append((entry.records[0].kind, entry.records[0].first_step, entry.records[0].last_step))
            if entry.records[0].kind == "note":
                break
    notes = [(first, last) for kind, first, last in taken if kind == "note"]
    assert notes == [(0, 5), (100, 105), (200, 205)]
    assert _taken(backlog) == []


def test_the_note_waits_until_there_is_room_again() -> None:
    backlog = Backlog(100 * KB)
    for step in range(20):
        backlog.put(_record("ring", step, 10 * KB))
    kinds = []
    for step in range(20, 60):  # as many come as are taken: it stays full
        entry = backlog.take()
        assert entry is not None
        kinds.append(entry.records[0].kind)
        backlog.put(_record("ring", step, 10 * KB))
    assert "note" not in kinds
    assert len(_notes(backlog)) == 1


def test_nothing_is_noted_where_nothing_was_left_out() -> None:
    backlog = Backlog(100 * KB)
    for step in range(10):
        backlog.put(_record("dynamics", step, 10 * KB))
    assert _notes(backlog) == []


def test_alarm_records_are_bounded_with_one_warning_and_the_end_still_comes() -> None:
    backlog = Backlog(KB)
    n_fitting = (KB + SPARE_BYTES) // (SPARE_BYTES // 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(12):
            backlog.put(_record("samples", step, SPARE_BYTES // 4))
        backlog.put(_record("end", 12))
    assert ["wait for the disk" in str(warning.message) for warning in caught] == [True]
    taken = _taken(backlog)
    assert [step for kind, step in taken if kind == "samples"] == list(range(n_fitting))
    assert ("end", 12) in taken


def _fail(backlog: Backlog) -> tuple[str, int]:
    """Take a record and find that it can't be written."""
    entry = backlog.take()
    assert entry is not None
    backlog.put_back(entry, "the disk was full")
    return entry.records[0].kind, entry.records[0].last_step


def test_where_writing_fails_no_detail_is_kept_and_one_note_tells_the_reason() -> None:
    backlog = Backlog()
    backlog.put(_record("loss", 0))
    backlog.put(_record("dynamics", 1))
    assert _fail(backlog) == ("loss", 0)
    backlog.put(_record("layer_statistics", 2))
    backlog.put(_record("loss", 3))
    assert not backlog.flush(60.0), "it would wait for a disk that fails"
    for step in (0, 3):
        entry = backlog.take()
        assert entry is not None
        assert (entry.records[0].kind, entry.records[0].last_step) == ("loss", step)
        backlog.done()
    backlog.allow()
    backlog.put(_record("dynamics", 4))
    assert _fail(backlog) == ("dynamics", 4)
    backlog.put(_record("loss", 5))
    assert _fail(backlog) == ("loss", 5), "it is not over yet: no note"
    backlog.allow()
    backlog.release()
    backlog.put(_record("dynamics", 6))
    (text,) = _notes(backlog)
    assert "the disk was full" in text
    assert "2 of dynamics (steps 1 to 4), 1 of layer_statistics (steps 2 to 2)" in text


def test_at_the_end_the_note_comes_even_if_no_detail_could_be_written() -> None:
    backlog = Backlog()
    backlog.put(_record("dynamics", 7))
    _fail(backlog)
    (text,) = _notes(backlog)
    assert "1 of dynamics (steps 7 to 7)" in text


def test_live_records_come_after_what_was_put_before_and_only_the_newest() -> None:
    backlog = Backlog()
    backlog.put(_record("loss", 0))
    backlog.put_live([_record("dynamics", 1)])
    backlog.put(_record("loss", 2))
    backlog.put_live([_record("dynamics", 3), _record("polylines", 3)])
    backlog.put(_record("loss", 4))
    assert _taken(backlog) == [("loss", 0), ("loss", 2), ("dynamics", 3), ("polylines", 3), ("loss", 4)]


def test_flush_waits_for_what_is_in_the_writers_hand() -> None:
    backlog = Backlog()
    backlog.put(_record("loss", 0))
    taken, go_on = threading.Event(), threading.Event()

    def write() -> None:
        backlog.take()
        taken.set()
        go_on.wait(10)
        backlog.done()

    thread = threading.Thread(target=write)
    thread.start()
    assert taken.wait(10)
    assert not backlog.flush(0.01)
    go_on.set()
    assert backlog.flush(10)
    thread.join()


# -- signals in the middle of a call -----------------------------------------------------------------------------------

_CHECKED = {"CALL", "CALL_FUNCTION_EX", "CALL_KW", "RESUME", "JUMP_BACKWARD"}
"""After these instructions Python may run a signal handler."""


class _Interrupted(Exception):
    pass


class _SignalAt:
    """Runs a handler at the ``at``-th place within the code of the backlog where a signal could have it run."""

    def __init__(self, at: int, handler: Callable[[], None]) -> None:
        self.left = at
        self._handler = handler
        self._before: dict[int, str] = {}

    def __enter__(self) -> "_SignalAt":
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in (backlog_module.__file__, threading.__file__):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            before = self._before.get(id(frame))
            self._before[id(frame)] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            self.left -= before in _CHECKED
            if before in _CHECKED and self.left == 0:
                self._handler()
        return self._trace


class _Writer(threading.Thread):
    """Takes everything from a backlog."""

    def __init__(self, backlog: Backlog) -> None:
        super().__init__(daemon=True)
        self.backlog = backlog
        self.taken: list[tuple[str, int]] = []
        self.start()

    def run(self) -> None:
        while (entry := self.backlog.take()) is not None:
            self.taken += [(record.kind, record.last_step) for record in entry.records]
            self.backlog.done()


def test_a_signal_handler_in_the_middle_of_a_call_may_put_and_flush() -> None:
    for at in itertools.count(1):
        backlog = Backlog()
        writer = _Writer(backlog)
        has_flushed = []

        def handler(backlog: Backlog = backlog, has_flushed: list[bool] = has_flushed) -> None:
            backlog.put(_record("finding", 1))
            has_flushed.append(backlog.flush(20.0))

        with _SignalAt(at, handler) as signal:
            backlog.put(_record("loss", 0))
            backlog.put(_record("dynamics", 2))
        backlog.close()
        writer.join(20)
        if signal.left > 0:
            break
        assert has_flushed == [True], at
        assert sorted(writer.taken) == [("dynamics", 2), ("finding", 1), ("loss", 0)], at
        assert backlog._n_bytes == 0
    assert at > 20


def test_a_signal_handler_that_raises_in_the_middle_of_a_call_blocks_nobody() -> None:
    for at in itertools.count(1):
        backlog = Backlog(10 * KB)
        for step in range(5):
            backlog.put(_record("dynamics", step, 2 * KB))

        def handler() -> None:
            raise _Interrupted

        with contextlib.suppress(_Interrupted), _SignalAt(at, handler) as signal:
            backlog.put(_record("loss", 5, 5 * KB))
        backlog.put(_record("finding", 6))
        writer = _Writer(backlog)
        assert backlog.flush(20.0), at
        backlog.close()
        writer.join(20)
        if signal.left > 0:
            break
        assert ("finding", 6) in writer.taken
        assert backlog._n_bytes == 0, at
    assert at > 20
