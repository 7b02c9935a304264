"""What a run folder can hold on disk: whole, growing, damaged, replaced, resumed."""

import os
import random
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sample_recording as sample
from sample_recording import LOSS_STEPS, STEPS

from dgm_tb import open_run
from dgm_tb.framing import frame
from dgm_tb.graph import Graph, Layer
from dgm_tb.plugin.run import Run
from dgm_tb.records import Record, encode


def losses_in_pieces(n_pieces: int = 4) -> list[Record]:
    return [sample.loss_record(steps) for steps in np.array_split(LOSS_STEPS, n_pieces)]


def steps_of(run: Run) -> list[int]:
    return [int(step) for step in run.losses["train_loss"].steps] if run.losses else []


def test_records_rotated_over_segments_are_one_recording(tmp_path: Path) -> None:
    for number, record in enumerate(sample.all_records()):
        sample.write(tmp_path, [record], segment=number)
    sample.write(tmp_path / "other", sample.all_records())
    run, whole = open_run(Path(tmp_path)), open_run(tmp_path / "other")
    np.testing.assert_array_equal(run.dynamics("fc").values, whole.dynamics("fc").values)
    assert (run.layers, run.snapshots, run.gaps) == (whole.layers, whole.snapshots, [])


def test_a_run_that_is_refreshed_has_what_was_appended(tmp_path: Path) -> None:
    records = list(sample.all_records())
    path = sample.write(tmp_path, records[:1])
    run = open_run(tmp_path)
    revisions = {run.revision}
    for record in records[1:]:
        before = run.revision
        run.refresh()
        assert run.revision == before
        path.open("ab").write(frame(encode(record)))
        run.refresh()
        assert run.revision not in revisions
        revisions.add(run.revision)
    assert run.ended == "finished"
    assert run.layers == sample.FLOW
    np.testing.assert_array_equal(
        run.dynamics("fc").values, sample.window_values("activation", "mean/mean")[sample.span_of("fc")]
    )


def test_values_read_before_and_after_more_came_agree(tmp_path: Path) -> None:
    pieces = np.array_split(LOSS_STEPS, 3)
    path = sample.write(tmp_path, list(sample.all_records())[:2])
    run = open_run(tmp_path)
    for number, steps in enumerate(pieces):
        for record in [sample.loss_record(steps), *sample.quantity_records("activation", steps)]:
            path.open("ab").write(frame(encode(record)))
        run.refresh()
        so_far = LOSS_STEPS[: pieces[number][-1] + 1]
        assert steps_of(run) == so_far.tolist()
        found = run.layer_statistics("fc")["mean"]
        np.testing.assert_array_equal(found.steps, so_far)
        assert run.dynamics("fc").steps.tolist() == [3, 7, 11][: number + 1]
        expected = sample.neuron_values("activation", "mean", so_far)[sample.span_of("out")]
        np.testing.assert_array_equal(run.polylines("out", k=9).values[0], expected[4])


def test_a_damaged_record_costs_itself_and_shows_as_a_gap(tmp_path: Path) -> None:
    pieces = losses_in_pieces()
    framed = [frame(encode(record)) for record in [sample.recording_record(), *pieces]]
    for hit in range(1, len(framed)):
        parts = framed[:]
        parts[hit] = parts[hit][:40] + b"\xff" + parts[hit][41:]
        path = sample.write(tmp_path / str(hit), [])
        path.write_bytes(b"".join(parts))
        sample.write(tmp_path / str(hit), [], segment=1)
        run = open_run(tmp_path / str(hit))
        lost = pieces[hit - 1]
        assert steps_of(run) == [step for step in LOSS_STEPS if not lost.first_step <= step <= lost.last_step]
        (gap,) = run.gaps
        after = pieces[hit - 2].last_step if hit > 1 else 0
        assert (gap["segment"], gap["offset"], gap["bytes"]) == (
            "000000.dgm",
            sum(map(len, parts[:hit])),
            len(parts[hit]),
        )
        assert (gap["recording"], gap["after_step"]) == (sample.NAME, after)


def test_after_step_of_a_gap_is_of_its_own_segment(tmp_path: Path) -> None:
    early, late = losses_in_pieces(2)
    sample.write(tmp_path, [sample.recording_record(), late])
    bad = frame(b"not a record at all, but framed")
    path = sample.write(tmp_path, [], segment=1)
    path.write_bytes(bad + frame(encode(early)) + bad)
    assert [gap["after_step"] for gap in open_run(tmp_path).gaps] == [None, early.last_step]


def test_a_gap_that_appears_changes_the_revision(tmp_path: Path) -> None:
    path = sample.write(tmp_path, sample.all_records())
    path.open("ab").write(b"torn")
    run = open_run(tmp_path)
    assert run.gaps == []
    before = run.revision
    sample.write(tmp_path, [], segment=1)  # the first segment is sealed now
    run.refresh()
    assert len(run.gaps) == 1
    assert run.revision != before


def test_a_file_cut_anywhere_opens_with_all_whole_records(tmp_path: Path) -> None:
    whole = sample.framed([sample.recording_record(), *losses_in_pieces(2)])
    ends = np.cumsum([len(frame(encode(r))) for r in [sample.recording_record(), *losses_in_pieces(2)]])
    path = sample.write(tmp_path, [])
    for cut in sorted({*range(0, len(whole) + 1, 11), *ends, *(ends - 1), *(ends + 1)} - {len(whole) + 1}):
        path.write_bytes(whole[:cut])
        run = Run(tmp_path)
        assert len(steps_of(run)) == 6 * max(0, int((ends <= cut).sum()) - 1)


def test_one_wrong_byte_anywhere_never_breaks_the_rest(tmp_path: Path) -> None:
    records = [sample.recording_record(), *losses_in_pieces(2)]
    whole = sample.framed(records)
    sample.write(tmp_path, [], segment=1)
    path = sample.write(tmp_path, [])
    for at in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        run = Run(tmp_path)
        assert len(steps_of(run)) in (6, 12)
        assert len(run.gaps) == 1


def test_a_replaced_segment_is_read_anew(tmp_path: Path) -> None:
    path = sample.write(tmp_path, [sample.recording_record(), sample.loss_record(LOSS_STEPS)])
    run = open_run(tmp_path)
    assert steps_of(run) == list(range(12))
    before = run.revision
    other = tmp_path / "other"
    other.write_bytes(sample.framed([sample.recording_record(), sample.loss_record(LOSS_STEPS + 5)]))
    other.rename(path)
    run.refresh()
    assert steps_of(run) == list(range(5, 17))
    assert run.revision != before


def test_a_shrunk_segment_is_read_anew(tmp_path: Path) -> None:
    records = [sample.recording_record(), *losses_in_pieces(2)]
    path = sample.write(tmp_path, records)
    run = open_run(tmp_path)
    os.truncate(path, len(sample.framed(records[:2])))
    run.refresh()
    assert steps_of(run) == list(range(6))


def test_a_deleted_recording_is_gone_after_a_refresh(tmp_path: Path) -> None:
    path = sample.write(tmp_path, sample.all_records())
    run = open_run(tmp_path)
    path.unlink()
    run.refresh()
    assert (run.layers, run.losses, run.snapshots) == ([], {}, [])


def test_files_that_are_no_segments_are_left_alone(tmp_path: Path) -> None:
    path = sample.write(tmp_path, sample.all_records())
    (path.parent / "000001.dgm").touch()
    (path.parent / "000002.dgm").mkdir()
    (path.parent / "notes.txt").write_text("x")
    (path.parents[1] / "file.dgm").touch()
    os.mkfifo(path.parent / "000003.dgm")
    run = open_run(tmp_path)
    assert run.layers == sample.FLOW
    assert run.gaps == []


def resumed(tmp_path: Path) -> Run:
    first = np.arange(8)
    again = np.arange(5, 12)
    head, losses = list(sample.all_records())[1], sample.loss_record(again)
    sample.write(
        tmp_path,
        [sample.recording_record("a"), head, sample.loss_record(first), *sample.quantity_records("activation", first),
         *sample.contribution_records(0), *sample.contribution_records(6), *sample.finding_records()],
        "a",
    )  # fmt: skip
    sample.write(
        tmp_path,
        [sample.recording_record("b", resume_step=5, started=sample.STARTED + 100), head,
         replace(losses, arrays={**losses.arrays, "values": np.full((7, 2), -1.0)}),
         *sample.quantity_records("activation", again), *sample.contribution_records(7)],
        "b",
    )  # fmt: skip
    return open_run(tmp_path)


def test_a_layer_may_have_another_width_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample.write(tmp_path, sample.all_records(), "a")
    for table in (sample.LAYERS, sample.WITH_WEIGHTS):
        monkeypatch.setitem(table, "fc", 6)
    kinds = ("graph", "loss", "layer_statistics", "dynamics")
    later = [record for record in sample.all_records() if record.kind in kinds]
    sample.write(tmp_path, [sample.recording_record("b", resume_step=6, started=sample.STARTED + 9), *later], "b")
    run = open_run(tmp_path)
    assert "dead_units" in {finding.kind for finding in run.findings}
    assert not [note for note in run.notes if "failed" in note]
    assert run.dynamics("fc").values.shape[0] == 6
    assert run.dynamics("out").values.shape[0] == 5


def test_a_later_recording_supersedes_from_its_resume_step(tmp_path: Path) -> None:
    run = resumed(tmp_path)
    loss = run.losses["train_loss"]
    assert loss.steps.tolist() == list(range(12))
    np.testing.assert_array_equal(loss.values[:5], sample.loss_values()[:5, 0])
    np.testing.assert_array_equal(loss.values[5:], -1)
    assert run.snapshots == [0, 7]
    assert run.steps == (0, 11)
    found = run.layer_statistics("fc")["mean"]
    assert found.steps.tolist() == list(range(12))
    windows = run.dynamics("fc")
    assert windows.first_steps.tolist() == [0, 5, 9]
    assert windows.steps.tolist() == [3, 8, 11]
    assert run.polylines("fc", k=2).steps.tolist() == list(range(12))
    recorded = {"dead_units"} & {finding.kind for finding in run.findings if finding.summary == "1 of 3 is zero"}
    assert recorded == {"dead_units"}
    assert not [finding for finding in run.findings if finding.kind == "outlier_sample"]


def test_a_start_without_a_step_supersedes_nothing(tmp_path: Path) -> None:
    sample.write(tmp_path, sample.all_records(), "a")
    sample.write(tmp_path, [sample.recording_record("b", resume_step=0, started=sample.STARTED + 100)], "b")
    run = open_run(tmp_path)
    assert run.steps == (0, STEPS - 1)
    assert run.losses["train_loss"].steps.tolist() == list(range(STEPS))
    assert len(run.findings) >= len(sample.FINDINGS)


def test_findings_of_two_recordings_with_one_id_are_both_kept(tmp_path: Path) -> None:
    finding = sample.FINDINGS["f2"]
    for number, resume in (("a", 0), ("b", 5)):
        body = {"id": "f1", "finding": replace(finding, step=resume + 1).to_json()}
        records = [
            sample.recording_record(number, resume_step=resume, started=sample.STARTED + resume),
            Record("finding", resume + 1, resume + 1, body),
        ]
        sample.write(tmp_path, records, number)
    found = open_run(tmp_path).numbered_findings()
    assert [finding.step for _, finding in found] == [1, 6]
    assert len({number for number, _ in found}) == 2


def test_a_finding_that_is_written_again_replaces_the_earlier(tmp_path: Path) -> None:
    finding = sample.FINDINGS["f1"]
    bodies = [{"id": "f1", "finding": replace(finding, summary=text).to_json()} for text in ("first", "second")]
    records = [Record("finding", 9, 9, body) for body in bodies]
    sample.write(tmp_path, [sample.recording_record(), *records])
    assert [finding.summary for finding in open_run(tmp_path).findings] == ["second"]


def grown(folder: Path) -> Path:
    """A recording in which the layers ``fc``, ``unfold`` and ``late`` appear at step 4."""
    grown = sample.graph()
    small = Graph(grown.nodes, grown.edges, grown.modules, grown.layers[:2], grown.weights, grown.links)
    late = Layer("late", "late", "Linear", 3, sum(sample.LAYERS.values()), [2, 3])
    grown = replace(grown, layers=[*grown.layers, late])
    early_steps, late_steps = LOSS_STEPS[:4], LOSS_STEPS[4:8]
    early = list(sample.quantity_records("activation", early_steps))
    early = [replace(r, arrays={k: v[:, :2] if r.kind == "layer_statistics" and k == "values" else
                                v[:8] if r.kind == "dynamics" and k == "values" else v
                                for k, v in r.arrays.items()}) for r in early[:2]]  # fmt: skip
    bounds = np.array([[4, 7]])
    n_neurons = late.offset + late.neurons
    windows = np.arange(n_neurons, dtype=np.float32)[:, None, None] * np.ones((1, 1, 7), np.float32)
    aggregates = list(early[1].body["aggregates"])
    later = [
        Record("layer_statistics", 4, 7, early[0].body,
               {"steps": late_steps, "values": np.ones((4, 5, 5), np.float32)}),
        Record("dynamics", 4, 7, {"quantity": "activation", "aggregates": aggregates},
               {"windows": bounds, "values": windows}),
    ]  # fmt: skip
    sample.write(
        folder,
        [sample.recording_record(), Record("graph", 0, 0, small.to_json()), *early,
         Record("graph", 4, 4, grown.to_json()), *later],
    )  # fmt: skip
    return folder


def test_what_a_grown_layout_did_not_have_yet_is_nan(tmp_path: Path) -> None:
    run = open_run(grown(tmp_path))
    assert run.gaps == []
    for layer in ("late", "fc"):
        found = run.dynamics(layer)
        assert found.steps.tolist() == [3, 7]
        assert np.isnan(found.values[:, 0]).all()
        assert np.isfinite(found.values[:, 1]).all()
        series = run.layer_statistics(layer)["mean"]
        assert series.steps.tolist() == list(range(8))
        assert np.isnan(series.values[:4]).all()
        assert (series.values[4:] == 1).all()
        assert run.polylines(layer, k=2).values.shape == (2, 8)
    found = run.dynamics("conv")
    np.testing.assert_array_equal(found.values[:, 0], sample.window_values("activation", "mean/mean")[5:8, 0])


def test_segments_in_the_wrong_order_or_twice_come_out_in_order(tmp_path: Path) -> None:
    parts = np.array_split(LOSS_STEPS, 3)
    head = [sample.recording_record(), list(sample.all_records())[1]]
    for segment, steps in enumerate([parts[2], parts[0], parts[1], parts[0]]):
        records = [sample.loss_record(steps), *sample.quantity_records("activation", steps)]
        sample.write(tmp_path, [*head, *records], segment=segment)
    run = open_run(tmp_path)
    loss = run.losses["train_loss"]
    np.testing.assert_array_equal(loss.steps, LOSS_STEPS)
    np.testing.assert_array_equal(loss.values, sample.loss_values()[:, 0])
    assert run.layer_statistics("fc")["mean"].steps.tolist() == list(range(STEPS))
    assert run.dynamics("fc").steps.tolist() == [3, 7, 11]
    assert run.polylines("fc", k=2).steps.tolist() == list(range(STEPS))
    assert run.steps == (0, STEPS - 1)


def test_a_run_can_be_read_while_it_grows(tmp_path: Path) -> None:
    n_pieces = 150
    path = sample.write(tmp_path, list(sample.all_records())[:2])
    rng = random.Random(0)

    def append() -> None:
        with path.open("ab", buffering=0) as file:
            for number in range(n_pieces):
                steps = np.arange(number * 4, number * 4 + 4)
                content = sample.framed([sample.loss_record(steps), *sample.quantity_records("activation", steps)])
                cut = rng.randrange(len(content))
                file.write(content[:cut])
                file.write(content[cut:])

    writer = threading.Thread(target=append)
    run = open_run(tmp_path)
    errors: list[BaseException] = []

    def follow() -> None:
        try:
            n_steps = 0
            while n_steps < n_pieces * 4:
                is_over = not writer.is_alive()
                run.refresh()
                steps = steps_of(run)
                assert steps == list(range(len(steps)))
                assert len(steps) >= n_steps
                n_steps = len(steps)
                if steps[7:]:
                    lines = run.polylines("fc", k=2)
                    assert len(lines.steps) >= 4
                assert not is_over or n_steps == n_pieces * 4
        except BaseException as error:
            errors.append(error)

    writer.start()
    readers = [threading.Thread(target=follow) for _ in range(2)]
    for thread in [*readers, writer]:
        if thread is not writer:
            thread.start()
    for thread in [*readers, writer]:
        thread.join(60)
    assert errors == []
    assert run.gaps == []
