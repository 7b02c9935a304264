"""The writer on disks that are slow, full, failing or gone: what is in the files, what is told; nobody waits."""

import errno
import functools
import itertools
import os
import resource
import shutil
import signal
import time
import warnings
from pathlib import Path

import pytest
from training import Recording, payloads
from writing import KB, SOON, Disk, dynamics_of, eventually, is_whole, loss_of, our_warnings, segments, steps_in

from dgm_tb.callback import backlog, segment_files, writer
from dgm_tb.callback.writer import SegmentWriter
from dgm_tb.records import Record, parse

# -- segments ----------------------------------------------------------------------------------------------------------


def test_records_come_in_order_and_segments_end_at_their_size(tmp_path: Path) -> None:
    out = SegmentWriter(tmp_path / "a", segment_bytes=200 * KB)
    sizes = [60, 60, 60, 60, 300, 10, 150, 60]
    for step, size in enumerate(sizes):
        out.write(dynamics_of(step, size * KB))
    out.close()
    per_segment = [[parse(payload).last_step for payload in payloads(path)] for path in segments(tmp_path / "a")]
    assert per_segment == [[0, 1, 2], [3], [4], [5, 6], [7]]
    assert all(map(is_whole, segments(tmp_path / "a")))


def test_a_recording_that_exists_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileExistsError):
        SegmentWriter(tmp_path / "a")


def test_a_record_that_cannot_be_encoded_is_lost_alone(tmp_path: Path) -> None:
    out = SegmentWriter(tmp_path / "a")
    with our_warnings() as texts:
        for step in range(4):
            out.write(loss_of(step))
            out.write(Record("note", step, step, {"no text": 1}))
        out.close()
    assert steps_in(Recording.read(tmp_path / "a"), "loss") == [0, 1, 2, 3]
    assert len(texts) == 1
    assert "a note record of step 0 is lost, training goes on" in texts[0]


def test_a_training_that_changes_its_working_folder_goes_on_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_files, "CHECK_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    out = SegmentWriter(Path("runs/a"), segment_bytes=100 * KB)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for step in range(4):
        out.write(dynamics_of(step))
    out.close()
    assert steps_in(Recording.read(tmp_path / "runs" / "a"), "dynamics") == [0, 1, 2, 3]


def test_a_forked_process_writes_nothing(tmp_path: Path) -> None:
    out = SegmentWriter(tmp_path / "a")
    out.write(loss_of(0))
    out.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # kills it if it waits for a writer that it does not have
        out.write(loss_of(1))
        out.flush()
        out.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    out.write(loss_of(2))
    out.close()
    assert steps_in(Recording.read(tmp_path / "a"), "loss") == [0, 2]


# -- slow disks --------------------------------------------------------------------------------------------------------


def test_a_stalled_disk_holds_nobody_up_and_costs_detail_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "Backlog", functools.partial(backlog.Backlog, 1 << 20))
    disk = Disk(monkeypatch)
    out = SegmentWriter(tmp_path / "a")
    disk.is_open.clear()
    for step in range(100):  # each would wait for ever
        out.write(loss_of(step))
        out.write(dynamics_of(step))
    disk.is_open.set()
    out.close()
    recording = Recording.read(tmp_path / "a")
    assert steps_in(recording, "loss") == list(range(100))
    kept = steps_in(recording, "dynamics")
    assert 10 <= len(kept) < 20
    assert kept == list(range(100 - len(kept), 100)) or kept == [0, *range(101 - len(kept), 100)]
    (note,) = recording.notes
    assert "the disk was slower than the training" in note
    assert f"{100 - len(kept)} of dynamics" in note


# -- full disks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_costs_detail_only_and_a_new_segment_begins(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, 200 * KB, number)
    out = SegmentWriter(tmp_path / "a")
    with our_warnings() as texts:
        for step in range(6):
            out.write(loss_of(step))
            out.write(dynamics_of(step))
        eventually(lambda: out._backlog._is_held)
        assert is_whole(tmp_path / "a" / "000000.dgm")
        for step in range(6, 9):
            out.write(loss_of(step))
            out.write(dynamics_of(step))
        disk.room = float("inf")
        eventually(lambda: len(segments(tmp_path / "a")) > 1)
        out.flush()
        out.write(dynamics_of(9))
        out.close()
    recording = Recording.read(tmp_path / "a")
    assert steps_in(recording, "loss") == list(range(9))
    kept = steps_in(recording, "dynamics")
    assert (kept[:3], kept[-1]) == ([0, 1, 2], 9)
    (note,) = recording.kind("note")
    assert os.strerror(number) in note.body["text"]
    assert f"{10 - len(kept)} of dynamics" in note.body["text"]
    assert {note.first_step, *range(note.first_step, note.last_step + 1)} >= set(range(10)) - set(kept)
    assert all(map(is_whole, segments(tmp_path / "a")))
    assert len(texts) == 1
    assert os.strerror(number) in texts[0]
    assert "training goes on" in texts[0]


def test_where_only_small_records_find_room_there_is_one_note_and_not_a_segment_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, max_bytes=16 * KB)
    out = SegmentWriter(tmp_path / "a")
    with our_warnings() as texts:
        for step in range(40):
            out.write(loss_of(step))
            out.write(dynamics_of(step))
            time.sleep(SOON)
        disk.max_bytes = float("inf")
        for step in itertools.count(40):
            out.write(loss_of(step))
            out.write(dynamics_of(step))
            out.flush()
            if Recording.read(tmp_path / "a").notes or step > 1000:
                break
        out.close()
    recording = Recording.read(tmp_path / "a")
    assert steps_in(recording, "loss") == list(range(step + 1))
    (note,) = recording.notes
    assert f"{steps_in(recording, 'dynamics')[0]} of dynamics (steps 0 to" in note
    assert len(segments(tmp_path / "a")) < 12
    assert len(texts) == 1


def test_a_disk_that_stays_full_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 100 * KB)
    out = SegmentWriter(tmp_path / "a")
    with our_warnings() as texts:
        for step in range(20):
            out.write(loss_of(step))
            out.write(dynamics_of(step))
        out.flush()
        out.close()
        out.write(loss_of(20))
    assert disk.room == 0
    recording = Recording.read(tmp_path / "a")
    assert steps_in(recording, "dynamics") == [0]
    assert all(map(is_whole, segments(tmp_path / "a")))
    assert len(segments(tmp_path / "a")) == 1
    assert len(texts) == 1


def test_what_waits_for_a_full_disk_is_written_at_the_end_if_it_works_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, 0)
    monkeypatch.setattr(writer, "RETRY_SECONDS", 1000.0)
    out = SegmentWriter(tmp_path / "a")
    with our_warnings() as texts:
        for step in range(5):
            out.write(loss_of(step))
        eventually(lambda: out._backlog._is_held)
        disk.room = float("inf")
        out.close()
    assert steps_in(Recording.read(tmp_path / "a"), "loss") == list(range(5))
    assert len(texts) == 1


def test_a_limit_of_the_kernel_on_the_size_of_files_is_survived(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            warnings.simplefilter("ignore")
            writer.RETRY_SECONDS = SOON
            resource.setrlimit(resource.RLIMIT_FSIZE, (100 * KB, resource.RLIM_INFINITY))
            out = SegmentWriter(tmp_path / "a")
            for step, size in enumerate([64, 64, 200, 1, 64]):
                out.write(loss_of(step))
                out.write(dynamics_of(step, size * KB))
                out.flush()
                eventually(lambda: not out._backlog.has_work())
            out.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    recording = Recording.read(tmp_path / "a")
    assert steps_in(recording, "loss") == list(range(5))
    assert {0, 4} <= set(steps_in(recording, "dynamics")) <= {0, 1, 3, 4}
    assert any("File too large" in note for note in recording.notes)
    assert all(path.stat().st_size <= 100 * KB for path in segments(tmp_path / "a"))
    assert all(map(is_whole, segments(tmp_path / "a")))


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["run", "run/plugins/a", "segment", "moved"])
@pytest.mark.parametrize("check_seconds", [0.0, 1000.0])
def test_a_folder_that_is_deleted_is_not_made_again(
    what: str, check_seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_files, "CHECK_SECONDS", check_seconds)
    folder = tmp_path / "run" / "plugins" / "a"
    out = SegmentWriter(folder, segment_bytes=100 * KB)
    out.write(loss_of(0))
    out.flush()
    if what == "segment":
        (folder / "000000.dgm").unlink()
    elif what == "moved":
        folder.rename(tmp_path / "elsewhere")
    else:
        shutil.rmtree(tmp_path / what)
    left = sorted(tmp_path.rglob("*"))
    with our_warnings() as texts:
        for step in range(1, 20):
            out.write(dynamics_of(step))
            if what != "segment":
                out.write_live([loss_of(step)])
        out.close()
    assert sorted(tmp_path.rglob("*")) == left
    assert len(texts) == 1
    assert "deleted or moved" in texts[0]
    assert "training goes on" in texts[0]
