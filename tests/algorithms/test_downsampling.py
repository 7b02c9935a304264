import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dgm_tb.algorithms.downsampling import minmax_columns

VALUES = st.floats(width=32) | st.sampled_from([0.0, 1.0, np.nan, np.inf, -np.inf])


def part_of(steps, columns):
    span = float(steps[-1] - steps[0]) or 1.0
    return np.minimum((steps - steps[0]).astype(float) * (columns / span), columns - 1).astype(int)


@st.composite
def charts(draw):
    n = draw(st.integers(1, 60))
    steps = np.cumsum(draw(hnp.arrays(np.int64, n, elements=st.integers(0, 9))))
    return steps, draw(hnp.arrays(np.float32, (draw(st.integers(1, 3)), n), elements=VALUES)), draw(st.integers(1, 8))


@given(charts())
def test_every_part_keeps_its_ends_its_extremes_and_each_kind_of_non_finite_value(chart):
    steps, values, columns = chart
    kept_steps, kept_values = minmax_columns(steps, values, columns)
    for line, xs, ys in zip(values, kept_steps, kept_values, strict=True):
        assert set(zip(xs.tolist(), map(str, ys), strict=True)) <= set(zip(steps.tolist(), map(str, line), strict=True))
        assert (np.diff(xs) >= 0).all()
        np.testing.assert_array_equal(ys[[0, -1]], line[[0, -1]])
        before, after = part_of(steps, columns), part_of(xs, columns)
        for part in np.unique(before):
            whole, kept = line[before == part], ys[after == part]
            np.testing.assert_array_equal(kept[[0, -1]], whole[[0, -1]])
            for kind in (np.isnan, np.isposinf, np.isneginf):
                assert kind(kept).any() == kind(whole).any()
            if np.isfinite(whole).any():
                assert kept[np.isfinite(kept)].min() == whole[np.isfinite(whole)].min()
                assert kept[np.isfinite(kept)].max() == whole[np.isfinite(whole)].max()
        assert len(xs) <= 7 * columns


@given(charts())
def test_lines_are_reduced_independently(chart):
    steps, values, columns = chart
    together = minmax_columns(steps, values, columns)
    for i, line in enumerate(values):
        xs, ys = minmax_columns(steps, line, columns)
        np.testing.assert_array_equal(together[0][i][: len(xs)], xs)
        np.testing.assert_array_equal(together[1][i][: len(xs)], ys)
        np.testing.assert_array_equal(together[1][i][len(xs) :], np.full(together[1].shape[1] - len(xs), ys[-1]))


def test_one_spike_and_one_nan_in_a_hundred_thousand_steps_survive():
    steps, values = np.arange(100_000), np.sin(np.arange(100_000) / 1e4)
    values[70_123], values[24_397] = 50.0, np.nan
    kept_steps, kept_values = minmax_columns(steps, values, 400)
    assert len(kept_steps) <= 1602
    assert kept_values[kept_steps == 70_123] == [50.0]
    assert np.isnan(kept_values[kept_steps == 24_397]).all()


def test_shapes_of_the_leading_axes_are_kept():
    xs, ys = minmax_columns(np.arange(100), np.random.default_rng(0).normal(size=(2, 3, 100)), 5)
    assert xs.shape == ys.shape == (2, 3, xs.shape[-1])
    assert xs.shape[-1] <= 20


def test_no_lines_and_no_steps_are_fine():
    assert minmax_columns(np.arange(100), np.empty((0, 100)), 4)[1].shape[0] == 0
    assert minmax_columns(np.empty(0), np.empty((2, 0)), 4)[1].shape == (2, 0)


@pytest.mark.parametrize(
    ("steps", "values", "columns", "message"),
    [
        ([0, 1], [1.0], 4, "values \\[..., T\\]"),
        ([0, 1], [1.0, 2.0], 0, "at least 1"),
        ([1, 0], [1.0, 2.0], 4, "ascending"),
        ([0, np.nan], [1.0, 2.0], 4, "finite"),
    ],
)
def test_wrong_use_is_explained(steps, values, columns, message):
    with pytest.raises(ValueError, match=message):
        minmax_columns(np.array(steps), np.array(values), columns)
