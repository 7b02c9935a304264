"""Matrices along the edges of networks against one relevance walk per neuron."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgm_tb.algorithms.edges import NEURON_FUNCTIONS, edge_contributions
from dgm_tb.algorithms.relevance import RelevanceMode, Walk, neuron_axis

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import ConvolutionalVAE, discriminator, images, seeded


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
