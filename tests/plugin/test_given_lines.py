"""Lines of given neurons, and how finely the data is kept."""

from pathlib import Path
from typing import Any

import numpy as np
import one_layer
import pytest
from conftest import make_client
from one_layer import N
from routes import get, get_arrays
from werkzeug.test import Client

from dgm_tb.plugin import lines
from dgm_tb.plugin.lines import window_lengths, window_spans


def ask(client: Client, route: str, run: str = "windows", **arguments: object) -> Any:
    return get_arrays(client, route, run=run, layer="wide", **arguments)


# -- lines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [5, 7, 400])
def test_lines_are_those_that_dynamics_draws_in_the_order_asked_for(wide: Client, columns: int) -> None:
    header, drawn = ask(wide, "dynamics", k=N, columns=columns, first=10, last=90)
    own, found = ask(wide, "lines", neurons="7,2,0,2", columns=columns, first=10, last=90)
    assert found["neurons"].tolist() == [7, 2, 0]
    for neuron, line in zip(found["neurons"], found["values"], strict=True):
        expected = drawn["values"][drawn["neurons"].tolist().index(neuron)]
        if columns == 400:
            np.testing.assert_array_equal(line, expected[np.isin(drawn["steps"], found["steps"])])
        else:  # what is not finite in other lines has columns of its own
            assert (line.min(), line.max()) == (expected.min(), expected.max())
    for name in ("layer", "quantity", "statistic", "first", "last", "resolution", "window_steps", "spans"):
        assert own[name] == header[name]
    assert (own["neurons"], own["columns"]) == (N, columns)


def test_lines_say_which_are_kept_at_every_step(wide: Client) -> None:
    assert ask(wide, "lines", neurons="2,3")[1]["every_step"].tolist() == [1, 0]
    assert ask(wide, "lines", neurons="2,3", columns=5)[1]["every_step"].tolist() == [0, 0]
    assert ask(wide, "lines", "steps", neurons="2,3", columns=5)[1]["every_step"].tolist() == [1, 1]


@pytest.mark.parametrize("columns", [5, 400])
def test_neurons_read_one_by_one_have_the_same_lines(
    wide: Client, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    expected = ask(wide, "lines", neurons="11,5,2", columns=columns)
    monkeypatch.setattr(lines, "WINDOW_BYTES", 1 << 40)
    monkeypatch.setattr(lines.View, "windows", lambda *_: pytest.fail("all neurons were read"))
    found = ask(wide, "lines", neurons="11,5,2", columns=columns)
    assert found[0] == expected[0]
    for name, array in expected[1].items():
        np.testing.assert_array_equal(found[1][name], array)


def test_many_long_lines_are_drawn_with_fewer_points(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(256, 2000))
    one_layer.write(tmp_path, values, 1)
    client = make_client(tmp_path)
    every = ",".join(map(str, range(256)))
    answer = get(client, "lines", run=".", layer="wide", neurons=every, columns=1000)
    assert len(answer.data) < 710_000
    header, arrays = get_arrays(client, "lines", run=".", layer="wide", neurons=every, columns=1000)
    assert 100 < header["columns"] < 1000
    np.testing.assert_array_equal(arrays["values"].max(1), values.max(1).astype(np.float32))
    values[np.random.default_rng(1).random(values.shape) < 0.02] = np.nan
    one_layer.write(tmp_path / "lost", values, 1)
    answer = get(make_client(tmp_path / "lost"), "lines", run=".", layer="wide", neurons=every, columns=1000)
    assert len(answer.data) < 710_000


def test_a_neuron_that_the_layer_does_not_have_is_400(wide: Client) -> None:
    for wrong in ("12", "1,2,12", "-1", "1;2", ""):
        answer = get(wide, "lines", run="windows", layer="wide", neurons=wrong)
        assert answer.status_code == 400
        assert "neurons" in answer.text
    assert "from 0 to 11" in get(wide, "lines", run="windows", layer="wide", neurons="12").text


# -- how finely --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "spans", "words"),
    [
        ([4, 4, 4], [[0, 11, 4]], "windows of 4 steps"),
        ([1, 1], [[0, 1, 1]], "every step"),
        ([64, 64, 16, 16, 16, 3], [[0, 127, 64], [128, 175, 16], [176, 178, 3]], "windows of 16 to 64 steps"),
        ([16, 15, 16, 9, 16, 5], [[0, 71, 16], [72, 76, 5]], "windows of 16 steps"),
        ([3], [[0, 2, 3]], "windows of 3 steps"),
        ([], [], "every step"),
    ],
)
def test_windows_of_about_the_same_length_are_one_span(lengths: list[int], spans: list[Any], words: str) -> None:
    ends = np.cumsum([0, *lengths])
    bounds = np.stack([ends[:-1], ends[1:] - 1], 1)
    assert (window_spans(bounds), window_lengths(bounds)) == (spans, words)


def test_spans_stay_few_however_the_lengths_change() -> None:
    for lengths in ([1, 1000] * 500, [1, 3, 40, 900, 10**6] * 300, np.random.default_rng(0).integers(1, 999, 999)):
        ends = np.cumsum([0, *lengths])
        spans = window_spans(np.stack([ends[:-1], ends[1:] - 1], 1))
        assert 1 <= len(spans) <= 64
        assert (spans[0][0], spans[-1][1]) == (0, ends[-1] - 1)
        assert max(steps for *_, steps in spans) == max(lengths)


def test_dynamics_tells_the_spans_of_its_range(client: Client) -> None:
    assert get_arrays(client, "dynamics", layer="out")[0]["spans"] == [[0, 11, 4]]
    assert get_arrays(client, "dynamics", layer="out", first=5, last=6)[0]["spans"] == [[4, 7, 4]]
