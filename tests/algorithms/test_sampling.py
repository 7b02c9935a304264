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
    evenness,
    overplot_and_pixel_coverage,
    planted_polylines,
    polyline_distances,
    spectrum,
    straight_lines,
)

from dgm_tb.algorithms.coverage import Survey
from dgm_tb.algorithms.maximal_order import MaximalOrder, chart_height, direction_shares
from dgm_tb.algorithms.polyline_features import DISTANCES, Points, robust_scale, standardised
from dgm_tb.algorithms.population import Population
from dgm_tb.algorithms.sampling import SAMPLERS, blue_noise_order, random_order

EVEN = 1.15  # largest distance of any polyline to a sample over the smallest between two


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
    nearly = DISTANCES[distance].nearly(points, points.take([0, 7])) ** (1 / DISTANCES[distance].power)
    np.testing.assert_allclose(nearly[:, 0], ours[:, 0], atol=1e-7)
    assert (nearly[:, 1] >= ours.min(axis=1) - 1e-7).all()


def test_direction_shares_count_segments_by_angle_on_the_chart():
    lines = np.array([[0.0, 0, 0], [0, 1, 2], [0, -9, 0]])
    shares = direction_shares(lines, height=1.0)  # twice as wide as high: a unit per step rises by 45 degrees
    assert shares.sum(axis=1).tolist() == [1, 1, 1]
    assert shares[:, 3:5].sum(axis=1).tolist() == [1, 0, 0]
    assert shares[1, 5:7].sum() == 1
    assert shares[2, [0, 7]].tolist() == [0.5, 0.5]


def test_a_chart_is_as_high_as_all_values_unless_one_of_them_would_flatten_the_rest():
    values = seeded().uniform(-1, 1, (300, 9))
    assert chart_height(values, values) == pytest.approx(2, abs=0.01)
    values[7, 3] = 5
    assert chart_height(values, values) == pytest.approx(6, abs=0.01)
    values[7, 3] = 1e9
    assert chart_height(values, values) == pytest.approx(16 * 1.96, rel=0.05)
    assert chart_height(np.full((3, 3), 7.0), np.full((3, 3), 7.0)) == 1


@pytest.mark.parametrize("n_snapshots", [5, 100])
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_survey_tells_how_far_each_polyline_is_from_every_prefix(distance, n_snapshots):
    polylines = planted_polylines(700, seeded(2), n_snapshots)[0]
    samples = seeded(4).choice(700, 40, replace=False)
    to_prefix = np.minimum.accumulate(polyline_distances(polylines, polylines[samples], distance), axis=1)
    between = polyline_distances(polylines[samples], polylines[samples], distance)
    closest = np.minimum.accumulate(np.where(np.tri(40, k=-1, dtype=bool), between, np.inf).min(axis=1))
    expected = (to_prefix / (10 * closest)).max(axis=1)
    assert 0.05 < (expected > 0.9).mean() < 0.95
    population = Population(polylines, np.arange(700), True, robust_scale(polylines, seeded()), DISTANCES[distance])
    drawn = MaximalOrder(samples, np.zeros(40))
    _, far = Survey(population, np.arange(256)).farness(drawn, evenness=10, enough=0.9)
    np.testing.assert_allclose(far[expected > 0.9], expected[expected > 0.9], rtol=1e-3)
    assert (far[expected <= 0.9] < 0.901).all()


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
        assert got.farthest <= EVEN * got.closest + 1e-5


@pytest.mark.parametrize("n_snapshots", [1, 2, 3, 5, 64, 256, 1000])
def test_every_prefix_is_maximal_and_covers_the_outliers_at_any_length(n_snapshots):
    polylines, outliers = planted_polylines(800, seeded(1), n_snapshots)
    ids = blue_noise_order(polylines, 48, rng=seeded())
    assert evenness(polylines, ids).max() <= EVEN
    got = coverage(polylines, ids, outliers=outliers)
    assert got.outliers <= got.farthest
    if n_snapshots >= 5:  # else hardly a line is steep on a chart that is twice as wide as high
        chance = [direction_entropy(polylines, seeded(seed).choice(800, 48, replace=False)) for seed in range(5)]
        assert direction_entropy(polylines, ids) >= np.mean(chance) + 0.05


@pytest.mark.parametrize("distance", DISTANCES)
def test_of_more_polylines_than_fit_every_prefix_is_maximal_and_holds_the_outliers(distance):
    polylines, outliers = planted_polylines(21_000, seeded(3), n_snapshots=70)
    ids = blue_noise_order(polylines, 48, rng=seeded(), distance=distance)
    assert evenness(polylines, ids, distance).max() <= EVEN
    got = coverage(polylines, ids, distance, outliers)
    assert got.outliers <= got.farthest
    assert np.isin(outliers, ids).mean() >= 0.95


def shaped(case, n, rng, n_snapshots=20):
    level, noise = rng.normal(size=(n, 1)), 0.1 * rng.normal(size=(n, n_snapshots))
    alike = np.zeros((n, n_snapshots))
    alike[:100] = noise[:100].cumsum(axis=1)
    return {
        "heavy tails": rng.standard_cauchy((n, 1)) + noise,
        "scales": np.exp(3 * level) * (1 + noise),
        "noise": noise,
        "walks": noise.cumsum(axis=1),
        "most nearly dead": np.where(rng.random((n, 1)) < 0.6, 1e-6, 1.0) * (level + noise),
        "most dead": alike,
        "tight clusters": np.where(rng.random((n, 1)) < 0.5, 0, 1) + 1e-4 * (level + noise),
        "far from zero": 1e4 + level + noise,
        "two giants": np.where(
            np.arange(n)[:, None] == [[5]], 1e30, np.where(np.arange(n)[:, None] == 9, -1e25, level)
        ),
    }[case].astype(np.float32)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [2000, 21_000])
@pytest.mark.parametrize(
    "case",
    [
        "heavy tails",
        "scales",
        "noise",
        "walks",
        "most nearly dead",
        "most dead",
        "tight clusters",
        "far from zero",
        "two giants",
    ],
)
def test_every_prefix_is_maximal_whatever_the_distribution(case, n):
    polylines = shaped(case, n, seeded(1)).astype(np.float64)
    ids = blue_noise_order(polylines.astype(np.float32), 48, rng=seeded(2))
    assert evenness(polylines, ids).max() <= EVEN


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


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_order_of_the_rows_does_not_matter(distance):
    polylines = planted_polylines(2000, seeded(), n_snapshots=64)[0]
    polylines[100:140, 9:], polylines[300, 5] = np.nan, np.inf
    shuffle = seeded(5).permutation(2000)
    expected = blue_noise_order(polylines, 64, rng=seeded(), distance=distance)
    shuffled = blue_noise_order(polylines[shuffle], 64, rng=seeded(), distance=distance)
    np.testing.assert_array_equal(shuffle[shuffled], expected)


@pytest.mark.parametrize(("n", "distance"), [(300, "euclidean"), (300, "segments"), (100_000, "euclidean")])
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


def test_when_all_of_many_polylines_died_the_times_at_which_they_did_are_shown():
    polylines = seeded().normal(size=(22_000, 24))
    died = seeded(1).choice([8, 16], 22_000, p=[0.999, 0.001])
    polylines[np.arange(24) >= died[:, None]] = np.nan
    ids = blue_noise_order(polylines, 16, rng=seeded())
    assert {8, 16} == set(died[ids[:2]])


def test_when_a_layer_dies_as_a_whole_its_polylines_are_compared_as_before():
    polylines = planted_polylines(2000, seeded(), n_snapshots=30)[0]
    expected = blue_noise_order(polylines, 40, rng=seeded())
    dead = np.hstack([polylines, np.full((2000, 10), np.nan)])
    np.testing.assert_array_equal(blue_noise_order(dead, 40, rng=seeded()), expected)
    dead[7, 20] = np.inf
    assert 7 in blue_noise_order(dead, 40, rng=seeded())[:2]


def test_a_gap_does_not_hide_the_shape_of_a_polyline():
    polylines = np.repeat([[1.0] * 20, [-1.0] * 20], 50, axis=0)
    polylines[:, 5] = np.nan
    ids = blue_noise_order(polylines, 2, rng=seeded())
    assert sorted(ids // 50) == [0, 1]


@pytest.mark.parametrize("n", [3000, 25_000])
def test_previous_samples_stay_while_training_goes_on_and_outliers_enter(n):
    polylines, _ = planted_polylines(n, seeded(8))
    polylines[11, 200:] += 30
    ids = blue_noise_order(polylines[:, :120], 64, rng=seeded())
    kept = []
    for seed, n_snapshots in enumerate((136, 168, 200, 216, 248)):
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
    # Direction is the one metric where darts lead, by .005: they pile onto steep modes what coverage spends on gaps.
    assert -ours[-1] >= -chance[-1] + 0.05
    assert -ours[-1] >= -darts[-1] - 0.02


def test_prefixes_of_samples_of_the_unit_square_have_a_blue_noise_spectrum():
    measured = []
    for seed in range(10):
        points, polylines = straight_lines(20_000, seeded(seed))
        ids = blue_noise_order(polylines, 512, rng=seeded(seed))
        measured.append([spectrum(points[ids[:k]]) for k in (16, 32, 64, 128, 256, 512)])
    low, peak, spread = np.moveaxis(np.mean(measured, axis=0), -1, 0)
    assert (low <= [0.35, 0.2, 0.18, 0.15, 0.15, 0.15]).all()  # 1 if random; in small samples the edges weigh more
    assert ((peak[2:] >= 1.4) & (peak[2:] <= 2.0)).all()
    assert (spread >= 0.70).all()


def test_a_memory_mapped_matrix_is_streamed_and_sampled_alike(tmp_path):
    polylines = planted_polylines(40_000, seeded(), n_snapshots=256)[0]
    np.save(tmp_path / "polylines.npy", polylines)
    mapped = np.load(tmp_path / "polylines.npy", mmap_mode="r")
    tracemalloc.start()
    ids = blue_noise_order(mapped, 64, rng=seeded())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.9 * polylines.nbytes
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
