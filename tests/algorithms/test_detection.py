"""Every detector finds its case and is silent on the healthy one beside it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dgm_tb.algorithms.detection import DETECTORS, History, LayerHistory, detect


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


CASES: dict[str, tuple[Callable[[], History], Callable[[], History], str]] = {
    "dead_units": (cnn_with_dead_units, healthy_cnn, "net.1"),
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
