"""Every detector finds its case and is silent on the healthy one beside it."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dgm_tb.algorithms.detection import DETECTORS, History, LayerHistory, Track, detect


def relu_layer(n_windows: int = 10, seed: int = 0) -> LayerHistory:
    rng = np.random.default_rng(seed)
    high = rng.uniform(0.1, 2.0, (24, n_windows))
    return LayerHistory("net.1", "net.1", np.arange(1, n_windows + 1) * 16 - 1, np.zeros((24, n_windows)), high, True)


def healthy_cnn() -> History:
    return History([relu_layer()], {}, {}, {})


def cnn_with_dead_units(bias: float = -30.0) -> History:
    """A convolution and its ReLU; three channels never come above the bias."""
    layer = relu_layer()
    high = layer.high.copy()
    before = LayerHistory("net.0", "net.0", layer.steps, -layer.high, high.copy(), False)
    before.high[[3, 7, 11]] = bias
    before.low[[3, 7, 11]] = bias - 1
    high[[3, 7, 11]] = 0
    return History([before, replace(layer, high=high)], {}, {}, {"net.1": ["net.0"]})


def gan(discriminator_loss: float) -> History:
    """A GAN of one generator layer and one discriminator layer, its discriminator on real, detached and generated."""
    parents = {
        "randn": [],
        "batch[0]": [],
        "g.0": ["randn"],
        "detach": ["g.0"],
        "d.0": ["batch[0]"],
        "d.0@1": ["detach"],
        "add": ["d.0", "d.0@1"],
        "loss": ["add"],
        "d.0@2": ["g.0"],
        "loss@1": ["d.0@2"],
    }
    kinds = {"randn": "random", "batch[0]": "input", "detach": "detach", "add": "op", "loss": "loss", "loss@1": "loss"}
    nodes = {name: (kinds.get(name, "module"), "") for name in parents}
    steps = np.arange(200)
    fall = discriminator_loss + (1.4 - discriminator_loss) * np.exp(-steps / 5)
    return History([], {"backward.0": (steps, fall), "backward.1": (steps, np.full(200, 5.0))}, nodes, parents)


W, N, STEPS = 8, 12, 128
"""Windows, neurons and steps of the layers made here."""


def track(value: float | np.ndarray, every: int = 1) -> Track:
    steps = np.arange(0, STEPS, every)
    return Track(steps, np.broadcast_to(np.asarray(value, float), len(steps)).copy())


def layer(
    name: str, kind: str = "Linear", seed: int = 0, *, weights: bool = True, **other: float | np.ndarray
) -> LayerHistory:
    """A healthy layer; ``std``, ``gradient``, ``weight``, ``update`` of the whole layer may be given."""
    rng = np.random.default_rng(seed)
    value = {"mean": 0.1, "std": 1.0, "gradient": 1e-2, "weight": 2.0, "update": 3e-3, **other}
    size = np.broadcast_to(np.asarray(value["std"], float), STEPS).reshape(W, -1).mean(1)
    own = rng.uniform(0.7, 1.3, (N, 1))
    tracks = {name: track(value[name]) for name in ("mean", "std", "gradient")}
    tracks |= {"min": track(-3 * np.asarray(value["std"])), "max": track(3 * np.asarray(value["std"]))}
    neurons = {"mean": 0.1 * own * size, "std": own * size, "weight": own * np.full(W, value["weight"] / np.sqrt(N))}
    if weights:
        tracks |= {name: track(value[name], 8) for name in ("weight", "update")}
    ends = np.arange(1, W + 1) * (STEPS // W) - 1
    return LayerHistory(name, name, ends, -3 * own * size, 3 * own * size, False, kind, (16, N), tracks, neurons)


def changed(layer: LayerHistory, **neurons: np.ndarray) -> LayerHistory:
    return replace(layer, neurons={**layer.neurons, **neurons})


def network(
    *layers: LayerHistory, loss: np.ndarray | float | None = None, op: str = "mse_loss", **other: object
) -> History:
    """Layers in a row, and a loss that falls."""
    names = [found.name for found in layers]
    parents = {name: [before] for before, name in itertools.pairwise(names)}
    parents |= {names[0]: [], op: [names[-1]], "loss": [op]}
    nodes = {name: ("module", "") for name in names} | {op: ("loss", ""), "loss": ("loss", "")}
    values = np.exp(-np.arange(STEPS) / 40) if loss is None else np.broadcast_to(np.asarray(loss, float), STEPS)
    return History(layers, {"loss": (np.arange(STEPS), values)}, nodes, parents, {op: op}, **other)  # type: ignore[arg-type]


def mlp(loss: np.ndarray | float | None = None, **of_second: float | np.ndarray) -> History:
    """Three layers; some numbers of the second."""
    return network(layer("a", seed=1), layer("b", seed=2, **of_second), layer("c", seed=3), loss=loss)


GROWING = np.concatenate([np.ones(60), np.geomspace(1, 1e4, STEPS - 60)])


def alike() -> History:
    first, second, third = mlp().layers
    same = {name: np.ones((N, 1)) * values.mean(0) for name, values in second.neurons.items()}
    second = replace(second, neurons=same, low=np.full((N, W), -3.0), high=np.full((N, W), 3.0))
    return network(first, second, third)


def corrupt() -> History:
    first, second, third = mlp().layers
    weight = second.neurons["weight"].copy()
    weight[5, 4:] *= 50
    leap = np.where(np.arange(STEPS) >= 70, 90.0, 3.0)
    second = changed(replace(second, tracks={**second.tracks, "max": track(leap)}), weight=weight)
    return network(first, second, third)


def normalised(std: float) -> History:
    before, norm, after = layer("a", seed=1), layer("b", "BatchNorm1d", seed=2), layer("c", seed=3)
    quiet = before.neurons["std"].copy()
    quiet[4] = std
    out = norm.neurons["std"].copy()
    out[4] = std / np.hypot(std, 3e-3)
    return network(changed(before, std=quiet), changed(norm, std=out), after)


def vae(mean_std: float, logvar: float) -> History:
    mu, lv = layer("mu", seed=1), layer("logvar", seed=2)
    zero = np.zeros((N, W))
    mu = changed(mu, mean=zero, std=zero + mean_std)
    lv = changed(lv, mean=zero + logvar, std=zero + 0.01)
    parents = {"x": [], "mu": ["x"], "logvar": ["x"], "exp": ["logvar"], "randn": [], "mul": ["randn", "exp"]}
    parents |= {"add": ["mu", "mul"], "loss": ["add"]}
    kinds = {"x": "input", "randn": "random", "mu": "module", "logvar": "module", "loss": "loss"}
    nodes = {name: (kinds.get(name, "op"), "") for name in parents}
    losses = {"loss": (np.arange(STEPS), np.exp(-np.arange(STEPS) / 40))}
    return History([mu, lv], losses, nodes, parents, {name: name for name in parents})


def collapsed(share: float) -> History:
    history = gan(0.4)
    made = layer("g.0")
    same = changed(made, mean=np.ones((N, W)), std=np.full((N, W), share))
    return replace(history, layers=[same])


def saturated_by(std: float) -> History:
    return network(layer("a", seed=1), layer("b", "Tanh", seed=2, weights=False, mean=0.0, std=std), layer("c", seed=3))


CASES: dict[str, tuple[Callable[[], History], Callable[[], History], str]] = {
    "exploding_activation": (lambda: mlp(2.0, std=GROWING), lambda: mlp(std=np.linspace(1, 20, STEPS)), "b"),
    "exploding_gradient": (lambda: mlp(2.0, gradient=GROWING), lambda: mlp(gradient=np.linspace(0.01, 1, STEPS)), "b"),
    "vanishing_gradient": (lambda: mlp(gradient=1e-8), lambda: mlp(gradient=1e-4), "b"),
    "dead_units": (cnn_with_dead_units, healthy_cnn, "net.1"),
    "saturated": (lambda: saturated_by(0.995), lambda: saturated_by(0.8), "b"),
    "not_training": (
        lambda: replace(mlp(update=0.0), idle={"b": "left out"}),
        lambda: replace(mlp(), idle={"b": "left out"}),
        "b",
    ),
    "corrupt_weight": (corrupt, mlp, "b"),
    "bad_init": (alike, mlp, "b"),
    "norm_degenerate": (lambda: normalised(1e-5), lambda: normalised(0.5), "b"),
    "lr_too_high": (lambda: network(layer("a", update=0.5), loss=3.0), lambda: network(layer("a", update=0.5)), ""),
    "lr_too_low": (lambda: network(layer("a", update=1e-7), loss=3.0), lambda: network(layer("a", update=1e-7)), ""),
    "loss_stalled": (
        lambda: network(layer("a"), loss=np.log(N), op="cross_entropy"),
        lambda: network(layer("a"), loss=0.5 * np.log(N), op="cross_entropy"),
        "",
    ),
    "loss_divergence": (lambda: mlp(-GROWING), lambda: mlp(-np.linspace(1, 14, STEPS)), ""),
    "posterior_collapse": (lambda: vae(0.01, 0.0), lambda: vae(0.8, -2.0), "mu"),
    "mode_collapse": (lambda: collapsed(1e-3), lambda: collapsed(0.3), "g.0"),
    "gan_imbalance": (lambda: gan(0.0003), lambda: gan(0.4), "d.0"),
}


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_detector_finds_its_case_and_nothing_in_the_healthy_one(kind: str) -> None:
    sick, healthy, module = CASES[kind]
    found = detect(sick())
    assert [(d.kind, d.module) for d in found] == [(kind, module)]
    assert found[0].severity in ("error", "warning")
    assert found[0].summary
    assert found[0].advice
    assert detect(healthy()) == []


def test_dead_neurons_are_named() -> None:
    assert detect(cnn_with_dead_units())[0].neurons == [3, 7, 11]


def test_neurons_that_an_unlucky_start_left_just_below_zero_give_no_warning() -> None:
    (found,) = detect(cnn_with_dead_units(bias=-0.2))
    assert found.severity == "info"


def test_a_single_unlucky_neuron_is_no_finding() -> None:
    layer = relu_layer()
    high = layer.high.copy()
    high[3] = 0
    assert detect(History([replace(layer, high=high)], {}, {}, {})) == []


def test_a_layer_that_dies_on_the_way_is_dated() -> None:
    layer = relu_layer()
    high = layer.high.copy()
    high[:, 4:] = 0
    (found,) = detect(History([replace(layer, high=high)], {}, {}, {}))
    assert found.step == layer.steps[3]
    assert found.severity == "error"


def test_layers_that_may_output_zeros_by_themselves_are_not_judged() -> None:
    layer = relu_layer()
    assert detect(History([replace(layer, high=np.zeros_like(layer.high), clips=False)], {}, {}, {})) == []


def test_fresh_networks_are_given_time() -> None:
    short = relu_layer(2)
    assert detect(History([replace(short, high=np.zeros_like(short.high))], {}, {}, {})) == []


def test_losses_that_go_below_zero_are_not_judged() -> None:
    history = gan(0.0003)
    steps, values = history.losses["backward.0"]
    assert detect(replace(history, losses={"backward.0": (steps, values - 0.1)})) == []


def test_a_detached_target_without_a_generator_is_no_gan() -> None:
    history = gan(0.0003)
    parents = {name: list(before) for name, before in history.parents.items()}
    parents["loss@1"] = []
    assert detect(replace(history, parents=parents)) == []


def test_neurons_with_corrupt_weights_are_named_and_dated() -> None:
    (found,) = detect(corrupt())
    assert (found.neurons, found.step) == ([5], 70)


def test_what_follows_from_a_cause_is_folded_into_it() -> None:
    history = mlp(3.0, update=0.5, std=GROWING)
    layers = [replace(found, tracks={**found.tracks, "update": track(0.5, 8)}) for found in history.layers]
    (found,) = detect(replace(history, layers=layers))
    assert found.kind == "lr_too_high"
    assert found.evidence["led_to"] == ["exploding_activation in b"]
    assert "b" in found.modules


def test_an_example_that_was_found_guilty_explains_what_comes_after_it() -> None:
    assert detect(replace(mlp(2.0, std=GROWING), blamed=[(60, 61)])) == []


def test_a_collapsed_latent_is_dated_when_it_began() -> None:
    history = vae(0.8, -2.0)
    mu, lv = history.layers
    std = mu.neurons["std"].copy()
    std[:, 4:] = 0.01
    mean = lv.neurons["mean"].copy()
    mean[:, 4:] = 0.0
    (found,) = detect(replace(history, layers=[changed(mu, std=std), changed(lv, mean=mean)]))
    assert found.step == mu.steps[3] + 1
    assert len(found.neurons) == N


def test_what_trains_again_later_is_not_idle() -> None:
    history = replace(mlp(), idle={"b": "detached", "unknown": "left out"})
    (found,) = detect(history)
    assert found.module == "unknown"
