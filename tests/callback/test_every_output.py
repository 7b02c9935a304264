"""Of every model in the table, every output of every module: what is recorded equals the naive computation."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from models import CASES
from torch import Tensor, nn
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback
from dgm_tb.records import STATISTICS

STEPS = 2
Values = dict[tuple[str, int, str], list[Tensor]]


class _Outputs(L.Callback):
    """Per step: (module, call, place in its output) -> outputs, and gradients, as ``[neurons, values]``."""

    def __init__(self) -> None:
        self.activations: list[Values] = []
        self.gradients: list[Values] = []
        self._calls: defaultdict[tuple[str, bool], int] = defaultdict(int)

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        for name, module in pl_module.named_modules():
            if name:
                module.register_forward_hook(self._hook(name))

    def on_train_batch_start(self, *_: Any) -> None:
        self.activations.append(defaultdict(list))
        self.gradients.append(defaultdict(list))
        self._calls.clear()

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            is_again = torch._C._current_graph_task_id() != -1
            call = self._calls[name, is_again]
            self._calls[name, is_again] += 1
            for place, x in _floating(output):
                key = name, call, place
                if not is_again:
                    self.activations[-1][key].append(_by_neuron(x))
                if x.requires_grad:
                    x.register_hook(lambda g, key=key, into=self.gradients[-1]: self._note(into, key, g))

        return hook

    def _note(self, into: Values, key: tuple[str, int, str], gradient: Tensor) -> None:
        if not torch.is_grad_enabled():
            into[key].append(_by_neuron(gradient))

    def of_layer(self, step: int, name: str, module: str, quantity: str, *, is_loop: bool) -> Tensor | None:
        """All values of a layer ``[neurons, values]``; those of all turns, if it is a loop."""
        steps = self.activations if quantity == "activation" else self.gradients
        place = f"[{name.partition('[')[2]}" if "[" in name else ""
        call = int(name.partition("[")[0].partition("@")[2] or 0)
        found = [
            torch.stack(values).sum(0) if quantity == "gradient" else values[0]
            for (of, n, at), values in steps[step].items()
            if of == module and at == place and (is_loop or n == call)
        ]
        return torch.cat(found, 1) if found else None


def _floating(output: Any) -> list[tuple[str, Tensor]]:
    """Every floating-point tensor with its place; the first one's is empty."""
    leaves: list[tuple[str, Tensor]] = []

    def walk(value: Any, at: str) -> None:
        if isinstance(value, Tensor):
            if value.is_floating_point() and value.dim():
                leaves.append((at, value))
            return
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
        items = vars(value).items() if hasattr(value, "__dataclass_fields__") else items
        for key, item in items:
            walk(item, f"{at}[{key}]")

    walk(output, "")
    return [("" if not number else at, x) for number, (at, x) in enumerate(leaves)]


def _by_neuron(x: Tensor) -> Tensor:
    """``[neurons, values]`` in float64: maps and attention weights per channel and head, all else per unit."""
    x = x.detach().double().clone()
    return x.unsqueeze(0) if x.dim() == 1 else x.movedim(1 if x.dim() == 4 else -1, 0).flatten(1)


NAIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda v: v.mean(-1),
    "std": lambda v: v.std(-1, correction=0),
    "min": lambda v: v.amin(-1),
    "max": lambda v: v.amax(-1),
    "rms": lambda v: v.square().mean(-1).sqrt(),
}


@pytest.mark.parametrize("case", CASES)
def test_statistics_equal_the_naive_ones(case: str, tmp_path: Path) -> None:
    chosen, outputs = CASES[case], _Outputs()
    torch.manual_seed(1)
    callback = DGMTrackerCallback(max_overhead=None, window_steps=1)
    options = {"limit_train_batches": STEPS, "max_epochs": 1, **chosen.trainer}
    fit(chosen.make(), loader(chosen.data()), tmp_path, callback, others=(outputs,), **options)
    recording = Recording.of(tmp_path)
    graph = recording.graph
    loops = {node.layer.partition("[")[0] for node in graph.nodes if node.kind == "module" and node.repeats > 1}
    loops &= {name for name in loops if any(call for of, call, _ in outputs.activations[0] if of == name)}
    for layer in graph.layers:
        for quantity in ("activation", "gradient"):
            for statistic in STATISTICS[quantity]:
                if statistic.name not in NAIVE:
                    continue
                got = recording.dynamics(layer.name, quantity, f"{statistic.name}/{statistic.windows[0]}")
                assert len(got) == STEPS
                for step in range(STEPS):
                    is_loop = layer.module in loops
                    values = outputs.of_layer(step, layer.name, layer.module, quantity, is_loop=is_loop)
                    if values is None:
                        assert np.isnan(got[step]).all(), f"{layer.name} {quantity}"
                        continue
                    want = NAIVE[statistic.name](values).numpy()
                    size = float(values.abs().max()) if statistic.name == "mean" else np.abs(want).max()
                    atol = 1e-3 * size + 1e-12
                    message = f"{layer.name} {quantity} {statistic.name}"
                    np.testing.assert_allclose(got[step], want, rtol=2e-3, atol=atol, err_msg=message)
