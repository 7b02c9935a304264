"""What is seen of parameters that do not train, and of gradients that explode."""

import pytest
import torch
from torch import nn

from dgm_tb.callback.explosions import EARLY_STEPS, PATIENCE, GradientWatch
from dgm_tb.callback.idle import LAST_LOOK, IdleWatch


class Trainer:
    """As much of a trainer as is looked at."""

    def __init__(self, *parameters: torch.Tensor) -> None:
        self.optimizers = [torch.optim.SGD(parameters, 0.1)]


def watched(model: nn.Module, optimized: list[torch.Tensor], with_gradient: set[str]) -> dict[str, str]:
    """What is said after ``LAST_LOOK`` steps in which these parameters had gradients."""
    model._trainer = Trainer(*optimized)
    names, parameters = zip(*model.named_parameters(), strict=True)
    watch = IdleWatch(model, names, parameters)
    found: dict[str, str] = {}
    for _ in range(2 * LAST_LOOK):
        found |= watch.note({name: 1.0 for name in names if name in with_gradient})
    return found


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def test_what_an_optimizer_has_and_no_gradient_reaches_is_detached() -> None:
    net = model()
    assert watched(net, list(net.parameters()), {"1.weight", "1.bias"}) == {"0": "detached"}


def test_what_has_gradients_and_no_optimizer_is_left_out() -> None:
    net = model()
    net[0].weight.grad = torch.ones(2, 2)
    assert watched(net, list(net[1].parameters()), {"1.weight", "1.bias"}) == {"0": "left out"}


def test_what_is_kept_on_purpose_is_not_idle() -> None:
    net = model()
    assert watched(net, list(net[1].parameters()), {"1.weight", "1.bias"}) == {}
    net[0].requires_grad_(False)
    assert watched(net, list(net.parameters()), {"1.weight", "1.bias"}) == {}


def test_a_module_of_which_a_part_trains_is_not_idle() -> None:
    net = model()
    assert watched(net, list(net.parameters()), {"0.weight", "1.weight", "1.bias"}) == {}


def test_copies_that_follow_are_not_idle() -> None:
    net = model()
    net._trainer = Trainer(*net.parameters())
    names, parameters = zip(*net.named_parameters(), strict=True)
    watch = IdleWatch(net, names, parameters)
    for _ in range(LAST_LOOK):
        with torch.no_grad():
            net[0].weight += 0.01
            net[0].bias += 0.01
        assert watch.note({"1.weight": 1.0, "1.bias": 1.0}) == {}


@pytest.mark.parametrize(("norm", "is_told"), [(1e7, True), (1e3, False)])
def test_gradients_of_no_use_are_told_once(norm: float, is_told: bool) -> None:
    net = model()
    watch = GradientWatch(["0.weight"], [net[0].weight])
    found = [watch.note({"0.weight": norm}, 0.0) for _ in range(3 * PATIENCE)]
    assert sum(explosion is not None for explosion in found) == is_told


def test_a_leap_counts_only_above_the_first_gradients() -> None:
    net = model()
    for norm, is_told in ((10.0, False), (100.0, True)):
        watch = GradientWatch(["0.weight"], [net[0].weight])
        for _ in range(EARLY_STEPS):
            assert watch.note({"0.weight": 1.0}, 0.0) is None
        for _ in range(EARLY_STEPS):
            assert watch.note({"0.weight": 1e-3}, 0.0) is None
        explosion = watch.note({"0.weight": norm}, norm / 1e-3)
        assert (explosion is not None) == is_told
