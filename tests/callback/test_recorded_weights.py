"""Recurrent, attention and normalised weights in a real training: recorded right, read back, and nothing changed."""

import copy
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from models import Classifier, tokens
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from training import Collected, Recording, fit, loader

from dgm_tb import DGMTrackerCallback, open_run
from dgm_tb.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


class Normalised(Classifier):
    """Every kind of weight that is not simply ``module.weight``."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.lstm = nn.LSTM(6, 7, num_layers=2, batch_first=True)
        self.spectral = parametrizations.spectral_norm(nn.Linear(7, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.weighted = parametrizations.weight_norm(nn.Linear(8, 6))
        self.old_spectral = old_spectral_norm(nn.Linear(6, 6))
        self.old_weighted = old_weight_norm(nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.spectral(self.lstm(self.embedding(x))[0])
        h = self.weighted(self.attention(h, h, h)[0]).relu().mean(1)
        return self.old_weighted(self.old_spectral(h))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def matrices(self) -> dict[str, Tensor]:
        """Entry -> what comes into each neuron ``[neurons, weights]``, in float64."""
        old, new = self.old_spectral, self.old_weighted
        matrix, direction = old.weight_orig, new.weight_v / new.weight_v.norm(dim=1, keepdim=True)
        found = {
            "embedding": self.embedding.weight.T,
            "lstm[l0]": _units(self.lstm, 0),
            "lstm": _units(self.lstm, 1),
            "spectral": copy.deepcopy(self.spectral).eval().weight,
            "attention": self.attention.in_proj_weight,
            "attention.out_proj": self.attention.out_proj.weight,
            "weighted": self.weighted.weight,
            "old_spectral": matrix / (old.weight_u @ matrix @ old.weight_v),
            "old_weighted": new.weight_g * direction,
        }
        return {name: matrix.detach().double().clone() for name, matrix in found.items()}


def _units(lstm: nn.LSTM, layer: int) -> Tensor:
    weights = (getattr(lstm, f"weight_{kind}_l{layer}") for kind in ("ih", "hh"))
    return torch.cat([gate for weight in weights for gate in weight.chunk(4)], 1)


class Oracle(L.Callback):
    """Norm and relative update of every neuron and step."""

    def __init__(self) -> None:
        self.norms: dict[str, list[Tensor]] = {}
        self.ratios: dict[str, list[Tensor]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._before = pl_module.matrices()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for name, after in pl_module.matrices().items():
            before = self._before[name]
            self.norms.setdefault(name, []).append(after.norm(dim=1))
            self.ratios.setdefault(name, []).append((after - before).norm(dim=1) / before.norm(dim=1))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Oracle, Path]:
    folder, oracle = tmp_path_factory.mktemp("recorded"), Oracle()
    torch.manual_seed(1)
    callback = DGMTrackerCallback(max_overhead=None, window_steps=1)
    fit(Normalised(), loader(tokens()), folder, callback, others=(oracle,), max_epochs=2)
    return oracle, folder


def test_norms_and_updates_of_every_step_equal_the_oracle(recorded: tuple[Oracle, Path]) -> None:
    oracle, folder = recorded
    recording = Recording.of(folder)
    assert [weight.module for weight in recording.graph.weights] == list(oracle.norms)
    assert recording.notes == []
    for name in oracle.norms:
        for quantity, column, wanted in (("weight", "norm", oracle.norms), ("update", "ratio", oracle.ratios)):
            got = recording.dynamics(name, quantity, f"{column}/mean")
            np.testing.assert_allclose(got, torch.stack(wanted[name]), rtol=2e-4, atol=1e-6, err_msg=f"{name} {column}")


def test_the_recording_opens_and_gives_the_weights_of_a_layer(
    recorded: tuple[Oracle, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    oracle, folder = recorded
    run = open_run(folder)
    for layer in ("lstm", "spectral", "attention", "old_weighted"):
        found = run.dynamics(layer, "weight")
        np.testing.assert_allclose(found.values, torch.stack(oracle.norms[layer], 1), rtol=1e-3)
    assert main(["inspect", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "lstm" in printed
    assert "attention" in printed
    assert main(["diagnose", str(folder)]) == 0


def test_weights_that_are_computed_train_the_same(tmp_path: Path) -> None:
    outcomes = []
    for callback in (None, DGMTrackerCallback(max_overhead=None, window_steps=1, snapshot_steps=2)):
        torch.manual_seed(1)
        model, collected = Normalised(), Collected()
        folder = tmp_path / str(callback is None)
        trainer = fit(model, loader(tokens()), folder, callback, others=(collected,), max_epochs=3)
        state = {**model.state_dict(), **trainer.optimizers[0].state_dict()["state"][0]}
        outcomes.append([*collected.losses, *state.values(), torch.get_rng_state()])
    for bare, watched in zip(*outcomes, strict=True):
        assert torch.equal(bare, watched)
