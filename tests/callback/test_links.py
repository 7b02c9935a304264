"""A link says whose neurons the columns of a contribution matrix are: moving a neuron moves its own columns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from models import CASES, Classifier, images
from torch import Tensor, nn
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback
from dgm_tb.callback.slots import floating_outputs
from dgm_tb.graph import Graph, Link


def _graph(model: L.LightningModule, data: Any, folder: Path) -> Graph:
    fit(model, loader(data), folder, DGMTrackerCallback(), max_steps=1)
    return Recording.of(folder).graph


def _links(model: L.LightningModule, folder: Path) -> dict[tuple[str, str], Link]:
    return {(link.source, link.target): link for link in _graph(model, images(), folder).links}


# -- every link of every model, by experiment --------------------------------------------------------------------------


class _Nothing:
    """Stands for optimizers and the trainer."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class _Experiment:
    """Runs a training step with one neuron of one call moved, and gives what then goes into the layers."""

    def __init__(self, model: L.LightningModule, batch: list[Tensor], loops: set[str]) -> None:
        self.model, self.batch, self.loops = model.train(), batch, loops
        for name in ("log", "log_dict", "manual_backward"):
            object.__setattr__(model, name, lambda *_, **__: None)
        chosen = model.configure_optimizers()
        n = len(chosen) if isinstance(chosen, list) else 1
        object.__setattr__(model, "optimizers", lambda: [_Nothing()] * n)

    def inputs(self, moved: tuple[str, int, int] | None = None) -> dict[str, Tensor]:
        """Slot -> input of its module; ``moved`` is a slot, the axis of its neurons, and the neuron."""
        found: dict[str, Tensor] = {}
        calls: dict[str, int] = {}

        def hook(name: str) -> Callable[..., Any]:
            def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
                call = calls[name] = calls.get(name, -1) + 1
                slot = name if not call or name in self.loops else f"{name}@{call}"
                given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
                if given and slot not in found:
                    found[slot] = given[0].detach().clone()
                places = dict(floating_outputs(output, module))
                target = next((p for p in places if moved is not None and slot + p == moved[0]), None)
                if target is not None and moved is not None and call == (0 if name in self.loops else call):
                    places[target].data.select(moved[1], moved[2]).add_(3.0)
                return output

            return after

        handles = [
            module.register_forward_hook(hook(name), with_kwargs=True)
            for name, module in self.model.named_modules()
            if name
        ]
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        torch.manual_seed(7)
        self.model.training_step(self.batch, 0)
        for handle in handles:
            handle.remove()
        for buffer, value in zip(self.model.buffers(), buffers, strict=True):
            buffer.data.copy_(value)
        return found


def _columns(x: Tensor, module: nn.Module, *, by_position: bool) -> Tensor:
    """``|x|`` summed for every column of a module's contribution matrix."""
    x = x.abs()
    if isinstance(module, nn.Linear):
        return x.flatten(0, -2).sum(0)
    return x.sum(0).flatten() if by_position else x.transpose(0, 1).flatten(1).sum(1)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("checkpointed_reentrant", "stateful")])
def test_moving_a_neuron_moves_its_columns_most(case: str, tmp_path: Path) -> None:
    chosen = CASES[case]
    torch.manual_seed(1)
    model = chosen.make()
    data = chosen.data()
    graph = _graph(model, data, tmp_path)
    layers = {layer.name: layer for layer in graph.layers}
    loops = {node.layer for node in graph.nodes if node.repeats > 1}
    experiment = _Experiment(model, next(iter(loader(data))), loops)
    before = experiment.inputs()
    links = [link for link in graph.links if link.kind != "exact"]  # an exact one has a matrix of its own
    for source in {link.source for link in links}:
        axis = 1 if len(layers[source].shape) == 4 else len(layers[source].shape) - 1
        for neuron in {0, layers[source].neurons - 1}:
            after = experiment.inputs((source, axis, neuron))
            for link in (link for link in links if link.source == source):
                module = model.get_submodule(layers[link.target].module)
                change = after[link.target] - before[link.target]
                moved = _columns(change, module, by_position=link.kind == "unflatten")
                own = moved[link.start : link.start + layers[source].neurons * link.group]
                first = link.start + neuron * link.group
                assert own.max() > 0, f"{link} does not join anything"
                assert first <= link.start + int(own.argmax()) < first + link.group, f"{link}, neuron {neuron}"


# -- what may lie between two layers -----------------------------------------------------------------------------------


class _Between(Classifier):
    """A function between a first layer (dense, or a convolution) and a dense last one."""

    def __init__(self, first: nn.Module, function: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.first, self.function, self.last = first, function, nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.function(self.first(x.flatten(1) if isinstance(self.first, nn.Linear) else x))
        h = self.last(h)
        return h.flatten(1, -2).mean(1) if h.dim() > 2 else h


def _dense() -> nn.Module:
    return nn.Linear(64, 8)


def _maps() -> nn.Module:
    return nn.Conv2d(1, 4, 3, padding=1)


ORDER = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])

KEEPING: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor], int, int]] = {
    "elementwise": (_dense, lambda x: torch.tanh(2 * x + 1).clamp(-0.5) / 3, 8, 1),
    "in place": (_dense, lambda x: x.mul_(2).relu_(), 8, 1),
    "there and back": (_dense, lambda x: x.view(-1, 1, 2, 4).flatten(1), 8, 1),
    "two axes in turn": (_dense, lambda x: x.T.T, 8, 1),
    "time first": (_dense, lambda x: x.expand(5, -1, -1).transpose(0, 1)[:, -1], 8, 1),
    "flattened maps": (_maps, lambda x: F.avg_pool2d(x, 2).flatten(1), 64, 16),
    "mean of positions": (_maps, lambda x: x.mean((2, 3)), 4, 1),
    "kept axes": (_maps, lambda x: x.mean((2, 3), keepdim=True)[..., 0, 0], 4, 1),
    "one position": (_maps, lambda x: x[:, :, 3, 4], 4, 1),
    "channels last": (_maps, lambda x: x.permute(0, 2, 3, 1), 4, 1),
    "positions as a sequence": (_maps, lambda x: x.flatten(2).transpose(1, 2), 4, 1),
    "detached": (_dense, lambda x: x.detach(), 8, 1),
}


@pytest.mark.parametrize("name", KEEPING)
def test_what_keeps_neurons_in_order_is_passed_through(name: str, tmp_path: Path) -> None:
    first, function, features, group = KEEPING[name]
    link = _links(_Between(first(), function, features), tmp_path)["first", "last"]
    assert (link.start, link.group) == (0, group)


LOSING: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor], int]] = {
    "permuted": (_dense, lambda x: x[:, ORDER], 8),
    "flipped": (_dense, lambda x: x.flip(1), 8),
    "half of them": (_dense, lambda x: x.chunk(2, 1)[0], 4),
    "every second": (_dense, lambda x: x[:, ::2], 4),
    "padded": (_dense, lambda x: F.pad(x, (4, 4)), 16),
    "mixed": (_dense, lambda x: torch.softmax(x, 1), 8),
    "joined": (_dense, lambda x: x + x.flip(0), 8),
    "positions first": (_maps, lambda x: x.permute(0, 2, 3, 1).flatten(1), 256),
    "along the width": (_maps, lambda x: x, 8),
    "mean of channels": (_maps, lambda x: x.mean(1).flatten(1), 64),
    "other groups": (_dense, lambda x: x.view(-1, 4, 2), 2),
    "blown up": (_dense, lambda x: x[:, :1] * torch.ones(8), 8),
    "with a constant": (_dense, lambda x: torch.cat([torch.ones(len(x), 1), x], 1), 9),
}


@pytest.mark.parametrize("name", LOSING)
def test_what_does_not_asks_for_a_matrix_of_its_own(name: str, tmp_path: Path) -> None:
    first, function, features = LOSING[name]
    graph = _graph(_Between(first(), function, features), images(), tmp_path)
    assert [(link.source, link.kind) for link in graph.links if link.target == "last"] == [("first", "exact")]
    assert "last" not in graph.no_contribution


class _Skipping(Classifier):
    """A concatenation of maps that is flattened, beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 3, 3, padding=1)
        self.numbers, self.last = nn.Linear(64, 5), nn.Linear(5 * 16 + 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = F.max_pool2d(torch.cat([self.left(x), torch.relu(self.right(x))], 1), 2)
        return self.last(torch.cat([maps.flatten(1), self.numbers(x.flatten(1))], 1))


def test_concatenations_give_each_part_its_columns(tmp_path: Path) -> None:
    links = _links(_Skipping(), tmp_path)
    found = {source: (link.start, link.group) for (source, target), link in links.items() if target == "last"}
    assert found == {"left": (0, 16), "right": (32, 16), "numbers": (80, 1)}


def test_reasons_name_where_a_layer_s_input_comes_from(tmp_path: Path) -> None:
    graph = _graph(CASES["penalized_gan"].make(), images(), tmp_path / "gan")
    assert graph.no_contribution["generator.0"] == "its source is a random variable (randn)"
    kinds = {link.kind for link in graph.links if link.target == "discriminator.0"}
    assert kinds == {"exact"}, "a mixture of real and generated images"
    graph = _graph(CASES["cnn"].make(), images(), tmp_path / "cnn")
    assert graph.no_contribution["net.0"] == "its source is the input of the model (batch[0])"


def test_a_dense_net_s_links_are_all_found(tmp_path: Path) -> None:
    class Dense(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64 + 2 * n, 2) for n in range(12))
            self.head = nn.Linear(64 + 24, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            for layer in self.layers:
                x = torch.cat([x, torch.relu(layer(x))], 1)
            return self.head(x)

    links = _graph(Dense(), images(), tmp_path).links
    found = {(link.source, link.target): link.start for link in links}
    assert {found[f"layers.{n}", "head"] for n in range(12)} == set(range(64, 88, 2))
    assert len([link for link in links if link.target == "layers.11"]) == 11
