"""Whole networks: relevance against replicas, code that writes in place or draws, and what must stay as it was."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgm_tb.algorithms.relevance import Relevance, RelevanceMode, relevance
from dgm_tb.algorithms.rules import Call, decomposed, epsilon, pass_through
from dgm_tb.algorithms.rules.affine import gamma_groups
from dgm_tb.errors import UnknownNameError

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import FLOAT, ConvolutionalVAE, discriminator, generator, images, seeded


def accounted(found: Relevance) -> float:
    arrived = [float(r.sum()) for r in found.inputs.values()]
    return sum(arrived) + found.noise + sum(found.leaked.values()) + sum(found.stopped.values())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, Tensor]] = {
    "vae": (lambda: seeded(ConvolutionalVAE), "deconv", images()),
    "generator": (generator, "3", torch.randn(4, 6, 1, 1, generator=torch.Generator().manual_seed(1), dtype=FLOAT)),
    "discriminator": (discriminator, "5", images()),
}


# -- whole networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_relevance_sums_to_the_activation(name: str) -> None:
    make, target, x = NETWORKS[name]
    model = make()
    outputs: list[Tensor] = []
    model.get_submodule(target).register_forward_hook(lambda module, given, z: outputs.append(z))
    torch.manual_seed(0)
    found = relevance(model, target, 0, x)
    assert found.total == pytest.approx(float(outputs[0][:, 0].sum()), rel=1e-12)
    assert accounted(found) == pytest.approx(found.total, rel=1e-9, abs=1e-12)
    assert not found.stopped
    assert found.inputs["input"].shape == x.shape


def test_a_network_without_biases_keeps_all_relevance() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5, bias=False)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(5, 2, bias=False)).double()
    found = relevance(model, "6", 1, images())
    assert float(found.inputs["input"].sum()) == pytest.approx(found.total, rel=1e-4)


def test_a_chain_of_layers_equals_the_rule_written_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5), nn.Tanh(), nn.Linear(5, 2))
    model = model.double()
    x = images()
    values = [x]
    for layer in model:
        values.append(layer(values[-1]).detach())
    r = torch.zeros_like(values[-1])
    r[:, 1] = values[-1][:, 1]
    for layer, given, z in list(zip(model, values, values[1:], strict=False))[::-1]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            step = 1e-6 * z.flatten(1).abs().mean(1).reshape(-1, *[1] * (z.ndim - 1))
            given = given.clone().requires_grad_()
            (pulled,) = torch.autograd.grad(layer(given), given, r / (z + step * torch.where(z < 0, -1.0, 1.0)))
            r = (given * pulled).detach()
        else:
            r = r.reshape(given.shape)
    found = relevance(model, "5", 1, x).inputs["input"]
    assert (found - r).abs().max() <= 1e-10 * r.abs().max()


def test_captum_gives_the_same_input_relevance() -> None:
    lrp = pytest.importorskip("captum.attr").LRP
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*layers).double()
    x = images()
    found = relevance(model, "5", 2, x).inputs["input"]
    truth = lrp(model).attribute(x.clone().requires_grad_(), target=(2, 0, 0)).detach()
    assert (found - truth).abs().max() <= 1e-3 * truth.abs().max()


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_is_as_if_folded_into_the_convolution(training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
    norm = model[1]
    (
        nn.init.normal_(norm.weight),
        nn.init.normal_(norm.bias),
        norm.running_mean.normal_(),
        norm.running_var.uniform_(1, 2),
    )
    x = images()
    model.train(training)
    if training:
        z = model[0](x)
        mean, variance = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
    else:
        mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    scale = (norm.weight / (variance + norm.eps).sqrt()).detach()
    folded = nn.Conv2d(3, 4, 3).double()
    folded.weight.data = model[0].weight.data * scale.reshape(-1, 1, 1, 1)
    folded.bias.data = (model[0].bias.data - mean.detach()) * scale + norm.bias.data
    truth = relevance(nn.Sequential(folded, nn.ReLU(), model[3]), "2", 0, x).inputs["input"]
    found = relevance(model, "3", 0, x).inputs["input"]
    assert (found - truth).abs().max() <= 1e-3 * truth.abs().max()
    assert float((found - truth).norm() / truth.norm()) <= 1e-3


def test_gaussian_sampling_splits_by_mean_and_deviation_with_the_noise_fixed() -> None:
    class Sampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mu, self.lv = nn.Identity(), nn.Identity()

        def forward(self, mu: Tensor, lv: Tensor) -> Tensor:
            mu, lv = self.mu(mu), self.lv(lv)
            return mu + torch.exp(lv / 2) * torch.randn_like(mu)

    torch.manual_seed(0)
    model, mu, lv = Sampling(), torch.randn(4, 3, dtype=FLOAT), torch.randn(4, 3, dtype=FLOAT)
    with RelevanceMode(model, (mu, lv)) as mode:
        z = model(mu, lv)
    found = mode.propagate("", 1)
    assert torch.allclose(found.inputs["0"][:, 1], mu[:, 1], rtol=1e-4)
    assert torch.allclose(found.inputs["1"][:, 1], (z - mu)[:, 1], rtol=1e-4)
    assert found.noise == 0
    assert not found.inputs["0"][:, [0, 2]].any()


def test_distributions_are_served_like_functional_code() -> None:
    torch.manual_seed(0)
    mu, lv = torch.randn(4, 3, dtype=FLOAT), torch.randn(4, 3, dtype=FLOAT)
    model = Function(lambda mu, lv: torch.distributions.Normal(mu, (lv / 2).exp()).rsample())
    with RelevanceMode(model, (mu, lv)) as mode:
        z = model(mu, lv)
    found = mode.propagate(z)
    assert torch.allclose(found.inputs["0"], mu, rtol=1e-3)
    assert torch.allclose(found.inputs["1"], z - mu, rtol=1e-3)


# -- code that writes in place, detaches, or hides gradients ---------------------------------------------------------


class Function(nn.Module):
    """A bare function as a model."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def _write_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y.flatten(1)[:, ::3].relu_()
    return (y + 1).sum((1, 2, 3))


def _write_to_the_base_of_a_view(x: Tensor) -> Tensor:
    y = x * 2
    left = y[:, :, :, :4]
    y.clamp_(min=0)
    return (left + 1).sum((1, 2, 3))


def _out_argument(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    torch.mul(x, 3, out=y)
    return y + 1


def _augmented(x: Tensor) -> Tensor:
    y = x * 2
    y += x
    y *= 3
    y -= 1
    return y


def _functional_view(x: Tensor) -> Tensor:
    flat = (x * 2).flatten(1)
    chosen = torch.zeros(flat.shape[1], dtype=torch.bool)
    chosen[::3] = True
    return torch.where(chosen, flat.relu(), flat).reshape(x.shape)


SAME_RESULT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu_": (lambda x: F.relu_(x * 2) + 1, lambda x: F.relu(x * 2) + 1),
    "inplace by keyword": (lambda x: F.relu(x * 2, inplace=True) + 1, lambda x: F.relu(x * 2) + 1),
    "inplace by position": (lambda x: F.elu(x * 2, 1.0, True) + 1, lambda x: F.elu(x * 2) + 1),
    "result not used": (lambda x: (y := x * 2, y.relu_(), y + 1)[-1], lambda x: F.relu(x * 2) + 1),
    "augmented sum": (_augmented, lambda x: (x * 2 + x) * 3 - 1),
    "through a view": (_write_through_a_view, lambda x: (_functional_view(x) + 1).sum((1, 2, 3))),
    "under a view": (_write_to_the_base_of_a_view, lambda x: (F.relu(x * 2)[..., :4] + 1).sum((1, 2, 3))),
    "out argument": (_out_argument, lambda x: x * 3 + 1),
    "detach": (lambda x: (x * 2).detach() + 1, lambda x: x * 2 + 1),
    "straight through": (lambda x: x + (x.tanh() - x).detach(), lambda x: x + (x.tanh() - x)),
    "data": (lambda x: (x * 2).data + 1, lambda x: x * 2 + 1),
}


@pytest.mark.parametrize("name", SAME_RESULT)
def test_code_that_writes_in_place_has_the_relevance_of_code_that_does_not(name: str) -> None:
    results = []
    for function in SAME_RESULT[name]:
        x = images()
        with torch.no_grad(), RelevanceMode(Function(function), x) as mode:
            z = function(x)
        results.append((z, mode.propagate(z).inputs["input"]))
    assert torch.allclose(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-6, atol=1e-9)


# -- functions and modules without a rule, and rules of one's own ----------------------------------------------------


def test_a_function_without_a_rule_stops_its_share_and_is_named() -> None:
    model = Function(lambda x: x + torch.fft.fft2(x).abs())
    x = images()
    with RelevanceMode(model, x) as mode:
        z = model(x)
    found = mode.propagate(z)
    assert set(found.stopped) == {"fft_fft2"}
    assert accounted(found) == pytest.approx(found.total)
    assert torch.allclose(found.inputs["input"], x, rtol=1e-3)


def test_a_rule_for_a_function_or_a_module_class_takes_precedence() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
    x = images()
    plain = relevance(model, "3", 0, x)
    calls: list[Call] = []

    def unchanged(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
        calls.append(call)
        return pass_through(call, relevance)

    by_module = relevance(model, "3", 0, x, rules={nn.BatchNorm2d: unchanged})
    by_function = relevance(model, "3", 0, x, rules={F.batch_norm: unchanged})
    assert [call.name for call in calls] == ["BatchNorm2d", "batch_norm"]
    assert torch.equal(by_module.inputs["input"], by_function.inputs["input"])
    assert torch.equal(by_module.layers["1"], by_module.layers["0"])
    assert not torch.equal(by_module.inputs["input"], plain.inputs["input"])
    gamma = relevance(model, "3", 0, x, rules={F.conv2d: decomposed(gamma_groups)})
    assert accounted(gamma) == pytest.approx(gamma.total)


def test_a_module_rule_may_run_the_module_again_without_a_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double().train()
    x = torch.randn(8, 4, dtype=FLOAT)
    with RelevanceMode(model, x, rules={nn.BatchNorm1d: epsilon}) as mode:
        model(x)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mode.propagate("1", 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_error_in_a_rule_of_ones_own_is_shown() -> None:
    def broken(call: Call, relevance: tuple[Tensor, ...]) -> list[Tensor | None]:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        relevance(nn.Sequential(nn.Linear(4, 4)), "0", 0, torch.randn(2, 4), rules={F.linear: broken})


# -- where to start and stop -----------------------------------------------------------------------------------------


def test_the_run_is_left_once_the_target_is_known() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.first(x)
            try:
                raise ArithmeticError("after the target")
            except Exception:
                raise

    found = relevance(Fails(), "first@2", 1, torch.randn(2, 4))
    assert set(found.layers) == {"first", "first@1", "first@2"}
    assert not first._forward_hooks


def test_wrong_targets_say_what_there_is() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4)
    with pytest.raises(UnknownNameError, match=r"layer 'decoder' was not called in this run; layers that were: 0, 1"):
        relevance(model, "decoder", 0, x)
    with pytest.raises(ValueError, match=r"neuron 3 of '0' does not exist; it has 3"):
        relevance(model, "0", 3, x)
    x[1, 2] = torch.inf
    with pytest.raises(ValueError, match=r"not finite in examples \[1\]"):
        relevance(model, "0", 0, x)
    with RelevanceMode(model, torch.zeros(1)) as mode:
        model(x)
        with pytest.raises(RuntimeError, match="leave the RelevanceMode block"):
            mode.propagate("0", 0)
    with pytest.raises(ValueError, match="depends on neither inputs nor random draws"):
        mode.propagate("0", 0)


def test_an_example_that_is_not_finite_does_not_touch_the_others() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).double()
    x = images()
    x[2, 0, 3, 3] = torch.nan
    found = relevance(model, "3", 0, x, examples=[0, 1, 3]).inputs["input"]
    alone = relevance(model, "3", 0, x[[0, 1, 3]]).inputs["input"]
    assert torch.allclose(found[[0, 1, 3]], alone)
    assert not found[2].any()


def test_inputs_are_named_by_their_place_in_the_batch() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.embed = nn.Linear(4, 3), nn.Embedding(5, 3)

        def forward(self, batch: dict[str, Any]) -> Tensor:
            return self.layer(batch["image"]) + self.embed(batch["label"][0])

    batch = {"image": torch.randn(2, 4), "label": [torch.tensor([1, 3])]}
    found = relevance(Two(), "", 1, batch)
    assert {name: tuple(r.shape) for name, r in found.inputs.items()} == {"image": (2, 4), "label.0": (2,)}
    assert accounted(found) == pytest.approx(found.total, rel=1e-5)


# -- what must stay as it was ----------------------------------------------------------------------------------------


def test_a_recorded_run_is_the_run_itself() -> None:
    model = seeded(ConvolutionalVAE)
    model.mu.requires_grad_(False)
    twin = seeded(ConvolutionalVAE)
    twin.mu.requires_grad_(False)
    x = images()
    torch.manual_seed(1)
    truth = twin(x).square().mean()
    truth.backward()
    after = torch.rand(1)
    torch.manual_seed(1)
    with RelevanceMode(model, x) as mode:
        loss = model(x).square().mean()
        loss.backward()
    assert torch.equal(loss, truth)
    assert torch.equal(torch.rand(1), after)
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    mode.propagate("deconv", 0)
    for p, q, gradient in zip(model.parameters(), twin.parameters(), gradients, strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or (torch.equal(p.grad, q.grad) and torch.equal(p.grad, gradient))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    assert not any(module._forward_hooks for module in model.modules())


def test_optimizer_steps_after_the_forward_pass_do_not_change_the_record() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(3, 4, dtype=FLOAT)
    truth = relevance(model, "2", 0, x).inputs["input"]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with RelevanceMode(model, x) as mode:
        model(x).sum().backward()
        optimizer.step()
    assert torch.equal(mode.propagate("2", 0).inputs["input"], truth)


def test_half_precision_is_propagated_in_float32() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2)), torch.randn(3, 8)
    truth = relevance(model, "2", 0, x).inputs["input"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = relevance(model, "2", 0, x).inputs["input"]
    assert found.dtype == torch.float32
    assert F.cosine_similarity(found.flatten(), truth.flatten(), 0) > 0.99
