"""The DAG of the first real batch: layers, functions, random variables, losses, skip connections, what is detached."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from models import CASES, CNN, images
from torch import Tensor, nn
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback
from dgm_tb.callback.tracer import RANDOM
from dgm_tb.graph import LINK_KINDS, NODE_KINDS, Graph


@pytest.fixture(scope="module")
def graph_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Case -> its graph, made once."""
    made: dict[str, Graph] = {}

    def get(case: str) -> Graph:
        if case not in made:
            chosen, folder = CASES[case], tmp_path_factory.mktemp(case)
            fit(chosen.make(), loader(chosen.data()), folder, DGMTrackerCallback(), max_steps=6, **chosen.trainer)
            made[case] = Recording.of(folder).graph
        return made[case]

    return get


def _edges(graph: Graph) -> set[tuple[str, str]]:
    return {(edge.source, edge.target) for edge in graph.edges}


def _kinds(graph: Graph, kind: str) -> list[str]:
    return [node.id for node in graph.nodes if node.kind == kind]


def _chain(*names: str) -> set[tuple[str, str]]:
    return set(pairwise(names))


def _reaches(graph: Graph, source: str, target: str) -> bool:
    parents, found = graph.parents(), {target}
    for node in reversed(graph.nodes):
        if node.id in found:
            found.update(parents[node.id])
    return source in found


@pytest.mark.parametrize("case", CASES)
def test_every_graph_is_sound(case: str, graph_of: Any) -> None:
    graph: Graph = graph_of(case)
    order = {node.id: number for number, node in enumerate(graph.nodes)}
    assert len(order) == len(graph.nodes), "ids are unique"
    assert {node.kind for node in graph.nodes} <= set(NODE_KINDS)
    assert all(order[edge.source] < order[edge.target] for edge in graph.edges), "nodes come in data-flow order"
    offsets = [0]
    for layer in graph.layers:
        assert layer.offset == offsets[-1]
        assert layer.module in graph.modules
        assert layer.name.partition("[")[0] in order, "every layer is in the DAG"
        offsets.append(layer.offset + layer.neurons)
    ranks = [order[layer.name.partition("[")[0]] for layer in graph.flow_order()]
    assert ranks == sorted(ranks), "further outputs follow their module"


@pytest.mark.parametrize("case", CASES)
def test_every_layer_with_weights_has_links_or_a_reason(case: str, graph_of: Any) -> None:
    graph: Graph = graph_of(case)
    model = CASES[case].make()
    layers = {layer.name: layer for layer in graph.layers}
    for link in graph.links:
        assert link.kind in LINK_KINDS
        if link.kind == "exact":
            continue  # a matrix of its own
        source, module = layers[link.source], model.get_submodule(layers[link.target].module)
        width = module.in_features if isinstance(module, nn.Linear) else module.in_channels
        if link.kind == "unflatten":
            assert source.neurons % width == 0
        else:
            assert link.start + source.neurons * link.group <= width
    for layer in graph.layers:
        if isinstance(model.get_submodule(layer.module), (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            has_link = any(link.target == layer.name for link in graph.links)
            assert has_link != (layer.name in graph.no_contribution), layer.name


def test_the_dag_of_the_vae_shows_its_random_variables_and_losses(graph_of: Any) -> None:
    graph: Graph = graph_of("vae")
    assert _kinds(graph, "random") == ["randn_like", "randn_like:1"]
    assert _kinds(graph, "loss") == ["mse_loss", "loss"]
    assert _kinds(graph, "input") == ["batch[0]"]
    edges = _edges(graph)
    assert _chain("batch[0]", "encoder.0", "encoder.1", "encoder.2", "encoder.3", "flatten") <= edges
    for n, features, following in ((1, "flatten", "between.0"), (2, "between.1", "decoder.0")):
        suffix = "" if n == 1 else ":1"
        assert {(features, f"mean{n}"), (features, f"log_variance{n}")} <= edges
        assert _chain(f"log_variance{n}", f"exp{suffix}", f"sqrt{suffix}") <= edges
        (scaled,) = [target for source, target in edges if source == f"randn_like{suffix}"]
        assert (f"sqrt{suffix}", scaled) in edges
        (sample,) = [target for source, target in edges if source == scaled]
        assert {(f"mean{n}", sample), (sample, following)} <= edges
        assert _reaches(graph, f"mean{n}", "loss")
    decoder = [f"decoder.{n}" for n in range(7)]
    assert _chain(*decoder, "mse_loss") | {("batch[0]", "mse_loss")} <= edges
    assert not [source for source, target in edges if target.startswith("randn")], "*_like takes the shape only"


def test_rsample_of_a_distribution_is_a_random_variable(graph_of: Any) -> None:
    graph: Graph = graph_of("distribution_vae")
    randoms = _kinds(graph, "random")
    assert len(randoms) == 2
    assert {node.op for node in graph.nodes if node.kind == "random"} <= RANDOM
    assert all(_reaches(graph, name, "decoder.0") for name in randoms)


def test_the_dag_of_the_gan_shows_three_calls_and_what_is_detached(graph_of: Any) -> None:
    graph: Graph = graph_of("gan")
    edges = _edges(graph)
    assert _kinds(graph, "random") == ["randn"]
    assert _kinds(graph, "detach") == ["detach"]
    assert len([name for name in _kinds(graph, "loss") if name.startswith("binary_cross_entropy")]) == 3
    assert {"loss", "loss@1"} <= set(_kinds(graph, "loss")), "one for each backward pass"
    assert {("to_image.3", "detach"), ("detach", "discriminator.0@1"), ("to_image.3", "discriminator.0@2")} <= edges
    for call in ("", "@1", "@2"):
        assert _chain(*(f"discriminator.{n}{call}" for n in range(4))) <= edges
    assert _reaches(graph, "batch[0]", "discriminator.0")
    assert not _reaches(graph, "randn", "discriminator.0")
    assert _reaches(graph, "randn", "loss@1")
    assert len(graph.nodes) < 45, "no operations of the optimizers"
    assert not {"addcdiv", "lerp", "addcmul", "sqrt"} & {node.op for node in graph.nodes}


def test_the_dag_of_the_cnn_is_a_chain(graph_of: Any) -> None:
    graph: Graph = graph_of("cnn")
    chain = _chain("batch[0]", *(f"net.{n}" for n in range(10)), "cross_entropy")
    assert chain | {("batch[1]", "cross_entropy")} <= _edges(graph)
    assert _reaches(graph, "cross_entropy", "loss")


def test_skip_connections_have_two_ways(graph_of: Any) -> None:
    edges = _edges(graph_of("residual"))
    assert _chain("stem", "relu", "block.0", "block.1", "block.2", "add", "relu:1", "cat", "join") <= edges
    assert {("relu", "add"), ("relu", "cat")} <= edges


def _parents(graph: Graph) -> dict[str, set[str]]:
    return {name: set(parents) for name, parents in graph.parents().items()}


def test_the_dag_of_the_resnet_adds_in_place(graph_of: Any) -> None:
    graph: Graph = graph_of("resnet")
    parents = _parents(graph)
    assert parents["blocks.0.add"] == {"blocks.0.bn2", "blocks.0.shortcut"}
    assert parents["blocks.0.shortcut"] == {"stem"}, "an empty shortcut is the identity"
    assert parents["blocks.1.add"] == {"blocks.1.bn2", "blocks.1.shortcut"}
    assert parents["blocks.1.relu@1"] == {"blocks.1.add"}
    assert "blocks.0.shortcut" in graph.unrecorded


def test_the_dag_of_the_u_net_shows_skips_time_and_noise(graph_of: Any) -> None:
    graph: Graph = graph_of("diffusion")
    parents = _parents(graph)
    assert _kinds(graph, "random") == ["randint", "randn_like"]
    assert parents["net.cat:1"] == {"net.up", "net.enter.silu"}
    assert parents["net.cat:2"] == {"net.leave.silu", "add"}
    for block in ("enter", "middle", "leave"):
        assert parents[f"net.{block}.time"] == {"net.embed.1"}
        assert parents[f"net.{block}.add"] == {f"net.{block}.norm", f"net.{block}.getitem"}
    assert parents["net.embed.0"] == {"net.cat"}
    assert parents["net.cat"] == {"net.sin", "net.cos"}
    assert parents["mse_loss"] == {"net.out", "randn_like"}, "the noise is what is predicted"
    assert _reaches(graph, "randint", "add")
    assert {node.module for node in graph.nodes if node.id.startswith("net.enter.")} == {"net.enter"}
    columns = {(link.source, link.target): link.start for link in graph.links}
    assert columns["net.up", "net.leave.conv"] == 0


def test_the_dag_of_the_flow_shows_couplings_and_log_determinants(graph_of: Any) -> None:
    graph: Graph = graph_of("flow")
    parents = _parents(graph)
    for n in range(3):
        here = f"couplings.{n}"
        assert parents[f"{here}.cat"] == {f"{here}.add", f"{here}.chunk"}
        assert parents[f"{here}.mul"] == {f"{here}.chunk", f"{here}.exp"}
        assert parents[f"{here}.add"] == {f"{here}.mul", f"{here}.split"}
        assert parents[f"{here}.net.0"] == {f"{here}.chunk"}
        assert parents[f"{here}.chunk"] == ({"sub"} if n == 0 else {f"couplings.{n - 1}.cat"})
    assert parents["add:2"] == {"add:1", "couplings.2.sum"}
    halves = [link for link in graph.links if link.target.endswith("net.0")]
    assert {link.kind for link in halves} == {"exact"}, "a half of the neurons"


@pytest.mark.parametrize("case", ["transformer", "transformer_time_first", "checkpointed_transformer"])
def test_the_dag_of_the_transformer(case: str, graph_of: Any) -> None:
    graph: Graph = graph_of(case)
    parents = _parents(graph)
    before = "add" if case != "transformer_time_first" else "transpose"
    for n in range(2):
        here = f"encoder.layers.{n}"
        chain = ("self_attn", "dropout1", "add", "norm1", "linear1", "relu", "dropout", "linear2", "dropout2", "add:1")
        assert _chain(*(f"{here}.{name}" for name in (*chain, "norm2"))) <= _edges(graph)
        assert parents[f"{here}.self_attn"] == {before}
        assert parents[f"{here}.add"] == {before, f"{here}.dropout1"}
        assert parents[f"{here}.add:1"] == {f"{here}.norm1", f"{here}.dropout2"}
        before = f"{here}.norm2"
    assert _kinds(graph, "parameter") == ["positions"]
    (source,) = [source for source, target in _edges(graph) if target == "head"]
    assert (before, source) in _edges(graph)
    links = {(link.source, link.target): link for link in graph.links}
    assert links["encoder.layers.1.norm2", "head"].kind == "channels", "one step, or the mean over them"


def test_the_dag_of_the_vq_vae_shows_what_is_detached(graph_of: Any) -> None:
    graph: Graph = graph_of("vq_vae")
    parents = _parents(graph)
    assert _kinds(graph, "detach") == ["detach", "detach:1", "detach:2"]
    assert parents["codes"] == {"argmin"}
    assert parents["add:2"] == {"encoder.2", "detach:2"}, "straight through"
    assert parents["decoder.0"] == {"add:2"}
    assert _reaches(graph, "codes.weight", "argmin")


def test_the_dag_of_a_gradient_penalty_shows_the_inner_gradient(graph_of: Any) -> None:
    graph: Graph = graph_of("penalized_gan")
    assert _chain("discriminator.3", "sum", "grad", "flatten", "norm") <= _edges(graph)
    assert _parents(graph)["grad"] == {"sum", "add"}
    assert _reaches(graph, "grad", "loss")
    assert not _reaches(graph, "grad", "loss@1")
    for call in ("", "@1", "@2", "@3"):
        assert _chain(*(f"discriminator.{n}{call}" for n in range(4))) <= _edges(graph)


def test_normalised_weights_change_no_type(graph_of: Any) -> None:
    plain, normalised = graph_of("gan"), graph_of("normalized_gan")
    assert [(n.id, n.op) for n in normalised.nodes] == [(n.id, n.op) for n in plain.nodes]
    assert [(layer.name, layer.type) for layer in normalised.layers] == [(n.name, n.type) for n in plain.layers]
    assert normalised.modules["discriminator.0"] == "Conv2d"


def test_identical_blocks_are_nodes_of_their_own(graph_of: Any) -> None:
    graph: Graph = graph_of("blocks")
    blocks = [node.id for node in graph.nodes if node.module.startswith("blocks.")]
    assert len(blocks) == 12 * 5
    assert {node.repeats for node in graph.nodes} == {1}
    assert _chain("blocks.3.add", "blocks.4.norm", "blocks.4.up", "blocks.4.gelu", "blocks.4.down") <= _edges(graph)


def test_packed_sequences_pass_through_a_recurrent_layer(graph_of: Any) -> None:
    parents = _parents(graph_of("packed_gru"))
    assert parents["gru"] == {"pack_padded_sequence"}
    assert "gru" in parents["pad_packed_sequence"]


def test_attention_weights_of_the_heads_go_their_own_way(graph_of: Any) -> None:
    graph: Graph = graph_of("heads")
    parents = _parents(graph)
    assert parents["gt"] == {"attention"}
    assert parents["scaled_dot_product_attention"] == parents["einsum"] == {"chunk"}
    assert {layer.name: layer.neurons for layer in graph.layers}["attention[1]"] == 2


def test_links_join_the_neurons_of_neighbouring_layers(graph_of: Any) -> None:
    links = {(link.source, link.target): link for link in graph_of("vae").links}
    assert links["encoder.1", "encoder.2"].kind == "channels"
    assert (links["encoder.3", "mean1"].kind, links["encoder.3", "mean1"].group) == ("flatten", 4)
    assert links["decoder.1", "decoder.3"].kind == "unflatten"
    assert {("encoder.0", "encoder.2"), ("between.0", "mean2"), ("decoder.3", "decoder.5")} <= set(links)
    links = {(link.source, link.target): link for link in graph_of("gan").links}
    assert ("to_image.2", "discriminator.0@1") in links, "through tanh and detach"
    assert ("generator.3", "to_image.2") in links, "through BatchNorm and ReLU"
    links = {(link.source, link.target): link for link in graph_of("cnn").links}
    assert ("net.0", "net.4") in links, "through BatchNorm, ReLU and pooling"
    assert (links["net.4", "net.9"].kind, links["net.4", "net.9"].group) == ("flatten", 16)
    links = {(link.source, link.target): link for link in graph_of("residual").links}
    assert links["stem", "join"].start == 0


def test_modules_and_what_is_not_recorded_are_named(graph_of: Any) -> None:
    graph: Graph = graph_of("cnn")
    assert graph.modules["net"] == "Sequential"
    assert graph.modules["net.1"] == "BatchNorm2d"
    assert "net.8" in graph.unrecorded
    assert {node.module for node in graph.nodes if node.id.startswith("net.")} == {"net"}


class _WithMetrics(CNN):
    """Computes things on the side that are no part of the model."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx)
        with torch.no_grad():
            accuracy = (self.net[0].weight.abs().mean() + batch[1].float().mean()).sigmoid()
        self.log("accuracy", accuracy)
        return loss


def test_what_leads_to_no_loss_is_left_out(tmp_path: Path) -> None:
    fit(_WithMetrics(), loader(images()), tmp_path, DGMTrackerCallback(), max_steps=1)
    assert not {"sigmoid", "abs"} & {node.op for node in Recording.of(tmp_path).graph.nodes}
