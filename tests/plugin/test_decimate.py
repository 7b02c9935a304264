import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgm_tb.plugin.decimate import column_starts, decimated, percentiles, reduced

SPECIAL = [np.nan, np.inf, -np.inf]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 300), st.integers(2, 20), st.integers(0, 12))
def test_no_spike_and_nothing_that_is_not_finite_is_lost(
    seed: int, n_lines: int, n_steps: int, columns: int, n_bad: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (n_steps, n_lines)).astype(np.float32)
    values[rng.integers(0, n_steps, n_bad), rng.integers(0, n_lines, n_bad)] = rng.choice(SPECIAL, n_bad)
    known = rng.random(values.shape) < 0.9
    values[~known] = np.nan
    steps = np.cumsum(rng.integers(1, 4, n_steps))
    grid, kept, kept_known = decimated(steps, values, values, known, columns)
    assert kept.shape == kept_known.shape == (len(grid), n_lines)
    assert len(grid) <= 2 * columns + 3 * min(columns, n_bad)
    assert (np.diff(grid) >= 0).all()
    assert grid[0] == steps[0]
    assert grid[-1] == steps[-1]
    reach = 1 if n_steps <= 2 * columns else 2 * -(-n_steps // columns)
    for number in range(n_steps):
        near = (grid >= steps[max(0, number - reach)]) & (grid <= steps[min(n_steps - 1, number + reach)])
        for line in range(n_lines):
            value, found = values[number, line], kept[near, line]
            if np.isfinite(value):
                assert np.nanmin(found[~np.isposinf(found)]) <= value <= np.nanmax(found[~np.isneginf(found)])
            elif known[number, line]:
                assert any(np.isnan(f) if np.isnan(value) else f == value for f in found[kept_known[near, line]])


def test_the_smallest_and_the_largest_stay_in_the_order_they_came() -> None:
    values = np.array([[0, 5, 1, -5, 0, 0], [0, -5, 1, 5, 0, 0]], np.float32).T
    _, kept, _ = decimated(np.arange(6), values, values, np.ones(values.shape, np.bool_), 1)
    assert kept.T.tolist() == [[5, -5], [-5, 5]]


def test_points_that_fit_are_left_alone() -> None:
    values = np.array([[1, np.nan, 3, 4]]).T
    grid, kept, _ = decimated(np.arange(4), values, values, np.ones(values.shape, np.bool_), 2)
    np.testing.assert_array_equal(kept, values)
    assert grid.tolist() == [0, 1, 2, 3]


def test_ranges_show_both_ends() -> None:
    low, high = np.array([[1.0], [4.0]]), np.array([[3.0], [np.inf]])
    grid, kept, _ = decimated(np.array([3, 7]), low, high, np.ones((2, 1), np.bool_), 9, is_range=True)
    assert {1.0, 3.0, 4.0, np.inf} == set(kept.ravel().tolist())
    assert grid.tolist() == sorted(grid.tolist())


@pytest.mark.parametrize("n_bad", [0, 1, 5, 9])
def test_percentiles_are_those_of_the_finite_values(n_bad: int) -> None:
    values = np.random.default_rng(n_bad).normal(0, 1, (4, 9)).astype(np.float32)
    values[1, :n_bad] = np.nan
    values[2, :n_bad] = np.inf
    found = percentiles(values)
    for row, column in zip(values, found.T, strict=True):
        finite = row[np.isfinite(row)]
        expected = np.percentile(finite, (5, 25, 50, 75, 95)) if len(finite) else np.full(5, np.nan)
        np.testing.assert_allclose(column, expected, rtol=1e-5)


@pytest.mark.parametrize("function", [np.minimum, np.maximum, np.fmin, np.fmax])
@pytest.mark.parametrize(("n_points", "columns"), [(1, 1), (7, 3), (300, 64), (300, 299)])
def test_reduced_columns_are_those_of_reduceat(function: np.ufunc, n_points: int, columns: int) -> None:
    values = np.random.default_rng(0).normal(size=(n_points, 5)).astype(np.float32)
    values[:: max(1, n_points // 3), 2] = np.nan
    starts = column_starts(n_points, columns)
    found = reduced(function, values, starts)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, function.reduceat(values, starts, 0))
    flags = np.isnan(values)
    np.testing.assert_array_equal(
        reduced(np.logical_or, flags, starts), np.logical_or.reduceat(flags, starts, 0), strict=True
    )
