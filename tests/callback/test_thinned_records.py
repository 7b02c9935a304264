"""What is left of records that were thinned out, at every level, against every row that was recorded."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dgm_tb import open_run
from dgm_tb.callback.retention import Retention
from dgm_tb.records import STATISTICS, Record, encode, expand, parse
from tests.callback.outgrown import (
    N_LAYERS,
    NAN,
    SEGMENT_BYTES,
    WINDOW,
    Rows,
    Segments,
    check_rows,
    check_windows,
    first_records,
    joined,
    kind_of,
    levels,
    payloads_in,
    payloads_of,
    recorded,
    records_in,
    segments_in,
    thin_once,
    thinned,
)
from tests.sample_recording import FLOW, contribution_records, finding_records, ring_record, span_of


class Long:
    """A recording that has been thinned three times where it is oldest, and what was written.

    Args:
        run: Its run folder.
        window_steps: As in ``Windows``.
        n_spikes: As in ``Rows``.
    """

    def __init__(self, run: Path, window_steps: int, n_spikes: int) -> None:
        self.rows = Rows(800).with_spikes(n_spikes)
        with np.errstate(invalid="ignore"):
            self.written = [*first_records(), *recorded(self.rows, window_steps)]
        self.run = run
        self.folder = thinned(run, self.written, 24 * SEGMENT_BYTES)


@pytest.fixture(scope="module", params=[WINDOW, 1], ids=["windows", "steps"])
def spiky(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Long:
    return Long(tmp_path_factory.mktemp("run"), request.param, 200)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Long:
    return Long(tmp_path_factory.mktemp("run"), WINDOW, 0)


def test_no_extreme_of_a_neuron_is_lost_at_any_level(spiky: Long) -> None:
    assert levels(spiky.folder)[0] == 3
    check_windows(spiky.folder, spiky.rows)


@pytest.mark.parametrize("quantity", STATISTICS)
def test_no_extreme_of_a_layer_is_lost_at_any_level(spiky: Long, quantity: str) -> None:
    shape = -1, N_LAYERS[quantity] * len(STATISTICS[quantity])
    before, after = (
        [record for record in found if record.kind == "layer_statistics" and record.body["quantity"] == quantity]
        for found in (spiky.written, records_in(spiky.folder, "layer_statistics"))
    )

    steps, values = joined(after, "steps"), joined(after, "values").reshape(shape)

    check_rows(joined(before, "steps"), joined(before, "values").reshape(shape), steps, values)
    assert len(steps) < len(joined(before, "steps")) * 0.75


def test_no_extreme_of_a_loss_is_lost_and_all_are_kept_until_the_third_level(spiky: Long) -> None:
    losses = records_in(spiky.folder, "loss")
    steps, values = joined(losses, "steps"), joined(losses, "values")

    check_rows(np.arange(spiky.rows.n_steps), spiky.rows.losses[:, None], steps, values)

    np.testing.assert_array_equal(joined(losses, "global_steps"), 2 * steps)
    assert joined(losses, "present").all()
    oldest = [name for name, level in zip(segments_in(spiky.folder), levels(spiky.folder), strict=True) if level > 2]
    old_steps = joined([r for r in _in_segments(spiky.folder, oldest) if r.kind == "loss"], "steps")
    np.testing.assert_array_equal(steps[len(old_steps) :], np.arange(old_steps[-1] + 1, spiky.rows.n_steps))
    assert len(old_steps) < old_steps[-1] / 2


def test_skipped_steps_are_known_where_losses_were_thinned(calm: Long) -> None:
    run = open_run(calm.run)

    expected = np.arange(7, calm.rows.n_steps, 50)
    assert len(run.skipped_steps) == len(expected)
    assert (np.abs(run.skipped_steps - expected) < 8).all()


def test_means_are_those_of_all_steps(calm: Long) -> None:
    for record in records_in(calm.folder, "dynamics"):
        raw = calm.rows.of[record.body["quantity"]][:, 0]
        expected = [np.nanmean(raw[first : last + 1], 0) for first, last in record.arrays["windows"]]
        found = expand("values", record.arrays["values"], record.body)[:, :, 0].T
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=0.06)


def test_levels_fall_with_age_and_the_newest_segments_are_whole(calm: Long) -> None:
    found = levels(calm.folder)

    assert found == sorted(found, reverse=True)
    assert found.count(0) >= len(found) / 2
    assert max(Counter(level for level in found if level).values()) <= 4
    newest = payloads_in(calm.folder)[-20:]
    assert newest == [encode(record) for record in calm.written[-20:]]


def test_polylines_keep_the_extremes_of_their_neurons_and_go_at_the_third_level(calm: Long) -> None:
    at: dict[int, list[Record]] = {}
    for name, level in zip(segments_in(calm.folder), levels(calm.folder), strict=True):
        at.setdefault(level, []).extend(r for r in _in_segments(calm.folder, [name]) if r.kind == "polylines")

    assert at[3] == []
    for record in at[1] + at[2]:
        steps, columns = record.arrays["steps"], record.arrays["neurons"]
        raw = calm.rows.of[record.body["quantity"]][steps[0] : steps[-1] + 1, 0, columns]
        values = expand("values", record.arrays["values"], record.body).astype(np.float64)
        check_rows(np.arange(steps[0], steps[-1] + 1), raw, steps, values)
    density = {n: np.mean([np.diff(r.arrays["steps"]).mean() for r in at[n]]) for n in (0, 1, 2)}
    assert density[0] == 1
    assert 2.5 < density[1] < density[2]


def _in_segments(folder: Path, names: list[str]) -> list[Record]:
    return [parse(payload) for name in names for payload in payloads_of((folder / name).read_bytes())]


def test_a_neuron_that_is_nan_in_its_whole_window_is_an_alarm_a_layer_that_does_not_run_is_none(tmp_path: Path) -> None:
    rows = Rows(100)
    fc, conv = span_of("fc"), span_of("conv")
    rows.of["activation"][WINDOW : 2 * WINDOW, :, fc.start + 1] = NAN
    rows.of["activation"][WINDOW : 2 * WINDOW, :, conv] = NAN

    segments = Segments(tmp_path, [*first_records(), *recorded(rows)], 3 * SEGMENT_BYTES)

    thin_once(segments)

    record = next(r for r in records_in(segments.folder, "dynamics") if r.body["quantity"] == "activation")
    assert record.arrays["windows"][0].tolist() == [0, 4 * WINDOW - 1]
    is_nan = np.isnan(record.arrays["values"][:, 0])
    means = [name.endswith("/mean") for name in record.body["aggregates"]]
    assert np.flatnonzero(is_nan.any(1)).tolist() == [fc.start + 1]
    assert is_nan[fc.start + 1].tolist() == means
    check_windows(segments.folder, rows)


def test_a_nan_in_one_step_is_seen_where_windows_are_one_step_long(tmp_path: Path) -> None:
    rows = Rows(100)
    rows.of["gradient"][9, 0, 3] = NAN

    segments = Segments(tmp_path, [*first_records(), *recorded(rows, 1)], 3 * SEGMENT_BYTES)

    thin_once(segments)

    record = next(r for r in records_in(segments.folder, "dynamics") if r.body["quantity"] == "gradient")
    window = int(np.flatnonzero(record.arrays["windows"][:, 1] >= 9)[0])
    assert record.body["aggregates"] == ["rms/mean", "rms/max"]
    assert np.isnan(record.arrays["values"][3, window]).tolist() == [True, False]


@pytest.mark.parametrize("window_steps", [WINDOW, 1])
def test_windows_are_not_merged_over_those_that_are_missing(tmp_path: Path, window_steps: int) -> None:
    """As after a while in which the disk was full."""
    rows = Rows(160)
    written = [r for r in recorded(rows, window_steps) if r.kind != "dynamics" or not 50 <= r.first_step < 100]
    segments = Segments(tmp_path, [*first_records(), *written], 6 * SEGMENT_BYTES)

    thin_once(segments)

    for quantity in STATISTICS:
        records = [r for r in records_in(segments.folder, "dynamics") if r.body["quantity"] == quantity]
        bounds = joined(records, "windows")
        assert ((bounds[:, 1] < 75) | (bounds[:, 0] > 75)).all()
        assert bounds[0].tolist() == [0, 4 * window_steps - 1] or quantity in ("weight", "update")


@pytest.mark.parametrize("exponent", [-40, 60])
def test_values_out_of_the_range_of_float16_stay_as_they_are(tmp_path: Path, exponent: int) -> None:
    rows = Rows(100)
    for quantity in ("gradient", "update"):
        rows.of[quantity] = np.ldexp(rows.of[quantity], exponent)
    segments = Segments(tmp_path, [*first_records(), *recorded(rows)], 3 * SEGMENT_BYTES)
    assert any(record.body.get("exponents") for record in records_in(segments.folder, "dynamics"))

    thin_once(segments)

    check_windows(segments.folder, rows)


def test_a_layout_that_grows_leaves_nan_before(tmp_path: Path) -> None:
    rows = Rows(120)
    n_early = span_of("unfold").start
    early = [r for r in recorded(rows, n_layers=3) if r.last_step < 42]
    late = [r for r in recorded(rows) if r.first_step >= 40]
    early = [_without_neurons(r, n_early) if r.kind == "dynamics" else r for r in early]
    rows.of["activation"][:40, :, n_early:] = rows.of["gradient"][:40, :, n_early:] = NAN

    segments = Segments(tmp_path, [*first_records(), *early, *late], 3 * SEGMENT_BYTES)

    thin_once(segments)

    check_windows(segments.folder, rows)


def _without_neurons(record: Record, n_neurons: int) -> Record:
    arrays = {**record.arrays, "values": record.arrays["values"][:n_neurons]}
    return Record(record.kind, record.first_step, record.last_step, record.body, arrays)


def test_everything_else_stays_byte_by_byte_and_in_order(tmp_path: Path) -> None:
    others = [encode(r) for r in (*finding_records(), *contribution_records(8), ring_record())]
    others += [b"no record of ours", encode(Record("note", 3, 3, {"text": "x"})).replace(b"note", b"nova")]
    segments = Segments(tmp_path, first_records())
    for number, record in enumerate(recorded(Rows(200))):
        segments.append(encode(record))
        if number % 7 == 3 and others:
            segments.append(others.pop())
    keeper = Retention(segments.folder, 10 * SEGMENT_BYTES)

    while keeper.step(segments.number - 1):
        pass

    changed = {"dynamics", "layer_statistics", "polylines"}
    found = payloads_in(segments.folder)
    before, after = ([p for p in payloads if kind_of(p) not in changed] for payloads in (segments.payloads, found))
    notes = [p for p in after if kind_of(p) == "note" and p not in before]
    assert not others
    assert max(levels(segments.folder)) in (1, 2)
    assert len(notes) == 1
    assert "a quarter of their detail" in parse(notes[0]).body["text"]
    assert [p for p in after if p not in notes] == before
    assert kind_of(found[0]) == "recording"


def test_a_thinned_recording_is_read_as_any_other(spiky: Long) -> None:
    rows, fc = spiky.rows, span_of("fc")

    run = open_run(spiky.run)

    assert run.layers == FLOW
    assert run.gaps == []
    assert any("a quarter of their detail" in note for note in run.notes)
    found = run.dynamics("fc", "activation", "max")
    assert (np.diff(found.steps) > 0).all()
    np.testing.assert_array_equal(np.fmax.reduce(found.values, 1), np.fmax.reduce(rows.of["activation"][:, 3, fc], 0))
    lines = run.layer_statistics("fc", "activation")
    assert np.fmax.reduce(lines["max"].values) == np.fmax.reduce(rows.of["activation"][:, 3, fc], (0, 1))
    assert (np.diff(lines["max"].steps) > 0).all()
    losses = run.losses["loss"]
    assert (losses.steps[0], losses.steps[-1]) == (0, rows.n_steps - 1)
    assert np.isin(losses.values[~np.isnan(losses.values)], rows.losses).all()
    drawn = run.polylines("fc")
    assert drawn.values.shape == (4, len(drawn.steps))


def test_spikes_are_seen_in_the_lines_of_a_thinned_recording(tmp_path: Path) -> None:
    rows, fc = Rows(800), span_of("fc")
    spikes = np.array([101, 333, 500, 640, 700, 799])
    rows.of["activation"][spikes, 0, fc.start + 1] = 5000
    rows.of["activation"][spikes - 5, 0, fc.start + 2] = -5000

    folder = thinned(tmp_path, [*first_records(), *recorded(rows)], 24 * SEGMENT_BYTES)

    lines = open_run(tmp_path).polylines("fc", k=4)
    found = dict(zip(lines.neurons.tolist(), lines.values, strict=True))
    assert levels(folder)[0] == 3
    assert np.isfinite(lines.values).all()
    for neuron, value in ((1, 5000), (2, -5000)):
        where = lines.steps[found[neuron] == value]
        assert all(np.abs(where - step).min() < 160 for step in spikes)
        assert 799 in where or neuron == 2
