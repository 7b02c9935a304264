from itertools import pairwise

import numpy as np
import pytest

from dgm_tb.algorithms.sampling import blue_noise_order
from dgm_tb.callback import polylines
from dgm_tb.callback.polylines import MAX_OUTLIERS, NEURONS_PER_WINDOW, SAMPLED, PolylineSampler

K = SAMPLED["activation"]


def recorded(n_neurons=400, n_windows=200, dead=0.2, seed=0):
    """Means per window ``[neurons, windows]`` as of a layer in training: they settle, drift, tremble, and some die."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_windows)
    settles = 1 - np.exp(-t / rng.uniform(2, 40, (n_neurons, 1)))
    drifts = rng.normal(0, 0.02, (n_neurons, n_windows)).cumsum(axis=1) / np.sqrt(1 + t / 10)
    values = rng.gamma(4, 0.1, (n_neurons, 1)) * settles + drifts + rng.normal(0, 0.01, (n_neurons, n_windows))
    died = np.where(rng.random(n_neurons) < dead, rng.integers(0, n_windows // 4, n_neurons), n_windows)
    return np.where(t >= died[:, None], 0, values).astype(np.float32)


def followed(values, layers=None):
    """The sampler after each window: (sampled neurons without outliers, outliers)."""
    sampler = PolylineSampler("activation")
    for window in values.T:
        sampler.update(window, layers or [(0, len(values))])
        yield set(sampler.neurons[~sampler.outliers].tolist()), set(sampler.neurons[sampler.outliers].tolist())


def farthest(values, ids):
    return np.linalg.norm(values[:, None] - values[None, ids], axis=2).min(axis=1).max()


@pytest.mark.parametrize("dead", [0, 0.2, 0.7])
def test_most_of_a_sample_stays_whenever_it_is_drawn_again(dead):
    windows = list(followed(recorded(dead=dead)))
    gone = [len(before - after - odd) for (before, _), (after, odd) in pairwise(windows)]
    assert max(gone) <= 0.15 * K
    assert 5 <= np.count_nonzero(gone) <= 20


def test_in_the_end_the_sample_covers_the_layer_almost_like_a_new_one():
    values = recorded()
    *_, (sampled, _) = followed(values)
    chance = [farthest(values, np.random.default_rng(seed).choice(400, K, replace=False)) for seed in range(9)]
    fresh = farthest(values, blue_noise_order(values, K, rng=np.random.default_rng(0)))
    assert farthest(values, sorted(sampled)) <= 1.25 * fresh
    assert farthest(values, sorted(sampled)) <= 0.75 * np.median(chance)


EVENTS = {
    "steps away": lambda line, at: np.concatenate([line[:at], line[at:] + 4]),
    "has a spike": lambda line, at: line + 4 * (np.arange(len(line)) == at),
    "dies": lambda line, at: np.where(np.arange(len(line)) < at, line + 1, 0),
    "becomes NaN": lambda line, at: np.where(np.arange(len(line)) < at, line, np.nan),
    "overflows": lambda line, at: np.where(np.arange(len(line)) < at, line, np.inf),
}


@pytest.mark.parametrize("event", EVENTS)
def test_a_neuron_is_kept_from_the_window_in_which_it_becomes_an_outlier(event):
    values, at = recorded(n_windows=100), 77
    neuron = int(np.argsort(values[:, -1])[300])
    values[neuron] = EVENTS[event](values[neuron], at)
    found = [outliers for _, outliers in followed(values)]
    assert all(neuron not in outliers for outliers in found[70:at])
    assert neuron in found[at]


def test_a_neuron_that_drifts_away_slowly_enters_the_sample():
    values = recorded(n_windows=150)
    neuron = int(np.argsort(values[:, -1])[200])
    values[neuron, 50:] += np.linspace(0, 1.5, 100)
    *_, (sampled, _) = followed(values)
    assert neuron in sampled


def test_a_change_of_all_neurons_makes_none_of_them_an_outlier():
    values = recorded(n_windows=60)
    values[:, 50:] *= 3
    assert all(not outliers for _, outliers in list(followed(values))[20:])


def test_living_neurons_among_dead_ones_are_outliers_only_if_they_are_few():
    values = recorded(dead=0.8)
    assert np.mean([len(outliers) for _, outliers in list(followed(values))[60:]]) < 1
    values = np.where(np.arange(400)[:, None] < 3, 1, 0) * recorded(dead=0)
    assert all({0, 1, 2} <= outliers for _, outliers in list(followed(values))[20:])


def test_outliers_are_limited_to_the_farthest():
    values = recorded(n_windows=30)
    values[:20, 25] = 10 + np.arange(20)
    assert list(followed(values))[25][1] == set(range(20 - MAX_OUTLIERS, 20))


def test_windows_in_which_a_layer_was_not_called_change_nothing():
    values = recorded(n_windows=90)
    gaps = values.copy()
    gaps[:, 3::7] = np.nan
    found = list(followed(gaps))
    *_, (without, _) = followed(values)
    assert not any(outliers for _, outliers in found[30:])
    assert farthest(values, sorted(found[-1][0])) <= 1.25 * farthest(values, sorted(without))


def test_layers_that_come_later_are_sampled_when_they_come():
    values = recorded(n_windows=40)
    sampler = PolylineSampler("activation")
    for number, window in enumerate(values.T):
        layers = [(0, 300)] if number < 10 else [(0, 300), (300, 100)]
        sampler.update(window[: 300 if number < 10 else 400], layers)
        later = np.count_nonzero(sampler.neurons >= 300)
        assert later == (K if number >= 10 else 0)


def test_all_neurons_of_a_small_layer_are_kept():
    *_, (sampled, _) = followed(recorded(n_neurons=K, dead=0))
    assert sampled == set(range(K))


def test_samples_of_many_layers_are_not_drawn_all_at_once(monkeypatch):
    drawn = []

    def counted(lines, k, **arguments):
        drawn[-1] += len(lines) if "must" in arguments else 0
        return np.arange(k)

    monkeypatch.setattr(polylines, "blue_noise_order", counted)
    values = np.random.default_rng(0).random(60 * 1024, np.float32)
    layers = [(offset, 1024) for offset in range(0, len(values), 1024)]
    sampler = PolylineSampler("activation")
    for _ in range(30):
        drawn.append(0)
        sampler.update(values, layers)
    assert drawn[0] == len(values)
    assert 0 < max(drawn[1:]) <= NEURONS_PER_WINDOW
    assert sum(drawn[1:10]) >= 2 * len(values)


def test_the_same_training_is_sampled_alike():
    values = recorded(n_windows=50)
    assert list(followed(values)) == list(followed(values))
