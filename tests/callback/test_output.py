"""Where records go: folders that can't be written, live records, the limit on a recording's size, several starts."""

import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from training import Recording, payloads, recordings
from writing import KB, Disk, dynamics_of, eventually, loss_of, our_warnings, segments, steps_in

import dgm_tb
from dgm_tb.callback.options import Options
from dgm_tb.callback.output import Output
from dgm_tb.callback.writer import SegmentWriter
from dgm_tb.framing import frame
from dgm_tb.records import KINDS, PLUGIN_NAME, Record, encode, parse
from dgm_tb.segment_names import LIVE_NAME


def test_a_read_only_folder_is_told_once_and_training_goes_on() -> None:
    folder = Path(tempfile.mkdtemp())  # not in tmp_path, where a user without rights could not even look
    user = os.geteuid()
    try:
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        with our_warnings() as texts:
            out = Output(folder / "plugins" / PLUGIN_NAME, Options(), 0, {})
            out.put(loss_of(0))
            out.put_live([loss_of(0)])
            out.sync()
            out.close()
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)
    assert not out.is_writing
    assert len(texts) == 1
    assert "Permission denied" in texts[0]
    assert "training goes on" in texts[0]


# -- live records ------------------------------------------------------------------------------------------------------


def _live(folder: Path) -> list[int]:
    return [parse(payload).last_step for payload in payloads(folder / LIVE_NAME)]


def test_live_records_are_replaced_as_a_whole_and_go_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    out = SegmentWriter(folder)
    for live in ([0, 1, 2], [3], [4, 5]):
        out.write(loss_of(live[0]))
        out.write_live([loss_of(step) for step in live])
        out.flush()
        assert _live(folder) == live
    out.write_live([])
    out.flush()
    assert not (folder / LIVE_NAME).exists()
    out.write_live([loss_of(6)])
    out.flush()
    assert _live(folder) == [6]
    out.close()
    assert [path.name for path in folder.iterdir()] == ["000000.dgm"]
    assert steps_in(Recording.read(folder), "loss") == [0, 3, 4]


def test_whoever_reads_live_records_sees_whole_sets(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    out = SegmentWriter(folder)
    out.write_live([dynamics_of(0)] * 3)
    out.flush()
    for number in range(1, 100):
        out.write_live([dynamics_of(number)] * (number % 7 + 1))
        seen = Counter(_live(folder))
        assert len(seen) == 1
        ((step, n_records),) = seen.items()
        assert n_records == (step % 7 + 1 if step else 3)
    out.close()


def test_live_records_that_find_no_room_leave_those_before_and_the_segments_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    folder = tmp_path / "a"
    out = SegmentWriter(folder)
    out.write_live([loss_of(0)])
    out.flush()
    disk.room = 10
    out.write_live([dynamics_of(1)])
    out.flush()
    assert sorted(path.name for path in folder.iterdir()) == ["000000.dgm", LIVE_NAME]
    assert _live(folder) == [0]
    disk.room = float("inf")
    with our_warnings() as texts:
        out.write(loss_of(2))
        out.close()
    assert texts == []
    assert steps_in(Recording.read(folder), "loss") == [2]


# -- the limit ---------------------------------------------------------------------------------------------------------


class _Retention:
    """Frees a segment's worth at each step, as often as it is told.

    Attributes:
        calls: What it was called with.
    """

    def __init__(self, folder: Path, n_steps: int) -> None:
        self.folder, self.n_steps = folder, n_steps
        self.calls: list[int] = []
        self.max_seen = 0

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for path in segments(self.folder))

    def step(self, last_sealed: int) -> bool:
        self.calls.append(last_sealed)
        self.max_seen = max(self.max_seen, self.n_bytes)
        sealed = [path for path in segments(self.folder) if int(path.stem) <= last_sealed]
        if not self.n_steps or self.n_bytes < 600 * KB or not sealed:
            return False
        self.n_steps -= 1
        sealed[0].unlink()
        return True

    def close(self) -> None:
        self.calls.append(-2)


def test_old_segments_are_thinned_out_while_there_is_too_much(tmp_path: Path) -> None:
    retention: Any = _Retention(tmp_path / "a", 1000)
    out = SegmentWriter(tmp_path / "a", 100 * KB, 1 << 20, retention)
    for step in range(100):
        out.write(dynamics_of(step))
        out.flush()
    out.close()
    recording = Recording.read(tmp_path / "a")
    assert retention.n_bytes < 1 << 20
    assert retention.max_seen < 1 << 20
    assert steps_in(recording, "dynamics")[-1] == 99
    assert recording.notes == []
    assert retention.calls[-1] == -2
    assert all(newest >= 0 for newest in retention.calls[3:-1])


def test_where_thinning_out_is_not_enough_neurons_are_left_out_until_it_is(tmp_path: Path) -> None:
    retention: Any = _Retention(tmp_path / "a", 0)
    out = SegmentWriter(tmp_path / "a", 100 * KB, 1 << 20, retention)
    for step in range(46):
        retention.n_steps = 8 * (step == 40)
        out.write(loss_of(step))
        eventually(lambda step=step: step != 40 or not out._is_full)
        out.write(dynamics_of(step))
        out.flush()
    out.close()
    recording = Recording.read(tmp_path / "a")
    kept = steps_in(recording, "dynamics")
    full, again = recording.kind("note")
    assert "reached max_disk_mb=1: no more neurons" in full.body["text"]
    assert "below max_disk_mb=1 again" in again.body["text"]
    assert 14 <= full.last_step <= 17
    assert again.last_step == 40
    assert kept[-6:] == list(range(40, 46))
    assert not set(range(full.last_step + 1, 40)) & set(kept)
    assert steps_in(recording, "loss")[-30:] == list(range(16, 46))


# -- several starts of a run -------------------------------------------------------------------------------------------


def _start(folder: Path, step: int = 0) -> None:
    out = Output(folder / "plugins" / PLUGIN_NAME, Options(), step, {"model": "Net"})
    out.put(loss_of(step))
    out.close()


def _orders(folder: Path) -> list[tuple[int, int]]:
    """Order and first step of every recording, sorted."""
    firsts = [Recording.read(path).records[0] for path in recordings(folder)]
    return sorted((record.body["order"], record.first_step) for record in firsts)


def test_starts_are_counted_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for number in range(4):
        monkeypatch.setattr(time, "time", lambda number=number: now - 3600 * number)
        _start(tmp_path, step=number)
    assert _orders(tmp_path) == [(1, 0), (2, 1), (3, 2), (4, 3)]


def test_recordings_that_do_not_tell_their_order_are_counted(tmp_path: Path) -> None:
    place = tmp_path / "plugins" / PLUGIN_NAME
    contents = [b"", b"\xff" * 100, encode(loss_of(0)), frame(encode(loss_of(0))), frame(b"")]
    for order in ("7", -1, 1 << 60, True, None):
        body = {key: "" for key in KINDS["recording"].body} | {"order": order}
        contents.append(frame(encode(Record("recording", 0, 0, body))))
    for number, content in enumerate(contents):
        (place / f"old{number}").mkdir(parents=True)
        (place / f"old{number}" / "000000.dgm").write_bytes(content)
    os.mkfifo(place / "old0" / "000001.dgm")
    (place / "pipe").mkdir()
    os.mkfifo(place / "pipe" / "000000.dgm")
    (place / "none").mkdir()
    out = Output(place, Options(), 0, {"model": "Net"})
    out.close()
    (new,) = [path for path in place.iterdir() if path.name[0].isdigit()]
    assert Recording.read(new).records[0].body["order"] == len(contents) + 3


def test_two_processes_write_the_same_run(tmp_path: Path) -> None:
    children = []
    for start in range(2):
        child = os.fork()
        if child == 0:
            try:
                out = Output(tmp_path / "plugins" / PLUGIN_NAME, Options(), 0, {"model": "Net"})
                for step in range(200):
                    out.put(loss_of(step + start))
                    out.put(dynamics_of(step, KB))
                out.close()
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    found = [Recording.read(path) for path in recordings(tmp_path)]
    assert sorted(steps_in(recording, "loss") for recording in found) == [[*range(200)], [*range(1, 201)]]
    run = dgm_tb.open_run(tmp_path)
    assert run.gaps == []
    assert run.losses["loss"].steps.tolist() in ([*range(200)], [*range(201)], [*range(1, 201)])
