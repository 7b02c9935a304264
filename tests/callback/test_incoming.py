"""Norms and updates of every neuron's incoming weights equal naive float64 code, whatever module holds them."""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrize import register_parametrization

from dgm_tb.callback.weights import WeightWatch, weight_statistics

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")

Matrix = Callable[[nn.Module], Tensor]
"""Gives the incoming weights of every neuron of a module ``[neurons, ...]``."""


def _rows(*names: str) -> Matrix:
    """The rows of some weights, side by side; ``module.weight`` in evaluation for what is computed."""
    return lambda module: torch.cat([_value(module, name).flatten(1) for name in names or ("weight",)], 1)


def _stacked(*names: str) -> Matrix:
    """The rows of some weights, one below the other; shorter ones are filled up with zeros."""

    def stacked(module: nn.Module) -> Tensor:
        parts = [_value(module, name) for name in names]
        width = max(part.shape[1] for part in parts)
        return torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])

    return stacked


def _value(module: nn.Module, name: str) -> Tensor:
    inner, _, name = name.rpartition(".")
    twin = copy.deepcopy(module.get_submodule(inner)).eval()
    with torch.no_grad():
        return getattr(twin, name).detach()


def _single(module: nn.Module) -> Tensor:
    return module.weight.detach().reshape(-1, 1)


def _columns(module: nn.Module) -> Tensor:
    return module.weight.detach().T


def _transposed(module: nn.Module) -> Tensor:
    """``[in, out / groups, ...]``: an output channel gets weights from the inputs of its group only."""
    neurons = []
    for group in module.weight.detach().chunk(module.groups):
        neurons += [group[:, out].flatten() for out in range(group.shape[1])]
    return torch.stack(neurons)


def _gates(n_gates: int, *names: str, dirs: tuple[str, ...] = ("",), size: int = 4) -> Matrix:
    """Of hidden unit ``j``: row ``j`` of each gate, of the weights on the input and the state; forward units first."""

    def gates(module: nn.Module) -> Tensor:
        units = []
        for direction in dirs:
            for j in range(size):
                pieces = [
                    _value(module, name + direction)[gate * size + j] for name in names for gate in range(n_gates)
                ]
                units.append(torch.cat(pieces))
        return torch.stack(units)

    return gates


def _old_weight_norm(module: nn.Module) -> Tensor:
    v, g = module.weight_v.detach(), module.weight_g.detach()
    norm = v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.dim() - 1))
    return (g * v / norm).flatten(1)


def _old_spectral_norm(module: nn.Module) -> Tensor:
    matrix = module.weight_orig.detach().flatten(1)
    return matrix / (module.weight_u @ matrix @ module.weight_v)


def _pruned(module: nn.Module) -> Tensor:
    return (module.weight_orig * module.weight_mask).detach()


class Free(nn.Module):
    """A module of the user's own with a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Moody(nn.Module):
    """A parametrization that draws random numbers, counts its calls and keeps an average."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = 0
        self.register_buffer("average", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        self.average += x.detach().mean()
        noise = torch.rand(()) + random.random()
        return x * noise if self.training else x


def _moody() -> nn.Module:
    return register_parametrization(nn.Linear(5, 4), "weight", Moody())


def _recurrent_parametrized() -> nn.Module:
    return parametrizations.spectral_norm(nn.GRU(3, 4), "weight_hh_l0")


@dataclass(frozen=True)
class Case:
    """A module, and what its entries hold, by the end of their names."""

    make: Callable[[], nn.Module]
    entries: dict[str, Matrix]


def _of_layer(layer: int) -> tuple[str, str]:
    return f"weight_ih_l{layer}", f"weight_hh_l{layer}"


BOTH = ("", "_reverse")

CASES: dict[str, Case] = {
    "linear": Case(lambda: nn.Linear(5, 4), {"": _rows()}),
    "bilinear": Case(lambda: nn.Bilinear(5, 4, 3), {"": _rows()}),
    "conv": Case(lambda: nn.Conv2d(4, 6, 3, groups=2), {"": _rows()}),
    "channels_last": Case(lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), {"": _rows()}),
    "transposed": Case(lambda: nn.ConvTranspose2d(6, 4, 3), {"": _transposed}),
    "transposed_groups": Case(lambda: nn.ConvTranspose1d(6, 9, 3, groups=3), {"": _transposed}),
    "embedding": Case(lambda: nn.Embedding(7, 5), {"": _columns}),
    "embedding_bag": Case(lambda: nn.EmbeddingBag(7, 5), {"": _columns}),
    "batch_norm": Case(lambda: nn.BatchNorm2d(5), {"": _single}),
    "layer_norm": Case(lambda: nn.LayerNorm(5), {"": _single}),
    "prelu": Case(lambda: nn.PReLU(3), {"": _single}),
    "scalar": Case(lambda: Free(torch.tensor(1.5)), {"": _single}),
    "own": Case(lambda: Free(torch.randn(3, 2, 2, 2)), {"": _rows()}),
    "strided": Case(lambda: Free(torch.randn(5, 3).T), {"": _rows()}),
    "float64": Case(lambda: nn.Linear(5, 4).double(), {"": _rows()}),
    "bfloat16": Case(lambda: nn.Linear(5, 4).bfloat16(), {"": _rows()}),
    "float16": Case(lambda: nn.Conv1d(5, 4, 3).half(), {"": _rows()}),
    "complex": Case(lambda: nn.Linear(5, 4, dtype=torch.complex64), {"": _rows()}),
    "lstm": Case(lambda: nn.LSTM(3, 4), {"": _gates(4, *_of_layer(0))}),
    "lstm_layers": Case(
        lambda: nn.LSTM(3, 4, num_layers=3),
        {"[l0]": _gates(4, *_of_layer(0)), "[l1]": _gates(4, *_of_layer(1)), "": _gates(4, *_of_layer(2))},
    ),
    "lstm_both_ways": Case(
        lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, bias=False),
        {"[l0]": _gates(4, *_of_layer(0), dirs=BOTH), "": _gates(4, *_of_layer(1), dirs=BOTH)},
    ),
    "lstm_projected": Case(
        lambda: nn.LSTM(3, 4, num_layers=2, proj_size=2),
        {
            "[l0.hidden]": _gates(4, *_of_layer(0)),
            "[l0]": _rows("weight_hr_l0"),
            "[l1.hidden]": _gates(4, *_of_layer(1)),
            "": _rows("weight_hr_l1"),
        },
    ),
    "gru": Case(lambda: nn.GRU(3, 4), {"": _gates(3, *_of_layer(0))}),
    "rnn_both_ways": Case(lambda: nn.RNN(3, 4, bidirectional=True), {"": _gates(1, *_of_layer(0), dirs=BOTH)}),
    "lstm_cell": Case(lambda: nn.LSTMCell(3, 4), {"": _gates(4, "weight_ih", "weight_hh")}),
    "gru_cell": Case(lambda: nn.GRUCell(3, 4), {"": _gates(3, "weight_ih", "weight_hh")}),
    "attention": Case(
        lambda: nn.MultiheadAttention(4, 2), {"": _rows("in_proj_weight"), ".out_proj": _rows("out_proj.weight")}
    ),
    "attention_of_other_sizes": Case(
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        {
            "": _stacked("q_proj_weight", "k_proj_weight", "v_proj_weight"),
            ".out_proj": _rows("out_proj.weight"),
        },
    ),
    "weight_norm": Case(lambda: parametrizations.weight_norm(nn.Linear(5, 4)), {"": _rows()}),
    "spectral_norm": Case(lambda: parametrizations.spectral_norm(nn.Conv2d(2, 4, 3)), {"": _rows()}),
    "orthogonal": Case(lambda: parametrizations.orthogonal(nn.Linear(5, 4), orthogonal_map="cayley"), {"": _rows()}),
    "two_parametrizations": Case(
        lambda: parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(5, 4))), {"": _rows()}
    ),
    "transposed_parametrized": Case(
        lambda: parametrizations.weight_norm(nn.ConvTranspose1d(4, 3, 2)), {"": lambda m: _transposed(_twin(m))}
    ),
    "recurrent_parametrized": Case(_recurrent_parametrized, {"": _gates(3, *_of_layer(0))}),
    "moody": Case(_moody, {"": _rows()}),
    "old_weight_norm": Case(lambda: old_weight_norm(nn.Conv1d(3, 4, 2)), {"": _old_weight_norm}),
    "old_spectral_norm": Case(lambda: old_spectral_norm(nn.Linear(5, 4)), {"": _old_spectral_norm}),
    "pruned": Case(lambda: prune.random_unstructured(nn.Linear(5, 4), "weight", 0.5), {"": _pruned}),
}


def _twin(module: nn.Module) -> nn.Module:
    """The same module with a plain weight."""
    twin = nn.ConvTranspose1d(4, 3, 2)
    twin.weight = nn.Parameter(_value(module, "weight"))
    return twin


class Root(nn.Module):
    """A model of one module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module


def _matrices(root: Root, case: Case) -> dict[str, Tensor]:
    """Entry -> incoming weights ``[neurons, ...]``, in float64 or complex128."""
    found = {f"m{end}": matrix(root.m).flatten(1).clone() for end, matrix in case.entries.items()}
    return {name: m.to(torch.complex128 if m.is_complex() else torch.float64) for name, m in found.items()}


def _step(root: Root, scale: float = 1e-2) -> None:
    """What a training step does to a model: computed weights are computed, buffers move, parameters change."""
    root.train()
    for module in root.modules():
        for name in getattr(module, "parametrizations", ()):
            getattr(module, name)
        for hook in module._forward_pre_hooks.values():
            hook(module, None)
    with torch.no_grad():
        for parameter in root.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


def _measure(watch: WeightWatch) -> np.ndarray[Any, Any]:
    return weight_statistics(watch.end(watch.norms()).numpy())


def _assert_statistics(got: np.ndarray[Any, Any], watch: WeightWatch, before: Any, after: Any, rtol: float) -> None:
    """``got`` is what float64 makes of the matrices; ``before`` may lack entries."""
    for entry in watch.entries:
        norm, ratio, norm_before = got[:, entry.offset : entry.offset + entry.neurons]
        rows = {"before": before[entry.module], "after": after[entry.module]}
        wanted = {name: row.norm(dim=1) for name, row in rows.items()}
        change = (rows["after"] - rows["before"]).norm(dim=1)
        np.testing.assert_allclose(norm, wanted["after"], rtol=rtol, err_msg=entry.module)
        np.testing.assert_allclose(norm_before, wanted["before"], rtol=rtol, err_msg=entry.module)
        np.testing.assert_allclose(ratio, change / wanted["before"], rtol=50 * rtol, err_msg=entry.module)


def _state(root: nn.Module) -> list[Any]:
    """All that a look at the weights could change."""
    tensors = [*root.state_dict().values()]
    values = [tensor.clone() for tensor in tensors]
    return [
        *values,
        torch.get_rng_state(),
        torch.tensor([tensor._version for tensor in [*root.parameters(), *root.buffers()]]),
        torch.tensor([module.training for module in root.modules()]),
        torch.tensor([getattr(module, "n_calls", 0) for module in root.modules()]),
        torch.tensor(random.getstate()[1]),
    ]


@pytest.mark.parametrize("name", CASES)
def test_norms_and_updates_equal_naive_ones(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    root = Root(case.make())
    watch = WeightWatch(root)
    assert [entry.module for entry in watch.entries] == [f"m{end}" for end in case.entries]
    assert watch.take_notes() == []
    assert not watch.is_sharded
    for _ in range(3):
        watch.begin()
        before = _matrices(root, case)
        _step(root)
        after = _matrices(root, case)
        assert [entry.neurons for entry in watch.entries] == [len(matrix) for matrix in after.values()]
        got = _measure(watch)
        assert got.shape == (3, watch.neurons)
        _assert_statistics(got, watch, before, after, rtol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_look_at_the_weights_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    root = Root(CASES[name].make())
    watch = WeightWatch(root)
    for mode in (True, False):
        root.train(mode)
        before = _state(root)
        watch.begin()
        _measure(watch)
        for one, other in zip(before, _state(root), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["lstm_layers", "lstm_both_ways", "lstm_projected", "gru", "rnn_both_ways"])
def test_a_neuron_of_a_recurrent_layer_is_its_output_of_that_number(name: str) -> None:
    torch.manual_seed(0)
    root = Root(CASES[name].make())
    recurrent, watch = root.m, WeightWatch(root)
    last = recurrent.num_layers - 1
    kind = "hr" if recurrent.proj_size else "ih"
    entry = next(entry for entry in watch.entries if entry.module == "m")
    x, seen = torch.randn(1, 3), set()
    for weight in [w for label, w in recurrent.named_parameters() if f"weight_{kind}_l{last}" in label]:
        for row in range(len(weight)):
            output = recurrent(x)[0]
            watch.begin()
            with torch.no_grad():
                weight[row] += 0.1
            _, ratio, _ = _measure(watch)[:, entry.offset : entry.offset + entry.neurons]
            changed = torch.nonzero((recurrent(x)[0] != output).flatten()).flatten().tolist()
            if changed:  # a forget gate changes nothing in a sequence of one
                assert np.flatnonzero(ratio).tolist() == changed
                seen.update(changed)
    assert seen == set(range(entry.neurons))


def test_tied_weights_are_those_of_the_first_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Embedding(4, 4))
    model[1].weight = model[0].weight
    model[2].weight = model[0].weight
    watch = WeightWatch(model)
    assert [entry.module for entry in watch.entries] == ["0"]
    assert len(watch.parameters) == 3


class Unreadable(nn.Module):
    """A parametrization that works for a while."""

    left = 10

    def forward(self, x: Tensor) -> Tensor:
        if not Unreadable.left:
            raise RuntimeError("no more")
        return x


def test_a_parametrization_that_fails_is_left_out_with_its_reason_once() -> None:
    model = nn.Sequential(nn.Linear(3, 2), register_parametrization(nn.Linear(2, 2), "weight", Unreadable()))
    Unreadable.left = 0
    watch = WeightWatch(model)
    assert [entry.module for entry in watch.entries] == ["0"]
    assert watch.take_notes() == ["the weights of 1 are not recorded: RuntimeError: no more"]
    watch.begin()
    assert np.isfinite(_measure(watch)).all()
    assert watch.take_notes() == []


def test_a_parametrization_that_begins_to_fail_leaves_the_others_alone() -> None:
    Unreadable.left = 10
    model = nn.Sequential(nn.Linear(3, 2), register_parametrization(nn.Linear(2, 2), "weight", Unreadable()))
    watch = WeightWatch(model)
    Unreadable.left = 0
    for _ in range(2):
        watch.begin()
        got = _measure(watch)
        assert np.isfinite(got[:, :2]).all()
        assert np.isnan(got[:, 2:]).all()
    assert watch.take_notes() == ["the weights of 1 are not recorded any more: RuntimeError: no more"]
