"""Matrices along the edges of networks against one relevance walk per neuron."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgm_tb.algorithms.edges import NEURON_FUNCTIONS, Wanted, edge_contributions, edges_into
from dgm_tb.algorithms.relevance import RelevanceMode, Walk, neuron_axis

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import (
    FLOAT,
    ConvolutionalVAE,
    Recurrent,
    Residual,
    Transformer,
    UNet,
    discriminator,
    generator,
    images,
    seeded,
    tokens,
)


def one_walk_per_neuron(mode: RelevanceMode, target: str, source: str) -> Tensor:
    slot = mode.slots[target]
    z = slot.outputs[0].tensor
    value = mode.slots[source].outputs[0] if source in mode.slots else slot.inputs[0]
    axis, source_axis = neuron_axis(slot.module, z), 1
    rows = []
    for neuron in range(z.shape[axis]):
        start = torch.zeros_like(z)
        start.select(axis, neuron).copy_(z.select(axis, neuron))
        walk = Walk(slot.outputs[0], start)
        for record in reversed(mode.records):
            if record is slot.outputs[0].record or record.name not in NEURON_FUNCTIONS:
                walk.step(record)
        r = walk.received[value]
        rows.append(r.sum([a for a in range(r.ndim) if a != source_axis]))
    return torch.stack(rows)


def test_the_matrix_of_every_edge_equals_one_walk_per_neuron() -> None:
    torch.manual_seed(0)
    model, x = seeded(ConvolutionalVAE), images()
    with torch.no_grad(), RelevanceMode(model, x) as mode:
        model(x)
    layers = ["conv1", "conv2", "conv2@1", "conv3", "dense", "mu", "lv", "decode", "deconv"]
    edges = {(target, source): m for target in layers for source, m in edge_contributions(mode, target).items()}
    assert set(edges) == {
        ("conv1", "input"),
        ("conv2", "conv1"),
        ("conv2@1", "conv1"),
        ("conv2@1", "conv2"),
        ("conv3", "conv1"),
        ("conv3", "conv2"),
        ("conv3", "conv2@1"),
        ("dense", "conv3"),
        ("mu", "dense"),  # neurons are mixed by the LayerNorm on this edge
        ("lv", "dense"),
        ("decode", "mu"),
        ("decode", "lv"),
        ("deconv", "decode"),  # a dense layer reshaped into feature maps
    }
    for (target, source), matrix in edges.items():
        truth = one_walk_per_neuron(mode, target, source)
        assert matrix.shape == truth.shape
        assert (matrix - truth).abs().max() <= 1e-3 * truth.abs().max(), (target, source)
        exact = edge_contributions(mode, target, output_relevance=mode.slots[target].outputs[0].tensor)[source]
        assert (exact - truth).abs().max() <= 1e-10 * truth.abs().max(), (target, source)


def test_edges_of_single_examples_add_up_to_the_batch() -> None:
    model, x = discriminator(), images()
    with torch.no_grad(), RelevanceMode(model, x) as mode:
        model(x)
    parts = [edge_contributions(mode, "5", examples=[i])["2"] for i in range(4)]
    assert torch.allclose(sum(parts), edge_contributions(mode, "5")["2"])


def test_edges_carry_backward_contributions() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).double(), images()
    with RelevanceMode(model, x) as mode:
        z = model(x)
    (gradient,) = torch.autograd.grad(z.square().sum() / 2, z)
    matrix = edge_contributions(mode, "2", rule="gradient", output_relevance=gradient)["0"]
    hidden = model[:2](x).detach()
    (weight_gradient,) = torch.autograd.grad(F.conv2d(hidden, model[2].weight), model[2].weight, gradient)
    assert torch.allclose(matrix, (model[2].weight * weight_gradient).sum((2, 3)))


# -- whole networks ----------------------------------------------------------------------------------------------------

LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.LSTM, nn.GRUCell, nn.MultiheadAttention)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, set[tuple[str, str]]]] = {
    "vae": (
        lambda: seeded(ConvolutionalVAE),
        images(),
        {
            ("conv2", "conv1"), ("conv2@1", "conv1"), ("conv2@1", "conv2"), ("conv3", "conv1"), ("conv3", "conv2"),
            ("conv3", "conv2@1"), ("dense", "conv3"), ("mu", "dense"), ("lv", "dense"), ("decode", "mu"),
            ("decode", "lv"), ("deconv", "decode"),
        },
    ),
    "generator": (generator, images()[:, :2, :3, :1].reshape(4, 6, 1, 1), {("3", "0")}),
    "discriminator": (discriminator, images(), {("2", "0"), ("5", "2")}),
    "resnet": (
        lambda: seeded(Residual),
        images(),
        {
            ("conv1", "stem.0"), ("shortcut.0", "stem.0"), ("conv2", "conv1"), ("conv3", "conv2"),
            ("conv3", "shortcut.0"), ("head", "conv2"), ("head", "shortcut.0"), ("head", "conv3"),
        },
    ),
    "u-net": (
        lambda: seeded(UNet),
        images(),
        {
            ("down", "enter"), ("down", "time"), ("gate", "down"), ("up", "down"), ("leave", "up"),
            ("leave", "enter"), ("leave", "time"),
        },  # nothing from up to gate, which takes nothing
    ),
    "transformer": (
        lambda: seeded(Transformer),
        tokens(),
        {("layers.0.self_attn", "embedding"), ("layers.0.linear1", "embedding")}
        | {("layers.0.linear1", "layers.0.self_attn"), ("layers.0.linear2", "layers.0.linear1")}
        | {
            (target, f"layers.0.{source}") if "." not in source else (target, source)
            for target in ("layers.1.self_attn", "layers.1.linear1", "head")
            for source in ("linear2", "self_attn")
        }
        | {(target, "embedding") for target in ("layers.1.self_attn", "layers.1.linear1", "head")}
        | {("layers.1.linear1", "layers.1.self_attn"), ("head", "layers.1.self_attn"), ("head", "layers.1.linear2")}
        | {("layers.1.linear2", "layers.1.linear1")},
    ),
    "lstm": (
        lambda: seeded(Recurrent),
        tokens(),
        {("lstm", "embedding"), ("cell", "lstm"), ("cell@1", "lstm"), ("cell@1", "cell"), ("head", "cell@1")},
    ),
}  # fmt: skip


def recorded(model: nn.Module, x: Tensor) -> RelevanceMode:
    modules = dict(model.named_modules())

    def layers(slot: str) -> list[tuple[str, int]]:
        module = modules[slot.partition("@")[0]]
        if not isinstance(module, LAYERS):
            return []
        return [(slot, 1 if isinstance(module, nn.modules.conv._ConvNd) else -1)]

    torch.manual_seed(0)
    with torch.no_grad(), RelevanceMode(model, x, layers=layers) as mode:
        model(x)
    return mode


def walks_to_layers(mode: RelevanceMode, target: str, start: Tensor) -> dict[str, Tensor]:
    """Target neuron after target neuron down to the nearest layers: ``[target neurons, source neurons]``."""
    slot, ends = mode.slots[target], {}
    for name, other in mode.slots.items():
        if isinstance(other.module, LAYERS) and name != target:
            ends[other.outputs[0]] = name
    axis = 1 if isinstance(slot.module, nn.modules.conv._ConvNd) else start.ndim - 1
    rows: dict[str, list[Tensor]] = {}
    for neuron in range(start.shape[axis]):
        one = torch.zeros_like(start)
        one.select(axis, neuron).copy_(start.select(axis, neuron))
        walk, reached = Walk(slot.outputs[0], one), {}
        for record in reversed(mode.records):
            reached |= {
                value: walk.received.pop(value) for value in record.outputs if value in ends and value in walk.received
            }
            walk.step(record)
        reached |= {value: r for value, r in walk.received.items() if value in ends}  # made of constants
        for value, name in ends.items():
            r = reached.get(value, torch.zeros_like(value.tensor, dtype=start.dtype))
            source_axis = 1 if isinstance(mode.slots[name].module, nn.modules.conv._ConvNd) else r.ndim - 1
            rows.setdefault(name, []).append(r.movedim(source_axis, 0).flatten(1).sum(1))
    return {name: torch.stack(parts) for name, parts in rows.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_edge_of_a_network_has_its_exact_matrix(name: str) -> None:
    make, x, expected = NETWORKS[name]
    mode = recorded(make(), x)
    rng, found = torch.Generator().manual_seed(1), set()
    for target, slot in mode.slots.items():
        if not isinstance(slot.module, LAYERS):
            continue
        z = slot.outputs[0].tensor
        gradient = torch.randn(z.shape, generator=rng, dtype=FLOAT)
        wanted = [Wanted(relevance=z), Wanted("gradient", gradient, [1, 3]), Wanted(examples=[2])]
        starts = [one.start(z) for one in wanted]
        for one, start, edges in zip(wanted, starts, edges_into(mode, target, wanted), strict=True):
            truth = walks_to_layers(mode, target, start)
            assert set(edges.matrices) == {source for source, matrix in truth.items() if matrix.any()}
            # the others of a linear layer are not divided by its output at all, and so have no stabiliser
            tolerance = 1e-10 if one.relevance is z else 1e-2
            for source, matrix in edges.matrices.items():
                assert (matrix - truth[source]).abs().max() <= tolerance * truth[source].abs().max(), (target, source)
                assert edges.arrived[source] == pytest.approx(float(truth[source].sum()), rel=1e-9, abs=1e-9)
            ended = sum(edges.arrived.values()) + sum(edges.leaked.values()) + sum(edges.stopped.values()) + edges.noise
            assert ended == pytest.approx(edges.total, rel=1e-9, abs=1e-12)
            assert torch.allclose(edges.totals.sum(), start.sum())
            assert not edges.stopped
            assert not edges.reasons
            found |= {(target, source) for source in edges.matrices}
    assert found == expected


def test_where_relevance_stops_is_named_with_its_share() -> None:
    torch.manual_seed(0)

    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(h + torch.fft.fft2(h).abs())

    model, x = Spectral().double(), images()
    (edges,) = edges_into(recorded(model, x), "last", [Wanted()])
    assert set(edges.stopped) == {"fft_fft2"}
    ended = sum(edges.arrived.values()) + sum(edges.leaked.values()) + sum(edges.stopped.values())
    assert ended == pytest.approx(edges.total)
    with torch.no_grad():
        h = model.first(x)
        direct = F.conv2d(h, model.last.weight).sum()
    assert edges.arrived["first"] == pytest.approx(float(direct), rel=1e-3)


def test_codes_that_were_chosen_are_a_source() -> None:
    torch.manual_seed(0)

    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.codes, self.decoder = nn.Linear(4, 3), nn.Embedding(5, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            z = self.encoder(x)
            return self.decoder(self.codes(torch.cdist(z, self.codes.weight).argmin(1)))

    model, x = Quantized().double(), torch.randn(6, 4, dtype=FLOAT)
    (edges,) = edges_into(recorded(model, x), "decoder", [Wanted()])
    q = model.codes(torch.cdist(model.encoder(x), model.codes.weight).argmin(1))
    assert torch.allclose(edges.matrices["codes"], model.decoder.weight * q.sum(0))


def test_too_many_mixed_neurons_are_a_reason() -> None:
    layers = nn.Linear(4, 3000), nn.LayerNorm(3000), nn.Linear(3000, 2)
    model, x = nn.Sequential(*layers).double(), torch.randn(2, 4, dtype=FLOAT)
    (edges,) = edges_into(recorded(model, x), "2", [Wanted()])
    assert edges.reasons == {"0": "its 3000 neurons are mixed on the way, and too many for a matrix"}
    assert not edges.matrices


def test_weights_that_changed_since_the_run_do_not_matter() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double(), torch.randn(5, 4, dtype=FLOAT)
    mode = recorded(model, x)
    truth = edge_contributions(mode, "2")["0"]
    with torch.no_grad(), RelevanceMode(model, x) as mode:
        model(x)
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(edge_contributions(mode, "2")["0"], truth)
