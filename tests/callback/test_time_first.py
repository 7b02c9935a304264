"""Sequences with time first: what is said of single examples is said of examples, never of time steps."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import BATCH_SIZE, Classifier
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback

ABNORMAL = 21


class _TimeFirst(Classifier):
    """A recurrent layer and a dense one over all time steps ``[time, examples, features]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lstm = nn.Linear(5, 6), nn.LSTM(6, 7)
        self.each, self.head = nn.Linear(7, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.stem(x.transpose(0, 1)))
        return self.head(torch.sqrt(self.each(states) ** 2 + 1e-3).mean(0))


class _Encoder(_TimeFirst):
    """The same with torch's transformer layer, which computes the square of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0)
        self.each = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(self.stem(x.transpose(0, 1)))
        return self.head(self.each(h).square().mean(0))


def _sequences(length: int, scale: float) -> TensorDataset:
    rng = torch.Generator().manual_seed(21)
    x = torch.randn(48, length, 5, generator=rng)
    x[ABNORMAL] *= scale
    return TensorDataset(x, torch.randint(0, 3, (48,), generator=rng))


@pytest.mark.parametrize(("make", "scale"), [(_TimeFirst, float("nan")), (_Encoder, float("nan")), (_Encoder, 1e25)])
@pytest.mark.parametrize("length", [6, BATCH_SIZE])
def test_the_example_is_named_that_is_abnormal(make: Any, scale: float, length: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    callback = DGMTrackerCallback(on_finding="ignore")
    fit(make(), loader(_sequences(length, scale)), tmp_path, callback, max_epochs=1)
    found = [finding for finding in callback.findings if finding.kind in ("nonfinite", "outlier_sample")]
    assert found
    assert found[0].samples[:1] == [ABNORMAL]


def test_the_contributions_of_an_example_are_its_own(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, calls = _TimeFirst(), []

    def keep(module: nn.Module, args: Any) -> None:
        calls.append((copy.deepcopy(module.weight.detach()), args[0].detach().clone()))

    model.each.register_forward_pre_hook(keep)
    callback = DGMTrackerCallback(on_finding="ignore")
    fit(model, loader(_sequences(6, float("nan"))), tmp_path, callback, max_epochs=1)
    recording, finding = Recording.of(tmp_path), callback.findings[0]
    (record,) = [
        record
        for record in recording.kind("contribution")
        if (record.body["target"], record.body["samples"], record.body["direction"]) == ("each", "normal", "forward")
    ]
    weight, x = calls[finding.step]
    assert x.shape[:2] == (6, BATCH_SIZE)
    matrices = torch.einsum("tbi,oi->boi", x, weight)  # a dense layer's contributions: weight times input
    got = torch.from_numpy(record.arrays["values"].astype(np.float32))
    assert any(torch.allclose(matrix, got, rtol=5e-3, atol=1e-3) for matrix in matrices), "of one example, over time"


def test_the_relevance_of_a_layer_is_that_of_its_neurons(tmp_path: Path) -> None:
    class Exploding(_Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.exp(self.each(self.encoder(self.stem(x)) * x.abs().amax())).mean(1))

    torch.manual_seed(1)
    fit(Exploding(), loader(_sequences(9, 1e3)), tmp_path, DGMTrackerCallback(on_finding="ignore"), max_epochs=1)
    recording = Recording.of(tmp_path)
    neurons = {layer.name: layer.neurons for layer in recording.graph.layers}
    records = recording.kind("relevance")
    assert records
    for record in records:
        for name, _, width in record.body["layers"]:
            assert width == neurons[name]
