import inspect
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sampling_oracle import (
    coverage,
    dart_throwing,
    direction_entropy,
    overplot_and_pixel_coverage,
    planted_polylines,
    polyline_distances,
    spectrum,
    straight_lines,
)

from dgm_tb.algorithms.maximal_order import SHRINK, chart_height, direction_shares
from dgm_tb.algorithms.polyline_features import DISTANCES, Points, robust_scale, standardised
from dgm_tb.algorithms.sampling import SAMPLERS, blue_noise_order, random_order

MAXIMAL = 1 / SHRINK + 1e-3


def seeded(seed=0):
    return np.random.default_rng(seed)


ODD_INPUTS = {
    "nothing": np.empty((0, 5)),
    "no snapshots": np.empty((6, 0)),
    "one snapshot": np.arange(9.0)[:, None],
    "one polyline": np.ones((1, 4)),
    "identical": np.ones((20, 4), np.float32),
    "few distinct": np.repeat(np.eye(3), 7, axis=0),
    "one alive": np.eye(1, 30).T * np.ones(4),
    "all NaN": np.full((12, 4), np.nan),
    "NaN and Inf": np.where(np.eye(12, 5), np.nan, np.where(np.eye(12, 5, 1), -np.inf, 1.0)),
    "half precision": seeded().normal(size=(40, 6)).astype(np.float16),
    "integers": seeded().integers(-5, 5, (40, 6)),
    "huge": seeded().normal(size=(40, 6)) * 1e307,
    "tiny": (seeded().normal(size=(40, 6)) * 1e-42).astype(np.float32),
    "huge single": (seeded().normal(size=(40, 6)) * 1e38).astype(np.float32),
    "wide range": 10.0 ** seeded().uniform(-300, 300, (40, 6)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("case", ODD_INPUTS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_returns_min_k_n_distinct_ids_pinned_first_and_repeats_itself(sampler, case, distance):
    polylines, order = ODD_INPUTS[case], SAMPLERS[sampler]
    n = len(polylines)
    must, previous = [4, 2][: max(0, n - 1)], [0, 2, 3][:n]
    assert inspect.signature(order) == inspect.signature(blue_noise_order)
    for k in (0, 1, 5, n, n + 3):
        ids = order(polylines, k, rng=seeded(), must=[m for m in must if m < n], previous=previous, distance=distance)
        assert ids.dtype == np.int64
        assert len(ids) == len(set(ids.tolist())) == min(k, n)
        assert ((ids >= 0) & (ids < n)).all()
        assert ids[:2].tolist() == [m for m in must if m < n][:k][:2] or not [m for m in must if m < n]
        again = order(polylines, k, rng=seeded(), must=[m for m in must if m < n], previous=previous, distance=distance)
        np.testing.assert_array_equal(ids, again)


def test_random_polylines_come_in_another_order_with_another_seed():
    polylines = seeded().normal(size=(100, 8))
    first, second = (blue_noise_order(polylines, 20, rng=seeded(seed)) for seed in (1, 2))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("n_snapshots", [1, 2, 3, 17])
def test_features_give_the_distances_of_the_definition(distance, n_snapshots):
    polylines = seeded().normal(size=(30, n_snapshots)).cumsum(axis=1)
    scale = robust_scale(polylines, seeded())
    values = standardised(polylines, scale, np.float64)
    points = Points.of(DISTANCES[distance].features(values, np.empty((30, 0))))
    ours = DISTANCES[distance].dissimilarity(points, points.take([0, 7])) ** (1 / DISTANCES[distance].power)
    expected = polyline_distances(polylines, polylines[[0, 7]], distance)
    np.testing.assert_allclose(ours * scale.spread, expected, atol=1e-12)
    index, least = DISTANCES[distance].nearest(points, points.take([0, 7]), 0.0)
    np.testing.assert_array_equal(index[1:7], ours.argmin(axis=1)[1:7])
    np.testing.assert_allclose(least ** (1 / DISTANCES[distance].power), ours.min(axis=1), atol=1e-7)


def test_direction_shares_count_segments_by_angle_on_the_chart():
    lines = np.array([[0.0, 0, 0], [0, 1, 2], [0, -9, 0]])
    shares = direction_shares(lines, height=1.0)  # twice as wide as high: a unit per step rises by 45 degrees
    assert shares.sum(axis=1).tolist() == [1, 1, 1]
    assert shares[:, 3:5].sum(axis=1).tolist() == [1, 0, 0]
    assert shares[1, 5:7].sum() == 1
    assert shares[2, [0, 7]].tolist() == [0.5, 0.5]
    assert chart_height(np.full((3, 3), 7.0)) == 1


MATRICES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 40), st.integers(1, 6)),
    elements=st.integers(-4, 4).map(float) | st.floats(-99, 99, width=32) | st.sampled_from([np.nan, np.inf, -np.inf]),
)


@settings(max_examples=60, deadline=None)
@given(MATRICES, st.integers(1, 45), st.sampled_from(sorted(DISTANCES)), st.integers(0, 9))
def test_every_prefix_is_maximal_and_spaced_on_any_matrix(polylines, k, distance, seed):
    ids = blue_noise_order(polylines, k, rng=seeded(seed), distance=distance)
    assert len(set(ids.tolist())) == min(k, len(polylines))
    finite = np.isfinite(polylines).all(axis=1)
    rows, samples = np.flatnonzero(finite), ids[finite[ids]]
    for size in range(2, len(samples)):
        got = coverage(polylines[rows], np.searchsorted(rows, samples[:size]), distance)
        assert got.farthest <= MAXIMAL * got.closest + 1e-5


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("n", [600, 30_000])
def test_samples_are_maximal_and_hold_every_outlier(n, distance):
    polylines, outliers = planted_polylines(n, seeded(3), n_snapshots=32)
    ids = blue_noise_order(polylines, 96, rng=seeded(), distance=distance)
    got = coverage(polylines, ids, distance, outliers)
    assert got.farthest <= MAXIMAL * got.closest
    assert got.outliers <= got.farthest


def test_a_prefix_does_not_depend_on_how_many_follow():
    polylines, _ = planted_polylines(500, seeded(), n_snapshots=32)
    polylines[7, 3] = np.nan
    long = blue_noise_order(polylines, 80, rng=seeded())
    for k in (1, 2, 17, 50):
        np.testing.assert_array_equal(blue_noise_order(polylines, k, rng=seeded()), long[:k])


@pytest.mark.parametrize("factor", [1e-20, 1e-3, 1e20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_unit_of_the_values_does_not_matter(distance, dtype, factor):
    polylines = planted_polylines(800, seeded(), n_snapshots=48)[0].astype(dtype)
    expected = blue_noise_order(polylines, 64, rng=seeded(), distance=distance)
    scaled = blue_noise_order(polylines * dtype(factor), 64, rng=seeded(), distance=distance)
    np.testing.assert_array_equal(scaled, expected)


def test_the_order_of_the_rows_does_not_matter_for_the_quality():
    polylines, outliers = planted_polylines(2000, seeded(), n_snapshots=64)
    shuffle = seeded(5).permutation(2000)
    got = coverage(polylines, blue_noise_order(polylines, 64, rng=seeded()), outliers=outliers)
    ids = blue_noise_order(polylines[shuffle], 64, rng=seeded())
    shuffled = coverage(polylines, shuffle[ids], outliers=outliers)
    assert shuffled.farthest == pytest.approx(got.farthest, rel=0.1)
    assert shuffled.closest == pytest.approx(got.closest, rel=0.1)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("n", [300, 30_000])
def test_every_polyline_with_a_nonfinite_value_is_drawn_from_noise(n, distance):
    polylines = seeded().normal(size=(n, 40)).astype(np.float32)
    planted = seeded(1).choice(n, 7, replace=False)
    polylines[planted[0]] = np.nan
    polylines[planted[1], 11], polylines[planted[2], 39], polylines[planted[3], 0] = np.nan, np.inf, -np.inf
    polylines[planted[4], 20:], polylines[planted[5], 20:], polylines[planted[6], 21:] = np.nan, np.nan, np.inf
    ids = blue_noise_order(polylines, 64, rng=seeded(), distance=distance)
    assert set(planted) <= set(ids[:13])  # they alternate with the finite ones
    assert len(ids) == 64


def test_nonfinite_polylines_leave_half_of_the_sample_to_finite_ones_and_show_when_they_died():
    polylines = seeded().normal(size=(400, 50))
    for i in range(300):
        polylines[i, 10 * (1 + i % 4) :] = np.nan
    ids = blue_noise_order(polylines, 40, rng=seeded())
    assert np.count_nonzero(ids < 300) == 20
    assert {i % 4 for i in ids[ids < 300][:4]} == {0, 1, 2, 3}
    assert np.count_nonzero(blue_noise_order(polylines[:310], 40, rng=seeded()) < 300) == 30


def test_a_gap_does_not_hide_the_shape_of_a_polyline():
    polylines = np.repeat([[1.0] * 20, [-1.0] * 20], 50, axis=0)
    polylines[:, 5] = np.nan
    ids = blue_noise_order(polylines, 2, rng=seeded())
    assert sorted(ids // 50) == [0, 1]


def test_previous_samples_stay_while_training_goes_on_and_outliers_enter():
    polylines, _ = planted_polylines(3000, seeded(8))
    polylines[11, 200:] += 30
    ids = blue_noise_order(polylines[:, :120], 64, rng=seeded())
    kept = []
    for seed, n_snapshots in enumerate((136, 152, 168, 184, 200, 216, 232, 248)):
        following = blue_noise_order(polylines[:, :n_snapshots], 64, rng=seeded(seed), previous=ids)
        kept.append(np.isin(ids, following).mean())
        assert (11 in following) == (n_snapshots > 200 or 11 in ids)
        ids = following
    assert min(kept) >= 0.85


def test_previous_samples_that_became_redundant_leave():
    polylines = seeded().normal(size=(200, 16))
    polylines[:10] = polylines[0] + 1e-3 * seeded(1).normal(size=(10, 16))
    ids = blue_noise_order(polylines, 32, rng=seeded(), previous=range(10))
    assert np.count_nonzero(ids < 10) == 1


def test_pinned_and_previous_samples_are_kept_among_more_polylines_than_fit():
    polylines = planted_polylines(30_000, seeded(), n_snapshots=16)[0]
    before = blue_noise_order(polylines[:, :14], 64, rng=seeded())
    ids = blue_noise_order(polylines, 64, rng=seeded(1), must=[29_999, 3], previous=before)
    assert ids[:2].tolist() == [29_999, 3]
    assert np.isin(before, ids).mean() >= 0.85


@pytest.mark.parametrize("distance", DISTANCES)
def test_pinned_polylines_count_as_samples(distance):
    polylines = np.repeat(seeded().normal(size=(8, 12)), 30, axis=0)
    ids = blue_noise_order(polylines, 8, rng=seeded(), must=[31, 5], distance=distance)
    assert ids[:2].tolist() == [31, 5]
    assert sorted(ids // 30) == list(range(8))


def test_blue_noise_beats_the_papers_dart_throwing():
    ours, darts, chance = [], [], []
    for seed in range(3):
        polylines, outliers = planted_polylines(1000, seeded(seed))
        for measured, ids in (
            (ours, blue_noise_order(polylines, 64, rng=seeded(seed))),
            (darts, dart_throwing(polylines, 64, seeded(seed))),
            (chance, random_order(polylines, 64, rng=seeded(seed))),
        ):
            d1, d2 = coverage(polylines, ids, "segments", outliers), coverage(polylines, ids, "euclidean", outliers)
            overplot, pixel_coverage = overplot_and_pixel_coverage(polylines, ids)
            recall = np.isin(outliers, ids).mean()
            direction = direction_entropy(polylines, ids)
            ratios = d1.farthest / d1.closest, d2.farthest / d2.closest
            spaces = d1.farthest, d2.farthest, -d2.closest, *ratios
            measured.append((*spaces, overplot, -pixel_coverage, -recall, -direction))
    ours, darts, chance = (np.mean(measured, axis=0) for measured in (ours, darts, chance))
    assert (ours < darts)[:-1].all()
    assert ours[5] <= 0.8 * chance[5]
    assert -ours[6] >= 0.92
    # Direction is the one metric where darts lead, by .013: they pile onto steep modes what coverage spends on gaps.
    assert -ours[-1] >= -chance[-1] + 0.05
    assert -ours[-1] >= -darts[-1] - 0.03


def test_samples_of_the_unit_square_have_a_blue_noise_spectrum():
    measured = []
    for seed in range(6):
        points, polylines = straight_lines(20_000, seeded(seed))
        measured.append(spectrum(points[blue_noise_order(polylines, 512, rng=seeded(seed))]))
    low, peak, spread = np.mean(measured, axis=0)
    assert low <= 0.15
    assert 1.4 <= peak <= 2.0
    assert spread >= 0.70


def test_every_prefix_has_a_blue_noise_spectrum():
    measured = []
    for seed in range(4):
        points, polylines = straight_lines(10_000, seeded(seed))
        ids = blue_noise_order(polylines, 512, rng=seeded(seed))
        measured.append([spectrum(points[ids[:k]]) for k in (64, 128, 256)])
    low, _, spread = np.moveaxis(np.mean(measured, axis=0), -1, 0)
    assert (low <= 0.25).all()  # 1 if random; edges of the square weigh more in small samples
    assert (spread >= 0.70).all()


def test_a_memory_mapped_matrix_is_streamed_and_sampled_alike(tmp_path):
    polylines = planted_polylines(60_000, seeded(), n_snapshots=256)[0]
    np.save(tmp_path / "polylines.npy", polylines)
    mapped = np.load(tmp_path / "polylines.npy", mmap_mode="r")
    tracemalloc.start()
    ids = blue_noise_order(mapped, 64, rng=seeded())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.8 * polylines.nbytes
    np.testing.assert_array_equal(ids, blue_noise_order(polylines, 64, rng=seeded()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"polylines": np.ones(3)}, "matrix"),
        ({"polylines": np.ones((3, 3), complex)}, "real"),
        ({"k": -1}, "k must be"),
        ({"distance": "manhattan"}, "'euclidean', 'segments'"),
        ({"must": [9]}, "must holds ids 9..9; there are 5"),
        ({"previous": [-1]}, "previous holds ids -1"),
    ],
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_wrong_use_is_explained(sampler, change, message):
    arguments = {"polylines": np.ones((5, 3)), "k": 3, "rng": seeded()} | change
    with pytest.raises(ValueError, match=message):
        SAMPLERS[sampler](arguments.pop("polylines"), arguments.pop("k"), **arguments)
