"""What notebooks get from ``open_run``, against arrays that are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample_recording as sample
from sample_recording import LOSS_STEPS, STEPS, WINDOW

from dgm_tb import open_run
from dgm_tb.errors import NoRecordingError, UnknownNameError
from dgm_tb.plugin.run import Run
from dgm_tb.records import STATISTICS, Record

EVERY_STATISTIC = [(quantity, known.name) for quantity, names in STATISTICS.items() for known in names]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    sample.write(folder, sample.all_records())
    return open_run(folder)


@pytest.fixture(scope="module")
def every_step(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("every_step")
    sample.write(folder, sample.all_records(window_steps=1))
    return open_run(folder)


def test_layers_come_in_data_flow_order(run: Run) -> None:
    assert run.layers == sample.FLOW
    assert run.graph == sample.graph()


def test_a_loss_has_the_steps_at_which_it_was_there(run: Run) -> None:
    assert list(run.losses) == ["train_loss", "d_loss"]
    first, second = run.losses.values()
    np.testing.assert_array_equal(first.steps, LOSS_STEPS)
    np.testing.assert_array_equal(first.values, sample.loss_values()[:, 0])
    np.testing.assert_array_equal(first.global_steps, LOSS_STEPS * 2)
    np.testing.assert_array_equal(second.steps, LOSS_STEPS[::2])
    np.testing.assert_array_equal(second.values, sample.loss_values()[::2, 1])


def test_skipped_steps_are_those_marked_and_not_superseded(run: Run, tmp_path: Path) -> None:
    assert run.skipped_steps.tolist() == sample.SKIPPED
    first, again = sample.loss_record(), sample.loss_record(np.arange(5, STEPS))
    older = Record("loss", 5, STEPS - 1, again.body, {n: a for n, a in again.arrays.items() if n != "skipped"})
    sample.write(tmp_path, [sample.recording_record("a"), first], "a")
    sample.write(tmp_path, [sample.recording_record("b", resume_step=5, started=sample.STARTED + 9), older], "b")
    assert open_run(tmp_path).skipped_steps.tolist() == [2], "a recording without the array has none"


@pytest.mark.parametrize("quantity", STATISTICS)
def test_layer_statistics_are_those_of_every_step(run: Run, quantity: str) -> None:
    for row, layer in enumerate(sample.rows_of(quantity)):
        found = run.layer_statistics(layer, quantity)
        assert list(found) == [known.name for known in STATISTICS[quantity]]
        for column, series in enumerate(found.values()):
            np.testing.assert_array_equal(series.steps, LOSS_STEPS)
            np.testing.assert_array_equal(series.values, sample.layer_values(quantity)[:, row, column])


@pytest.mark.parametrize(("quantity", "statistic"), EVERY_STATISTIC)
def test_dynamics_are_the_windows_of_every_neuron(run: Run, quantity: str, statistic: str) -> None:
    main = next(known for known in STATISTICS[quantity] if known.name == statistic).windows
    for layer, neurons in sample.rows_of(quantity).items():
        rows = sample.span_of(layer, quantity)
        found = run.dynamics(layer, quantity, statistic)
        np.testing.assert_array_equal(found.first_steps, LOSS_STEPS[::WINDOW])
        np.testing.assert_array_equal(found.steps, LOSS_STEPS[WINDOW - 1 :: WINDOW])
        np.testing.assert_array_equal(found.neurons, np.arange(neurons))
        np.testing.assert_array_equal(found.values, sample.window_values(quantity, f"{statistic}/{main[0]}")[rows])
        for name, part in (("min", found.low), ("max", found.high)):
            if name in main[1:]:
                np.testing.assert_array_equal(part, sample.window_values(quantity, f"{statistic}/{name}")[rows])
            else:
                assert part is None


@pytest.mark.parametrize(("quantity", "statistic"), EVERY_STATISTIC)
def test_windows_of_one_step_keep_every_step(every_step: Run, quantity: str, statistic: str) -> None:
    for layer in sample.rows_of(quantity):
        found = every_step.dynamics(layer, quantity, statistic)
        np.testing.assert_array_equal(found.steps, LOSS_STEPS)
        np.testing.assert_array_equal(found.first_steps, LOSS_STEPS)
        rows = sample.span_of(layer, quantity)
        np.testing.assert_array_equal(found.values, sample.neuron_values(quantity, statistic)[rows])
    polylines = every_step.polylines("fc", k=3)
    np.testing.assert_array_equal(polylines.steps, LOSS_STEPS)
    np.testing.assert_array_equal(
        polylines.values, sample.neuron_values("activation", "mean")[sample.span_of("fc")][polylines.neurons]
    )


@pytest.mark.parametrize("quantity", ["activation", "gradient"])
@pytest.mark.parametrize("k", [0, 1, 3, 50])
def test_polylines_are_outliers_and_a_sample_at_full_resolution(run: Run, quantity: str, k: int) -> None:
    main = STATISTICS[quantity][0].name
    for layer, neurons in sample.LAYERS.items():
        rows = sample.span_of(layer)
        found = run.polylines(layer, quantity, k)
        outliers = [n - rows.start for n in sample.OUTLIERS if rows.start <= n < rows.stop]
        assert len(set(found.neurons.tolist())) == len(found.neurons) == min(neurons, k + len(outliers))
        assert found.neurons[: len(outliers)].tolist() == outliers
        assert found.outliers is not None
        assert found.outliers.tolist() == [True] * len(outliers) + [False] * (len(found.neurons) - len(outliers))
        np.testing.assert_array_equal(found.steps, LOSS_STEPS)
        for neuron, line in zip(found.neurons, found.values, strict=True):
            exact = sample.neuron_values(quantity, main)[rows.start + neuron]
            window = sample.window_values(quantity, f"{main}/mean")[rows.start + neuron].repeat(WINDOW)
            is_kept = rows.start + neuron in sample.POLYLINES
            np.testing.assert_array_equal(line, exact if is_kept else window)


def test_polylines_of_a_range_are_its_steps_only(run: Run) -> None:
    found = run.polylines("fc", k=2, first=3, last=6)
    assert found.steps.tolist() == [3, 4, 5, 6]
    assert run.polylines("fc", k=2, first=500).steps.tolist() == []


@pytest.mark.parametrize("samples", ["batch", "abnormal", "normal"])
@pytest.mark.parametrize(("sign", "direction"), [(1, "forward"), (-1, "backward")])
def test_contributions_follow_the_links(run: Run, samples: str, sign: int, direction: str) -> None:
    step = 0 if samples == "batch" else 9

    def expect(source: str, target: str, values: np.ndarray) -> None:
        found = run.contribution(source, target, step, direction, samples)
        assert isinstance(found, np.ndarray)
        assert (found.dtype, found.step) == (np.float32, step)
        np.testing.assert_array_equal(np.asarray(found), sign * values)
        scaled = np.asarray(found.scaled)
        assert np.abs(scaled).max() <= 1
        np.testing.assert_allclose(scaled * found.largest[:, None], np.asarray(found), rtol=1e-6)

    into_fc = sample.contribution_values("fc", "channel").astype(np.float32)
    expect("conv", "fc", into_fc[:, ::2] + into_fc[:, 1::2])
    into_out = sample.contribution_values("out", "channel")
    expect("fc", "out", into_out[:, :4])
    expect("conv", "out", into_out[:, 4:])
    into_unfold = sample.contribution_values("unfold", "position").astype(np.float32)
    expect("fc", "unfold", into_unfold.reshape(2, 4, 3).sum(2))


def test_scaled_contributions_keep_nan_and_ignore_it_in_the_scale(tmp_path: Path) -> None:
    values = np.array([[1, -2, np.nan, np.inf], [0, 0, 0, 0]], np.float32)
    body = {"step": 0, "target": "out", "direction": "forward", "samples": "batch", "columns": "channel"}
    matrix = np.zeros((5, 7), np.float32)
    matrix[:2, :4] = values
    records = [sample.recording_record(), *list(sample.all_records())[1:2]]
    sample.write(tmp_path, [*records, Record("contribution", 0, 0, body, {"values": matrix})])
    scaled = np.asarray(open_run(tmp_path).contribution("fc", "out", 0).scaled)
    np.testing.assert_array_equal(scaled[:2], [[0.5, -1, np.nan, 1], [0, 0, 0, 0]])


def test_a_matrix_that_does_not_fit_its_layers_is_refused(tmp_path: Path) -> None:
    graph = sample.graph().to_json()
    graph["links"].append({"source": "nowhere", "target": "out", "kind": "channels", "start": 0, "group": 1})
    graph["links"].append({"source": "fc", "target": "nowhere", "kind": "channels", "start": 0, "group": 1})
    body = {"step": 0, "target": "out", "direction": "forward", "samples": "batch", "columns": "channel"}
    matrices = [
        Record("contribution", 0, 0, {**body, "target": target}, {"values": np.ones((3, 7), np.float32)})
        for target in ("out", "nowhere")
    ]
    sample.write(tmp_path, [sample.recording_record(), Record("graph", 0, 0, graph), *matrices])
    run = open_run(tmp_path)
    for source, target in (("fc", "out"), ("nowhere", "out"), ("fc", "nowhere")):
        with pytest.raises(UnknownNameError, match="does not fit"):
            run.contribution(source, target, 0)


def test_findings_are_worst_first_then_earliest(run: Run) -> None:
    recorded = [finding for finding in run.findings if finding.summary in {f.summary for f in sample.FINDINGS.values()}]
    assert [(finding.kind, finding.step) for finding in recorded] == [
        ("outlier_sample", 8),
        ("nonfinite", 9),
        ("dead_units", 3),
    ]
    assert {finding.run for finding in run.findings} == {run.name}


def test_a_run_tells_what_it_is(run: Run) -> None:
    assert run.steps == (0, STEPS - 1)
    assert run.snapshots == [0, 8]
    assert run.ended == "finished"
    assert run.notes == ["step 5: no relevance for GroupNorm (layer 'norm')"]
    assert run.gaps == []
    assert run.last_wall_time == sample.STARTED + STEPS - 1


WRONG: list[tuple[str, str, tuple[Any, ...], str]] = [
    ("layer_statistics", "layer", ("x",), "conv, fc, unfold, out"),
    ("layer_statistics", "quantity", ("fc", "x"), "activation, gradient, weight, update"),
    ("layer_statistics", "without weights", ("unfold", "weight"), "no weights"),
    ("dynamics", "layer", ("x",), "conv, fc, unfold, out"),
    ("dynamics", "quantity", ("fc", "x"), "activation, gradient, weight, update"),
    ("dynamics", "statistic", ("fc", "activation", "x"), "mean, std, min, max"),
    ("dynamics", "statistic of another quantity", ("fc", "gradient", "mean"), "rms"),
    ("dynamics", "without weights", ("unfold", "update"), "no weights"),
    ("polylines", "layer", ("x",), "conv, fc, unfold, out"),
    ("polylines", "quantity", ("fc", "x"), "activation, gradient, weight, update"),
    ("contribution", "source", ("x", "out", 0), "fc, conv"),
    ("contribution", "target", ("fc", "x", 0), "x"),
    ("contribution", "no link", ("out", "conv", 0), "none"),
    ("contribution", "step", ("fc", "out", 7), "0, 8"),
    ("contribution", "direction", ("fc", "out", 0, "x"), "forward, backward"),
    ("contribution", "examples", ("fc", "out", 0, "forward", "x"), "batch, abnormal, normal"),
    ("contribution", "samples", ("fc", "out", 0, "forward", "normal"), "9"),
]


@pytest.mark.parametrize(("method", "what", "arguments", "known"), WRONG, ids=lambda value: str(value))
def test_a_wrong_name_is_answered_with_what_exists(
    run: Run, method: str, what: str, arguments: tuple[Any, ...], known: str
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        getattr(run, method)(*arguments)
    assert known in str(caught.value)


def test_a_loss_that_is_not_there_is_a_key_error(run: Run) -> None:
    with pytest.raises(KeyError):
        run.losses["x"]


def test_a_folder_without_recording_says_how_to_record(tmp_path: Path) -> None:
    with pytest.raises(NoRecordingError, match=r"no recording.*DGMTrackerCallback"):
        open_run(tmp_path)
    with pytest.raises(NoRecordingError, match="is no folder"):
        open_run(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(NoRecordingError, match="is no folder"):
        open_run(tmp_path / "file")


def test_a_log_folder_opens_if_it_holds_one_run_and_names_them_if_several(tmp_path: Path) -> None:
    sample.write(tmp_path / "a" / "version_2", sample.all_records())
    assert open_run(str(tmp_path)).name == "a/version_2"
    sample.write(tmp_path / "a" / "version_10", sample.all_records())
    with pytest.raises(NoRecordingError, match=r"holds 2 runs.*a/version_2, a/version_10"):
        open_run(tmp_path)
    assert open_run(tmp_path / "a" / "version_10").name == "version_10"


def test_a_recording_that_has_only_begun_opens(tmp_path: Path) -> None:
    sample.write(tmp_path, [sample.recording_record()])
    run = open_run(tmp_path)
    assert (run.layers, run.losses, run.findings, run.snapshots) == ([], {}, [], [])
    assert run.steps is None
    assert run.ended is None
    with pytest.raises(UnknownNameError, match="there are none"):
        run.dynamics("fc")


def test_a_layer_that_is_known_but_not_yet_recorded_says_so(tmp_path: Path) -> None:
    sample.write(tmp_path, list(sample.all_records())[:2])
    with pytest.raises(UnknownNameError, match="no activation of layer 'fc' has been recorded yet"):
        open_run(tmp_path).dynamics("fc")
