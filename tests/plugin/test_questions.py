"""Questions about all neurons of a layer, answered again from the values that were recorded, one neuron at a time."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import one_layer
import pytest
import sample_recording as sample
from conftest import make_client
from one_layer import SAMPLED, STEPS, VALUES, WINDOW, N
from routes import get, get_arrays, get_json
from werkzeug.test import Client

from dgm_tb.plugin import lines, questions
from dgm_tb.plugin.run import Run

SCALES: dict[str, Callable[[Any], Any]] = {
    "linear": lambda value: value,
    "symlog": lambda value: np.arcsinh(value / 0.5),
    "log": lambda value: np.log10(np.where(value > 0, value, np.nan)),
}


def ask(client: Client, route: str, run: str = "windows", **arguments: object) -> Any:
    return get_arrays(client, route, run=run, layer="wide", **arguments)


def points_of(neuron: int, run: str, columns: int) -> list[tuple[float, float, float, float]]:
    """A line as http_api.md says it is drawn: first step, last step, lowest and highest value of each point."""
    line = VALUES[neuron]
    if run == "steps" or (columns > STEPS // WINDOW and neuron in SAMPLED):
        return [(step, step, value, value) for step, value in enumerate(line.tolist())]
    parts = [(first, line[first : first + WINDOW]) for first in range(0, STEPS, WINDOW)]
    if columns > STEPS // WINDOW:
        return [(first, first + WINDOW - 1, part.mean(), part.mean()) for first, part in parts]
    return [(at + WINDOW - 1, at + WINDOW - 1, np.fmin.reduce(part), np.fmax.reduce(part)) for at, part in parts]


@functools.cache
def traced(neuron: int, run: str, columns: int, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """Many points along a line, in scaled units: steps and heights, in the order in which a pen would draw them."""
    steps, heights = [], []

    def dots(begin: float, end: float, low: float, high: float) -> None:
        n = 2 + int(abs(high - low) / 0.005 + (end - begin) / 0.02)
        steps.append(np.linspace(begin, end, n))
        heights.append(np.linspace(low, high, n))

    before: tuple[float, float, float] | None = None
    for first, last, *bar in points_of(neuron, run, columns):
        shown = [float(SCALES[scale](np.float64(value))) for value in bar]
        shown = [value for value in shown if np.isfinite(value)]
        if not shown:
            before = None
            continue
        low, high = min(shown), max(shown)
        if before is not None:
            middle = (max(before[1], low) + min(before[2], high)) / 2
            dots(before[0], first, float(np.clip(middle, *before[1:])), float(np.clip(middle, low, high)))
        dots(first, first, low, high)
        dots(first, last, high, high)
        before = last, low, high
    return np.concatenate([[], *steps]), np.concatenate([[], *heights])


MODES = [("windows", 5), ("windows", 400), ("steps", 400)]


# -- density -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "columns"), MODES)
@pytest.mark.parametrize("scale", SCALES)
def test_density_counts_the_lines_in_each_cell(wide: Client, run: str, columns: int, scale: str) -> None:
    asked = {"columns": columns, "scale": scale, "threshold": 0.5, "width": 17, "height": 9, "low": -2.53, "high": 2.17}
    header, arrays = ask(wide, "density", run, first=3, last=90, **asked)
    assert (header["scale"], header["threshold"], header["neurons"]) == (scale, 0.5, N)
    found = arrays["density"][::-1].astype(np.float64)
    counts = np.where(found > 0, header["largest"] ** ((found - 1) / 254), 0)
    least, most = np.zeros((2, 9, 17))
    for neuron in range(N):
        steps, heights = traced(neuron, run, columns, scale)
        column, row = (steps - 3) / 87 * 17, (heights + 2.53) / 4.7 * 9
        # the pen leaves dots, so the neighbour of a dot near a border may be passed; what lies between two dots of a
        # column is passed
        for at in range(17):
            inside = row[(column >= at) & (column <= at + 1)]
            if len(inside):
                low, high = inside.min(), inside.max()
                cells = np.arange(9)
                most[:, at] += (cells >= np.floor(low - 0.05)) & (cells <= np.floor(high + 0.05))
                least[:, at] += (cells >= np.floor(low + 0.05)) & (cells <= np.floor(high - 0.05)) & (low < high - 0.1)
    assert header["largest"] == pytest.approx(counts.max())
    assert (counts > least - 0.2).all()
    assert (counts < most + 0.2).all()
    assert (np.rint(counts) == most).mean() > 0.8


def test_density_spans_all_finite_values_unless_told_otherwise(wide: Client) -> None:
    for columns in (5, 400):
        header, arrays = ask(wide, "density", columns=columns, width=40, height=30)
        shown = VALUES if columns == 5 else np.concatenate(
            [VALUES[list(SAMPLED)].ravel(), VALUES.reshape(N, -1, WINDOW).mean(2).ravel()]
        )  # fmt: skip
        assert (header["low"], header["high"]) == pytest.approx((np.nanmin(shown), np.nanmax(shown)), rel=1e-6)
        assert arrays["density"][0].any()
        assert arrays["density"][-1].any()
    header, arrays = ask(wide, "density", low=100, high=200)
    assert (header["largest"], arrays["density"].any()) == (0, False)
    assert ask(wide, "density", low=100)[0]["high"] == 101


def test_density_of_one_neuron_is_full_where_it_is(tmp_path: Path) -> None:
    one_layer.write(tmp_path, np.full((1, 16), 3.0), 4)
    header, arrays = get_arrays(make_client(tmp_path), "density", run=".", layer="wide", width=10, height=3)
    assert (header["low"], header["high"], header["largest"]) == (2.5, 3.5, 1)
    assert arrays["density"].tolist() == [[0] * 10, [0] * 2 + [255] * 8, [0] * 10]


def test_density_and_the_list_are_new_when_something_new_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgm_tb.plugin.runs.REFRESH_SECONDS", 0.0)
    records = [sample.recording_record(), list(sample.all_records())[1]]
    first = list(sample.quantity_records("activation", np.arange(8)))
    path = sample.write(tmp_path, [*records, *first])
    client = make_client(tmp_path)
    arguments = {"run": ".", "layer": "fc"}
    assert get_json(client, "unusual", **arguments)["count"] == 0
    before = get_arrays(client, "density", **arguments)
    with path.open("ab") as file:
        file.write(sample.framed(sample.quantity_records("activation", np.arange(8, 12))))
    assert get_json(client, "unusual", **arguments)["unusual"][0]["kind"] == "nonfinite"
    after = get_arrays(client, "density", **arguments)
    assert (before[0]["last"], after[0]["last"]) == (7, 11)
    assert (before[1]["density"] != after[1]["density"]).any()


def test_low_must_be_below_high(wide: Client) -> None:
    answer = get(wide, "density", run="windows", layer="wide", low=2, high=2)
    assert (answer.status_code, answer.text) == (400, "low is below high; got 2 and 2")


# -- nearest -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "columns"), MODES)
@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_nearest_are_the_lines_at_the_smallest_vertical_distance(
    wide: Client, run: str, columns: int, scale: str
) -> None:
    asked = {"columns": columns, "scale": scale, "threshold": 0.5, "limit": 4}
    width = (STEPS - 1) / columns
    for step, value in ((30.2, 0.1), (0, -3), (57.7, 2.2), (95, 0.2), (43, 2.6)):
        _, arrays = ask(wide, "nearest", run, step=step, value=value, **asked)
        begin = min(step // width, columns - 1) * width
        distances = {}
        for neuron in range(N):
            steps, heights = traced(neuron, run, columns, scale)
            column = heights[(steps >= min(begin, step) - 1e-9) & (steps <= max(begin + width, step) + 1e-9)]
            if len(column):
                distances[neuron] = max(column.min() - value, value - column.max(), 0)
        expected = sorted(distances.values())[:4]
        np.testing.assert_allclose(arrays["distance"], expected, atol=0.03)
        np.testing.assert_allclose([distances[neuron] for neuron in arrays["neurons"]], expected, atol=0.03)


def test_nearest_finds_a_spike_of_one_step_where_steps_are_kept(wide: Client) -> None:
    header, arrays = ask(wide, "nearest", step=43, value=9.1, limit=1)
    assert (header["every_step"], arrays["neurons"].tolist()) == (True, [5])
    assert arrays["values"] == pytest.approx([9])
    assert arrays["distance"] == pytest.approx([0.1], abs=1e-5)
    header, arrays = ask(wide, "nearest", step=47, value=8.9, limit=1, columns=12)
    assert (header["every_step"], arrays["neurons"].tolist(), arrays["distance"].tolist()) == (False, [5], [0])


def test_of_lines_that_pass_the_point_the_one_whose_middle_is_nearer_comes_first(tmp_path: Path) -> None:
    values = np.stack([np.tile([0.0, 4.0], 20), np.tile([0.5, 2.0], 20), np.full(40, 7.0)])
    one_layer.write(tmp_path, values, 4)
    client = make_client(tmp_path)
    _, arrays = get_arrays(client, "nearest", run=".", layer="wide", step=20, value=1, columns=4)
    assert arrays["neurons"].tolist() == [1, 0, 2]
    assert arrays["distance"].tolist() == [0, 0, 6]


def test_nearest_looks_at_the_windows_that_no_later_recording_superseded(tmp_path: Path) -> None:
    body = {"quantity": "activation", "aggregates": ["mean/mean"]}

    def windows(value: float, *bounds: tuple[int, int]) -> list[sample.Record]:
        values = np.full((14, 1, 1), value, np.float32)
        return [
            sample.Record("dynamics", *ends, body, {"windows": np.array([ends]), "values": values}) for ends in bounds
        ]

    graph = list(sample.all_records())[1]
    sample.write(tmp_path, [sample.recording_record(), graph, *windows(1, (0, 3), (4, 7), (8, 11))])
    later = sample.recording_record("later", resume_step=6, started=sample.STARTED + 9)
    steps = [*sample.quantity_records("activation", np.arange(6, 12))][:1]
    sample.write(tmp_path, [later, graph, *steps, *windows(3, (6, 9), (10, 11))], "later")
    arguments = {"run": ".", "layer": "out", "first": 0, "last": 11, "step": 6, "value": 2, "limit": 1}
    _, arrays = get_arrays(make_client(tmp_path), "nearest", **arguments)
    assert arrays["values"] == pytest.approx([2])  # half way from step 3, which is the last one kept, to step 9
    view = lines.View(Run(tmp_path), "out", "activation", "mean", 0, 11, 400)
    assert view.bounds().tolist() == view.windows().bounds.tolist() == [[0, 3], [6, 9], [10, 11]]


def test_nearest_leaves_out_lines_that_are_interrupted_there(wide: Client) -> None:
    _, before = ask(wide, "nearest", "steps", step=20, value=0, limit=50)
    _, after = ask(wide, "nearest", "steps", step=80, value=0, limit=50)
    assert set(before["neurons"].tolist()) - set(after["neurons"].tolist()) == {N - 1}


# -- brush -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "columns"), MODES)
@pytest.mark.parametrize("scale", ["linear", "symlog"])
@pytest.mark.parametrize("kind", ["box", "line"])
def test_brush_selects_the_lines_that_the_stroke_meets(
    wide: Client, run: str, columns: int, scale: str, kind: str
) -> None:
    some = 0
    for stroke in ((20, -1, 41, -0.4), (41.5, 1.5, 12.5, 0.2), (60.3, -2, 60.3, 3), (0, 0, 95, 0.01), (85, 2, 95, 9)):
        names = ("step1", "value1", "step2", "value2")
        asked = {"columns": columns, "scale": scale, "threshold": 0.5, "kind": kind}
        header, arrays = ask(wide, "brush", run, **asked, **dict(zip(names, stroke, strict=True)))
        clear, near = (
            {n for n in range(N) if is_met(*traced(n, run, columns, scale), stroke, kind, reach)}
            for reach in (-0.004, 0.02)
        )
        assert clear <= set(arrays["neurons"].tolist()) <= near
        assert header["count"] == len(arrays["neurons"])
        assert (np.diff(arrays["neurons"]) > 0).all()
        some += len(clear)
    assert 5 < some < 5 * N


def is_met(steps: np.ndarray, heights: np.ndarray, stroke: Any, kind: str, reach: float) -> bool:
    """Whether dots along a line lie in the box, or on both sides of the stroke, give or take ``reach``."""
    (x1, y1), (x2, y2) = sorted([stroke[:2], stroke[2:]])
    inside = (steps >= x1 - reach - 0.005) & (steps <= x2 + reach + 0.005)
    steps, heights = steps[inside], heights[inside]
    if kind == "box" or x1 == x2:
        low, high = sorted((y1, y2))
        return bool(((heights >= low - reach) & (heights <= high + reach)).any()) or (
            len(heights) > 0 and bool(heights.min() < low - reach and heights.max() > high + reach)
        )
    away = heights - (y1 + (steps - x1) / (x2 - x1) * (y2 - y1))
    return len(away) > 0 and bool(away.min() <= reach and away.max() >= -reach)


@pytest.mark.parametrize(("step1", "step2", "expected"), [(0, 95, [11]), (66, 50, []), (65, 79, [11]), (90, 90, [11])])
def test_brush_selects_what_is_not_finite(wide: Client, step1: float, step2: float, expected: list[int]) -> None:
    header, arrays = ask(wide, "brush", "steps", kind="nonfinite", step1=step1, step2=step2)
    assert (arrays["neurons"].tolist(), header["count"]) == (expected, len(expected))


def test_brush_needs_both_corners(wide: Client) -> None:
    answer = get(wide, "brush", run="windows", layer="wide", step1=1, step2=2, value1=0)
    assert (answer.status_code, "value2" in answer.text) == (400, True)


# -- similar -----------------------------------------------------------------------------------------------------------


def test_similar_ranks_by_the_distance_of_histories(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    values = np.cumsum(rng.normal(size=(40, 64)), 1)
    values[17] = values[4]
    values[23] = values[4] + 0.01
    one_layer.write(tmp_path, values, 1)
    header, arrays = get_arrays(make_client(tmp_path), "similar", run=".", layer="wide", neuron=4, limit=100)
    assert (header["neurons"], header["neuron"], len(arrays["neurons"])) == (40, 4, 39)
    assert arrays["neurons"][:2].tolist() == [17, 23]
    assert arrays["distance"][0] == 0
    median = np.median(values, 0)
    spread = 1.4826 * np.median(np.abs(values - median))
    a, b = np.float64((values - values[4])[:, :-1]), np.float64((values - values[4])[:, 1:])
    expected = np.sqrt(((a**2 + a * b + b**2) / 3).sum(1) / 64) / spread
    np.testing.assert_allclose(arrays["distance"], expected[arrays["neurons"]], rtol=1e-4, atol=1e-4)
    assert (np.diff(arrays["distance"]) >= 0).all()


def test_a_history_that_is_lost_is_similar_to_others_that_are(tmp_path: Path) -> None:
    values = np.cumsum(np.random.default_rng(5).normal(size=(30, 64)), 1)
    values[[3, 8, 20], 40:] = np.nan
    one_layer.write(tmp_path, values, 1)
    _, arrays = get_arrays(make_client(tmp_path), "similar", run=".", layer="wide", neuron=8, limit=3)
    assert set(arrays["neurons"][:2].tolist()) == {3, 20}


# -- all of them -------------------------------------------------------------------------------------------------------


def test_answers_of_a_large_layer_stay_small(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3000, 12))
    one_layer.write(tmp_path, values, 4)
    client = make_client(tmp_path)
    for route, arguments in {
        "density": {"width": 1200, "height": 500},
        "nearest": {"step": 5, "value": 0, "limit": 256},
        "brush": {"step1": 0, "step2": 11, "value1": -9, "value2": 9},
        "similar": {"neuron": 5, "limit": 2000},
    }.items():
        answer = get(client, route, run=".", layer="wide", **arguments)
        assert answer.status_code == 200
        assert len(answer.data) < 700_000


def test_brush_sends_no_more_neurons_than_fit(wide: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "MAX_SELECTED", 3)
    header, arrays = ask(wide, "brush", step1=0, step2=95, value1=-99, value2=99)
    assert (header["count"], len(arrays["neurons"])) == (N, 3)


def test_layers_without_the_quantity_are_404(client: Client) -> None:
    for route in ("lines", "density", "nearest", "brush", "similar", "unusual"):
        arguments = {"neurons": 0, "neuron": 0, "step": 0, "value": 0, "step1": 0, "step2": 0, "value1": 0, "value2": 0}
        answer = get(client, route, run="a/run", layer="unfold", quantity="weight", **arguments)
        assert (answer.status_code, "no weights" in answer.text) == (404, True), route
