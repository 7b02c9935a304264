"""Every way in which Lightning can train gives rows that are those of a naive oracle beside it."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import CNN, Classifier, images
from torch import Tensor, nn
from training import Collected, Recording, fit, loader

import dgm_tb
from dgm_tb import DGMTrackerCallback


class Oracle(L.Callback):
    """Keeps, step by step, what each backward pass, each optimizer and each layer had, the naive way.

    Attributes:
        losses: Per step: the loss of every backward pass.
        norms: Per step: parameter -> norm of its gradient when its optimizer was about to step.
        calls: Per step: module -> mean of each of its outputs, call by call, in training batches only.
        gradients: Per step: slot -> root mean square of the gradient of its output.
    """

    def __init__(self) -> None:
        self.losses: list[list[float]] = []
        self.norms: list[dict[str, float]] = []
        self.calls: list[dict[str, list[float]]] = []
        self.gradients: list[dict[str, float]] = []
        self._is_training = False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for name, module in pl_module.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.register_forward_hook(lambda *args, name=name: self._on_call(name, args[2]))

    def _on_call(self, name: str, output: Tensor) -> None:
        if not self._is_training:
            return
        calls = self.calls[-1].setdefault(name, [])
        slot, here = f"{name}@{len(calls)}" if calls else name, self.gradients[-1]
        calls.append(float(output.double().mean()))

        def on_gradient(gradient: Tensor) -> None:
            here[slot] = float(gradient.double().square().mean().sqrt())

        if output.requires_grad:
            output.register_hook(on_gradient)

    def on_train_batch_start(self, *_: Any) -> None:
        self._is_training, self._latest = True, dict[str, float]()
        for kept in (self.norms, self.calls, self.gradients):
            kept.append({})
        self.losses.append([])

    def on_train_batch_end(self, *_: Any) -> None:
        self._is_training = False

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        self.losses[-1].append(float(loss.detach()))

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self._latest = {n: float(p.grad.norm()) for n, p in pl_module.named_parameters() if p.grad is not None}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        names = [name for name, p in pl_module.named_parameters() if id(p) in own]
        self.norms[-1] |= {name: self._latest[name] for name in names if name in self._latest}


def _recorded(make: Any, folder: Path, **options: Any) -> tuple[Oracle, DGMTrackerCallback, Recording]:
    torch.manual_seed(1)
    oracle, callback = Oracle(), DGMTrackerCallback(window_steps=1, max_overhead=None, ring_steps=100)
    steps: list[Any] = []

    class Ring(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            assert callback.recorder is not None
            steps.append(callback.recorder.ring.steps[-1])

    fit(make(), loader(images()), folder, None, others=(oracle, callback, Ring()), **{"max_epochs": 2, **options})
    recording = Recording.of(folder)
    for step, expected in zip(steps, oracle.norms, strict=True):
        assert step.gradient_norms == pytest.approx(expected, rel=1e-5), f"step {step.step}"
    _assert_rows(oracle, recording)
    assert callback.findings == []
    return oracle, callback, recording


def _assert_rows(oracle: Oracle, recording: Recording) -> None:
    """Layer by layer and step by step; a layer without a call in a step has NaN."""
    kinds = {layer.name: layer.type for layer in recording.graph.layers}
    slots = [name for name, kind in kinds.items() if kind in ("Linear", "Conv2d")]
    called = {
        f"{name}@{n}" if n else name for step in oracle.calls for name, calls in step.items() for n in range(len(calls))
    }
    assert set(slots) == called
    for slot in slots:
        name, _, call = slot.partition("@")
        means = [(step.get(name, []) + [np.nan] * 9)[int(call or 0)] for step in oracle.calls]
        gradients = [step.get(slot, np.nan) for step in oracle.gradients]
        found = (
            recording.layer_statistic(slot, "activation", "mean"),
            recording.layer_statistic(slot, "gradient", "rms"),
        )
        missing = len(means) - len(found[0])  # before the layout knew of the layer
        np.testing.assert_allclose(found[0], means[missing:], 1e-4, 1e-6, err_msg=slot)
        np.testing.assert_allclose(found[1], gradients[missing:], 1e-4, 1e-9, err_msg=slot)


class AlternatingGAN(L.LightningModule):
    """The discriminator steps twice per batch, the generator after every third batch; each is toggled for its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 64))
        self.discriminator = nn.Sequential(nn.Linear(64, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def _update(self, optimizer: Any, loss_of: Any) -> None:
        self.toggle_optimizer(optimizer)
        loss = loss_of()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer_g, optimizer_d = self.optimizers()
        real, criterion = batch[0].flatten(1), F.binary_cross_entropy_with_logits
        ones = torch.ones(len(real), 1)

        def d_loss() -> Tensor:
            fake = self.generator(torch.randn(len(real), 4))
            return criterion(self.discriminator(real), ones) + criterion(self.discriminator(fake.detach()), 0 * ones)

        for _ in range(2):
            self._update(optimizer_d, d_loss)
        if batch_idx % 3 == 2:
            fake = lambda: self.generator(torch.randn(len(real), 4))  # noqa: E731
            self._update(optimizer_g, lambda: criterion(self.discriminator(fake()), ones))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(part.parameters(), 1e-3) for part in (self.generator, self.discriminator)]


def test_optimizers_of_different_frequencies(tmp_path: Path) -> None:
    oracle, _, recording = _recorded(AlternatingGAN, tmp_path)
    losses = recording.losses()
    for number in range(3):
        expected = {step: losses[number] for step, losses in enumerate(oracle.losses) if number < len(losses)}
        assert losses[f"backward.{number}"] == expected
    assert list(losses["backward.2"]) == [2, 5, 8, 11]
    assert [global_step for _, global_step in recording.steps()] == [2, 4, 7, 9, 11, 14, 16, 18, 21, 23, 25, 28]


class ManualAccumulation(Classifier):
    """Steps after every third batch, in manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]) / 3)
        if batch_idx % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("manual", [False, True])
def test_gradient_accumulation(manual: bool, tmp_path: Path) -> None:
    options = {} if manual else {"accumulate_grad_batches": 3}
    oracle, _, recording = _recorded(ManualAccumulation if manual else CNN, tmp_path, **options)
    assert [bool(norms) for norms in oracle.norms] == [False, False, True] * 4
    assert [global_step for _, global_step in recording.steps()] == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    losses = recording.losses()["backward.0" if manual else "loss"]
    expected = [loss * (1 if manual else 3) for (loss,) in oracle.losses]
    assert list(losses.values()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradient_norms_are_those_before_clipping(algorithm: str, tmp_path: Path) -> None:
    oracle, _, _ = _recorded(CNN, tmp_path, gradient_clip_val=1e-4, gradient_clip_algorithm=algorithm)
    assert all(np.hypot.reduce(list(norms.values())) > 0.01 for norms in oracle.norms)


class Skipping(CNN):
    """Gives no loss for every other batch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss if batch_idx % 2 else None


def test_a_step_without_a_loss_has_activations_and_no_gradients(tmp_path: Path) -> None:
    oracle, _, recording = _recorded(Skipping, tmp_path)
    assert [bool(gradients) for gradients in oracle.gradients] == [False, True] * 6
    assert list(recording.losses()["loss"]) == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize(
    "options", [{"val_check_interval": 2}, {"check_val_every_n_epoch": 1, "num_sanity_val_steps": 2}]
)
def test_validation_in_between_leaves_no_trace(options: dict[str, Any], tmp_path: Path) -> None:
    make = lambda: CNN(dropout=0.0)  # noqa: E731
    _, _, expected = _recorded(make, tmp_path / "without")
    _, _, recording = _recorded(make, tmp_path / "with", val=loader(images(20), shuffle=False), **options)
    assert recording.losses()["loss"] == expected.losses()["loss"]
    assert recording.steps() == expected.steps()
    assert recording.graph.edges == expected.graph.edges
    for record, other in zip(recording.kind("dynamics"), expected.kind("dynamics"), strict=True):
        np.testing.assert_array_equal(record.arrays["values"], other.arrays["values"])


@pytest.mark.parametrize("at", [4, 6, 9])
def test_a_resumed_training_is_one_line(at: int, tmp_path: Path) -> None:
    """The first training goes on for a while after its checkpoint was written; the second one supersedes that part."""
    collected = [Collected(), Collected()]

    class Saving(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == at:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    for number, path in enumerate((None, str(tmp_path / "middle.ckpt"))):
        callback = DGMTrackerCallback(window_steps=1, max_overhead=None)
        others = (collected[number], callback, *([Saving()] if path is None else []))
        torch.manual_seed(1)
        fit(CNN(), loader(images()), tmp_path, None, others=others, max_epochs=2, ckpt_path=path)
    first, second = ([float(loss) for loss in each.losses if loss is not None] for each in collected)
    assert (len(first), len(second)) == (12, 12 - at)
    run = dgm_tb.open_run(tmp_path)
    assert len(run.recordings) == 2
    assert run.recordings[1].resume_step == at
    assert run.losses["loss"].steps.tolist() == list(range(12))
    assert run.losses["loss"].values.tolist() == first[:at] + second
    assert run.losses["loss"].global_steps.tolist() == list(range(1, 13))
    assert run.dynamics("net.0").steps.tolist() == list(range(12))
    assert run.ended == "finished"
