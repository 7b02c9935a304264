"""Segments that are thinned out within a size: how much, when, and whatever may happen meanwhile."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgm_tb import open_run
from dgm_tb.callback import retention
from dgm_tb.callback.options import Options
from dgm_tb.callback.output import Output
from dgm_tb.callback.retention import UNFINISHED_NAME, Retention
from dgm_tb.framing import FOOTER_BYTES, HEADER_BYTES, frame, payload_length
from dgm_tb.records import STATISTICS, Record, encode, parse
from dgm_tb.segment_names import segment_name
from tests.callback.outgrown import (
    SEGMENT_BYTES,
    Rows,
    Segments,
    check_windows,
    first_records,
    kind_of,
    levels,
    payloads_in,
    recorded,
    records_in,
)
from tests.sample_recording import FLOW, NAME, graph


def test_the_folder_stays_within_its_size_while_writing_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "STEP_BYTES", SEGMENT_BYTES)
    max_bytes = 24 * SEGMENT_BYTES
    segments = Segments(tmp_path, first_records())
    keeper = Retention(segments.folder, max_bytes)
    sizes = []
    for record in recorded(Rows(1200)):
        segments.append(encode(record))
        by_name = {path.name: path.stat().st_size for path in segments.folder.iterdir()}
        assert keeper.n_bytes == sum(by_name.values()) - by_name.get(UNFINISHED_NAME, 0)
        sizes.append(sum(by_name.values()))
        keeper.step(segments.number - 1)  # one step for each record is enough

    assert max(sizes) <= max_bytes
    assert min(sizes[len(sizes) // 2 :]) > max_bytes / 3
    assert sum(map(len, segments.payloads)) > 5 * max_bytes


def test_nothing_is_done_while_there_is_room_or_nothing_is_sealed(tmp_path: Path) -> None:
    segments = Segments(tmp_path, [*first_records(), *recorded(Rows(160))])
    names = sorted(os.listdir(segments.folder))

    assert not Retention(segments.folder, 2 * len(names) * SEGMENT_BYTES).step(segments.number - 1)
    assert not Retention(segments.folder, 1).step(2)
    assert not Retention(segments.folder, 1).step(-1)
    assert sorted(os.listdir(segments.folder)) == names


def test_segments_are_not_joined_over_one_that_is_missing(tmp_path: Path) -> None:
    segments = Segments(tmp_path, [*first_records(), *recorded(Rows(160))])
    (segments.folder / segment_name(2)).unlink()
    keeper = Retention(segments.folder, 1)

    while keeper.step(7):
        pass

    names = sorted(os.listdir(segments.folder))
    assert names[:4] == ["000000.dgm", "000001.dgm", "000003-000006.dgm", "000007.dgm"]


def test_a_step_is_a_bounded_part_of_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STEP_BYTES", 1000)
    segments = Segments(tmp_path, [*first_records(), *recorded(Rows(160))])
    keeper = Retention(segments.folder, 1)

    n_steps = 0
    while levels(segments.folder)[0] == 0:
        n_steps += keeper.step(4)

    assert n_steps >= 4 * SEGMENT_BYTES // 2000


# -- whatever happens --------------------------------------------------------------------------------------------------


def moments(segments: Segments, monkeypatch: pytest.MonkeyPatch, copies: Path) -> list[Path]:
    """Copies of the folder as a kill would leave it, before and after whatever changes it, and between steps."""
    found: list[Path] = []

    def copy() -> None:
        place = copies / str(len(found)) / "plugins" / "dgmtracker" / NAME
        shutil.copytree(segments.folder, place)
        found.append(place)

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*arguments: Any, **named: Any) -> Any:
            copy()
            result = call(*arguments, **named)
            copy()
            return result

        return watching

    keeper = Retention(segments.folder, 1)
    with monkeypatch.context() as patch:
        patch.setattr(retention, "STEP_BYTES", 3000)
        for name in ("replace", "unlink", "fsync"):
            patch.setattr(os, name, watched(getattr(os, name)))
        while keeper.step(segments.number - 1):
            copy()
    return found


def test_a_kill_at_any_moment_leaves_a_readable_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(150).with_spikes(40)
    segments = Segments(tmp_path / "run", [*first_records(), *recorded(rows)])
    last_steps = [record.last_step for record in map(parse, segments.payloads) if record.kind == "loss"]

    copies = moments(segments, monkeypatch, tmp_path / "copies")

    names = [tuple(sorted(os.listdir(place))) for place in copies]
    assert max(levels(segments.folder)) == 2
    assert any(UNFINISHED_NAME in found for found in names)
    assert any("000000-000003.dgm" in found and "000002.dgm" in found for found in names)
    for place in dict(zip(names, copies, strict=True)).values():
        check_windows(place, rows)
        losses = records_in(place, "loss")
        assert sorted(record.last_step for record in losses) == last_steps
        run = open_run(place.parents[2])
        assert run.gaps == []
        assert run.layers == FLOW
        np.testing.assert_array_equal(run.losses["loss"].values, rows.losses)


def test_the_next_start_removes_what_a_kill_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = Segments(tmp_path / "run", [*first_records(), *recorded(Rows(150))])
    copies = moments(segments, monkeypatch, tmp_path / "copies")
    whole = payloads_in(segments.folder)

    for place in copies[:: len(copies) // 10]:
        keeper = Retention(place, 1)
        assert not (place / UNFINISHED_NAME).exists()
        while keeper.step(segments.number - 1):
            pass

        assert sorted(os.listdir(place)) == sorted(os.listdir(segments.folder))
        found = payloads_in(place)
        assert [kind_of(p) for p in found] == [kind_of(p) for p in whole]
        assert [p for p in found if kind_of(p) != "note"] == [p for p in whole if kind_of(p) != "note"]


@pytest.mark.parametrize("name", ["fsync", "replace", "open"])
def test_what_fails_is_given_up_for_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    segments = Segments(tmp_path, [*first_records(), *recorded(Rows(160))])
    before = {path.name: path.read_bytes() for path in segments.folder.iterdir()}
    keeper = Retention(segments.folder, 1)
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    calls = []

    def failing(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*(("builtins.open", failing) if name == "open" else (os, name, failing)))
        while keeper.step(4):
            pass
        n_calls = len(calls)
        now += 59
        assert not keeper.step(4)

    assert n_calls == len(calls) > 0
    assert {path.name: path.read_bytes() for path in segments.folder.iterdir()} == before
    now += 2
    while keeper.step(4):
        pass
    assert levels(segments.folder)[0] == 1


def test_segments_that_can_not_be_removed_are_removed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(160)
    segments = Segments(tmp_path, [*first_records(), *recorded(rows)])
    keeper = Retention(segments.folder, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda path: (_ for _ in ()).throw(PermissionError(errno.EACCES, "open")))
        for _ in range(3):
            keeper.step(4)
        assert {"000000-000003.dgm", "000000.dgm", "000003.dgm"} <= set(os.listdir(segments.folder))
        check_windows(segments.folder, rows)

    keeper.step(4)

    assert sorted(os.listdir(segments.folder))[:2] == ["000000-000003.dgm", "000004.dgm"]


def test_leaving_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STEP_BYTES", 1000)
    segments = Segments(tmp_path, [*first_records(), *recorded(Rows(160))])
    names = sorted(os.listdir(segments.folder))
    keeper = Retention(segments.folder, 1)
    assert keeper.step(4)
    assert (segments.folder / UNFINISHED_NAME).exists()

    keeper.close()

    assert sorted(os.listdir(segments.folder)) == names


def test_a_deleted_folder_is_no_error(tmp_path: Path) -> None:
    segments = Segments(tmp_path, [*first_records(), *recorded(Rows(160))])
    keeper = Retention(segments.folder, 1)
    shutil.rmtree(segments.folder)

    assert not keeper.step(4)
    assert keeper.n_bytes == 0
    keeper.close()


def _flip(content: bytearray) -> None:
    content[HEADER_BYTES + 5 + (payload_length(bytes(content)) or 0)] ^= 1  # the header of the second record
    content[-FOOTER_BYTES - 3] ^= 1  # the payload of the last one


def _zero(content: bytearray) -> None:
    start = len(content) // 3
    content[start : start + 700] = bytes(700)


def _cut(content: bytearray) -> None:
    del content[-10:]


def _spoil_windows(content: bytearray) -> None:
    content[content.index(b"dynamics", len(content) // 2) + 100] ^= 1


@pytest.mark.parametrize("damage", [_flip, _zero, _cut, _spoil_windows])
def test_damage_is_stepped_over_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytearray], None]
) -> None:
    monkeypatch.setattr(retention, "RESYNC_BYTES", 100)
    rows = Rows(160).with_spikes(20)
    segments = Segments(tmp_path, [*first_records(), *recorded(rows)], 3 * SEGMENT_BYTES)
    path = segments.folder / segment_name(2)
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)
    intact = {p for p in segments.payloads if kind_of(p) == "loss" and frame(p) in bytes(content)}
    keeper = Retention(segments.folder, 1)

    while keeper.step(3):
        pass

    assert levels(segments.folder)[0] == 1
    texts = [record.body["text"] for record in records_in(segments.folder, "note")]
    assert len(texts) == 2
    assert "damaged bytes" in texts[1]
    assert intact
    assert intact <= set(payloads_in(segments.folder))
    _check_kept_windows(segments.folder, rows)


def _check_kept_windows(folder: Path, rows: Rows) -> None:
    for record in records_in(folder, "dynamics"):
        if record.body["quantity"] == "activation":
            column = record.body["aggregates"].index("max/max")
            expected = [np.fmax.reduce(rows.of["activation"][a : b + 1, 3]) for a, b in record.arrays["windows"]]
            np.testing.assert_array_equal(record.arrays["values"][:, :, column].T, expected)


def test_neurons_are_recorded_on_and_on_within_the_smallest_limit(tmp_path: Path) -> None:
    output = Output(tmp_path / "plugins" / "dgmtracker", Options(max_disk_mb=1), 0, {"model": "Net"})
    output.put(Record("graph", 0, 0, graph().to_json()))
    aggregates = [f"{known.name}/{window}" for known in STATISTICS["activation"] for window in known.windows]
    values = np.ones((1250, 1, len(aggregates)), np.float16)
    n_windows = 150
    for number in range(n_windows):
        first, last = 4 * number, 4 * number + 3
        arrays = {"windows": np.array([[first, last]]), "values": values}
        output.put(Record("dynamics", first, last, {"quantity": "activation", "aggregates": aggregates}, arrays))
        if number % 20 == 0:
            output.sync()
    output.close()

    (folder,) = (tmp_path / "plugins" / "dgmtracker").iterdir()
    bounds = np.concatenate([record.arrays["windows"] for record in records_in(folder, "dynamics")])
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1 << 20
    assert [record.body["text"][:13] for record in records_in(folder, "note")] == ["older windows"]
    assert bounds.max() == 4 * n_windows - 1
    assert (bounds[1:, 0] == bounds[:-1, 1] + 1).all()
