"""A loop in plain PyTorch is recorded as a Lightning training is, with one call per step."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loops import LOOPS, VAE, batches, cnn, our_warnings, run
from models import Classifier, images_with
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from training import Recording, fit

import dgm_tb
from dgm_tb import DGMTrackerCallback
from dgm_tb.records import STATISTICS

ABNORMAL = 21


# -- what is recorded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOOPS)
def test_every_step_is_recorded_with_its_losses(name: str, tmp_path: Path) -> None:
    with our_warnings() as texts:
        outcome = run(name, tmp_path)
    recording = Recording.of(tmp_path)
    recorded = recording.losses()
    assert [{key: series[step] for key, series in recorded.items()} for step in range(12)] == outcome.losses
    assert recording.steps() == [(n, (n + 1) * (2 if name == "gan" else 1)) for n in range(12)]
    assert recording.end == {**recording.end, "reason": "finished", "last_step": 11}
    assert recording.notes == []
    assert texts == []
    assert outcome.recorder.findings == []
    assert outcome.recorder.n_steps == 12
    assert len(recording.kind("graph")) == 1, "every layer is there from the first step on"


class _Lit(Classifier):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-3)


def test_the_numbers_are_those_of_the_same_training_with_lightning(tmp_path: Path) -> None:
    run("cnn", tmp_path / "plain", epochs=1)
    torch.manual_seed(1)
    callback = DGMTrackerCallback(window_steps=1, max_overhead=None)
    fit(_Lit(cnn()), batches(), tmp_path / "lightning", callback, max_epochs=1)
    plain, other = Recording.of(tmp_path / "plain"), Recording.of(tmp_path / "lightning")
    assert plain.losses()["loss"] == other.losses()["loss"]
    assert [f"net.{layer.name}" for layer in plain.graph.layers] == [layer.name for layer in other.graph.layers]
    for quantity, statistics in STATISTICS.items():
        rows = plain.graph.weights if quantity in ("weight", "update") else plain.graph.layers
        names = [row.module if quantity in ("weight", "update") else row.name for row in rows]
        for name in names:
            for statistic in statistics:
                aggregate = f"{statistic.name}/{statistic.windows[0]}"
                got, want = (
                    plain.dynamics(name, quantity, aggregate),
                    other.dynamics(f"net.{name}", quantity, aggregate),
                )
                np.testing.assert_array_equal(got, want, err_msg=f"{name} {quantity} {statistic.name}")


def test_the_graph_reaches_from_the_inputs_to_the_losses(tmp_path: Path) -> None:
    run("gan", tmp_path)
    graph = Recording.of(tmp_path).graph
    edges = {(edge.source, edge.target) for edge in graph.edges}
    assert ("generator.input[input]", "generator.0") in edges
    assert ("discriminator.input[input]", "discriminator.0") in edges, "made of the batch before the step began"
    assert ("generator.3", "discriminator.0@2") in edges
    assert {layer.name for layer in graph.layers} >= {"discriminator.0", "discriminator.0@1", "discriminator.0@2"}
    assert [node.id for node in graph.nodes if node.op == "detach"]
    assert {node.id for node in graph.nodes if node.kind == "loss"} >= {"loss", "loss@1"}


@pytest.mark.parametrize("name", ["vae", "gan"])
def test_gradient_norms_are_those_before_clipping_of_the_optimizer_that_steps(name: str, tmp_path: Path) -> None:
    outcome = run(name, tmp_path, ring_steps=100)
    steps = outcome.recorder._recorder.ring.steps
    for step, norms in zip(steps, outcome.norms, strict=True):
        parts = {key.partition(".")[0] for key in step.gradient_norms} if name == "gan" else {""}
        found = [np.hypot.reduce([v for k, v in step.gradient_norms.items() if k.startswith(p)]) for p in sorted(parts)]
        np.testing.assert_allclose(found, norms, 1e-5)


def test_gradients_accumulate_over_steps_without_an_optimizer_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, expected = cnn(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with dgm_tb.record(model, tmp_path, ring_steps=100, max_overhead=None) as recorder:
        for number, (x, y) in enumerate(batches()):
            loss = F.cross_entropy(model(x), y)
            (loss / 3).backward()
            expected.append({})
            if number % 3 == 2:
                expected[-1] = {n: float(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None}
                optimizer.step()
                optimizer.zero_grad()
            recorder.step({"loss": loss, "number": number, "nothing": None})
    steps = recorder._recorder.ring.steps
    for step, norms in zip(steps, expected, strict=True):
        assert step.gradient_norms == pytest.approx(norms)
    recording = Recording.of(tmp_path)
    assert [global_step for _, global_step in recording.steps()] == [0, 0, 1, 1, 1, 2]
    assert list(recording.losses()) == ["loss", "number"]


@pytest.mark.parametrize("init_scale", [2.0**10, 2.0**30])
def test_a_gradient_scaler_leaves_no_trace_in_what_is_recorded(init_scale: float, tmp_path: Path) -> None:
    rows = []
    for scale in (None, init_scale):
        torch.manual_seed(0)
        model, skipped, losses = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3)), [], []
        optimizer = torch.optim.SGD(model.parameters(), 1e-6)
        scaler = GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        folder = tmp_path / str(scale)
        with dgm_tb.record(model, folder, window_steps=1, on_finding="ignore", ring_steps=100) as recorder:
            for number, (x, y) in enumerate(list(batches()) * 5):
                with torch.autocast("cpu", torch.float16):
                    loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                before = scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                skipped += [number] if scaler.get_scale() < before else []
                losses.append(float(loss))
                recorder.step(scaler.scale(loss) if number % 2 else loss)
        recording, run_ = Recording.of(folder), dgm_tb.open_run(folder)
        assert list(recording.losses()["loss"].values()) == losses
        assert run_.skipped_steps.tolist() == skipped
        assert bool(skipped) == (scale == 2.0**30)
        assert recorder.findings == []
        gradients = recording.dynamics("1", "gradient", "rms/mean")
        norms = [s.gradient_norms for s in recorder._recorder.ring.steps]
        rows.append((gradients, norms, skipped))
    (bare, bare_norms, _), (scaled, norms, skipped) = rows
    kept = [step for step in range(len(bare)) if step not in skipped]
    np.testing.assert_allclose(scaled[kept], bare[kept], 0.02, 1e-3 * np.abs(bare).max())
    for step in kept:
        assert norms[step] == pytest.approx(bare_norms[step], rel=0.01)


@pytest.mark.parametrize("name", ["vae", "gan"])
def test_a_compiled_model_is_recorded_as_the_eager_one(name: str, tmp_path: Path) -> None:
    def in_place(model: nn.Module) -> nn.Module:
        model.compile(backend="eager")
        return model

    run(name, tmp_path / "eager", epochs=1)
    expected = Recording.of(tmp_path / "eager")
    for number, wrap in enumerate([lambda model: torch.compile(model, backend="aot_eager"), in_place]):
        torch._dynamo.reset()
        with our_warnings() as texts:
            run(name, tmp_path / str(number), epochs=1, wrap=wrap)
        assert texts == []
        recording = Recording.of(tmp_path / str(number))
        assert [layer.name for layer in recording.graph.layers] == [layer.name for layer in expected.graph.layers]
        assert recording.graph.edges == expected.graph.edges
        for layer in expected.graph.layers:
            for quantity, aggregate in (("activation", "std/mean"), ("gradient", "rms/mean")):
                got, want = (r.dynamics(layer.name, quantity, aggregate) for r in (recording, expected))
                np.testing.assert_allclose(got, want, 1e-3, 1e-6 * np.nanmax(np.abs(want)), err_msg=layer.name)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_loop_with_fabric_is_recorded_by_the_models_own_names(precision: Any, tmp_path: Path) -> None:
    fabric = L.Fabric(accelerator="cpu", devices=1, precision=precision)
    torch.manual_seed(1)
    own = VAE()
    model, optimizer = fabric.setup(own, torch.optim.Adam(own.parameters()))
    train = fabric.setup_dataloaders(batches(images_with(ABNORMAL, 1e6), sampler=_order(26)))
    with dgm_tb.record(model, tmp_path, on_finding="ignore") as recorder:
        for batch, _ in train:
            x = batch.view(-1, 64)
            y, mean, log_variance = model(x)
            loss = F.mse_loss(y, x) + (mean**2 + log_variance.exp()).mean()
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            recorder.step(loss)
    run_ = dgm_tb.open_run(tmp_path)
    assert run_.layers == [name for name, part in own.named_modules() if name and not list(part.children())]
    finding = recorder.findings[0]
    assert (finding.step, finding.module, finding.samples) == (3, "log_variance", [ABNORMAL])
    assert finding.evidence["op"] == "exp"
    assert [global_step for _, global_step in Recording.of(tmp_path).steps()] == list(range(1, 11))


# -- failures ----------------------------------------------------------------------------------------------------------


def _order(place: int) -> list[int]:
    others = [index for index in range(48) if index != ABNORMAL] * 2
    return [*others[:place], ABNORMAL, *others[place:]][:80]


@pytest.mark.parametrize("place", [1, 26])
@pytest.mark.parametrize(
    ("name", "scale", "module", "op"),
    [
        ("vae", 1e6, "log_variance", "exp"),
        ("vae", np.nan, "encoder.0", None),
        ("parts", 1e6, "log_variance", "exp"),
        ("gan", np.nan, "discriminator.0", None),
        ("cnn", np.nan, "0", None),
    ],
)
def test_the_example_behind_a_nan_is_found(
    name: str, scale: float, module: str, op: str | None, place: int, tmp_path: Path
) -> None:
    train = batches(images_with(ABNORMAL, scale), sampler=_order(place))
    findings = run(name, tmp_path, train, epochs=1).recorder.findings
    (finding,) = [finding for finding in findings if finding.kind == "nonfinite"]
    assert (finding.step, finding.module, finding.samples) == (place // 8, module, [ABNORMAL])
    assert finding.evidence["sample_index"] == "dataset"
    assert finding.evidence.get("op") == op
    recording = Recording.of(tmp_path)
    assert [found.to_json() for found in recording.findings] == [found.to_json() for found in findings]
    samples = recording.kind("samples")[0]
    np.testing.assert_array_equal(samples.arrays["inputs"][0], images_with(ABNORMAL, scale).tensors[0][ABNORMAL])
    of_finding = {record.body["samples"] for record in recording.kind("contribution") if record.body["finding"]}
    assert "normal" in of_finding
    if op is not None:
        assert "abnormal" in of_finding
        relevance = recording.kind("relevance")[0]
        assert relevance.body["target"] == module
        assert relevance.arrays["input"].shape == (1, 8, 8), "in the shape of the example, though the model got it flat"


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("scale", [1.0, 1e6, np.nan])
def test_the_training_is_unchanged(name: str, scale: float, tmp_path: Path) -> None:
    data = images_with(ABNORMAL, scale)
    bare = run(name, None, batches(data))
    watched = run(name, tmp_path, batches(data), snapshot_steps=2)
    assert str(watched.losses) == str(bare.losses), "bit for bit"
    for one, other in zip(bare.state, watched.state, strict=True):
        assert torch.equal(one.double().nan_to_num(nan=1.5e30), other.double().nan_to_num(nan=1.5e30))
    assert watched.recorder.findings or scale == 1.0 or (scale == 1e6 and name not in ("vae", "parts"))


def test_a_loop_that_raises_is_written_and_its_last_step_looked_into(tmp_path: Path) -> None:
    class Strict(VAE):
        def forward(self, x: Tensor) -> Any:
            y, mean, log_variance = super().forward(x)
            if not y.isfinite().all():
                raise ValueError("not finite")
            return y, mean, log_variance

    torch.manual_seed(1)
    model = Strict()

    def train() -> None:
        with dgm_tb.record(model, tmp_path, on_finding="ignore") as recorder:
            for x, _ in batches(images_with(ABNORMAL, 1e6), sampler=_order(26)):
                loss = model(x.view(-1, 64))[0].square().mean()
                loss.backward()
                recorder.step(loss)

    with pytest.raises(ValueError, match="not finite"):
        train()
    recording = Recording.of(tmp_path)
    assert recording.end["reason"] == "exception"
    assert recording.end["exception"] == "ValueError: not finite"
    assert recording.end["last_step"] == 2
    assert list(recording.kind("ring")[-1].arrays["steps"]) == [0, 1, 2, 3]
    finding = recording.findings[0]
    assert (finding.kind, finding.step, finding.module, finding.samples) == ("nonfinite", 3, "log_variance", [ABNORMAL])
    assert finding.evidence["op"] == "exp"


def test_an_interrupted_loop_is_written(tmp_path: Path) -> None:
    def interrupt(step: int, *_: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("vae", tmp_path, around=interrupt)
    recording = Recording.of(tmp_path)
    assert recording.end["reason"] == "interrupted"
    assert recording.end["last_step"] == 2
    assert [step for step, _ in recording.steps()] == [0, 1, 2], "it was raised between two steps"


def test_on_finding_stop_asks_the_loop_to_stop(tmp_path: Path) -> None:
    train = batches(images_with(ABNORMAL, np.nan), sampler=_order(26))
    stops: list[bool] = []
    note = lambda step, models, recorder: stops.append(recorder.should_stop)  # noqa: E731
    with our_warnings() as texts:
        run("vae", tmp_path, train, on_finding="stop", around=note)
    assert stops[:4] == [False] * 4
    assert all(stops[4:])
    assert texts
