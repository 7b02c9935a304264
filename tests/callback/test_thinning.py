"""Arrays thinned to a quarter: what is left against loops over every value that was there."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from dgm_tb.callback.thinning import ROWS, WINDOWS, merge_windows, thin_rows
from dgm_tb.records import STATISTICS

Array = np.ndarray[Any, np.dtype[Any]]

NAN, INF = float("nan"), float("inf")
VALUES = st.one_of(st.floats(-1e4, 1e4, width=16), st.sampled_from([NAN, INF, -INF, 0.0]))
ROWS_OF_VALUES = arrays_of.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(0, 4)), elements=VALUES)
WINDOWS_OF_VALUES = arrays_of.arrays(
    np.float16, st.tuples(st.integers(1, 5), st.integers(1, 11), st.just(3)), elements=VALUES
)
AGGREGATES = ["mean/mean", "mean/min", "mean/max"]


def spans(n_windows: int, steps: int = 8) -> Array:
    """Bounds of windows of equal length, one after the other."""
    starts = np.arange(n_windows) * steps
    return np.stack([starts, starts + steps - 1], 1)


def same(left: Any, right: Any) -> None:
    np.testing.assert_array_equal(left, right)


@settings(max_examples=60, deadline=None)
@given(ROWS_OF_VALUES, st.data())
def test_the_rows_that_remain_hold_the_extremes_of_every_bucket(values: Array, data: st.DataObject) -> None:
    is_present = data.draw(arrays_of.arrays(np.bool_, values.shape))

    places, kept, present = thin_rows(values, is_present)

    assert kept.shape == present.shape == (len(places), values.shape[1])
    assert (np.diff(places) > 0).all()
    for first in range(0, len(values), ROWS):
        bucket = slice(first, min(first + ROWS, len(values)))
        own = (places >= bucket.start) & (places < bucket.stop)
        assert own.sum() <= 3
        assert {bucket.start, bucket.stop - 1} <= set(places[own].tolist())
        for column in range(values.shape[1]):
            there = values[bucket, column][is_present[bucket, column]]
            left = kept[own, column][present[own, column]]
            assert bool(len(there)) == bool(len(left))
            assert set(left[~np.isnan(left)]) <= set(there[~np.isnan(there)])
            assert np.isnan(there).any() == np.isnan(left).any()
            if not np.isnan(there).all():
                assert (np.nanmin(left), np.nanmax(left)) == (np.nanmin(there), np.nanmax(there))


@settings(max_examples=20, deadline=None)
@given(arrays_of.arrays(np.float32, st.tuples(st.integers(100, 600), st.just(2)), elements=VALUES))
def test_extremes_survive_being_thinned_again_and_again(values: Array) -> None:
    kept = values
    for _ in range(4):
        kept = thin_rows(kept)[1]

    assert len(kept) <= 3 * -(-len(values) // 64)
    same(np.fmin.reduce(kept), np.fmin.reduce(values))
    same(np.fmax.reduce(kept), np.fmax.reduce(values))
    same(np.isnan(kept).any(0), np.isnan(values).any(0))


def test_the_extremes_stand_in_the_order_in_which_they_came() -> None:
    rising, falling = np.array([3, 1, 4, 1, 5, 9, 2, 6.0]), np.array([3, 9, 4, 1, 5, 9, 2, 6.0])

    places, kept, _ = thin_rows(np.stack([rising, falling], 1))

    assert places.tolist() == [0, 7]
    assert kept.tolist() == [[1, 9], [9, 1]]


def test_finite_rows_become_a_quarter() -> None:
    assert len(thin_rows(np.random.default_rng(0).normal(size=(800, 3)))[0]) == 200


def test_a_value_that_was_there_once_is_there_still() -> None:
    """As a loss of the validation: one row of eight has it."""
    values, is_present = np.full((8, 1), NAN), np.zeros((8, 1), np.bool_)
    values[5], is_present[5] = 2.5, True

    _, kept, present = thin_rows(values, is_present)

    assert kept[present].tolist() == [2.5, 2.5]


@settings(max_examples=60, deadline=None)
@given(WINDOWS_OF_VALUES)
def test_merged_extremes_are_those_of_the_windows(values: Array) -> None:
    bounds = spans(values.shape[1])

    merged_bounds, merged = merge_windows(bounds, values, AGGREGATES)

    assert merged.shape == (len(values), -(-values.shape[1] // WINDOWS), 3)
    for number in range(merged.shape[1]):
        group = slice(number * WINDOWS, (number + 1) * WINDOWS)
        assert merged_bounds[number].tolist() == [bounds[group][0, 0], bounds[group][-1, 1]]
        for neuron in range(len(values)):
            _, low, high = values[neuron, group].T
            same(merged[neuron, number, 1], low[~np.isnan(low)].min(initial=INF) if not np.isnan(low).all() else NAN)
            same(
                merged[neuron, number, 2], high[~np.isnan(high)].max(initial=-INF) if not np.isnan(high).all() else NAN
            )


@settings(max_examples=40, deadline=None)
@given(arrays_of.arrays(np.float16, (3, 7, 1), elements=st.floats(-100, 100, width=16)), st.data())
def test_merged_means_are_weighted_by_the_steps(values: Array, data: st.DataObject) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(1, 64), min_size=7, max_size=7)))
    last = np.cumsum(lengths) - 1
    bounds = np.stack([last - lengths + 1, last], 1)
    steps = np.repeat(values[:, :, 0].astype(np.float64), lengths, 1)

    merged_bounds, merged = merge_windows(bounds, values, ["mean/mean"])

    expected = [steps[:, first : last + 1].mean(1) for first, last in merged_bounds]
    np.testing.assert_allclose(merged[:, :, 0], np.stack(expected, 1), rtol=1e-5, atol=1e-4)


def test_layers_that_were_not_called_do_not_spoil_the_mean_but_a_neuron_that_is_nan_does() -> None:
    values = np.ones((5, 4, 3), np.float32) * np.array([2, 1, 3])
    values[:2, 1] = NAN  # the first layer was not called
    values[3, 2, 0] = NAN  # -inf and inf within one step
    values[4, 2] = NAN  # a neuron of the second layer

    _, merged = merge_windows(spans(4), values, AGGREGATES, np.array([0, 2]))

    same(merged[:, 0], np.array([[2, 1, 3], [2, 1, 3], [2, 1, 3], [NAN, 1, 3], [NAN, 1, 3]], np.float32))


def test_a_mean_that_is_nan_stays_so_at_the_next_level() -> None:
    values = np.ones((2, 16, 3), np.float32)
    values[1, 5] = NAN
    bounds, merged = merge_windows(spans(16), values, AGGREGATES)

    _, merged = merge_windows(bounds, merged.astype(np.float16), AGGREGATES)

    same(merged[:, 0], np.array([[1, 1, 1], [NAN, 1, 1]], np.float32))


def test_infinite_values_survive_in_every_aggregate() -> None:
    values = np.ones((2, 4, 3), np.float32)
    values[0, 1] = INF
    values[1, 2] = -INF

    _, merged = merge_windows(spans(4), values, AGGREGATES)

    same(merged[:, 0], np.array([[INF, 1, INF], [-INF, -INF, 1]], np.float32))


def test_large_arrays_are_merged_as_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=(70, 9, 3)).astype(np.float16)
    values[np.random.default_rng(2).random(values.shape) < 0.2] = NAN
    layers = np.array([0, 3, 40])
    whole = merge_windows(spans(9), values, AGGREGATES, layers)[1]

    monkeypatch.setattr("dgm_tb.callback.thinning.BLOCK_VALUES", 100)

    same(merge_windows(spans(9), values, AGGREGATES, layers)[1], whole)


@pytest.mark.parametrize("name", [f"{s.name}/{w}" for of in STATISTICS.values() for s in of for w in s.windows])
def test_every_aggregate_of_the_schema_can_be_merged(name: str) -> None:
    bounds, merged = merge_windows(spans(5), np.arange(10.0).reshape(2, 5, 1), [name])

    assert bounds.tolist() == [[0, 31], [32, 39]]
    assert merged[:, 1, 0].tolist() == [4, 9]
