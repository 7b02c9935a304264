"""Every route against http_api.md: fields, shapes, values, and 4xx for whatever is wrong."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import sample_recording as sample
from conftest import BASE, make_client
from sample_recording import STEPS
from test_recording import grown
from werkzeug.test import Client, TestResponse

from dgm_tb.plugin import plugin as plugin_module
from dgm_tb.plugin import runs as runs_module
from dgm_tb.plugin.plugin import ARRAY_ROUTES, JSON_ROUTES
from dgm_tb.plugin.wire import unpack

RUN = "a/run"
Answer = tuple[dict[str, Any], dict[str, np.ndarray]]
STATISTICS = {
    "activation": ["mean", "std", "min", "max", "zero_fraction"],
    "gradient": ["rms"],
    "weight": ["norm"],
    "update": ["ratio"],
}
SUMMARY = {
    "run": str, "recorded": bool, "indexing": bool, "revision": str, "first_step": int, "last_step": int,
    "last_wall_time": float, "ended": bool, "reason": str, "layers": int, "model": str, "findings": dict,
}  # fmt: skip

JSON_SAMPLES: dict[str, tuple[dict[str, str], dict[str, type]]] = {
    "run": (
        {},
        {**SUMMARY, "layers": list, "losses": list, "statistics": dict, "layer_statistics": dict, "snapshots": list,
         "finding_snapshots": list, "window_steps": int, "options": dict, "versions": dict, "notes": list,
         "gaps": list, "recordings": list},
    ),
    "graph": (
        {},
        {"nodes": list, "edges": list, "modules": dict, "layers": list, "weights": list, "links": list,
         "unrecorded": dict, "no_contribution": dict},
    ),
    "findings": ({}, {}),
}  # fmt: skip

# Route -> arguments, facts of the header, arrays with dtype and axes (letters stand for lengths that must agree).
ARRAY_SAMPLES: dict[str, tuple[dict[str, str], dict[str, type], dict[str, str]]] = {
    "losses": (
        {},
        {"names": list, "first": int, "last": int, "skipped": int, "points": list, "nonfinite": list},
        {"steps_0": "f8 A", "values_0": "f4 A", "global_steps_0": "f8 A",
         "steps_1": "f8 B", "values_1": "f4 B", "global_steps_1": "f8 B"},
    ),
    "minis": (
        {},
        {"layers": list, "recorded": list, "quantity": str, "statistic": str, "center": int, "first": int,
         "last": int, "low": list, "high": list},
        {"steps": "f8 T", "values": "f4 4 T", "nonfinite": "u1 4 T"},
    ),
    "dynamics": (
        {"layer": "out"},
        {"layer": str, "quantity": str, "statistic": str, "first": int, "last": int, "recorded_first": int,
         "recorded_last": int, "neurons": int, "sampled": int, "outliers": int, "resolution": str,
         "window_steps": int, "low": float, "high": float, "nonfinite_neurons": int},
        {"steps": "f8 T", "values": "f4 N T", "nonfinite": "u1 N T", "neurons": "i4 N", "outlier": "u1 N",
         "quantiles": "f4 5 T"},
    ),
    "neurons": (
        {"layer": "out"},
        {"layer": str, "neurons": int, "step": int, "window": dict, "names": list, "shape": list},
        {**{f"{q}.{s}": "f4 5" for q, names in STATISTICS.items() for s in names}, "dead": "u1 5"},
    ),
    "contributions": (
        {"layer": "fc", "neuron": "1"},
        {"layer": str, "neuron": int, "step": int, "samples": str, "columns": list},
        {f"{direction}{scaled}_{column}": f"f4 {n}" for column, n in ((0, 3), (2, 5), (3, 2))
         for direction in ("forward", "backward") for scaled in ("", "_scaled")},
    ),
    "matrix": (
        {"source": "fc", "target": "out"},
        {"source": str, "target": str, "step": int, "direction": str, "samples": str, "kind": str, "largest": list},
        {"values": "f4 5 4", "scaled": "f4 5 4"},
    ),
    "samples": (
        {"finding": "f1"},
        {"finding": str, "step": int, "axes": str, "low": float, "high": float, "examples": list, "layers": list,
         "relevance": list},
        {"inputs": "f4 3 1 2 1", "statistics": "f4 3 4", "relevance_0": "f4 1 2 1", "relevance_layers_0": "f4 3"},
    ),
}  # fmt: skip


def get(client: Client, route: str, **arguments: object) -> TestResponse:
    return client.get(BASE + route, query_string={name: str(value) for name, value in arguments.items()})


def get_json(client: Client, route: str, **arguments: object) -> Any:
    answer = get(client, route, **{"run": RUN, **arguments})
    assert answer.status_code == 200, answer.text
    return json.loads(answer.data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def get_arrays(client: Client, route: str, **arguments: object) -> Answer:
    answer = get(client, route, **{"run": RUN, **arguments})
    assert answer.status_code == 200, answer.text
    return unpack(answer.data)


def assert_has(facts: Mapping[str, Any], expected: Mapping[str, type]) -> None:
    assert set(facts) >= set(expected)
    for name, type_ in expected.items():
        assert isinstance(facts[name], type_), (name, facts[name])


# -- the contract of every route -------------------------------------------------------------------------------------


def test_every_route_has_a_sample_and_a_chapter() -> None:
    chapters = set(re.findall(r"^### `(\w+)", (Path(plugin_module.__file__).parent / "http_api.md").read_text(), re.M))
    assert set(JSON_ROUTES) == set(JSON_SAMPLES)
    assert set(ARRAY_ROUTES) == set(ARRAY_SAMPLES)
    assert chapters == {"runs", "static", *JSON_SAMPLES, *ARRAY_SAMPLES}


@pytest.mark.parametrize("route", JSON_SAMPLES)
def test_facts_are_as_documented(client: Client, route: str) -> None:
    arguments, facts = JSON_SAMPLES[route]
    answer = get(client, route, run=RUN, **arguments)
    assert answer.content_type.startswith("application/json")
    found = get_json(client, route, **arguments)
    if facts:
        assert_has(found, facts)


@pytest.mark.parametrize("run", [RUN, "every_step"])
@pytest.mark.parametrize("route", ARRAY_SAMPLES)
def test_arrays_are_as_documented(client: Client, route: str, run: str) -> None:
    arguments, facts, arrays = ARRAY_SAMPLES[route]
    answer = get(client, route, run=run, **arguments)
    assert answer.status_code == 200, answer.text
    assert answer.content_type == "application/octet-stream"
    header, found = unpack(answer.data)
    assert_has(header, facts)
    assert set(found) == set(arrays)
    lengths: dict[str, int] = {}
    for name, form in arrays.items():
        dtype, *axes = form.split()
        assert found[name].dtype == np.dtype(f"<{dtype}"), name
        assert found[name].ndim == len(axes), name
        for axis, length in zip(axes, found[name].shape, strict=True):
            assert lengths.setdefault(axis, int(axis) if axis.isdigit() else length) == length, name


def test_the_binary_form_is_aligned_and_padded(client: Client) -> None:
    for route, (arguments, _, _) in ARRAY_SAMPLES.items():
        message = get(client, route, run=RUN, **arguments).data
        size = int.from_bytes(message[4:8], "little")
        assert message[:4] == b"DGM1"
        assert (8 + size) % 8 == 0 == len(message) % 8
        for entry in json.loads(message[8 : 8 + size])["arrays"]:
            assert entry["offset"] % 8 == 0
            assert set(entry) == {"name", "dtype", "shape", "offset"}
            assert entry["dtype"] in ("f4", "f8", "i4", "u1")


# -- facts -----------------------------------------------------------------------------------------------------------


def test_runs_lists_every_recording_in_natural_order(tmp_path: Path) -> None:
    for name in ("version_10", "version_9", "b/version_1"):
        sample.write(tmp_path / name, sample.all_records())
    client = make_client(tmp_path)
    found = get_json(client, "runs")
    assert [item["run"] for item in found] == ["b/version_1", "version_9", "version_10"]
    for item in found:
        assert_has(item, SUMMARY)
    assert {key: found[0][key] for key in ("first_step", "last_step", "ended", "reason", "layers", "model")} == {
        "first_step": 0, "last_step": 11, "ended": True, "reason": "finished", "layers": 4, "model": "Net",
    }  # fmt: skip
    assert found[0]["findings"]["error"] == 2


def test_runs_knows_the_log_folder_itself_and_empty_ones(tmp_path: Path) -> None:
    assert get_json(make_client(tmp_path), "runs") == []
    assert get_json(make_client(tmp_path / "missing"), "runs") == []
    sample.write(tmp_path, [sample.recording_record()])
    (item,) = get_json(make_client(tmp_path), "runs")
    assert item["run"] == "."
    assert (item["first_step"], item["last_step"], item["ended"], item["reason"]) == (None, None, False, None)


def test_a_run_that_appears_or_goes_away_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "DISCOVERY_SECONDS", 0.0)
    monkeypatch.setattr(runs_module, "DISCOVERY_SHARE", float("inf"))
    monkeypatch.setattr(runs_module, "REFRESH_SECONDS", 0.0)
    client = make_client(tmp_path)
    sample.write(tmp_path / "b", sample.all_records())
    assert [item["run"] for item in get_json(client, "runs")] == ["b"]
    path = sample.write(tmp_path / "a", sample.all_records())
    assert [item["run"] for item in get_json(client, "runs")] == ["a", "b"]
    path.unlink()
    assert [item["run"] for item in get_json(client, "runs")] == ["b"]
    assert get(client, "run", run="a").status_code == 404


def test_revision_changes_exactly_when_something_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "REFRESH_SECONDS", 0.0)
    records = list(sample.all_records(ends=False))
    path = sample.write(tmp_path, records[:4])
    client = make_client(tmp_path)
    first = get_json(client, "runs")[0]["revision"]
    assert get_json(client, "run", run=".")["revision"] == first
    path.open("ab").write(sample.framed(records[4:]))
    second = get_json(client, "run", run=".")
    assert second["revision"] != first
    assert second["snapshots"] == [0, 8]


def test_run_tells_layers_statistics_and_snapshots(client: Client) -> None:
    found = get_json(client, "run")
    assert [layer["name"] for layer in found["layers"]] == sample.FLOW
    assert found["layers"][0] == {
        "name": "conv", "module": "conv", "type": "Conv2d", "neurons": 3, "shape": [2, 3], "has_weights": True,
        "contribution": None,
    }  # fmt: skip
    assert [layer["has_weights"] for layer in found["layers"]] == [True, True, False, True]
    assert found["layers"][2]["contribution"] == "only by position"
    assert found["statistics"] == found["layer_statistics"] == STATISTICS
    assert (found["losses"], found["window_steps"]) == (["train_loss", "d_loss"], sample.WINDOW)
    assert (found["snapshots"], found["finding_snapshots"]) == ([0, 8], [9])
    assert found["recordings"] == [
        {"recording": sample.NAME, "started": sample.STARTED, "resume_step": 0, "first_step": 0, "last_step": 11,
         "schema": 1, "ended": True, "reason": "finished"},
    ]  # fmt: skip
    assert get_json(client, "run", run="every_step")["ended"] is False


def test_graph_is_the_newest_graph(client: Client) -> None:
    assert get_json(client, "graph") == sample.graph().to_json()


def test_graph_is_404_while_none_is_recorded(tmp_path: Path) -> None:
    sample.write(tmp_path, [sample.recording_record()])
    answer = get(make_client(tmp_path), "graph", run=".")
    assert answer.status_code == 404
    assert "no graph" in answer.text


def test_findings_carry_ids_layers_and_whether_there_are_samples(client: Client) -> None:
    found = [item for item in get_json(client, "findings") if item["id"] in sample.FINDINGS]
    assert [(item["id"], item["layer"], item["has_samples"]) for item in found] == [
        ("f3", "", False), ("f1", "fc", True), ("f2", "conv", False),
    ]  # fmt: skip
    assert found[1]["evidence"]["largest"] == "Infinity"
    expected = {**sample.FINDINGS["f1"].to_json(), "run": RUN}
    assert {key: found[1][key] for key in expected} == expected


# -- lines -----------------------------------------------------------------------------------------------------------


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


# -- neurons and contributions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "window"), [(0, [0, 3]), (3, [0, 3]), (6, [4, 7]), (99, [8, 11])])
def test_neurons_are_those_of_the_window_that_holds_the_step(client: Client, step: int, window: list[int]) -> None:
    header, arrays = get_arrays(client, "neurons", layer="fc", step=step)
    assert header["window"] == dict.fromkeys(STATISTICS, window)
    number = window[0] // 4
    for name in header["names"]:
        quantity, statistic = name.split(".")
        main = {"min": "min", "max": "max"}.get(statistic, "mean")
        rows = sample.span_of("fc", quantity)
        expected = sample.window_values(quantity, f"{statistic}/{main}")[rows, number]
        np.testing.assert_array_equal(arrays[name], expected)
    assert not arrays["dead"].any()


def test_neurons_of_a_layer_without_weights_have_no_weights(client: Client) -> None:
    header, arrays = get_arrays(client, "neurons", layer="unfold")
    assert set(header["window"]) == {"activation", "gradient"}
    assert "weight.norm" not in arrays


def test_dead_neurons_are_those_whose_every_output_was_zero(tmp_path: Path) -> None:
    records = list(sample.all_records())
    dynamics = next(r for r in records if r.kind == "dynamics" and r.body["quantity"] == "activation")
    dynamics.arrays["values"][3, 1] = 0  # neuron 3 of "out", second window
    dynamics.arrays["values"][2, 1, :3] = 0  # its mean is zero, its values are not
    sample.write(tmp_path, records)
    client = make_client(tmp_path)
    assert get_arrays(client, "neurons", run=".", layer="out", step=5)[1]["dead"].tolist() == [0, 0, 0, 1, 0]
    assert not get_arrays(client, "neurons", run=".", layer="out", step=9)[1]["dead"].any()


def test_contributions_of_a_neuron_stand_between_its_neighbours(client: Client) -> None:
    header, arrays = get_arrays(client, "contributions", layer="fc", neuron=1, step=5)
    columns = header["columns"]
    assert [(c["layer"], c["role"], c["neurons"], c["kind"], c["step"]) for c in columns] == [
        ("conv", "source", 3, "flatten", 0),
        ("fc", "focus", 4, None, None),
        ("out", "target", 5, "channels", 0),
        ("unfold", "target", 2, "unflatten", 0),
    ]
    assert [c["directions"] for c in columns] == [["forward", "backward"], [], *[["forward", "backward"]] * 2]
    assert all(c["reason"] is None for c in columns)
    into_fc = sample.contribution_values("fc", "channel").astype(np.float32)
    into_fc = into_fc[:, ::2] + into_fc[:, 1::2]
    into_out = sample.contribution_values("out", "channel").astype(np.float32)[:, :4]
    np.testing.assert_array_equal(arrays["forward_0"], into_fc[1])
    np.testing.assert_array_equal(arrays["backward_0"], -into_fc[1])
    np.testing.assert_array_equal(arrays["forward_2"], into_out[:, 1])
    np.testing.assert_allclose(arrays["forward_scaled_0"], into_fc[1] / np.abs(into_fc[1]).max())
    np.testing.assert_allclose(arrays["forward_scaled_2"], into_out[:, 1] / np.abs(into_out).max(1))


def test_contributions_of_a_layer_are_signed_totals(client: Client) -> None:
    header, arrays = get_arrays(client, "contributions", layer="fc")
    assert header["neuron"] is None
    totals = sample.contribution_values("fc", "channel").astype(np.float32).sum(0).reshape(3, 2).sum(1)
    np.testing.assert_array_equal(arrays["forward_0"], totals)
    np.testing.assert_allclose(arrays["forward_scaled_0"], totals / np.abs(totals).max())


@pytest.mark.parametrize(("samples", "step", "used"), [("batch", 7, 0), ("batch", 8, 8), ("normal", 0, 9)])
def test_contributions_are_of_the_newest_snapshot_else_the_first(
    client: Client, samples: str, step: int, used: int
) -> None:
    header, _ = get_arrays(client, "contributions", layer="fc", step=step, samples=samples)
    assert [c["step"] for c in header["columns"] if c["role"] != "focus"] == [used] * 3
    header, _ = get_arrays(client, "matrix", source="fc", target="out", step=step, samples=samples)
    assert header["step"] == used


def test_a_column_without_matrix_says_why(tmp_path: Path) -> None:
    graph = sample.graph().to_json()
    graph["links"] = []
    graph["no_contribution"] = {"out": "no contribution rule for LSTM (layer 'out')"}
    sample.write(tmp_path, [sample.recording_record(), sample.Record("graph", 0, 0, graph)])
    header, arrays = get_arrays(make_client(tmp_path), "contributions", run=".", layer="fc")
    columns = header["columns"]
    assert [(c["layer"], c["role"]) for c in columns] == [
        ("conv", "source"), ("fc", "focus"), ("unfold", "target"), ("out", "target"),
    ]  # fmt: skip
    assert columns[3]["reason"] == "no contribution rule for LSTM (layer 'out')"
    assert all(c["reason"] for c in columns if c["role"] != "focus")
    assert arrays == {}


def test_one_matrix_of_another_shape_does_not_hide_the_others(tmp_path: Path) -> None:
    odd = list(sample.contribution_records(10))
    odd = [sample.Record(r.kind, 10, 10, r.body, {"values": np.zeros((2, 2), np.float32)}) for r in odd[:2]]
    sample.write(tmp_path, [*sample.all_records(), *odd])
    header, arrays = get_arrays(make_client(tmp_path), "contributions", run=".", layer="fc", neuron=3)
    assert header["columns"][0]["layer"] == "conv"
    assert header["columns"][0]["reason"]
    assert "forward_0" not in arrays
    assert "forward_2" in arrays


def test_a_matrix_comes_whole_with_its_scale(client: Client) -> None:
    header, arrays = get_arrays(client, "matrix", source="fc", target="out", direction="backward")
    values = -sample.contribution_values("out", "channel").astype(np.float32)[:, :4]
    np.testing.assert_array_equal(arrays["values"], values)
    assert header["largest"] == np.abs(values).max(1).tolist()
    assert (header["kind"], header["step"], header["direction"]) == ("channels", 8, "backward")


def test_samples_are_the_examples_with_their_relevance(client: Client) -> None:
    header, arrays = get_arrays(client, "samples", finding="f1")
    assert header["examples"] == sample.EXAMPLES
    assert (header["axes"], header["low"], header["high"], header["step"]) == ("NCHW", 0.0, 5.0, 9)
    np.testing.assert_array_equal(arrays["inputs"], sample.INPUTS)
    np.testing.assert_array_equal(arrays["statistics"], sample.SAMPLE_STATISTICS)
    assert header["layers"] == list(sample.LAYERS)
    assert header["relevance"] == [
        {"example": 0, "target": "fc", "neuron": 1, "leak": {"bias": 0.02}, "layers": [["conv", 0, 3]], "largest": 2.0}
    ]
    np.testing.assert_array_equal(arrays["relevance_0"], sample.RELEVANCE_INPUT)
    np.testing.assert_array_equal(arrays["relevance_layers_0"], sample.RELEVANCE_VALUES)


# -- wrong requests ----------------------------------------------------------------------------------------------------

REQUIRED = {
    "dynamics": ["layer"], "neurons": ["layer"], "contributions": ["layer"], "matrix": ["source", "target"],
    "samples": ["finding"],
}  # fmt: skip
NAMES = {
    "minis": ["quantity", "statistic"], "dynamics": ["layer", "quantity", "statistic"], "neurons": ["layer"],
    "contributions": ["layer", "samples"], "matrix": ["source", "target", "direction", "samples"],
    "samples": ["finding"],
}  # fmt: skip
NUMBERS = {
    "losses": {"first": None, "last": None, "columns": (1, 4000)},
    "minis": {"center": None, "span": (1, 100_000), "columns": (1, 4000)},
    "dynamics": {"first": None, "last": None, "k": (1, 2000), "columns": (1, 4000)},
    "neurons": {"step": None},
    "contributions": {"neuron": (0, 3), "step": None},
    "matrix": {"step": None},
}
ODD_TEXTS = [
    "x", "../../etc/passwd", "/etc/passwd", "<script>alert(1)</script>", "\x00", "\udcff", "fc\n", " fc", "a" * 5000,
    "%", "é", "[]", "null", "\u202e",
]  # fmt: skip
ODD_NUMBERS = ["x", "1.5", "1e3", "-1", "0x10", "NaN", "inf", "9" * 400, str(2**64), "١", "²", "--1", "-", "1 ", "<b>"]
TRACES = re.compile(r"Traceback|File \"|\.py|Error\b|0x[0-9a-f]{6}|/tmp|site-packages|object at")


def assert_sentence(answer: TestResponse, *codes: int) -> None:
    assert answer.status_code in codes, (answer.status_code, answer.text)
    assert answer.content_type.startswith("text/plain")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert 10 < len(answer.text) < 1000
    assert not TRACES.search(answer.text.replace("/etc/passwd", "")), answer.text


ALL_ROUTES = [*JSON_SAMPLES, *ARRAY_SAMPLES]


def sample_arguments(route: str) -> dict[str, str]:
    return {"run": RUN, **(JSON_SAMPLES.get(route) or ARRAY_SAMPLES[route])[0]}


@pytest.mark.parametrize("route", ALL_ROUTES)
def test_a_run_that_is_missing_is_400_and_an_unknown_one_404(client: Client, route: str) -> None:
    arguments = sample_arguments(route)
    assert_sentence(get(client, route, **{**arguments, "run": ""}), 400)
    del arguments["run"]
    assert_sentence(get(client, route, **arguments), 400)
    for name in ["nothing", "a", "a/run/", "./a/run", "A/RUN", *ODD_TEXTS]:
        address = f"{BASE}{route}?run={quote(name.encode('utf-8', 'surrogateescape'))}"
        assert_sentence(client.get(address), 404)


@pytest.mark.parametrize(("route", "name"), [(route, name) for route, names in REQUIRED.items() for name in names])
def test_an_argument_that_is_missing_is_400(client: Client, route: str, name: str) -> None:
    arguments = sample_arguments(route)
    assert_sentence(get(client, route, **{**arguments, name: ""}), 400)
    del arguments[name]
    answer = get(client, route, **arguments)
    assert_sentence(answer, 400)
    assert name in answer.text


@pytest.mark.parametrize(("route", "name"), [(route, name) for route, names in NAMES.items() for name in names])
@pytest.mark.parametrize("value", ODD_TEXTS, ids=lambda value: ascii(value)[:20])
def test_a_name_that_is_not_there_is_4xx(client: Client, route: str, name: str, value: str) -> None:
    arguments = {**sample_arguments(route), name: value}
    query = "&".join(f"{key}={quote(text.encode('utf-8', 'surrogateescape'))}" for key, text in arguments.items())
    assert_sentence(client.get(f"{BASE}{route}?{query}"), 400, 404)


@pytest.mark.parametrize(("route", "name"), [(route, name) for route, names in NUMBERS.items() for name in names])
def test_a_number_that_is_none_or_out_of_range_is_400(client: Client, route: str, name: str) -> None:
    span = NUMBERS[route][name]
    for value in ODD_NUMBERS:
        assert_sentence(get(client, route, **{**sample_arguments(route), name: value}), 400)
    for value in (span[0] - 1, span[1] + 1, 10**15) if span else ():
        assert_sentence(get(client, route, **{**sample_arguments(route), name: value}), 400)
    for value in span or (0, 1, 10**12, 2**53):
        answer = get(client, route, **{**sample_arguments(route), name: value})
        assert answer.status_code == 200, (value, answer.text)


@pytest.mark.parametrize("route", ["runs", *ALL_ROUTES, "static/x/index.js"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_anything_but_get_is_405(client: Client, route: str, method: str) -> None:
    assert_sentence(client.open(BASE + route, method=method, data=b"x"), 405)


def test_unknown_arguments_are_ignored(client: Client) -> None:
    assert get_json(client, "run", colour="red", first="x") == get_json(client, "run")


def test_a_range_that_ends_before_it_begins_has_no_points(client: Client) -> None:
    header, _ = get_arrays(client, "losses", first=9, last=3)
    assert header["points"][0] <= 1
    for route, layer in (("dynamics", "fc"), ("dynamics", "out")):
        assert get(client, route, run=RUN, layer=layer, first=9, last=3).status_code == 200


def test_ranges_beyond_the_recording_are_empty(client: Client) -> None:
    for first in (500, 10**12):
        _, arrays = get_arrays(client, "dynamics", layer="fc", first=first, last=first + 5)
        assert arrays["values"].shape[1] == len(arrays["steps"]) == arrays["quantiles"].shape[1] == 0
        assert get_arrays(client, "losses", first=first)[0]["points"] == [0, 0]


@pytest.mark.parametrize("route", ARRAY_SAMPLES)
def test_a_recording_that_has_only_begun_answers_every_route(tmp_path: Path, route: str) -> None:
    for number, records in enumerate([[sample.recording_record()], list(sample.all_records())[:2]]):
        sample.write(tmp_path / str(number), records)
        client = make_client(tmp_path / str(number))
        for name in JSON_SAMPLES:
            assert get(client, name, run=".").status_code in (200, 404)
        answer = get(client, route, **{**sample_arguments(route), "run": "."})
        assert answer.status_code in (200, 404)
        if answer.status_code == 404:
            assert_sentence(answer, 404)


# -- files of the tab --------------------------------------------------------------------------------------------------


def static_names() -> list[str]:
    folder = Path(plugin_module.__file__).parent / "static"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def entry_module(client: Client) -> str:
    listing = json.loads(client.get("/data/plugins_listing").data)
    return str(listing["dgmtracker"]["loading_mechanism"]["module_path"])


def test_tensorboard_lists_the_tab(client: Client) -> None:
    listing = json.loads(client.get("/data/plugins_listing").data)["dgmtracker"]
    assert (listing["tab_name"], listing["enabled"]) == ("DGMTracker", True)
    assert client.get("/" + listing["loading_mechanism"]["module_path"].lstrip("/")).status_code == 200


@pytest.mark.parametrize("name", static_names())
def test_every_file_of_the_tab_is_served_with_its_type(client: Client, name: str) -> None:
    place = entry_module(client).removesuffix("index.js")
    answer = client.get(place + name)
    folder = Path(plugin_module.__file__).parent / "static"
    assert answer.status_code == 200
    assert answer.data == (folder / name).read_bytes()
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    assert answer.content_type.split(";")[0] == types.get(Path(name).suffix, answer.content_type.split(";")[0])
    assert "max-age=31536000" in answer.headers["Cache-Control"]
    stale = client.get(f"{BASE}static/000000000000/{name}")
    assert (stale.status_code, stale.headers["Cache-Control"]) == (200, "no-cache, must-revalidate")


@pytest.mark.parametrize(
    "name",
    ["", "index", "../plugin.py", "..%2fplugin.py", "%2e%2e/plugin.py", "....//plugin.py", "/etc/passwd", "vendor",
     "views/", "../../../../../../etc/passwd", "index.js/", "INDEX.JS", "\x00", "<script>", "x/static/index.js"],
)  # fmt: skip
def test_what_is_no_file_of_the_tab_is_404(client: Client, name: str) -> None:
    for place in ("static/", "static/abc/"):
        assert client.get(f"{BASE}{place}{quote(name, safe='/%.')}").status_code in (404, 308, 301)


def test_routes_answer_below_a_path_prefix(logdir: Path) -> None:
    client = make_client(logdir, "/some/prefix")
    answer = client.get(f"/some/prefix{BASE}run?run={RUN}")
    assert answer.status_code == 200
