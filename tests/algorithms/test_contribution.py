"""Contribution matrices against one pass per output neuron, captum, central differences and conservation."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dgm_tb.algorithms.contribution import contribution_by_position, contribution_matrix, gradient_matrix
from dgm_tb.algorithms.rules import DECOMPOSITIONS, epsilon
from dgm_tb.algorithms.rules.affine import z_box_groups
from dgm_tb.errors import UnsupportedLayerError

sys.path.insert(0, str(Path(__file__).parents[1]))
from layers import LAYERS, X2


def stabilised(z: Tensor) -> Tensor:
    """The documented stabiliser, written again: 1e-6 of an example's mean |z|, sign(0) = +1."""
    size = z.abs().flatten(1).mean(1).reshape(-1, *[1] * (z.ndim - 1))
    return z + 1e-6 * size * torch.where(z < 0, -1.0, 1.0)


def terms_of(rule: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> list:
    """``(factor, [(x, weight)], bias)`` from the papers' formulas."""
    up, down = (lambda t: None if t is None else t * (t > 0)), (lambda t: None if t is None else t * (t < 0))
    positive = [(up(x), up(weight)), (down(x), down(weight))]
    if rule == "epsilon":
        return [(1, [(x, weight)], bias)]
    if rule == "z_plus":
        return [(1, positive, up(bias))]
    if rule == "alpha_beta":
        return [(2, positive, up(bias)), (-1, [(up(x), down(weight)), (down(x), up(weight))], down(bias))]
    if rule == "gamma":
        return [(1, [(x, weight + up(weight) / 4)], None if bias is None else bias + up(bias) / 4)]
    if rule == "z_box":
        low, high = (
            torch.stack([end(example) for example in x]).reshape(-1, *[1] * (x.ndim - 1))
            for end in (torch.min, torch.max)
        )
        return [(1, [(x, weight), (-low + 0 * x, up(weight)), (-high + 0 * x, down(weight))], None)]
    assert rule == "w_square"
    return [(1, [(torch.ones_like(x), weight**2)], None)]


def batched(module: nn.Module, inputs: tuple, relevance: Tensor | None) -> tuple[tuple, Tensor | None]:
    """With a batch axis in front, if there is none."""
    n_axes = 2 if isinstance(module, nn.Linear) else len(module.stride) + 2
    if inputs[0].ndim >= n_axes:
        return inputs, relevance
    return (inputs[0][None], *inputs[1:]), None if relevance is None else relevance[None]


def run(module: nn.Module, inputs: tuple, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The module with another weight and bias."""
    state = {"weight": weight} | ({} if module.bias is None else {"bias": torch.zeros_like(module.bias)})
    if bias is not None:
        state["bias"] = bias
    return torch.func.functional_call(module, state, inputs)


def one_pass_per_neuron(rule: str, module: nn.Module, inputs: tuple, relevance: Tensor | None) -> Tensor:
    """Relevance ``[targets, examples, sources, *positions]``, one autograd pass per output neuron."""
    inputs, relevance = batched(module, inputs, relevance)
    z = module(*inputs)
    relevance = z if relevance is None else relevance
    axis = z.ndim - 1 if isinstance(module, nn.Linear) else 1
    rows: list[Tensor] = [torch.zeros(())] * z.shape[axis]
    for factor, terms, bias in terms_of(rule, inputs[0], module.weight.detach(), module.bias):
        sources = [source.detach().requires_grad_() for source, _ in terms]
        outputs = [
            run(module, (source, *inputs[1:]), weight, bias if i == 0 else None)
            for i, (source, (_, weight)) in enumerate(zip(sources, terms, strict=True))
        ]
        total = torch.stack(outputs).sum(0)
        for neuron in range(z.shape[axis]):
            only = torch.zeros_like(z)
            only.select(axis, neuron).copy_((relevance / stabilised(total)).select(axis, neuron))
            pulled = torch.autograd.grad(total, sources, only, retain_graph=True)
            for source, gradient in zip(sources, pulled, strict=True):
                rows[neuron] = rows[neuron] + factor * source.detach() * gradient
    result = torch.stack(rows)
    return result.movedim(-1, 2) if isinstance(module, nn.Linear) else result


def over_positions(spread: Tensor) -> Tensor:
    """``[targets, sources, *positions]`` summed to ``[targets, sources]``."""
    return spread.flatten(2).sum(2) if spread.ndim > 2 else spread


def relevance_like(module: nn.Module, inputs: tuple) -> Tensor:
    z = module(*inputs).detach()
    return torch.randn(z.shape, generator=torch.Generator().manual_seed(5), dtype=z.dtype)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rule", DECOMPOSITIONS)
def test_a_matrix_equals_one_pass_per_neuron(name: str, rule: str) -> None:
    module, inputs = LAYERS[name]
    relevance = relevance_like(module, inputs)
    truth = over_positions(one_pass_per_neuron(rule, module, inputs, relevance).sum(1))
    matrix = contribution_matrix(module, inputs, rule=rule, output_relevance=relevance)
    assert (matrix - truth).abs().max() <= 1e-10 * truth.abs().max()


@pytest.mark.parametrize("name", LAYERS)
def test_the_output_itself_as_relevance_is_the_epsilon_rule_up_to_its_stabiliser(name: str) -> None:
    module, inputs = LAYERS[name]
    truth = over_positions(one_pass_per_neuron("epsilon", module, inputs, None).sum(1))
    assert (contribution_matrix(module, inputs) - truth).abs().max() <= 1e-3 * truth.abs().max()


@pytest.mark.parametrize("name", LAYERS)
def test_the_rows_of_a_matrix_sum_to_the_output_less_its_bias(name: str) -> None:
    module, inputs = LAYERS[name]
    inputs, _ = batched(module, inputs, None)
    without_bias = run(module, inputs, module.weight, None)
    axis = without_bias.ndim - 1 if isinstance(module, nn.Linear) else 1
    sums = without_bias.movedim(axis, 0).flatten(1).sum(1)
    assert torch.allclose(contribution_matrix(module, inputs).sum(1), sums, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rule", ["epsilon", "z_plus"])
def test_positions_equal_one_pass_per_neuron_and_sum_to_the_matrix(name: str, rule: str) -> None:
    module, inputs = LAYERS[name]
    relevance = relevance_like(module, inputs)
    spread = contribution_by_position(module, inputs, rule=rule, output_relevance=relevance)
    truth = one_pass_per_neuron(rule, module, inputs, relevance).sum(1)
    assert spread.shape == truth.shape
    assert (spread - truth).abs().max() <= 1e-10 * truth.abs().max()
    matrix = contribution_matrix(module, inputs, rule=rule, output_relevance=relevance)
    assert torch.allclose(over_positions(spread), matrix)
    default = contribution_by_position(module, inputs)
    assert torch.allclose(over_positions(default), contribution_matrix(module, inputs))


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_matrix_is_gradient_times_input(name: str) -> None:
    module, inputs = LAYERS[name]
    upstream = relevance_like(module, inputs)
    (weight_gradient,) = torch.autograd.grad(module(*inputs), module.weight, upstream)
    matrix = contribution_matrix(module, inputs, rule="gradient", output_relevance=upstream)
    assert torch.allclose(gradient_matrix(module, weight_gradient), matrix, rtol=1e-12, atol=1e-12)

    truth = torch.zeros_like(matrix)  # central differences: scale one input neuron, watch one output neuron
    axis = inputs[0].ndim - 1 if isinstance(module, nn.Linear) else inputs[0].ndim - len(module.stride) - 1
    for source in range(matrix.shape[1]):
        step = torch.zeros_like(inputs[0])
        step.select(axis, source).fill_(1e-4)
        moved = [module(inputs[0] * (1 + sign * step), *inputs[1:]) for sign in (1, -1)]
        change = (moved[0] - moved[1]).detach() * upstream / 2e-4
        out_axis = change.ndim - 1 if isinstance(module, nn.Linear) else change.ndim - len(module.stride) - 1
        change = change.movedim(out_axis, 0)
        truth[:, source] = change.reshape(len(change), -1).sum(1)
    assert (matrix - truth).abs().max() <= 1e-6 * truth.abs().max()


def test_the_shares_of_pixels_within_bounds_are_never_negative_and_add_up() -> None:
    torch.manual_seed(0)
    module, x = nn.Conv2d(3, 4, 3).double(), torch.rand(2, 3, 6, 6, dtype=torch.float64) * 2 - 1
    relevance = torch.rand(2, 4, 4, 4, dtype=torch.float64)
    matrix = contribution_matrix(module, x, rule=z_box_groups(-1.0, 1.0), output_relevance=relevance)
    assert (matrix > 0).all()
    assert torch.allclose(matrix.sum(1), relevance.sum((0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: nn.Conv2d(4, 6, 3, 2, 1)])
def test_captum_gives_the_same_input_relevance(make: Callable[[], nn.Module]) -> None:
    lrp = pytest.importorskip("captum.attr").LRP
    torch.manual_seed(0)
    module = make().double()
    x = torch.randn(2, 6, dtype=torch.float64) if isinstance(module, nn.Linear) else X2
    z = module(x).detach()
    n_positions = z[0, 0].numel()
    for neuron in range(z.shape[1]):
        element = neuron * n_positions  # captum explains one output at a time: the neuron's first position
        place = (neuron, *[0] * (z.ndim - 2))
        found = lrp(nn.Sequential(module)).attribute(x, target=place if z.ndim > 2 else neuron)
        start = torch.zeros_like(z)
        start.flatten(1)[:, element] = z.flatten(1)[:, element]
        matrix = contribution_matrix(module, x, output_relevance=start)
        truth = over_positions(found.sum(0, keepdim=True))[0]
        assert (matrix[neuron] - truth).abs().max() <= 1e-3 * truth.abs().max()


def test_a_dense_layer_reshaped_into_feature_maps_gets_one_column_per_unit() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, 3, padding=1).double()
    units = torch.randn(5, 2 * 4 * 4, dtype=torch.float64)
    columns = contribution_by_position(convolution, units.view(5, 2, 4, 4)).flatten(1)
    unit = 21  # channel 1, row 1, column 1
    alone = torch.zeros_like(units)
    alone[:, unit] = units[:, unit]
    without_bias = run(convolution, (alone.view(5, 2, 4, 4),), convolution.weight, None)
    assert torch.allclose(columns[:, unit], without_bias.sum((0, 2, 3)))


def test_two_branches_of_a_sum_split_the_matrix() -> None:
    module, (x,) = LAYERS["conv2d"]
    branch = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    parts = [contribution_matrix(module, x, source_share=part / x) for part in (branch, x - branch)]
    assert torch.allclose(parts[0] + parts[1], contribution_matrix(module, x))
    assert torch.allclose(parts[0], contribution_matrix(module, branch))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, x = nn.Conv2d(4, 6, 3).to(dtype), torch.randn(2, 4, 6, 6, dtype=dtype)
    relevance = torch.ones(2, 6, 4, 4, dtype=dtype)
    matrix = contribution_matrix(module, x, output_relevance=relevance)
    wide = contribution_matrix(module.float(), x.float(), output_relevance=relevance.float())
    assert matrix.dtype == torch.float32
    assert torch.equal(matrix, wide)


def test_autocast_around_the_call_changes_nothing() -> None:
    module, x = nn.Linear(6, 5), torch.randn(3, 6)
    plain = contribution_matrix(module, x, rule="z_plus")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contribution_matrix(module, x, rule="z_plus"), plain)


def test_the_model_is_left_as_it_was() -> None:
    module = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5)).train()
    x = torch.randn(3, 6, requires_grad=True)
    module(x).sum().backward()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    gradients = [p.grad.clone() for p in module.parameters()]
    matrix = contribution_matrix(module, x)
    assert not matrix.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, module.parameters(), strict=True))
    assert module.parametrizations.weight[0].training


def test_permuting_neurons_permutes_the_matrix() -> None:
    torch.manual_seed(0)
    module, x = nn.Conv2d(4, 6, 3), torch.randn(2, 4, 6, 6)
    rows, columns = torch.randperm(6), torch.randperm(4)
    permuted = nn.Conv2d(4, 6, 3)
    permuted.weight.data, permuted.bias.data = module.weight.data[rows][:, columns], module.bias.data[rows]
    truth = contribution_matrix(module, x, rule="z_plus")[rows][:, columns]
    assert torch.allclose(contribution_matrix(permuted, x[:, columns], rule="z_plus"), truth, atol=1e-5)


def test_neurons_of_different_groups_do_not_contribute() -> None:
    module, inputs = LAYERS["conv2d depthwise"]
    matrix = contribution_matrix(module, inputs)
    assert torch.equal(matrix != 0, torch.eye(4, dtype=torch.bool).repeat_interleave(2, 0))


def test_values_that_are_not_finite_do_not_raise() -> None:
    x = X2.clone()
    x[0, 0, 0, 0], x[1, 1, 2, 2] = torch.nan, torch.inf
    for rule in DECOMPOSITIONS:
        assert contribution_matrix(LAYERS["conv2d"][0], x, rule=rule).shape == (6, 4)


def test_a_layer_without_a_rule_is_named_with_the_way_out() -> None:
    sentence = r"no contribution rule for GroupNorm; pass rules=\{nn.GroupNorm: rule\}"
    with pytest.raises(UnsupportedLayerError, match=sentence):
        contribution_matrix(nn.GroupNorm(2, 4), X2)


def test_a_rule_of_ones_own_serves_any_module() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4).double()
    x = torch.randn(8, 4, dtype=torch.float64)
    before = norm.running_mean.clone()
    matrix = contribution_matrix(norm.eval(), x, rules={nn.BatchNorm1d: epsilon})
    assert torch.allclose(matrix, torch.diag((norm(x) - norm.bias + norm.running_mean).detach().sum(0)), atol=1e-4)
    norm.train()
    contribution_matrix(norm, x, rules={nn.BatchNorm1d: epsilon})
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize(("rule", "message"), [("lrp", "unknown rule 'lrp'"), ("gradient", "needs output_relevance")])
def test_wrong_use_says_what_was_expected(rule: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contribution_matrix(nn.Linear(6, 5), torch.randn(3, 6), rule=rule)
