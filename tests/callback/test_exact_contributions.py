"""Edges that no layer's own matrix covers: their matrices are those of the step, and every one is there or says why."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import CASES, VAE, Attentive, Classifier, images, images_with, tokens
from test_recorded_contributions import Calls
from torch import Tensor, nn
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback, open_run
from dgm_tb.records import Record, expand

Key = tuple[str, str, str, str]


def _exact(recording: Recording, step: int, finding: str = "") -> dict[Key, Record]:
    """Source, target, direction and samples -> record."""
    found = {}
    for record in recording.kind("contribution"):
        body = record.body
        if body["columns"] == "neurons" and body["step"] == step and body["finding"] == finding:
            key = body["source"], body["target"], body["direction"], body["samples"]
            assert key not in found
            found[key] = record
    return found


def _values(record: Record) -> np.ndarray[Any, Any]:
    return expand("values", record.arrays["values"], record.body).astype(np.float64)


def _assert_close(record: Record, want: Tensor) -> None:
    expected = want.detach().double().numpy()
    np.testing.assert_allclose(_values(record), expected, rtol=5e-3, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_every_edge_of_every_model_has_a_matrix_or_a_reason_and_adds_up(case: str, tmp_path: Path) -> None:
    chosen = CASES[case]
    torch.manual_seed(1)
    fit(
        chosen.make(),
        loader(chosen.data()),
        tmp_path,
        DGMTrackerCallback(exact_snapshots=True),
        max_steps=2,
        **chosen.trainer,
    )
    recording = Recording.of(tmp_path)
    graph, found = recording.graph, _exact(recording, 1)
    neurons = {layer.name: layer.neurons for layer in graph.layers}
    links = {(link.source, link.target) for link in graph.links if link.kind == "exact"}
    ran = {name for name in neurons if any(name in (r.body["target"], r.body.get("source")) for r in found.values())}
    forward = {(source, target) for source, target, direction, _ in found if direction == "forward"}
    assert forward == {(source, target) for source, target in links if {source, target} <= ran}
    assert recording.notes == []
    for (source, target, direction, _), record in found.items():
        body, values = record.body, _values(record)
        if body["reason"]:
            assert "no relevance reaches it" in body["reason"]
            assert values.shape == (neurons[target], 0)
            continue
        assert values.shape == (neurons[target], neurons[source]), (source, target, direction)
        parts = [*body["arrived"].values(), *body["leaked"].values(), *body["stopped"].values(), body["noise"]]
        size = max(map(abs, parts))
        assert math.isclose(sum(parts), body["total"], rel_tol=1e-3, abs_tol=1e-3 * size)
        assert math.isclose(float(values.sum()), body["arrived"].get(source, 0.0), rel_tol=1e-2, abs_tol=1e-2 * size)
        assert math.isclose(float(record.arrays["relevance"].sum()), body["total"], rel_tol=1e-3, abs_tol=1e-3 * size)


def test_sampling_gives_the_mean_its_part_and_the_log_variance_the_noise_it_scaled(tmp_path: Path) -> None:
    calls = Calls(step=1)
    means: list[Tensor] = []

    class Watched(VAE):
        def sample(self, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
            means.append(mean.detach().clone())
            return super().sample(mean, log_variance)

    fit(Watched(), loader(images()), tmp_path, DGMTrackerCallback(exact_snapshots=True), others=(calls,), max_steps=2)
    found = _exact(Recording.of(tmp_path), 1)
    for layer, of_mean, of_variance, call in (
        ("between.0", "mean1", "log_variance1", 2),
        ("decoder.0", "mean2", "log_variance2", 3),
    ):
        module, z = calls.calls[layer]
        mean, gradient = means[-4:][call] if len(means) > 4 else means[call], calls.gradients[layer]
        for direction, g in (("forward", torch.ones_like(gradient)), ("backward", gradient)):
            _assert_close(found[of_mean, layer, direction, "batch"], module.weight * (g.T @ mean))
            _assert_close(found[of_variance, layer, direction, "batch"], module.weight * (g.T @ (z - mean)))


class _Blocks(Classifier):
    """Two residual sums of dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(64, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1))
        return self.head(h + torch.relu(self.block(h)))


def test_each_addend_of_a_residual_sum_has_its_own_matrix(tmp_path: Path) -> None:
    calls = Calls(step=1)
    fit(_Blocks(), loader(images()), tmp_path, DGMTrackerCallback(exact_snapshots=True), others=(calls,), max_steps=2)
    found = _exact(Recording.of(tmp_path), 1)
    module, x = calls.calls["head"]
    _, stem = calls.calls["block"]
    _assert_close(found["stem", "head", "forward", "batch"], module.weight * stem.sum(0))
    _assert_close(found["block", "head", "forward", "batch"], module.weight * (x - stem).sum(0))
    gradient = calls.gradients["head"]
    _assert_close(found["block", "head", "backward", "batch"], module.weight * (gradient.T @ (x - stem)))


def test_findings_have_exact_matrices_of_the_abnormal_and_of_a_normal_example(tmp_path: Path) -> None:
    fit(VAE(), loader(images_with(21, 1e3)), tmp_path, DGMTrackerCallback(on_finding="ignore"), max_epochs=1)
    recording = Recording.of(tmp_path)
    (body,) = {r.body["finding"]: r.body for r in recording.kind("contribution") if r.body["finding"]}.values()
    found = _exact(recording, body["step"], body["finding"])
    of_decoder = {(source, samples) for source, target, _, samples in found if target == "decoder.0"}
    assert of_decoder == {(s, e) for s in ("mean2", "log_variance2") for e in ("batch", "abnormal", "normal")}
    both = (np.abs(_values(found["mean2", "decoder.0", "forward", e])) for e in ("abnormal", "normal"))
    abnormal, normal = (np.nan_to_num(matrix, nan=np.inf).max() for matrix in both)
    assert abnormal > 10 * normal, "or not finite"


def test_what_is_read_back_is_what_was_written(tmp_path: Path) -> None:
    fit(Attentive(), loader(tokens()), tmp_path, DGMTrackerCallback(exact_snapshots=True), max_steps=2)
    run = open_run(tmp_path / "run")
    record = _exact(Recording.of(tmp_path), 1)["embedding", "attention", "forward", "batch"]
    matrix = run.contribution("embedding", "attention", 1)
    np.testing.assert_allclose(np.asarray(matrix), _values(record), rtol=1e-6)
    assert matrix.kind == "exact"
    np.testing.assert_array_equal(matrix.relevance, record.arrays["relevance"])
    assert matrix.ended["total"] == pytest.approx(record.body["total"])


def test_a_gate_takes_nothing_and_says_so(tmp_path: Path) -> None:
    class Gated(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.signal, self.gate, self.head = nn.Linear(64, 6), nn.Linear(64, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.head(self.signal(x) * torch.sigmoid(self.gate(x)))

    fit(Gated(), loader(images()), tmp_path, DGMTrackerCallback(exact_snapshots=True), max_steps=2)
    found = _exact(Recording.of(tmp_path), 1)
    record = found["gate", "head", "forward", "batch"]
    assert record.body["reason"] == "no relevance reaches it from head: only as a gate, a scale or an index"
    with pytest.raises(Exception, match="only as a gate"):
        open_run(tmp_path / "run").contribution("gate", "head", 1)
    assert _values(found["signal", "head", "forward", "batch"]).any()
