"""Lines in a chart, against a replica that walks along each line on its own, piece by piece, in exact fractions."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from dgm_tb.algorithms import rasterizing
from dgm_tb.algorithms.rasterizing import Axis, Polylines, Stroke, density, extents, passing

PLAIN = Axis("linear")
Point = tuple[Fraction, Fraction, Fraction, Fraction]
Shape = tuple[tuple[Fraction, Fraction, Fraction], tuple[Fraction, Fraction, Fraction]]


def as_fraction(value: float) -> Fraction:
    return Fraction(float(value))


def points_of(polylines: Polylines, line: int) -> list[Point | None]:
    """First step, last step, lowest and highest value of each point; None where nothing is finite."""
    found: list[Point | None] = []
    for (first, last), low, high in zip(
        polylines.bounds.tolist(), polylines.low[:, line].tolist(), polylines.high[:, line].tolist(), strict=True
    ):
        finite = [as_fraction(value) for value in (low, high) if np.isfinite(value)]
        found.append((as_fraction(first), as_fraction(last), min(finite), max(finite)) if finite else None)
    return found


def shapes_of(polylines: Polylines, line: int) -> Iterator[Shape]:
    """The line's parts as trapezoids: (step, lowest, highest) at their begin and at their end."""
    points = points_of(polylines, line)
    for point in points:
        if point:
            first, last, low, high = point
            yield (first, low, high), (last, low, high)
    for one, other in pairwise(points):
        if one and other:
            start, end = nearest_values(one[2:], other[2:])
            yield (one[1], start, start), (other[0], end, end)


def nearest_values(one: tuple[Fraction, ...], other: tuple[Fraction, ...]) -> tuple[Fraction, Fraction]:
    """Where the shortest piece between two bars begins and ends; the middle of what they share."""
    if one[1] < other[0]:
        return one[1], other[0]
    if one[0] > other[1]:
        return one[0], other[1]
    shared = (max(one[0], other[0]) + min(one[1], other[1])) / 2
    return shared, shared


def clipped(shape: Shape, first: Fraction, last: Fraction) -> Shape | None:
    """The part of a trapezoid between two steps."""
    (x0, low0, high0), (x1, low1, high1) = shape
    begin, end = max(x0, first), min(x1, last)
    if begin > end:
        return None

    def at(step: Fraction) -> tuple[Fraction, Fraction, Fraction]:
        share = (step - x0) / (x1 - x0) if x1 > x0 else Fraction(0)
        return step, low0 + share * (low1 - low0), high0 + share * (high1 - high0)

    return at(begin), at(end)


def extent(polylines: Polylines, line: int, first: Fraction, last: Fraction) -> tuple[Fraction, Fraction] | None:
    """Lowest and highest value of a line between two steps, both included."""
    parts = [part for shape in shapes_of(polylines, line) if (part := clipped(shape, first, last))]
    values = [value for part in parts for _, *pair in part for value in pair]
    return (min(values), max(values)) if values else None


def meets(polylines: Polylines, line: int, stroke: Stroke) -> bool:
    """Whether a part of the line has a corner in the stroke, or corners on both sides of it."""
    (x0, x1), (y0, y1), reach = stroke.steps, stroke.positions, as_fraction(stroke.reach)
    for shape in shapes_of(polylines, line):
        part = clipped(shape, as_fraction(x0), as_fraction(x1))
        if not part:
            continue
        heights = []
        for step, low, high in part:
            share = (step - as_fraction(x0)) / as_fraction(x1 - x0) if x1 > x0 else Fraction(0)
            centre = as_fraction(y0) + share * as_fraction(y1 - y0)
            heights += [low - centre, high - centre]
        if min(heights) <= reach and max(heights) >= -reach:
            return True
    return False


def some_lines(seed: int, n_points: int, n_lines: int, kind: str) -> Polylines:
    """Lines of eighths; some are interrupted."""
    rng = np.random.default_rng(seed)
    bounds = np.cumsum(rng.integers(1, 9, 2 * n_points)).reshape(n_points, 2)
    low = (rng.integers(-40, 40, (n_points, n_lines)) / 8).astype(np.float16)
    low[rng.random(low.shape) < 0.1] = np.nan
    if kind == "lasting":
        return Polylines(bounds, low, low)
    if kind == "values":
        return Polylines(bounds[:, [1, 1]], low, low)
    high = low + (rng.integers(0, 24, low.shape) / 8).astype(np.float16)
    high[rng.random(high.shape) < 0.05] = np.inf
    return Polylines(bounds[:, [1, 1]], low.astype(np.float32), high.astype(np.float32))


KINDS = ["values", "ranges", "lasting"]


def columns_of(polylines: Polylines, n_columns: int) -> np.ndarray:
    """Edges that no point lies on."""
    first, last = float(polylines.bounds[0, 0]), float(polylines.bounds[-1, 1])
    return np.linspace(first - 2, last + 2, n_columns + 1) + 1 / 37


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_columns", [1, 5, 40])
@pytest.mark.parametrize("block", [7, 1 << 18])
def test_extents_are_those_of_walking_along_each_line(
    kind: str, n_columns: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasterizing, "BLOCK_ELEMENTS", block)
    lines = some_lines(n_columns, 16, 3, kind)
    edges = columns_of(lines, n_columns)
    low, high = np.full((2, n_columns, 3), -1, np.float32)
    for found in extents(lines, edges, PLAIN):
        low[found.columns, found.lines], high[found.columns, found.lines] = found.low, found.high
    for line in range(3):
        for column, (first, last) in enumerate(pairwise(map(as_fraction, edges))):
            expected = extent(lines, line, first, last) or (np.nan, np.nan)
            got = [low[column, line], high[column, line]]
            np.testing.assert_allclose(got, np.float64(expected), rtol=0, atol=1e-5, err_msg=f"{line} {column}")


def test_a_point_on_an_edge_is_seen_from_the_right_and_at_the_end_of_the_chart() -> None:
    values = np.array([[1], [5], [3]], np.float32)
    lines = Polylines(np.array([[0, 0], [10, 10], [20, 20]]), values, values)
    (found,) = extents(lines, np.array([0, 10, 20]), PLAIN)
    assert found.low.ravel().tolist() == [1, 3]
    assert found.high.ravel().tolist() == [5, 5]
    (found,) = extents(lines, np.array([20, 20]), PLAIN)
    assert (found.low.item(), found.high.item()) == (3, 3)
    (found,) = extents(lines, np.array([5, 5]), PLAIN)
    assert (found.low.item(), found.high.item()) == (3, 3)


def test_a_bar_on_an_edge_is_in_the_right_column_and_reached_from_the_left_one() -> None:
    low, high = np.array([[-3], [0], [12]], np.float32), np.array([[-3], [10], [12]], np.float32)
    lines = Polylines(np.array([[0, 0], [10, 10], [20, 20]]), low, high)
    (found,) = extents(lines, np.array([0, 10, 20]), PLAIN)
    assert found.low.ravel().tolist() == [-3, 0]
    assert found.high.ravel().tolist() == [0, 12]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_columns", [6, 30])
def test_density_counts_each_line_once_per_cell_that_it_passes(kind: str, n_columns: int) -> None:
    lines = some_lines(7, 12, 12, kind)
    edges, height, bottom, top = columns_of(lines, n_columns), 23, -3.3, 4.1
    unit = (top - bottom) / height
    counts = density(lines, edges, Axis("linear", origin=bottom, unit=unit), height)
    assert counts.shape == (height, n_columns)
    least, most = np.zeros((2, height, n_columns), int)
    for line in range(12):
        for column, (first, last) in enumerate(pairwise(map(as_fraction, edges))):
            found = extent(lines, line, first, last)
            if found:
                low, high = ((float(value) - bottom) / unit for value in found)
                for counted, tolerance in ((least, -1e-3), (most, 1e-3)):
                    begin, end = np.floor(low - tolerance), np.floor(high + tolerance)
                    rows = np.arange(height)
                    counted[(rows >= begin) & (rows <= end), column] += 1
    assert (counts >= least).all()
    assert (counts <= most).all()
    assert (most - least).sum() < 0.05 * counts.sum()


def test_the_lowest_and_the_highest_value_are_in_the_chart_and_what_is_beyond_is_not() -> None:
    values = np.array([[0, 8, -0.01, 8.01, 4.5, np.nan]] * 2, np.float32)
    lines = Polylines(np.array([[0, 0], [9, 9]]), values, values)
    counts = density(lines, np.array([0, 4.5, 9]), Axis("linear", unit=1), 8)
    assert counts[:, 0].tolist() == counts[:, 1].tolist() == [1, 0, 0, 0, 1, 0, 0, 1]


def test_a_line_that_leaves_the_chart_and_returns_passes_its_border() -> None:
    values = np.array([[1.5], [1e30], [1.5]], np.float32)
    lines = Polylines(np.array([[0, 0], [10, 10], [20, 20]]), values, values)
    counts = density(lines, np.linspace(0, 20, 5), Axis("linear", unit=1), 4)
    assert counts.tolist() == [[0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1]]


def test_density_is_that_of_the_axis_not_of_the_values() -> None:
    values = np.array([[1e-3, -5.0], [1e3, 5.0]])
    bounds = np.array([[0, 0], [6, 6]])
    rising, crossing = (Polylines(bounds, values[:, [i]], values[:, [i]]) for i in (0, 1))
    top = float(np.arcsinh(50))
    for lines, axis in (
        (rising, Axis("log", origin=-3, unit=1)),
        (crossing, Axis("symlog", 0.1, origin=-top, unit=top / 3)),
    ):
        for column in range(6):
            counts = density(lines, np.array([column + 0.4, column + 0.6]), axis, 6)
            assert counts.ravel().tolist() == np.eye(6, dtype=int)[column].tolist()
    assert not density(crossing, np.array([0, 5.9]), Axis("log", origin=-3, unit=1), 6).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("scale", "formula"), [
    ("linear", lambda v: v), ("symlog", lambda v: np.arcsinh(v / 0.25)), ("log", lambda v: np.log10(v)),
])  # fmt: skip
def test_axes_are_those_of_the_tab(dtype: type, scale: str, formula: object) -> None:
    values = np.array([-3e4, -1, -1e-3, 0, 1e-3, 0.5, 7, 3e4, np.nan, np.inf, -np.inf], dtype)
    axis = Axis(scale, 0.25, origin=0.5, unit=2)
    with np.errstate(all="ignore"):
        expected = (formula(values.astype(np.float64)) - 0.5) / 2  # type: ignore[operator]
    expected[~np.isfinite(expected)] = np.nan
    np.testing.assert_allclose(axis.positions(values), expected, rtol=3e-7, atol=1e-6)
    many = np.tile(values, 7000)
    np.testing.assert_array_equal(axis.placing(many.dtype, many.size)(many)[:11], axis.positions(values))
    known = np.isfinite(expected)
    back = axis.inverted(axis.scaled(values[known]))
    expected = values[known].astype(np.float64)
    np.testing.assert_allclose(back, expected, rtol=1e-5 if dtype is np.float32 else 1e-12)


def test_symlog_holds_the_largest_and_the_smallest_values() -> None:
    values = np.array([3e38, -3e38, 1e-38], np.float32)
    scaled = Axis("symlog", 1e-30).scaled(values)
    assert np.isfinite(scaled).all()
    assert scaled[0] == -scaled[1] > 80
    assert Axis("symlog", 1e38).positions(values)[0] == pytest.approx(np.arcsinh(3), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [11, 1 << 18])
def test_strokes_meet_the_lines_that_walking_along_them_meets(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasterizing, "BLOCK_ELEMENTS", block)
    rng = np.random.default_rng(3)
    met = 0
    for seed in range(8):
        lines = some_lines(seed, 12, 6, kind)
        end = float(lines.bounds[-1, 1])
        steps = np.sort(rng.integers(-16, 8 * end + 16, 2) / 8 + 1 / 64)
        heights = rng.integers(-48, 48, 2) / 8 + 1 / 128
        for stroke in (
            Stroke(tuple(steps), tuple(heights)),
            Stroke(tuple(steps), (heights[0],) * 2, 0.75),
            Stroke((steps[0],) * 2, (heights[0],) * 2, 1.5),
            Stroke((steps[0],) * 2, (heights[0],) * 2),
        ):
            expected = [meets(lines, line, stroke) for line in range(6)]
            assert passing(lines, stroke, PLAIN).tolist() == expected, (seed, stroke)
            met += sum(expected)
    assert 40 < met < 170


def test_an_interrupted_line_does_not_pass_what_it_was_not_seen_at() -> None:
    values = np.array([[9, 9], [np.nan, 4], [-9, -9]], np.float32)
    lines = Polylines(np.array([[0, 0], [10, 10], [20, 20]]), values, values)
    assert passing(lines, Stroke((0, 20), (0, 0), 1), PLAIN).tolist() == [False, True]
    assert passing(lines, Stroke((0, 20), (0, 0), 9), PLAIN).tolist() == [True, True]
