"""What may happen to the files of a recording, and what of them is shown nevertheless.

The oracle is a walk of its own over the bytes (``walk``): what it finds intact must be in the index, each record once
and nothing else, and the bytes of gaps are all the others.
"""

import os
import random
import shutil
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import sample_recording as sample
from conftest import make_client
from sample_recording import LOSS_STEPS, STEPS

from dgm_tb import open_run
from dgm_tb.framing import frame
from dgm_tb.plugin import runs as runs_module
from dgm_tb.plugin import storage
from dgm_tb.plugin.index import Index
from dgm_tb.plugin.run import Run
from dgm_tb.records import KINDS, PLUGIN_NAME, Record, encode, parse
from dgm_tb.segment_names import segment_name


def masked(content: bytes) -> int:
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def header_at(content: bytes, at: int) -> int | None:
    """Length of the payload whose header stands at a position; None if none does."""
    if at + 12 > len(content):
        return None
    length, crc = struct.unpack_from("<QI", content, at)
    return length if crc == masked(content[at : at + 8]) and at + length + 16 <= len(content) else None


def walk(content: bytes) -> tuple[set[int], int]:
    """Where the payloads of intact records begin, and how many bytes all others have."""
    found, lost, at = set(), 0, 0
    while at < len(content):
        length = header_at(content, at)
        if length is None:
            step = next((n for n in range(1, len(content) - at) if header_at(content, at + n)), len(content) - at)
            lost += step
        else:
            step = length + 16
            payload, crc = content[at + 12 : at + 12 + length], content[at + 12 + length : at + step]
            if struct.pack("<I", masked(payload)) == crc:
                found.add(at + 12)
            else:
                lost += step
        at += step
    return found, lost


def assert_shows_what_is_intact(folder: Path) -> Run:
    """Open a run of one recording and compare it with the walk; all its segments are old enough to be complete."""
    run = Run(folder)
    expected: set[tuple[str, int]] = set()
    lost = 0
    for path in (folder / "plugins" / PLUGIN_NAME / sample.NAME).iterdir():
        places, n_bytes = walk(path.read_bytes())
        expected |= {(path.name, place) for place in places}
        lost += n_bytes
    shown = [(e.path.name, e.offset) for r in run.recordings for kind in KINDS for e in r.entries(kind)]
    assert sorted(shown) == sorted(expected)
    assert sum(gap["bytes"] for gap in run.gaps) == lost
    assert bool(run.gaps) == bool(lost)
    return run


def pieces(n_pieces: int = 4) -> list[list[Record]]:
    """A recording in as many segments, each with steps of its own."""
    head = [sample.recording_record(), list(sample.all_records())[1]]
    parts = [
        [sample.loss_record(steps), *sample.quantity_records("activation", steps)]
        for steps in np.array_split(LOSS_STEPS, n_pieces)
    ]
    return [[*head, *parts[0]], *parts[1:]]


def write(folder: Path, parts: Iterable[list[Record]]) -> list[Path]:
    return [sample.write(folder, part, segment=number) for number, part in enumerate(parts)]


def is_old(path: Path) -> Path:
    os.utime(path, (1e9, 1e9))
    return path


def assert_whole(run: Run, steps: np.ndarray = LOSS_STEPS) -> None:
    """Every step is shown once, with the values that it had."""
    loss = run.losses["train_loss"]
    np.testing.assert_array_equal(loss.steps, steps)
    np.testing.assert_array_equal(loss.values, sample.loss_values(steps)[:, 0])
    found = run.layer_statistics("fc")["mean"]
    np.testing.assert_array_equal(found.steps, steps)
    windows = run.dynamics("fc")
    assert (np.diff(windows.steps) > 0).all()
    assert (windows.first_steps[0], windows.steps[-1]) == (steps[0], steps[-1])
    lines = run.polylines("out", k=9)
    np.testing.assert_array_equal(lines.steps, steps)
    expected = sample.neuron_values("activation", "mean", steps)[sample.span_of("out")]
    is_sampled = np.isin(lines.neurons, sample.POLYLINES)  # the layer is the first one
    np.testing.assert_array_equal(lines.values[is_sampled], expected[lines.neurons[is_sampled]])


# -- damage ------------------------------------------------------------------------------------------------------------

SMALL = [
    sample.recording_record(),
    sample.loss_record(LOSS_STEPS[:2]),
    *(Record("note", n, n, {"text": "x"}) for n in range(2)),
]


def test_a_recording_cut_at_any_byte_shows_what_is_intact(tmp_path: Path) -> None:
    whole = sample.framed(SMALL)
    path = sample.write(tmp_path, [])
    for cut in range(1, len(whole) + 1):
        path.write_bytes(whole[:cut])
        assert_shows_what_is_intact(is_old(path).parents[3])


def test_a_recording_with_any_one_bit_flipped_shows_what_is_intact(tmp_path: Path) -> None:
    whole, rng = sample.framed(SMALL), random.Random(0)
    path = sample.write(tmp_path, [])
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert_shows_what_is_intact(is_old(path).parents[3])


@pytest.mark.parametrize("sort", ["burst", "zeros inside", "zero-filled tail", "cut out", "torn and overwritten"])
def test_a_recording_with_stretches_damaged_shows_what_is_intact(sort: str, tmp_path: Path) -> None:
    whole, rng = sample.framed(sample.all_records()), random.Random(sort)
    path = sample.write(tmp_path, [])
    for _ in range(40):
        a = rng.randrange(len(whole))
        b = min(len(whole), a + rng.choice([2, 16, 300, 4096]))
        damaged = {
            "burst": whole[:a] + rng.randbytes(b - a) + whole[b:],
            "zeros inside": whole[:a] + bytes(b - a) + whole[b:],
            "zero-filled tail": whole[:a] + bytes(rng.choice([1, 12, 4096, 100_000])),
            "cut out": whole[:a] + whole[b:],
            "torn and overwritten": whole[:b] + whole[a:],
        }[sort]
        path.write_bytes(damaged)
        assert_shows_what_is_intact(is_old(path).parents[3])


def test_empty_files_are_passed_over(tmp_path: Path) -> None:
    for number in range(5):
        folder = tmp_path / str(number)
        parts = pieces()
        parts.insert(number, [])
        write(folder, parts)
        run = assert_shows_what_is_intact(folder)
        assert_whole(run)


def test_a_recording_of_one_empty_file_is_a_run_without_anything(tmp_path: Path) -> None:
    sample.write(tmp_path, [])
    run = open_run(tmp_path)
    assert (run.recordings, run.steps, run.layers, run.notes, run.gaps) == ([], None, [], [], [])
    client = make_client(tmp_path)
    (facts,) = client.get("/data/plugin/dgmtracker/runs").json
    assert (facts["run"], facts["recorded"], facts["last_step"]) == (".", True, None)
    assert client.get("/data/plugin/dgmtracker/run?run=.").status_code == 200


def test_a_file_that_may_not_be_read_is_a_gap_until_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, opening = write(tmp_path, pieces()), os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path) == str(paths[1]):
            raise PermissionError(13, "Permission denied")
        return opening(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    run = open_run(tmp_path)
    assert [(gap["segment"], gap["reason"]) for gap in run.gaps] == [("000001.dgm", "can't be read: Permission denied")]
    assert run.losses["train_loss"].steps.tolist() == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    monkeypatch.undo()
    run.refresh()
    assert run.gaps == []
    assert_whole(run)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(5, "Input/output error"), "000002.dgm can't be read: Input/output error"),
        (FileNotFoundError(2, "No such file"), "000002.dgm is gone; ask again"),
    ],
    ids=["a bad disk", "listed but not there"],
)
def test_what_can_not_be_read_for_a_while_is_said_and_not_kept(
    error: OSError, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(tmp_path, pieces())
    run, opened = open_run(tmp_path), storage.opened

    def fail(path: Any, *arguments: Any) -> Any:
        if path == paths[2]:
            raise error
        return opened(path, *arguments)

    before = run.revision
    monkeypatch.setattr(storage, "opened", fail)
    assert run.losses["train_loss"].steps.tolist() == [0, 1, 2, 3, 4, 5, 9, 10, 11]
    assert run.notes == [f"recording {sample.NAME}: {sentence}"]
    assert run.revision != before
    monkeypatch.undo()
    assert_whole(run)
    assert run.notes == []


def test_a_bad_sector_costs_what_lies_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = pieces()
    path = sample.write(tmp_path, [record for part in parts for record in part])
    run, pread = open_run(tmp_path), os.pread
    bad = next(entry for entry in run.recordings[0].entries("loss") if entry.first_step == 3)

    def fail(file: int, n_bytes: int, offset: int) -> bytes:
        if offset < bad.offset + bad.length and bad.offset < offset + n_bytes:
            raise OSError(5, "Input/output error")
        return pread(file, n_bytes, offset)

    monkeypatch.setattr(os, "pread", fail)
    assert run.losses["train_loss"].steps.tolist() == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    assert run.notes == [f"recording {sample.NAME}: {path.name} can't be read: Input/output error"]


# -- files that come, go and change places -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_open", [False, True], ids=["before it is opened", "while it is open"])
def test_segments_that_changed_places_are_shown_once(is_open: bool, tmp_path: Path) -> None:
    paths = write(tmp_path, pieces())
    run = open_run(tmp_path) if is_open else None
    if run is not None:
        assert_whole(run)
    first, last = paths[0].read_bytes(), paths[2].read_bytes()
    paths[0].write_bytes(last)
    paths[2].write_bytes(first)
    run = run or open_run(tmp_path)
    run.refresh()
    assert_whole(run)
    assert run.layers == sample.FLOW
    assert run.gaps == []


@pytest.mark.parametrize("original", range(4))
def test_a_copy_of_a_segment_doubles_nothing(original: int, tmp_path: Path) -> None:
    parts = pieces()
    parts[1].append(Record("note", 4, 4, {"text": "said once"}))
    paths = write(tmp_path, parts)
    run = open_run(tmp_path)
    shutil.copy(paths[original], paths[original].with_name("000007.dgm"))
    for reader in (run, open_run(tmp_path)):
        reader.refresh()
        assert_whole(reader)
        assert reader.notes == ["step 4: said once"]
        assert reader.layers == sample.FLOW
        assert [(gap["segment"], gap["reason"]) for gap in reader.gaps] == [
            ("000003.dgm", "000004.dgm to 000006.dgm missing")
        ]


def test_a_deleted_segment_leaves_the_others_and_a_gap(tmp_path: Path) -> None:
    paths = write(tmp_path, pieces())
    run = open_run(tmp_path)
    assert_whole(run)
    before = run.revision
    paths[1].unlink()
    kept = [0, 1, 2, 6, 7, 8, 9, 10, 11]
    assert run.layer_statistics("fc")["mean"].steps.tolist() == list(LOSS_STEPS), "it had been read already"
    assert run.dynamics("conv").steps.tolist() == [2, 8, 11], "read anew: without a refresh of one's own"
    assert run.losses["train_loss"].steps.tolist() == kept
    assert run.revision != before
    (gap,) = run.gaps
    assert (gap["segment"], gap["after_step"], gap["reason"]) == ("000000.dgm", 2, "000001.dgm missing")


def test_a_deleted_folder_leaves_nothing_and_comes_back(tmp_path: Path) -> None:
    paths = write(tmp_path / "run", pieces())
    run = open_run(tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    assert run.losses == {}
    assert (run.steps, run.layers, run.gaps) == (None, [], [])
    shutil.move(tmp_path / "elsewhere", tmp_path / "run")
    assert paths[0].exists()
    run.refresh()
    assert_whole(run)


def thinned(first: int, last: int, parts: list[list[Record]], steps: np.ndarray = LOSS_STEPS) -> list[Record]:
    """The records of some segments of three steps each, with one window for all of these."""
    steps = steps[3 * first : 3 * last + 3]
    kept = [record for part in parts[first : last + 1] for record in part if record.kind != "dynamics"]
    _, windows, _ = sample.quantity_records("activation", steps, len(steps))
    return [*kept, windows]


def replace_segments(paths: list[Path], first: int, last: int, parts: list[list[Record]]) -> None:
    """As the writer does it: the new file gets its name, then the old ones go."""
    folder = paths[0].parent
    (folder / "thinning.tmp").write_bytes(sample.framed(thinned(first, last, parts)))
    (folder / "thinning.tmp").rename(folder / segment_name(first, last))
    for path in paths[first : last + 1]:
        path.unlink()


def test_a_thinned_segment_takes_the_place_of_its_originals(tmp_path: Path) -> None:
    parts = pieces()
    paths = write(tmp_path, parts)
    run = open_run(tmp_path)
    assert run.dynamics("fc").steps.tolist() == [2, 5, 8, 11]
    replace_segments(paths, 0, 2, parts)
    run.refresh()
    for reader in (run, open_run(tmp_path)):
        assert_whole(reader)
        assert reader.dynamics("fc").steps.tolist() == [8, 11]
        assert reader.layers == sample.FLOW
        assert reader.gaps == []


def test_the_index_is_whole_and_in_order_while_a_thinned_segment_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = pieces()
    paths = write(tmp_path, parts)
    run = open_run(tmp_path)
    (recording,) = run.recordings
    seen: list[list[int]] = []
    take_in = Index.take_in

    def look(index: Index, *arguments: Any) -> None:
        seen.append([entry.first_step for entry in recording.entries("loss")])
        take_in(index, *arguments)

    monkeypatch.setattr(Index, "take_in", look)
    replace_segments(paths, 1, 2, parts)
    run.refresh()
    assert len(seen) == len(thinned(1, 2, parts))
    assert all(steps == [0, 3, 6, 9] for steps in seen)
    assert [(e.path.name, e.first_step) for e in recording.entries("dynamics")] == [
        ("000000.dgm", 0),
        ("000001-000002.dgm", 3),
        ("000003.dgm", 9),
    ]


def test_a_list_that_missed_a_segment_in_its_renaming_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, pieces())
    run = open_run(tmp_path)
    items, answers = storage.items, [lambda found: [item for item in found if item.name != "000002.dgm"]]

    def hurried(folder: Any) -> Any:
        found = items(folder)
        return answers.pop()(found) if answers and folder.name == sample.NAME else found

    monkeypatch.setattr(storage, "items", hurried)
    before = run.revision
    run.refresh()
    assert answers == []
    assert run.revision == before


def test_a_thinned_segment_that_is_cut_short_is_damaged_at_once(tmp_path: Path) -> None:
    path = sample.write(tmp_path, pieces()[0])
    path.write_bytes(path.read_bytes()[:-9])
    assert open_run(tmp_path).gaps == [], "it may still be being written"
    path.rename(path.with_name(segment_name(0, 3)))
    assert [gap["reason"] for gap in open_run(tmp_path).gaps] == ["incomplete record"]


def test_a_view_is_whole_when_segments_are_thinned_before_it_is_read(tmp_path: Path) -> None:
    parts = pieces()
    paths = write(tmp_path, parts)
    run = open_run(tmp_path)
    replace_segments(paths, 0, 2, parts)
    assert_whole(run)


def test_routes_answer_whole_while_segments_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "REFRESH_SECONDS", 1e9)
    parts = pieces()
    paths = write(tmp_path, parts)
    client = make_client(tmp_path)
    base = "/data/plugin/dgmtracker/"
    facts = client.get(f"{base}run?run=.").json
    replace_segments(paths, 1, 2, parts)
    answer = client.get(f"{base}dynamics?run=.&layer=fc&quantity=activation")
    assert answer.status_code == 200
    shutil.copytree(tmp_path / "plugins", tmp_path / "fresh" / "plugins")
    again = make_client(tmp_path / "fresh").get(f"{base}dynamics?run=.&layer=fc&quantity=activation")
    assert answer.data == again.data
    assert client.get(f"{base}run?run=.").json["revision"] != facts["revision"]


def test_every_answer_is_whole_while_a_recording_is_thinned_more_and_more(tmp_path: Path) -> None:
    n_segments, each = 16, 3
    steps = np.arange(n_segments * each)
    head = [sample.recording_record(), list(sample.all_records())[1]]
    parts = [[sample.loss_record(s), *sample.quantity_records("activation", s)] for s in np.split(steps, n_segments)]
    parts[0] = [*head, *parts[0]]
    write(tmp_path, parts)
    run, is_over = open_run(tmp_path), threading.Event()
    folder = tmp_path / "plugins" / PLUGIN_NAME / sample.NAME
    problems: list[BaseException] = []

    def thin() -> None:
        for last in range(1, n_segments):
            replaced = [name for name in os.listdir(folder) if int(name[:6]) < last] + [segment_name(last)]
            (folder / "thinning.tmp").write_bytes(sample.framed(thinned(0, last, parts, steps)))
            (folder / "thinning.tmp").rename(folder / segment_name(0, last))
            for name in replaced:
                (folder / name).unlink()
            time.sleep(0.02)

    def ask() -> None:
        try:
            while not is_over.is_set():
                for layer in sample.LAYERS:
                    found = run.dynamics(layer)
                    np.testing.assert_array_equal(found.first_steps, [0, *(found.steps[:-1] + 1)])
                    assert found.steps[-1] == steps[-1]
                np.testing.assert_array_equal(run.losses["train_loss"].steps, steps)
                assert run.gaps == []
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    thin()
    is_over.set()
    for thread in threads:
        thread.join(30)
    assert problems == []
    run.refresh()
    assert_whole(run, steps)
    assert run.dynamics("fc").steps.tolist() == [steps[-1]]


def test_a_recording_is_whole_at_every_moment_while_segments_are_sealed(tmp_path: Path) -> None:
    n_segments, steps_each = 40, 4
    sample.write(tmp_path, [sample.recording_record(), list(sample.all_records())[1]])
    run = open_run(tmp_path)
    folder = tmp_path / "plugins" / PLUGIN_NAME / sample.NAME

    def append() -> None:
        for number in range(n_segments):
            steps = np.arange(number * steps_each, (number + 1) * steps_each)
            content = sample.framed([sample.loss_record(steps), *sample.quantity_records("activation", steps)])
            with (folder / segment_name(number + 1)).open("ab", buffering=0) as file:
                for at in range(0, len(content), 900):
                    file.write(content[at : at + 900])

    writer = threading.Thread(target=append)
    writer.start()
    n_seen, is_over = 0, False
    while not is_over:
        is_over = not writer.is_alive()
        run.refresh()
        loss = run.losses.get("train_loss")
        steps = loss.steps.tolist() if loss is not None else []
        assert steps == list(range(len(steps)))
        assert len(steps) >= n_seen
        assert run.gaps == []
        n_seen = len(steps)
    assert_whole(run, np.arange(n_segments * steps_each))


# -- several starts ----------------------------------------------------------------------------------------------------


def start(
    folder: Path, name: str, steps: np.ndarray, *, order: int | None = None, resume: int = 0, clock: float = 0.0
) -> None:
    """A recording whose records were written at ``clock`` and, by the second, after it."""
    head = sample.recording_record(name, resume_step=resume, started=sample.STARTED + clock)
    if order is not None:
        head = replace(head, body={**head.body, "order": order})
    loss = sample.loss_record(steps)
    values = np.full_like(loss.arrays["values"], len(name))
    rows = [
        replace(loss, first_step=int(s), last_step=int(s), wall_time=sample.STARTED + clock + n,
                arrays={key: a[n : n + 1] for key, a in {**loss.arrays, "values": values}.items()})
        for n, s in enumerate(steps)
    ]  # fmt: skip
    sample.write(folder, [head, list(sample.all_records())[1], *rows], name)


def owners(run: Run) -> list[int]:
    return [int(value) for value in run.losses["train_loss"].values]


def test_a_later_start_is_shown_although_the_clock_went_backwards(tmp_path: Path) -> None:
    start(tmp_path, "1", np.arange(8), order=1, clock=5000)
    start(tmp_path, "22", np.arange(5, 10), order=2, resume=5, clock=0)
    run = open_run(tmp_path)
    assert [recording.name for recording in run.recordings] == ["1", "22"]
    assert owners(run) == [1] * 5 + [2] * 5
    assert run.notes == []


def test_starts_that_did_not_count_themselves_come_first_by_their_clock(tmp_path: Path) -> None:
    start(tmp_path, "333", np.arange(7, 10), order=3, resume=7, clock=0)
    start(tmp_path, "22", np.arange(4, 8), resume=4, clock=2000)
    start(tmp_path, "1", np.arange(6), clock=1000)
    run = open_run(tmp_path)
    assert owners(run) == [1] * 4 + [2] * 3 + [3] * 3


@pytest.mark.parametrize("order", [True, "2", -1, 1.5, None, [1]])
def test_an_order_of_another_form_is_none(order: Any, tmp_path: Path) -> None:
    start(tmp_path, "1", np.arange(4), order=order, clock=0)
    start(tmp_path, "22", np.arange(4), clock=1000)
    run = open_run(tmp_path)
    assert owners(run) == [2] * 4


def test_a_start_whose_beginning_is_lost_takes_its_place_by_the_clock(tmp_path: Path) -> None:
    start(tmp_path, "1", np.arange(6), order=1, clock=1000)
    start(tmp_path, "22", np.arange(4, 8), order=2, resume=4, clock=2000)
    start(tmp_path, "333", np.arange(6, 10), order=3, resume=6, clock=3000)
    for name, expected in (("333", [1] * 4 + [2] * 2 + [3] * 4), ("22", [1] * 4 + [2] * 2 + [3] * 4)):
        path = tmp_path / "plugins" / PLUGIN_NAME / name / "000000.dgm"
        content = path.read_bytes()
        path.write_bytes(content[:30] + b"??" + content[32:])
        run = open_run(tmp_path)
        assert run.gaps
        assert owners(run) == expected
        path.write_bytes(content)


def test_two_trainings_at_once_are_both_readable_and_said_once(tmp_path: Path) -> None:
    start(tmp_path, "1", np.arange(9), order=1, clock=0)
    start(tmp_path, "22", np.arange(3, 10), order=1, resume=3, clock=4)
    run = open_run(tmp_path)
    assert owners(run) == [1] * 3 + [2] * 7
    assert [recording.steps for recording in run.recordings] == [(0, 8), (3, 9)]
    assert run.notes == [
        "2 trainings wrote this run at the same time (recordings 1, 22): "
        "from step 3 on the one that started last is shown, 22"
    ]
    run.refresh()
    assert len(run.notes) == 1


def test_a_training_that_ended_before_the_next_began_was_alone(tmp_path: Path) -> None:
    start(tmp_path, "1", np.arange(9), order=1, clock=0)
    start(tmp_path, "22", np.arange(9), order=2, clock=9)
    assert open_run(tmp_path).notes == []


def test_the_id_of_a_finding_stays_when_another_recording_begins(tmp_path: Path) -> None:
    sample.write(tmp_path, sample.all_records(), "a")
    run = open_run(tmp_path)
    ids = {number: finding.summary for number, finding in run.numbered_findings()}
    evidence = [entry.read("inputs").tolist() for entry in run.evidence("samples", "f1")]
    assert evidence
    later = [replace(record, arrays={**record.arrays, "inputs": record.arrays["inputs"] + 1})
             if record.kind == "samples" else record for record in sample.finding_records()]  # fmt: skip
    body = {"resume_step": STEPS, "started": sample.STARTED + 100, "name": "b"}
    sample.write(tmp_path, [sample.recording_record(**body), *later], "b")
    run.refresh()
    now = {number: finding.summary for number, finding in run.numbered_findings()}
    assert ids.items() <= now.items()
    assert [entry.read("inputs").tolist() for entry in run.evidence("samples", "f1")] == evidence
    assert {number for number in now if number.startswith("1-")} == {"1-f1", "1-f2", "1-f3"}
    (entry,) = run.evidence("samples", "1-f1")
    np.testing.assert_array_equal(entry.read("inputs"), sample.INPUTS + 1)
    assert run.evidence("samples", "2-f1") == []


def frames(records: Iterable[Record]) -> Iterator[bytes]:
    return (frame(encode(record)) for record in records)


def test_the_walk_finds_what_the_writer_framed() -> None:
    parts = list(frames(SMALL))
    found, lost = walk(b"x" * 7 + b"".join(parts))
    assert lost == 7
    assert len(found) == len(parts)
    assert [
        parse((b"x" * 7 + b"".join(parts))[at:][: len(p) - 16]).kind for at, p in zip(sorted(found), parts, strict=True)
    ] == [record.kind for record in SMALL]
