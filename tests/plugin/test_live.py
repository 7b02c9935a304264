"""The live file: what is known of windows that have not ended yet, beside the segments that tell of the others."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sample_recording as sample
from conftest import make_client
from sample_recording import LOSS_STEPS, WINDOW

from dgm_tb import open_run
from dgm_tb.plugin import live as live_module
from dgm_tb.plugin.cache import CACHE
from dgm_tb.plugin.history import history_of
from dgm_tb.plugin.live import Live
from dgm_tb.plugin.recording import Recording
from dgm_tb.records import PLUGIN_NAME, Record
from dgm_tb.segment_names import LIVE_NAME

ENDED, BEGUN = LOSS_STEPS[:8], LOSS_STEPS[8:10]
NEXT = LOSS_STEPS[8:]


def folder_of(run: Path) -> Path:
    return run / "plugins" / PLUGIN_NAME / sample.NAME


def begun(steps: np.ndarray, quantity: str = "activation") -> list[Record]:
    """What the live file holds of a window: its dynamics and polylines so far."""
    return [record for record in sample.quantity_records(quantity, steps) if record.kind != "layer_statistics"]


def rows(steps: np.ndarray, quantity: str = "activation") -> list[Record]:
    """What the segments hold before a window has ended: losses and layer statistics."""
    first, *_ = sample.quantity_records(quantity, steps)
    return [sample.loss_record(steps), first]


def head() -> list[Record]:
    return [sample.recording_record(), list(sample.all_records())[1]]


def write_live(run: Path, records: Iterable[Record]) -> Path:
    """As the writer does it: as a whole, under another name first."""
    path = folder_of(run) / LIVE_NAME
    path.with_suffix(".tmp").write_bytes(sample.framed(records))
    path.with_suffix(".tmp").rename(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with two windows that have ended and rows of the next."""
    sample.write(tmp_path, [*head(), *rows(ENDED), *begun(ENDED), *rows(BEGUN)])
    return tmp_path


def test_a_window_that_has_not_ended_is_shown_behind_the_others(folder: Path) -> None:
    write_live(folder, begun(BEGUN))
    run = open_run(folder)
    found = run.dynamics("fc")
    assert found.first_steps.tolist() == [0, 4, 8]
    assert found.steps.tolist() == [3, 7, 9]
    expected = sample.window_values("activation", "mean/mean", LOSS_STEPS[:10])[sample.span_of("fc")]
    np.testing.assert_array_equal(found.values, expected)
    lines = run.polylines("conv", k=3)
    assert lines.steps.tolist() == list(range(10))
    values = sample.neuron_values("activation", "mean", LOSS_STEPS[:10])[sample.span_of("conv")]
    is_sampled = np.isin(lines.neurons + sample.span_of("conv").start, sample.POLYLINES)
    np.testing.assert_array_equal(lines.values[is_sampled], values[lines.neurons[is_sampled]])
    assert run.gaps == []


def test_it_grows_with_every_new_live_file_and_ends_in_a_segment(folder: Path) -> None:
    run = open_run(folder)
    revisions = [run.revision]
    for last in range(9, 13):
        write_live(folder, begun(LOSS_STEPS[8:last]))
        run.refresh()
        assert run.dynamics("fc").steps.tolist() == [3, 7, last - 1]
        revisions.append(run.revision)
        run.refresh()
        assert run.revision == revisions[-1], "nothing new"
    path = sample.write(folder, [], segment=1)
    path.write_bytes(sample.framed(begun(NEXT)))
    for is_live in (True, False):  # the writer appends first; then it begins the next live file, or takes it away
        if not is_live:
            (folder_of(folder) / LIVE_NAME).unlink()
        run.refresh()
        assert run.dynamics("fc").steps.tolist() == [3, 7, 11]
        np.testing.assert_array_equal(
            run.dynamics("fc").values, sample.window_values("activation", "mean/mean")[sample.span_of("fc")]
        )
        revisions.append(run.revision)
    assert len(set(revisions)) == len(revisions)


def test_each_quantity_has_its_own_last_window(folder: Path) -> None:
    path = folder_of(folder) / "000000.dgm"
    path.open("ab").write(sample.framed([*rows(ENDED, "gradient"), *begun(ENDED, "gradient"), *begun(NEXT)]))
    write_live(folder, [*begun(BEGUN), *begun(BEGUN, "gradient"), *begun(BEGUN, "weight")])
    run = open_run(folder)
    assert run.dynamics("fc").steps.tolist() == [3, 7, 11], "in a segment already"
    assert run.dynamics("fc", "gradient").steps.tolist() == [3, 7, 9], "not yet"
    assert run.dynamics("fc", "weight").steps.tolist() == [9], "nothing else"


def test_what_was_read_of_the_segments_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, read = open_run(folder), []
    collected = Recording._collected

    def note(recording: Recording, entries: list, *arguments: object) -> object:
        read.extend(entry.path.name for entry in entries)
        return collected(recording, entries, *arguments)

    monkeypatch.setattr(Recording, "_collected", note)
    for last in (9, 10, 11):
        write_live(folder, begun(LOSS_STEPS[8:last]))
        run.refresh()
        assert run.dynamics("fc").steps.tolist() == [3, 7, last - 1]
    assert read == ["000000.dgm", LIVE_NAME, LIVE_NAME, LIVE_NAME]


def test_it_stays_readable_when_it_is_replaced_before_it_is_read(folder: Path) -> None:
    write_live(folder, begun(BEGUN))
    run = open_run(folder)
    write_live(folder, begun(NEXT))
    assert run.dynamics("fc").steps.tolist() == [3, 7, 9]
    CACHE.clear()
    assert run.dynamics("fc").steps.tolist() == [3, 7, 11], "its bytes are gone: asked again after a refresh"


def test_its_bytes_are_read_again_when_there_was_no_room_for_them(folder: Path) -> None:
    write_live(folder, begun(BEGUN))
    run = open_run(folder)
    CACHE.clear()
    assert run.dynamics("fc").steps.tolist() == [3, 7, 9]


@pytest.mark.parametrize("sort", ["half", "noise", "empty", "huge", "folder", "pipe", "other kinds"])
def test_a_live_file_that_is_none_is_passed_over(sort: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "MAX_BYTES", 20_000)
    content, path = sample.framed(begun(BEGUN)), folder_of(folder) / LIVE_NAME
    expected = open_run(folder)
    if sort == "folder":
        path.mkdir()
    elif sort == "pipe":
        os.mkfifo(path)
    else:
        late = replace(sample.loss_record(NEXT), kind="loss")
        made = {"half": content[: len(content) // 3], "noise": os.urandom(5000), "empty": b"",
                "huge": content + bytes(30_000), "other kinds": sample.framed([late])}  # fmt: skip
        path.write_bytes(made[sort])
    run = open_run(folder)
    assert run.dynamics("fc").steps.tolist() == [3, 7]
    assert (run.gaps, run.notes, run.steps) == ([], [], expected.steps)
    assert run.losses["train_loss"].steps.tolist() == expected.losses["train_loss"].steps.tolist()


def test_what_is_intact_of_a_damaged_live_file_is_shown(folder: Path) -> None:
    windows, lines = begun(BEGUN)
    content = sample.framed([lines]) + b"\xff" * 50 + sample.framed([windows])
    (folder_of(folder) / LIVE_NAME).write_bytes(content)
    run = open_run(folder)
    assert run.dynamics("fc").steps.tolist() == [3, 7, 9]
    assert run.gaps == []


def test_detectors_wait_until_a_window_has_ended(folder: Path) -> None:
    write_live(folder, begun(BEGUN))
    run = open_run(folder)
    assert run.dynamics("fc").steps.tolist() == [3, 7, 9]
    assert [layer.steps.tolist() for layer in history_of(run, []).layers] == [[3, 7]] * len(sample.LAYERS)


def test_routes_draw_it(folder: Path) -> None:
    assert WINDOW == 4
    write_live(folder, begun(BEGUN))
    client = make_client(folder)
    base = "/data/plugin/dgmtracker/"
    assert client.get(f"{base}runs").json[0]["last_step"] == 9
    for route in ("dynamics?run=.&layer=fc&quantity=activation", "neurons?run=.&layer=fc&step=9"):
        answer = client.get(base + route)
        assert answer.status_code == 200
    assert b'"activation": [8, 9]' in answer.data or b'"activation":[8,9]' in answer.data


def test_a_vanishing_live_file_is_no_error(tmp_path: Path) -> None:
    live = Live(tmp_path)
    live.refresh(True)
    assert live.change == 0
