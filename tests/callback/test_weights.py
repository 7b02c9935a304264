"""The copy of the weights from before a step, parameters of every kind, and gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dgm_tb.callback.weights import WeightWatch, weight_statistics


class Free(nn.Module):
    """A module of the user's own with a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


def _measure(watch: WeightWatch) -> np.ndarray[Any, Any]:
    return weight_statistics(watch.end(watch.norms()).numpy())


# -- the copy from before the step -------------------------------------------------------------------------------------


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def _by_hand(*pairs: tuple[Tensor, Tensor]) -> np.ndarray[Any, Any]:
    """Relative updates of several weights' rows, from before and after."""
    ratios = []
    for before, after in pairs:
        before, after = (x.detach().double().reshape(len(x), -1) for x in (before, after))
        ratios.append((after - before).norm(dim=1) / before.norm(dim=1))
    return torch.cat(ratios).numpy()


def test_the_weights_before_the_step_are_kept_in_order_until_it_is_measured() -> None:
    model = _net()
    watch = WeightWatch(model)
    assert watch.before == []
    for _ in range(2):
        watch.begin()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        _nudge(model)
        norms = watch.norms()
        assert watch.has_copy
        assert len(watch.before) == len(before)
        assert all(map(torch.equal, watch.before, before))
        watch.end(norms)
        assert watch.before == [], "it is used up"


def _nudge(model: nn.Module, scale: float = 1e-3) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


@pytest.mark.parametrize("way", ["in place", "data", "data replaced", "wider", "nothing"])
def test_changes_between_steps_are_no_part_of_a_step(way: str) -> None:
    model = _net()
    watch = WeightWatch(model)
    for _ in range(3):
        watch.begin()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        assert all(map(torch.equal, watch.before, before))
        assert [tensor.dtype for tensor in watch.before] == [tensor.dtype for tensor in before]
        _nudge(model)
        got = _measure(watch)
        after = list(model.parameters())
        pairs = [(before[number], after[number]) for number in (0, 2, 4)]
        np.testing.assert_allclose(got[1], _by_hand(*pairs), rtol=1e-4)
        np.testing.assert_allclose(got[2], torch.cat([b.reshape(len(b), -1).norm(dim=1) for b, _ in pairs]), rtol=1e-6)
        if way == "in place":
            _nudge(model, 1.0)
        elif way == "data":
            model[0].weight.data.clamp_(-0.1, 0.1)
            model[2].weight.data.mul_(3.0)
        elif way == "data replaced":
            for parameter in model.parameters():
                parameter.data = torch.randn(parameter.shape)
        elif way == "wider":
            model.double()


@pytest.mark.parametrize("scale", [1e-7, 1e-4, 1e6])
def test_small_and_large_updates_have_their_digits(scale: float) -> None:
    model = _net()
    watch = WeightWatch(model)
    watch.begin()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    _nudge(model, scale)
    got = _measure(watch)
    after = list(model.parameters())
    np.testing.assert_allclose(got[1], _by_hand(*[(before[n], after[n]) for n in (0, 2, 4)]), rtol=1e-5)


def test_unchanged_weights_have_an_update_of_zero_even_if_they_are_zero() -> None:
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    watch = WeightWatch(model)
    watch.begin()
    assert _measure(watch).tolist() == [[0.0, 0.0]] * 3


def test_without_a_copy_there_are_norms_only() -> None:
    model = _net()
    watch = WeightWatch(model)
    watch.begin()
    _measure(watch)
    watch.begin(copy=False)
    _nudge(model)
    assert watch.before == []
    got = _measure(watch)
    assert np.isfinite(got[0]).all()
    assert np.isnan(got[1:]).all()


def test_a_copy_can_be_taken_later_as_long_as_nothing_has_changed() -> None:
    model = _net()
    watch = WeightWatch(model)
    watch.begin(copy=False)
    assert watch.secure()
    assert all(map(torch.equal, watch.before, model.parameters()))
    watch.begin(copy=False)
    _nudge(model)
    assert not watch.secure()
    assert watch.before == []


def test_above_a_limit_there_is_no_copy_and_the_recording_says_so() -> None:
    model = _net()
    n_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert WeightWatch(model, n_bytes).keeps_copy
    watch = WeightWatch(model, n_bytes - 1)
    assert not watch.keeps_copy
    (note,) = watch.take_notes()
    assert note.startswith("the weights are not copied")
    watch.begin()
    assert not watch.secure()
    assert watch.before == []
    got = _measure(watch)
    np.testing.assert_allclose(got[0, :4], model[0].weight.detach().norm(dim=1), rtol=1e-6)
    assert np.isnan(got[1:]).all()


# -- parameters of other kinds -----------------------------------------------------------------------------------------


def test_lazy_weights_are_found_once_they_have_a_shape() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(4), nn.LazyConv1d(2, 1))
    watch = WeightWatch(model)
    assert watch.keeps_copy
    assert [entry.module for entry in watch.entries] == ["0"]
    watch.begin()
    assert watch.before == [], "there is nothing to copy yet"
    model[1](torch.zeros(1, 2))
    assert [entry.module for entry in watch.entries] == ["0"], "one of them is still lazy"
    assert _measure(watch).shape == (3, 2)
    model[2](torch.zeros(1, 4, 3))
    assert [(entry.module, entry.offset) for entry in watch.entries] == [("0", 0), ("1", 2), ("2", 6)]
    watch.begin()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert all(map(torch.equal, watch.before, before))
    _nudge(model)
    after = list(model.parameters())
    np.testing.assert_allclose(_measure(watch)[1], _by_hand(*[(before[n], after[n]) for n in (0, 2, 4)]), rtol=1e-4)


class Odd(nn.Module):
    """Parameters that most models have not."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = nn.Parameter(torch.arange(3), requires_grad=False)
        self.phases = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.none = nn.Parameter(torch.zeros(0, 3))
        self.whole = Free(torch.randn(2, 2))
        self.whole.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int64), requires_grad=False)
        self.empty = nn.Linear(0, 3)
        self.bare = nn.Linear(3, 2)
        self.bare.weight = None


def test_integer_complex_and_empty_parameters_are_copied_and_not_measured() -> None:
    model = Odd()
    watch = WeightWatch(model)
    watch.begin()
    assert watch.entries == []
    assert all(map(torch.equal, watch.before, model.parameters()))
    assert _measure(watch).shape == (3, 0)
    assert watch.nonfinite_parameters() == []


@pytest.mark.parametrize("odd", ["sparse", "meta", "own"])
def test_tensors_that_can_not_be_read_leave_the_others_alone(odd: str) -> None:
    class Own(nn.Parameter):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return super(nn.Parameter, cls).__torch_function__(func, types, args, kwargs or {})

    tensors = {
        "sparse": lambda: nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False),
        "meta": lambda: nn.Parameter(torch.empty(3, 3, device="meta")),
        "own": lambda: Own(torch.eye(3)),
    }
    model = nn.Sequential(nn.Linear(3, 2), Free(torch.eye(3)))
    model[1].weight = tensors[odd]()
    watch = WeightWatch(model)
    assert [entry.module for entry in watch.entries] == ["0"]
    of_entry, of_copy = watch.take_notes()
    assert of_entry.startswith("the weights of 1 are not recorded: ")
    assert "1.weight" in of_copy
    watch.begin()
    assert watch.before == [], "a step can't be run again without all weights"
    before = model[0].weight.detach().clone()
    _nudge(model[0])
    np.testing.assert_allclose(_measure(watch)[1], _by_hand((before, model[0].weight)), rtol=1e-4)
    assert watch.nonfinite_parameters() == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_weights_may_lie_on_several_devices() -> None:
    model = _net()
    model[2].cuda()
    watch = WeightWatch(model)
    watch.begin()
    before = [parameter.detach().cpu().clone() for parameter in model.parameters()]
    assert [tensor.device for tensor in watch.before] == [parameter.device for parameter in model.parameters()]
    _nudge(model)
    got = _measure(watch)
    after = [parameter.detach().cpu() for parameter in model.parameters()]
    np.testing.assert_allclose(got[1], _by_hand(*[(before[n], after[n]) for n in (0, 2, 4)]), rtol=1e-4)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norms = watch.gradient_norms(model.parameters())
    assert torch.stack(list(norms.values())).tolist() == pytest.approx([p.numel() ** 0.5 for p in before])


def test_nonfinite_parameters_are_named() -> None:
    model = _net()
    watch = WeightWatch(model)
    with torch.no_grad():
        model[0].bias[1] = np.inf
        model[2].weight[0, 0] = np.nan
    assert watch.nonfinite_parameters() == ["0.bias", "2.weight"]


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_gradient_norms_equal_naive_ones() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "single": nn.Linear(5, 4),
            "low": nn.Linear(3, 2).half(),
            "wide": nn.Linear(3, 2, bias=False).double(),
            "complex": nn.Linear(3, 2, bias=False, dtype=torch.complex64),
            "embedding": nn.Embedding(6, 3, sparse=True),
            "unused": nn.Linear(2, 2),
        }
    )
    model["embedding"](torch.tensor([1, 1, 4])).square().sum().backward()
    for name in ("single", "low", "wide", "complex"):
        for parameter in model[name].parameters():
            parameter.grad = 300 * torch.randn_like(parameter)
    got = WeightWatch(model).gradient_norms([*model.parameters(), nn.Parameter(torch.ones(2))])
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        exact = dense.to(torch.complex128 if dense.is_complex() else torch.float64).norm()
        np.testing.assert_allclose(float(got[name]), exact, rtol=1e-5, err_msg=name)
    assert torch.isfinite(torch.stack(list(got.values()))).all()


def test_no_gradient_no_norm() -> None:
    model = _net()
    assert WeightWatch(model).gradient_norms(model.parameters()) == {}


@pytest.mark.parametrize("kind", [nn.Identity, nn.Dropout])
def test_a_parametrization_that_gives_the_parameter_itself_is_measured_and_changes_nothing(kind: Any) -> None:
    model = nn.Linear(3, 2)
    nn.utils.parametrize.register_parametrization(model, "weight", kind())
    original = model.parametrizations.weight.original
    watch = WeightWatch(model)
    watch.begin()
    before = original.detach().clone()
    with torch.no_grad():
        original.mul_(1.5)
    got = _measure(watch)
    assert torch.equal(original, 1.5 * before)
    np.testing.assert_allclose(got[1], [0.5, 0.5], rtol=1e-5)
