"""Unusual histories are found, named and placed; usual ones are left alone, whatever a layer is like."""

from collections.abc import Callable

import histories
import numpy as np
import pytest
from histories import POPULATIONS
from sampling_oracle import planted_polylines

from dgm_tb.algorithms.patterns import KINDS, LIMIT, Unusual, unusual

HELD_OUT = range(9000, 9004)


def calm(n: int = 100, n_snapshots: int = 200, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (n, 1)) + rng.normal(0, 0.1, (n, n_snapshots))


def named(found: Unusual) -> dict[int, str]:
    return {int(neuron): KINDS[kind] for neuron, kind in zip(found.neurons, found.kinds, strict=True)}


def found_of(found: Unusual, neuron: int) -> tuple[str, int, int]:
    at = found.neurons.tolist().index(neuron)
    return KINDS[found.kinds[at]], int(found.first[at]), int(found.last[at])


# -- what is found -----------------------------------------------------------------------------------------------------


def test_planted_histories_are_named_in_every_population_at_seeds_nobody_tuned_with() -> None:
    found = histories.confusion(HELD_OUT)
    for kind in KINDS:
        n = sum(count for (planted, _), count in found.named.items() if planted == kind)
        missed = 0.25 if kind in ("drift", "blow_up") else 0.1
        assert found.named[kind, kind] >= (1 - missed) * n > 20, (kind, found.named)
    right = sum(found.named[kind, kind] for kind in KINDS)
    assert right >= 0.92 * found.named.total()
    assert found.false.total() <= 1e-3 * found.n_usual, found.false


def test_outliers_of_the_sampling_benchmark_are_named() -> None:
    right = dict.fromkeys(("step", "spike", "drift", "oscillation", "blow_up"), 0)
    for seed in range(4):
        polylines, outliers = planted_polylines(1000, np.random.default_rng(seed))
        found, _ = unusual(polylines)
        kinds = named(found)
        for number, neuron in enumerate(outliers.tolist()):
            kind = list(right)[number % 5]
            right[kind] += kinds.pop(neuron, "") == kind
        assert len(kinds) <= 3
    assert min(right["step"], right["spike"], right["oscillation"], right["blow_up"]) >= 13  # of 16; others drift, too


@pytest.mark.parametrize("population", POPULATIONS, ids=lambda population: population.__name__)
def test_a_layer_without_planted_ones_yields_next_to_none(population: Callable[..., np.ndarray]) -> None:
    n_found = 0
    for seed in range(6000, 6004):
        values = population(500, np.linspace(0, 1, 150), np.random.default_rng(seed)).astype(np.float16)
        n_found += len(unusual(values)[0].neurons)
    assert n_found <= 4


def test_the_place_is_told() -> None:
    values = calm()
    values[1, 60:] += 3
    values[2, 121] -= 5
    values[3, 150:] = 7
    values[4, 30] = np.inf
    values[5, 80:90] = np.nan
    found, _ = unusual(values)
    kind, first, last = found_of(found, 1)
    assert kind == "step"
    assert first <= 60 <= last <= first + 4
    kind, first, last = found_of(found, 2)
    assert kind == "spike"
    assert first <= 121 <= last <= first + 1
    kind, first, last = found_of(found, 3)
    assert (kind, last) == ("dead", 199)
    assert 150 <= first <= 151
    assert found_of(found, 4) == ("nonfinite", 30, 30)
    assert found_of(found, 5) == ("nonfinite", 80, 89)
    assert named(found).keys() == {1, 2, 3, 4, 5}


def test_what_needs_no_comparison_comes_first_and_the_rest_by_its_score() -> None:
    values = calm()
    values[10, 50] += 4
    values[11, 50] += 9
    values[12, 100:] = 0
    values[13, 120:] = np.nan
    values[14, 20:] = np.nan
    found, _ = unusual(values)
    assert found.neurons.tolist() == [14, 13, 12, 11, 10]
    assert np.isinf(found.scores[:3]).all()
    assert np.isnan(found.ratios[:3]).all()
    assert found.scores[3] > found.scores[4] >= 1
    assert (found.ratios[3:] > 1).all()


def test_a_spike_within_a_window_is_seen_in_its_extremes() -> None:
    values = calm(n_snapshots=1600).reshape(100, 200, 8)
    values[7, 90, 3] += 6
    main, low, high = values.mean(2), values.min(2), values.max(2)
    kind, first, last = found_of(unusual(main, low, high)[0], 7)
    assert kind == "spike"
    assert first <= 90 <= last <= first + 1


def test_a_quiet_neuron_may_be_unusual_where_loud_ones_do_the_same_all_the_time() -> None:
    rng = np.random.default_rng(0)
    loudness = np.exp(rng.normal(0, 1, (400, 1)))
    values = loudness * rng.normal(size=(400, 200))
    quiet = int(np.argsort(loudness[:, 0])[200])
    values[quiet, 100:] += 10
    assert named(unusual(values)[0]) == {quiet: "step"}


def test_a_spike_of_a_neuron_that_drifts_as_all_do_is_a_spike() -> None:
    time = np.linspace(0, 1, 500)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        values = histories.drifting(300, time, rng)
        values[:10, 200 + 10 * seed : 203 + 10 * seed] += 6
        kinds = named(unusual(values, values - 0.05, values + 0.05)[0])
        assert [kinds.get(neuron) for neuron in range(10)] == ["spike"] * 10


def test_a_step_in_calm_times_counts_however_violent_the_beginning_was() -> None:
    values = histories.settling(400, np.linspace(0, 1, 200), np.random.default_rng(0))
    values[:5, 120:] += 2
    assert named(unusual(values)[0]) == dict.fromkeys(range(5), "step")


# -- what is usual -----------------------------------------------------------------------------------------------------


def test_what_all_neurons_do_is_usual_whatever_it_is() -> None:
    time = np.arange(200)
    values = calm(seed=5)
    for common in (5 * (time > 80), 7 * (time == 90), time / 20, 3 * np.sin(time / 4), np.exp((time - 199) / 9)):
        assert not len(unusual(values + common)[0].neurons)
    values[3] += 4
    values[3] -= 5.0 * (time > 80)  # the one that does not follow
    assert named(unusual(values + 5 * (time > 80))[0]) == {3: "step"}


def test_standing_still_is_dead_only_while_others_move() -> None:
    values = calm()
    values[:, 150:] = values[:, [150]]
    found, common = unusual(values)
    assert (named(found), common) == ({}, {})
    values = calm()
    values[:11, 100:] = 0.0
    found, common = unusual(values)
    assert (named(found), common) == ({}, {"dead": 11})
    values[:1] = calm(1)
    assert len(named(unusual(values)[0])) == 10


def test_a_value_that_is_rounded_stands_not_still_and_leaps_not() -> None:
    converging = 1000 + 40 * np.exp(-np.linspace(0, 8, 200)) * np.random.default_rng(0).uniform(0.5, 1.5, (100, 1))
    found, _ = unusual(converging.astype(np.float16))  # in steps of one half
    assert not len(found.neurons)
    converging[5, 10:] = 1026
    assert named(unusual(converging.astype(np.float16))[0]) == {5: "dead"}


@pytest.mark.parametrize("n", [2, 7, 12, 30])
def test_few_neurons_are_hardly_ever_unusual(n: int) -> None:
    n_found = sum(len(unusual(calm(n, seed=seed))[0].neurons) for seed in range(40))
    assert n_found <= 6  # one in seven layers
    values = calm(n)
    values[1, 50] = np.nan
    assert named(unusual(values)[0]) == {1: "nonfinite"}


# -- what must not matter ----------------------------------------------------------------------------------------------


def rich() -> np.ndarray:
    values = histories.layer(POPULATIONS[0], 9)[0].astype(np.float64)
    assert len(unusual(values)[0].neurons) > 5
    return values


@pytest.mark.parametrize("factor", [1e-20, 1e-3, 1e20])
def test_the_unit_of_the_values_does_not_matter(factor: float) -> None:
    before, after = unusual(rich())[0], unusual(rich() * factor)[0]
    assert named(before) == named(after)
    np.testing.assert_allclose(before.scores, after.scores, rtol=1e-3)


def test_the_order_of_the_neurons_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(len(rich()))
    shuffled = named(unusual(rich()[order])[0])
    assert {int(order[neuron]): kind for neuron, kind in shuffled.items()} == named(unusual(rich())[0])


def test_upside_down_the_same_is_found() -> None:
    assert named(unusual(rich())[0]) == named(unusual(-rich())[0])


def test_the_arrays_stay_as_they_are() -> None:
    values = rich()
    before = values.copy()
    unusual(values, values, values)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((0, 5)), np.zeros((5, 0)), np.zeros((20, 1)), np.zeros((20, 100)), np.full((20, 100), np.nan),
        np.full((20, 100), np.inf), np.eye(20, 100), np.full((20, 100), 3e38, np.float32),
        np.where(np.eye(30, 60) > 0, 3e38, 0).astype(np.float32), np.random.default_rng(0).normal(size=(9, 8)),
        np.where(np.random.default_rng(0).random((40, 50)) < 0.02, np.nan, 1),
    ],
)  # fmt: skip
def test_odd_layers_are_answered(values: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        found, _ = unusual(values)
    lost = ~np.isfinite(values).all(1) if values.size else np.zeros(len(values), bool)
    assert set(found.neurons[found.kinds == 0].tolist()) == set(np.flatnonzero(lost).tolist())
    assert len(set(found.neurons.tolist())) == len(found.neurons)
    assert ((found.first >= 0) & (found.first <= found.last)).all()
    assert (found.scores >= 1).all()


def test_scores_are_at_the_limit_for_what_is_just_unusual() -> None:
    heights = np.linspace(0, 2, 41)
    scores = []
    for height in heights:
        values = calm()
        values[5, 100] += height * np.sign(values[5, 100] - np.median(values[5]))
        found, _ = unusual(values)
        scores.append(dict(zip(found.neurons.tolist(), found.scores, strict=True)).get(5, 0.0))
    first = next(score for score in scores if score)
    assert scores[0] == 0
    assert 1 <= first < 1.3
    assert scores[-1] > 1.5
    assert LIMIT > 1
