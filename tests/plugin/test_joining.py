"""Arrays of several records joined, however wide each of them claims to be."""

import numpy as np

from dgm_tb.plugin.joining import MAX_WIDENED_BYTES, together


def part(rows: int, width: int, value: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(rows), np.full((rows, width, 2), value, np.float16)


def test_parts_of_a_layout_that_grew_are_filled_up_with_nan() -> None:
    steps, values = together([part(3, 0), part(2, 1), part(1, 4)])
    np.testing.assert_array_equal(steps, [0, 1, 2, 0, 1, 0])
    assert values.shape == (6, 4, 2)
    np.testing.assert_array_equal(np.isnan(values[:, :, 0]).sum(1), [4, 4, 4, 3, 3, 0])


def test_whole_numbers_are_filled_up_with_zero() -> None:
    (flags,) = together([(np.ones((1, 1), np.uint8),), (np.ones((1, 3), np.uint8),)])
    np.testing.assert_array_equal(flags, [[1, 0, 0], [1, 1, 1]])


def test_a_part_without_rows_widens_nothing() -> None:
    _, values = together([part(0, 1 << 30), part(2, 3), part(0, 1 << 40)])
    assert values.shape == (2, 3, 2)
    steps, values = together([part(0, 7), part(0, 9)])
    assert len(steps) == len(values) == 0
    assert together([]) == ()


def test_a_layer_that_came_late_is_not_too_wide() -> None:
    steps, values = together([part(20_000, 0), part(200, 300)])
    assert values.shape == (20_200, 300, 2)
    assert not np.isnan(values[20_000:]).any()
    assert len(steps) == 20_200


def test_parts_far_wider_than_the_others_do_not_take_their_memory() -> None:
    narrow, wide = part(100_000, 3), part(1, 200_000)
    assert 100_001 * 200_000 * 4 > 100 * MAX_WIDENED_BYTES
    steps, values = together([narrow, wide, narrow])
    assert values.shape == (200_000, 3, 2)
    assert len(steps) == 200_000
