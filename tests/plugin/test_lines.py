"""Routes that draw lines: the values of every step, and no spike lost where there are too many."""

from pathlib import Path

import numpy as np
import pytest
import sample_recording as sample
from conftest import make_client
from routes import get_arrays
from sample_recording import STEPS
from test_recording import grown
from werkzeug.test import Client


def test_losses_are_all_points_of_a_range_with_what_is_not_finite(client: Client) -> None:
    header, arrays = get_arrays(client, "losses", first=2, last=10)
    assert header["names"] == ["train_loss", "d_loss"]
    assert (header["first"], header["last"], header["points"]) == (2, 10, [9, 5])
    assert header["skipped"] == len([step for step in sample.SKIPPED if 2 <= step <= 10]) == 2
    assert get_arrays(client, "losses", first=3, last=10)[0]["skipped"] == 1
    assert header["nonfinite"] == [
        {"NaN": 1, "Infinity": 1, "-Infinity": 0, "first": 9},
        {"NaN": 0, "Infinity": 0, "-Infinity": 0, "first": None},
    ]
    np.testing.assert_array_equal(arrays["steps_0"], np.arange(2, 11))
    np.testing.assert_array_equal(arrays["values_0"], sample.loss_values()[2:11, 0].astype(np.float32))
    np.testing.assert_array_equal(arrays["global_steps_1"], np.arange(2, 11, 2) * 2)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5000 steps in which every neuron has one spike and one value that is not finite."""
    folder = tmp_path_factory.mktemp("long")
    steps = np.arange(LONG)
    loss = sample.loss_record(steps)
    loss.arrays["values"][:, 0] = LOSS  # type: ignore[index]
    body = {"quantity": "activation", "statistics": ["mean"]}
    layers = np.stack([SPIKES[:4].T], 2).astype(np.float32)
    bounds = np.stack([steps, steps], 1)
    records = [
        sample.recording_record(window_steps=1),
        list(sample.all_records())[1],
        loss,
        sample.Record("layer_statistics", 0, LONG - 1, body, {"steps": steps, "values": layers}),
        sample.Record(
            "dynamics",
            0,
            LONG - 1,
            {"quantity": "activation", "aggregates": ["mean/mean"]},
            {"windows": bounds, "values": SPIKES[:, :, None].astype(np.float32)},
        ),
    ]
    sample.write(folder, records)
    return folder


LONG = 5000
LOSS = np.sin(np.arange(LONG)) / 10
LOSS[[777, 2222, 4100, 4101]] = [9, -9, np.nan, -np.inf]
SPIKES = np.random.default_rng(0).normal(0, 0.1, (14, LONG))
for _line in range(14):
    SPIKES[_line, [100 + 331 * _line, 3 + 337 * _line, 50 + 300 * _line]] = [
        7,
        -8,
        [np.nan, np.inf, -np.inf][_line % 3],
    ]


def assert_columns_kept(
    steps: np.ndarray, line: np.ndarray, kept_steps: np.ndarray, kept: np.ndarray, columns: int
) -> None:
    """Of each column smallest, largest and every kind of value that is not finite must still be there."""
    assert (np.diff(kept_steps) >= 0).all()
    for part in np.array_split(np.arange(len(steps)), columns // 2):
        own = line[part]
        first, last = steps[part][0], steps[part][-1]
        near = (kept_steps >= first - len(part)) & (kept_steps <= last + len(part))
        finite = own[np.isfinite(own)]
        wanted = [finite.min(), finite.max()] if len(finite) else []
        assert np.isin(np.float32(wanted), kept[near]).all()
    for test in (np.isnan, np.isposinf, np.isneginf):
        assert test(kept).any() == test(line).any()


@pytest.mark.parametrize("columns", [10, 61, 400])
def test_decimated_losses_lose_no_spike(long_run: Path, columns: int) -> None:
    header, arrays = get_arrays(make_client(long_run), "losses", run=".", columns=columns)
    assert header["points"][0] == LONG
    assert len(arrays["steps_0"]) <= 4 * columns + 10
    kept = dict.fromkeys(arrays["values_0"].tolist())
    for part in range(columns):  # of equally many steps, as the last one ends with the last step
        own = LOSS[np.minimum(np.arange(LONG) * columns // (LONG - 1), columns - 1) == part].astype(np.float32)
        assert {own[np.isfinite(own)].min(), own[np.isfinite(own)].max()} <= set(kept)
    assert np.isnan(arrays["values_0"]).sum() == np.isneginf(arrays["values_0"]).sum() == 1
    np.testing.assert_array_equal(arrays["global_steps_0"], arrays["steps_0"] * 2)


@pytest.mark.parametrize("columns", [10, 61, 400])
def test_decimated_dynamics_lose_no_spike_and_code_what_is_not_finite(long_run: Path, columns: int) -> None:
    header, arrays = get_arrays(make_client(long_run), "dynamics", run=".", layer="out", columns=columns)
    assert (header["resolution"], header["neurons"]) == ("every step", 5)
    assert arrays["values"].shape[1] <= 2 * columns + 30
    for neuron, line, codes in zip(arrays["neurons"], arrays["values"], arrays["nonfinite"], strict=True):
        exact = SPIKES[neuron].astype(np.float32)
        assert_columns_kept(np.arange(LONG), exact, arrays["steps"], line, columns)
        np.testing.assert_array_equal(codes, np.select([np.isnan(line), line == np.inf, line == -np.inf], [1, 2, 3]))


@pytest.mark.parametrize("span", [300, 4000])
def test_decimated_minis_lose_no_spike(long_run: Path, span: int) -> None:
    header, arrays = get_arrays(
        make_client(long_run), "minis", run=".", center=2500, span=span, columns=20, statistic="mean"
    )
    first, last = header["first"], header["last"]
    assert (first, last) == (2500 - span // 2, 2500 + span // 2)
    for layer, line in zip(header["layers"], arrays["values"], strict=True):
        exact = SPIKES[list(sample.LAYERS).index(layer), first : last + 1].astype(np.float32)
        assert_columns_kept(np.arange(first, last + 1), exact, arrays["steps"], line, 20)


def test_minis_are_all_layers_around_the_focus(client: Client) -> None:
    header, arrays = get_arrays(client, "minis", quantity="weight", center=6, span=4)
    assert header["layers"] == sample.FLOW
    assert header["recorded"] == [True, True, False, True]
    assert (header["center"], header["first"], header["last"], header["statistic"]) == (6, 4, 8, "norm")
    np.testing.assert_array_equal(arrays["steps"], [4, 5, 6, 7, 8])
    expected = sample.layer_values("weight")[4:9, :, 0].T
    np.testing.assert_array_equal(arrays["values"][[3, 0, 1]], expected)
    assert np.isnan(arrays["values"][2]).all()
    assert not arrays["nonfinite"].any()
    assert header["low"] == [12.0, 22.0, "NaN", 2.0]
    assert header["high"] == [14.0, 24.0, "NaN", 4.0]


@pytest.mark.parametrize(("center", "first", "last"), [(0, 0, 4), (11, 7, 11), (10**9, 7, 11), (5, 3, 7)])
def test_minis_stay_inside_the_recorded_range(client: Client, center: int, first: int, last: int) -> None:
    header, _ = get_arrays(client, "minis", center=center, span=4)
    assert (header["first"], header["last"]) == (first, last)


def test_minis_hold_what_is_longer_than_the_recording(client: Client) -> None:
    header, arrays = get_arrays(client, "minis", span=100_000)
    assert (header["first"], header["last"], len(arrays["steps"])) == (0, STEPS - 1, STEPS)


def test_dynamics_are_every_step_where_that_was_recorded(client: Client) -> None:
    header, arrays = get_arrays(client, "dynamics", layer="out", k=2)
    assert (header["resolution"], header["window_steps"], header["neurons"]) == ("every step", 4, 5)
    assert (header["sampled"], header["outliers"]) == (2, 1)
    assert arrays["neurons"][0] == 4
    assert arrays["outlier"].tolist() == [1, 0, 0]
    np.testing.assert_array_equal(arrays["steps"], np.arange(STEPS))
    np.testing.assert_array_equal(arrays["values"][0], sample.neuron_values("activation", "mean")[4])
    windows = sample.window_values("activation", "mean/mean")[sample.span_of("out")]
    expected = np.percentile(windows, (5, 25, 50, 75, 95), axis=0).repeat(4, axis=1)
    np.testing.assert_allclose(arrays["quantiles"], expected, rtol=1e-6)


def test_dynamics_mark_what_is_not_finite(client: Client) -> None:
    header, arrays = get_arrays(client, "dynamics", layer="fc", k=10)
    assert header["nonfinite_neurons"] == 1
    row = arrays["neurons"].tolist().index(1)
    assert arrays["nonfinite"][row].tolist() == [0] * 9 + [1] + [0] * 2
    assert np.isnan(arrays["values"][row, 9])
    assert np.isfinite(header["low"])
    assert np.isfinite(arrays["quantiles"]).all()


@pytest.mark.parametrize("statistic", ["mean", "max"])
def test_what_a_layer_did_not_record_yet_is_no_finding(tmp_path: Path, statistic: str) -> None:
    client = make_client(grown(tmp_path))
    for layer in ("late", "fc"):
        header, arrays = get_arrays(client, "dynamics", run=".", layer=layer, statistic=statistic)
        assert header["nonfinite_neurons"] == 0
        early = arrays["steps"] < 4
        assert np.isnan(arrays["values"][:, early]).all()
        assert np.isfinite(arrays["values"][:, ~early]).all()
        assert not arrays["nonfinite"].any()
    header, arrays = get_arrays(client, "minis", run=".")
    assert not arrays["nonfinite"].any()
    assert header["layers"][-1] == "late"
    assert np.isnan(arrays["values"][-1, :4]).all()


def test_dynamics_of_other_statistics_are_windows(client: Client) -> None:
    header, arrays = get_arrays(client, "dynamics", layer="fc", statistic="max")
    assert header["resolution"] == "windows of 4 steps"
    np.testing.assert_array_equal(np.unique(arrays["steps"]), [3, 7, 11])
    header, arrays = get_arrays(client, "dynamics", layer="fc", quantity="update")
    assert header["resolution"] == "windows of 4 steps"
    rows = sample.span_of("fc", "update")
    means, highs = (sample.window_values("update", f"ratio/{name}")[rows] for name in ("mean", "max"))
    order = arrays["neurons"]
    assert arrays["values"].max() == highs.max()
    assert arrays["values"].min() == means.min()
    assert sorted(order.tolist()) == [0, 1, 2, 3]


def test_dynamics_of_many_windows_are_their_smallest_and_largest(client: Client) -> None:
    header, arrays = get_arrays(client, "dynamics", layer="out", columns=2)
    assert header["resolution"] == "windows of 4 steps"
    low, high = (sample.window_values("activation", f"mean/{name}")[sample.span_of("out")] for name in ("min", "max"))
    for neuron, line in zip(arrays["neurons"], arrays["values"], strict=True):
        assert line.min() == low[neuron].min()
        assert line.max() == high[neuron].max()


def test_a_window_shows_its_extremes_and_the_nan_between_them(client: Client) -> None:
    _, arrays = get_arrays(client, "dynamics", layer="fc", columns=2)
    row = arrays["neurons"].tolist().index(1)
    neuron = sample.span_of("fc").start + 1
    line, codes = arrays["values"][row], arrays["nonfinite"][row]
    finite = line[np.isfinite(line)]
    low, high = (sample.window_values("activation", f"mean/{name}")[neuron] for name in ("min", "max"))
    assert (finite.min(), finite.max()) == (low.min(), high.max())
    assert np.isnan(line[codes == 1]).all()
    assert (codes == 1).any()


def test_dynamics_of_a_range_hold_its_steps_only(client: Client) -> None:
    header, arrays = get_arrays(client, "dynamics", layer="out", first=5, last=8)
    assert (header["first"], header["last"]) == (5, 8)
    assert (header["recorded_first"], header["recorded_last"]) == (0, 11)
    assert arrays["steps"].tolist() == [5, 6, 7, 8]


def test_outliers_are_at_most_as_many_again(tmp_path: Path) -> None:
    polylines = sample.polyline_record("activation")
    polylines = sample.Record(
        "polylines", 0, 11, polylines.body, {**polylines.arrays, "outliers": np.ones(len(sample.POLYLINES), np.uint8)}
    )
    records = [record for record in sample.all_records() if record.kind != "polylines"]
    sample.write(tmp_path, [*records, polylines])
    header, arrays = get_arrays(make_client(tmp_path), "dynamics", run=".", layer="out", k=1)
    assert header["outliers"] == 3
    assert (header["sampled"], arrays["outlier"].tolist()) == (1, [1, 0])
