"""Examples out of line, neurons that stand out, values that break with their history."""

import numpy as np
import pytest

from dgm_tb.algorithms.outliers import is_extreme, is_spike, jump, outlying_examples, worst_neurons


def ordinary(n_layers: int, n_examples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 2.0, (n_layers, n_examples))


def test_an_example_ten_times_as_large_is_named_with_its_first_layer() -> None:
    largest = ordinary(5, 32)
    largest[2:, 17] *= 100
    outliers = outlying_examples(largest)
    assert outliers.positions == [17]
    assert outliers.layer == 2
    assert outliers.ratios[0] > 25
    assert outliers.normal != 17


def test_ordinary_batches_have_no_outlier() -> None:
    assert all(not outlying_examples(ordinary(8, 64, seed)).positions for seed in range(50))


def test_a_value_that_is_not_finite_is_the_worst() -> None:
    largest = ordinary(3, 16)
    largest[1, 3] *= 50
    largest[2, 9] = np.inf
    assert outlying_examples(largest).positions[0] == 9


def test_unknown_values_are_no_outliers() -> None:
    largest = ordinary(3, 16)
    largest[1] = np.nan
    assert outlying_examples(largest).positions == []


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (3, 0), (3, 1), (3, 2)])
def test_too_few_examples_give_no_outlier(shape: tuple[int, int]) -> None:
    assert outlying_examples(np.ones(shape)).positions == []


def test_a_layer_that_is_zero_for_all_others_is_not_judged() -> None:
    largest = ordinary(2, 16)
    largest[1] = 0
    largest[1, 4] = 1e-9
    assert outlying_examples(largest).positions == []


def test_a_jump_is_measured_against_the_largest_recent_value() -> None:
    assert jump([1, 2, 1, 2, 4], 40) == pytest.approx(10)
    assert jump([1, 2, 1, 2, -4], 40) == pytest.approx(10)
    assert jump([1, 2, 1], 40) == 0
    assert jump([1, 2, 1, np.nan, 2, 1], 4) == pytest.approx(2)
    assert jump([1] * 8, np.inf) == np.inf


def test_a_spike_leaps_out_of_a_calm_history_only() -> None:
    rng = np.random.default_rng(0)
    calm = list(rng.uniform(0.2, 0.6, 64))
    assert is_spike(calm, 9.0)
    assert not is_spike(calm, 1.5)
    assert not is_spike([*calm[:-1], 8.0], 9.0)
    falling = list(np.linspace(3.0, 0.2, 64))
    assert not is_spike(falling, 7.0)
    assert is_spike(falling, 9.0)
    assert not is_spike(calm[:20], 9.0)
    assert not is_spike([-v for v in calm], 9.0)


def test_neurons_that_are_not_finite_come_alone() -> None:
    values = np.array([1.0, np.nan, 2.0, np.inf, 900.0])
    assert sorted(worst_neurons(values)) == [1, 3]
    assert worst_neurons(np.array([1.0, 1.1, 0.9, 50.0, 40.0, 1.0])) == [3, 4]
    assert worst_neurons(np.ones(6))[0] in range(6)
    assert worst_neurons(np.zeros(0)) == []


def test_an_extreme_example_is_out_of_its_batch_and_of_the_recent_ones() -> None:
    batch = np.array([1.0, 1.2, 0.9, 1.1, 40.0])
    assert is_extreme([1.5] * 8, batch)
    assert not is_extreme([1.5] * 7 + [30.0], batch)
    assert not is_extreme([1.5] * 8, np.full(5, 40.0))
    assert not is_extreme([1.5] * 2, batch)
    assert not is_extreme([1.5] * 8, batch[3:])
