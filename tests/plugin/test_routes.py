"""Every route against http_api.md: fields, shapes, values."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import sample_recording as sample
from conftest import make_client
from routes import ARRAY_SAMPLES, JSON_SAMPLES, RUN, STATISTICS, SUMMARY, assert_has, get, get_arrays, get_json
from werkzeug.test import Client

from dgm_tb.plugin import plugin as plugin_module
from dgm_tb.plugin import runs as runs_module
from dgm_tb.plugin.plugin import ARRAY_ROUTES, JSON_ROUTES
from dgm_tb.plugin.wire import unpack

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


def test_very_many_findings_and_notes_are_cut_short(tmp_path: Path) -> None:
    finding = sample.FINDINGS["f2"].to_json()
    found = [sample.Record("finding", n, n, {"id": str(n), "finding": {**finding, "step": n}}) for n in range(1100)]
    notes = [sample.Record("note", n, n, {"text": f"number {n}"}) for n in range(300)]
    worst = sample.Record("finding", 2000, 2000, {"id": "worst", "finding": sample.FINDINGS["f1"].to_json()})
    sample.write(tmp_path, [*sample.all_records(), *found, *notes, worst])
    client = make_client(tmp_path)
    listed = get_json(client, "findings", run=".")
    assert len(listed) == 1000
    assert "worst" in [item["id"] for item in listed[:5]]
    shown = get_json(client, "run", run=".")["notes"]
    assert len(shown) == 201
    assert shown[-1] == "101 more notes: `dgm-tb inspect` prints all of them"
    assert get_json(client, "runs")[0]["findings"]["warning"] >= 1100


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


def test_of_a_large_matrix_the_strongest_come_and_totals_stay(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    graph = sample.graph().to_json()
    sizes = {"fc": 700, "out": 400}
    graph["layers"] = [{**graph["layers"][0], "name": name, "module": name, "neurons": n} for name, n in sizes.items()]
    graph["links"] = [{"source": "fc", "target": "out", "kind": "channels", "start": 0, "group": 1}]
    values = (rng.normal(size=(400, 700)) * rng.lognormal(size=(400, 1)) * rng.lognormal(size=700)).astype(np.float32)
    values[7, 9], values[8, 10] = np.nan, -np.inf
    body = {"step": 0, "target": "out", "direction": "forward", "samples": "batch", "columns": "channel"}
    records = [sample.Record("graph", 0, 0, graph), sample.Record("contribution", 0, 0, body, {"values": values})]
    sample.write(tmp_path, [sample.recording_record(), *records])
    client = make_client(tmp_path)
    answer = get(client, "matrix", run=".", source="fc", target="out")
    assert len(answer.data) <= 700_000
    for k, expected in ((256, (256, 256)), (3, (3, 3))):
        header, arrays = get_arrays(client, "matrix", run=".", source="fc", target="out", k=k)
        targets, sources = arrays["targets"], arrays["sources"]
        assert (arrays["values"].shape, header["neurons"]) == (expected, [400, 700])
        assert {7, 8} <= set(targets.tolist())
        assert {9, 10} & set(sources.tolist())
        finite = np.where(np.isfinite(values), values, 0)
        rows = np.abs(finite).sum(1)
        chosen = np.isin(np.arange(400), targets)
        assert rows[targets[~np.isin(targets, [7, 8])]].min() >= rows[~chosen].max()
        np.testing.assert_array_equal(arrays["values"], values[np.ix_(targets, sources)])
        largest = np.abs(finite).max(1)[targets]
        np.testing.assert_array_equal(header["largest"], largest)
        np.testing.assert_allclose(arrays["scaled"], np.clip(arrays["values"] / largest[:, None], -1, 1), rtol=1e-6)
        usual = np.isfinite(values[targets]).all(1)
        totals = arrays["values"].sum(1) + arrays["rest"]
        np.testing.assert_allclose(totals[usual], values[targets].sum(1)[usual], rtol=1e-3, atol=1e-3)


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
