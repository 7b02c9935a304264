"""The unusual neurons of a layer, in sentences."""

from pathlib import Path
from typing import Any

import numpy as np
import one_layer
import pytest

from dgm_tb.algorithms.patterns import KINDS
from dgm_tb.plugin.unusual import unusual
from dgm_tb.plugin.wire import Arguments


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A layer of 200 calm neurons, in windows of 4 steps, with one of each kind."""
    rng = np.random.default_rng(3)
    t = np.arange(800)
    values = rng.normal(0, 1, (200, 1)) + rng.normal(0, 0.1, (200, 800)) + 0.5 * np.exp(-t / 40)
    values[3, 500:] = np.nan
    values[10, 300:] = 0
    values[20, 440:] += 5
    values[30, 611] += 9
    values[40] += 2.5 * np.sin(t / 9)
    values[50] += 4 * t / 800
    values[60] += 8 * np.exp((t - 800) / 40)
    run = one_layer.write(tmp_path_factory.mktemp("strange"), values, 4, dtype=np.float16)
    facts: dict[str, Any] = unusual(run, Arguments({"layer": "wide"}))
    return facts


EXPECTED = {
    "nonfinite": (3, "is not finite any more from step 500 on, first NaN"),
    "dead": (10, "stays at 0 from step 300 on while others move"),
    "step": (20, "jumps from "),
    "spike": (30, "leaps from "),
    "oscillation": (40, "swings between "),
    "drift": (50, "goes slowly from "),
    "blow_up": (60, "moves faster and faster, from "),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_named_with_its_step_in_one_sentence(strange: dict[str, Any], kind: str) -> None:
    neuron, text = EXPECTED[kind]
    (item,) = (item for item in strange["unusual"] if item["neuron"] == neuron)
    assert item["kind"] == kind
    assert item["sentence"].startswith(text)
    assert item["first_step"] <= item["step"] <= item["last_step"]
    begins = {"nonfinite": 503, "dead": 300, "step": 440, "spike": 611, "drift": 799, "blow_up": 799}
    assert item["step"] == begins.get(kind, item["step"])
    assert (item["score"] == "Infinity") if kind in ("nonfinite", "dead") else (1 <= item["score"] < 100)


def test_levels_in_sentences_are_those_of_the_history(strange: dict[str, Any]) -> None:
    by_neuron = {item["neuron"]: item["sentence"].split() for item in strange["unusual"]}
    before, after = float(by_neuron[20][2]), float(by_neuron[20][4])
    assert after - before == pytest.approx(5, abs=0.1)
    assert float(by_neuron[30][4]) - float(by_neuron[30][2]) == pytest.approx(9, abs=0.3)
    assert " ".join(by_neuron[30][5:9]) == "in steps 608 to"
    assert float(by_neuron[50][5].rstrip(":")) - float(by_neuron[50][3]) == pytest.approx(3, abs=0.2)


def test_a_step_is_told_where_the_level_changes_not_where_a_value_is_odd(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 0.1, (60, 800))
    for first in (440, 444, 448):
        values[9, first:] += 2.7
    values[9, 428:432] -= 4
    (item,) = unusual(one_layer.write(tmp_path, values, 4), Arguments({"layer": "wide"}))["unusual"]
    assert (item["neuron"], item["kind"]) == (9, "step")
    assert 440 <= item["step"] <= 448


def test_nothing_else_is_unusual_and_the_worst_come_first(strange: dict[str, Any]) -> None:
    assert strange["count"] == len(strange["unusual"]) == 7
    assert (strange["neurons"], strange["common"]) == (200, {})
    assert [item["kind"] for item in strange["unusual"][:2]] == ["nonfinite", "dead"]
    scores = [item["score"] for item in strange["unusual"][2:]]
    assert scores == sorted(scores, reverse=True)


def test_what_many_neurons_do_is_counted_not_listed(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 60))
    values[:12, 30:] = 0
    run = one_layer.write(tmp_path, values, 1)
    facts = unusual(run, Arguments({"layer": "wide"}))
    assert (facts["count"], facts["common"], facts["unusual"]) == (0, {"dead": 12}, [])


def test_a_neuron_that_stays_behind_is_told_with_what_the_layer_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.05, (64, 400)) + np.linspace(1, 3, 400) + rng.normal(0, 0.1, (64, 1))
    values[7] -= np.linspace(0, 2, 400)
    (item,) = unusual(one_layer.write(tmp_path, values, 4), Arguments({"layer": "wide"}))["unusual"]
    assert (item["neuron"], item["kind"]) == (7, "drift")
    assert "while the layer's median goes from 1.2" in item["sentence"]
