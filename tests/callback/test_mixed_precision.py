"""Mixed precision: what is recorded has no loss scale in it, and steps that a scaler skips are no failures."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from models import CNN, GAN, VAE, Classifier, images, images_with
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from training import Collected, Recording, fit, loader

import dgm_tb
from dgm_tb import DGMTrackerCallback
from dgm_tb.cli import main

ABNORMAL = 21


class Oracle(L.Callback):
    """The gradient of every layer's output and of every parameter, divided by the scale that was valid then.

    Attributes:
        gradients: Per step: slot -> root mean square of each neuron's gradient.
        norms: Per step: parameter -> norm of its gradient.
        skipped: Steps that left an optimizer step out.
    """

    def __init__(self) -> None:
        self.gradients: list[dict[str, np.ndarray[Any, Any]]] = []
        self.norms: list[dict[str, float]] = []
        self.skipped: list[int] = []
        self._scale, self._scale_before = 1.0, 0.0
        self._calls: dict[str, int] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for name, module in pl_module.named_modules():
            if name and not list(module.children()):
                module.register_forward_hook(lambda *args, name=name: self._on_call(name, args[2]))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.gradients.append({})
        self.norms.append({})
        self._calls = {}

    def _on_call(self, name: str, output: Tensor) -> None:
        call = self._calls[name] = self._calls.get(name, -1) + 1
        if output.requires_grad:
            slot, here = f"{name}@{call}" if call else name, self.gradients[-1]

            def on_gradient(gradient: Tensor) -> None:
                axis = 1 if gradient.dim() == 4 else -1
                values = gradient.double().movedim(axis, 0).flatten(1) / self._scale
                here[slot] = values.square().mean(1).sqrt().numpy()

            output.register_hook(on_gradient)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._scale = 1.0 if scaler is None else float(scaler._scale)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        scale = self._scale if getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0
        for name, p in pl_module.named_parameters():
            if id(p) in own and p.grad is not None:
                self.norms[-1][name] = float(p.grad.double().norm()) / scale
        if not all(map(np.isfinite, self.norms[-1].values())):
            self.skipped = sorted({*self.skipped, len(self.norms) - 1})


class Norms(L.Callback):
    """What the recorder knows of each step's gradients; stands behind it in the list of callbacks."""

    def __init__(self, callback: DGMTrackerCallback) -> None:
        self.callback = callback
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        assert self.callback.recorder is not None
        self.steps.append(self.callback.recorder.ring.steps[-1].gradient_norms)


def half(init_scale: float = 2.0**16) -> MixedPrecision:
    """``precision="16-mixed"``, which Lightning does not give to CPUs, with a scaler that soon grows again."""
    return MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=init_scale, growth_interval=12))


def _recorded(make: Any, folder: Path, data: Any = None, **options: Any) -> tuple[Oracle, Norms, Recording, Any]:
    torch.manual_seed(1)
    oracle, callback = Oracle(), DGMTrackerCallback(window_steps=1, max_overhead=None, on_finding="ignore")
    norms = Norms(callback)
    options = {"max_epochs": 3, **options}
    fit(make(), loader(data or images()), folder, None, others=(oracle, callback, norms), **options)
    return oracle, norms, Recording.of(folder), callback


def _assert_gradients_equal(oracle: Oracle, recording: Recording, rtol: float = 1e-3) -> None:
    compared = 0
    for layer in recording.graph.layers:
        if layer.type in ("Flatten", "Unflatten"):
            continue
        recorded = recording.dynamics(layer.name, "gradient", "rms/mean")
        for step, expected in enumerate(oracle.gradients):
            if layer.name in expected:
                compared += 1
                np.testing.assert_allclose(recorded[step], expected[layer.name], rtol, 1e-12, err_msg=layer.name)
    assert compared > len(oracle.gradients)


class _FusedCNN(CNN):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), fused=True)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "automatic": (CNN, {}),
    "clipped": (CNN, {"gradient_clip_val": 1e-3}),
    "accumulated": (CNN, {"accumulate_grad_batches": 2}),
    "fused": (_FusedCNN, {}),
    "manual": (GAN, {}),
}


@pytest.mark.parametrize("init_scale", [2.0**10, 2.0**30], ids=["fits", "overflows"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_recorded_without_the_loss_scale(case: str, init_scale: float, tmp_path: Path) -> None:
    make, options = CASES[case]
    oracle, norms, recording, _ = _recorded(make, tmp_path, plugins=[half(init_scale)], **options)
    assert bool(oracle.skipped) == (init_scale == 2.0**30)
    _assert_gradients_equal(oracle, recording)
    for recorded, expected in zip(norms.steps, oracle.norms, strict=True):
        assert recorded.keys() == expected.keys()
        np.testing.assert_allclose(list(recorded.values()), list(expected.values()), 1e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16_is_recorded_as_it_is(precision: str, tmp_path: Path) -> None:
    oracle, norms, recording, callback = _recorded(CNN, tmp_path, precision=precision)
    _assert_gradients_equal(oracle, recording)
    rtol = 1e-2 if precision == "bf16-true" else 1e-3  # gradients of bfloat16 weights have norms in bfloat16
    for recorded, expected in zip(norms.steps, oracle.norms, strict=True):
        np.testing.assert_allclose(list(recorded.values()), list(expected.values()), rtol)
    assert callback.findings == []
    assert recording.notes == []


def test_lightning_takes_bfloat16_for_half_precision_on_cpus(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="bf16-mixed"):
        _, _, recording, _ = _recorded(CNN, tmp_path, precision="16-mixed")
    assert recording.end["reason"] == "finished"


@pytest.mark.parametrize("init_scale", [2.0**10, 2.0**30])
def test_losses_are_recorded_without_the_loss_scale(init_scale: float, tmp_path: Path) -> None:
    collected = Collected()
    torch.manual_seed(1)
    plugins = [half(init_scale)]
    fit(CNN(), loader(images()), tmp_path / "a", DGMTrackerCallback(), others=(collected,), plugins=plugins)
    losses = Recording.of(tmp_path / "a").losses()
    assert losses["loss"] == {step: float(loss) for step, loss in enumerate(collected.losses) if loss is not None}
    fit(GAN(), loader(images()), tmp_path / "b", DGMTrackerCallback(), plugins=[half(init_scale)])
    losses = Recording.of(tmp_path / "b").losses()
    assert losses["backward.0"] == losses["d_loss"]
    assert losses["backward.1"] == losses["g_loss"]


@pytest.mark.parametrize("case", CASES)
def test_skipped_steps_are_marked_and_no_failures(case: str, tmp_path: Path) -> None:
    make, options = CASES[case]
    oracle, _, recording, callback = _recorded(make, tmp_path, plugins=[half(2.0**30)], max_epochs=6, **options)
    run = dgm_tb.open_run(tmp_path)
    assert 3 < len(oracle.skipped) < len(oracle.norms) - 3
    assert list(run.skipped_steps) == oracle.skipped
    assert run.skipped_steps.dtype == np.int64
    assert callback.findings == []
    assert run.findings == []
    steps = [global_step for _, global_step in recording.steps()]
    assert steps[-1] == len(oracle.norms) * (2 if case == "manual" else 1) // options.get("accumulate_grad_batches", 1)


def test_inspect_counts_skipped_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    oracle, *_ = _recorded(CNN, tmp_path, plugins=[half(2.0**30)])
    main(["inspect", str(tmp_path)])
    assert f"{len(oracle.skipped)} steps skipped: gradient overflow" in capsys.readouterr().out
    _recorded(CNN, tmp_path / "other", plugins=[half(2.0**4)])
    main(["inspect", str(tmp_path / "other")])
    assert "skipped" not in capsys.readouterr().out
    assert dgm_tb.open_run(tmp_path / "other").skipped_steps.shape == (0,)


def test_contributions_of_gradients_have_no_loss_scale(tmp_path: Path) -> None:
    matrices = []
    for scale in (1.0, 2.0**12):
        folder = tmp_path / str(scale)
        _recorded(CNN, folder, plugins=[half(scale)], max_epochs=1)
        matrices.append(dgm_tb.open_run(folder).contribution("net.3", "net.4", 0, "backward"))
    np.testing.assert_allclose(matrices[1], matrices[0], 1e-2, 1e-2 * np.abs(matrices[0]).max())


@pytest.mark.parametrize("scale", [float("nan"), 1e6])
def test_an_example_that_half_precision_cannot_hold_is_found(scale: float, tmp_path: Path) -> None:
    _, _, _, callback = _recorded(CNN, tmp_path, images_with(ABNORMAL, scale), plugins=[half()], max_epochs=1)
    found = [finding for finding in callback.findings if finding.kind == "nonfinite"]
    assert [finding.samples for finding in found] == [[ABNORMAL]]
    assert found[0].module == "net.0"
    assert found[0].evidence["symptom"] == "forward", "run again in the precision that it had"


class _Norm(Classifier):
    """The square root of zero: its gradient is NaN, whatever the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.body(batch[0] * 0).square().sum(1).sqrt().mean()


def test_a_gradient_that_no_scale_helps_is_a_failure(tmp_path: Path) -> None:
    _, _, _, callback = _recorded(_Norm, tmp_path, plugins=[half(2.0**8)], max_epochs=6)
    (finding,) = callback.findings
    assert finding.kind == "nonfinite"
    assert finding.evidence["symptom"] == "backward"
    assert finding.last_step == 8, "the first step at which the scale has come down to 1"


@pytest.mark.parametrize(("make", "scale"), [(CNN, 1.0), (GAN, 1.0), (VAE, 1e6)])
def test_half_precision_trains_the_same(make: Any, scale: float, tmp_path: Path) -> None:
    outcomes = []
    for name in ("bare", "watched"):
        torch.manual_seed(1)
        plugin, collected, model = half(2.0**24), Collected(), make()
        callback = DGMTrackerCallback(on_finding="ignore", snapshot_steps=2) if name == "watched" else None
        train = loader(images_with(ABNORMAL, scale))
        fit(model, train, tmp_path / name, callback, others=(collected,), plugins=[plugin], max_epochs=2)
        state = [*model.state_dict().values(), *(loss for loss in collected.losses if loss is not None)]
        outcomes.append((state, plugin.state_dict(), torch.get_rng_state()))
    (bare, scaler, random), (watched, *others) = outcomes
    for one, other in zip(bare, watched, strict=True):
        assert torch.equal(one.nan_to_num(nan=1.5e30), other.nan_to_num(nan=1.5e30))
    assert others[0] == scaler
    assert torch.equal(others[1], random)


def test_the_scalers_are_left_as_they_were(tmp_path: Path) -> None:
    before = dict(vars(GradScaler))
    _recorded(CNN, tmp_path, plugins=[half()], max_epochs=1)
    assert dict(vars(GradScaler)) == before
