"""A training that turns NaN: the step, the example and a sensible layer are named, whoever shows the NaN first.

Which example is abnormal is known beforehand; at which step and in which layers it shows comes from an oracle, a run of
the same training without the callback.
"""

import contextlib
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from models import CNN, GAN, VAE, Classifier, DistributionVAE, Residual, images, images_with
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback
from dgm_tb.records import Finding

ABNORMAL = 21
SGD = torch.optim.SGD
EXP_LIMIT = 88.72
"""exp of more is infinite in float32."""


class Oracle(L.Callback):
    """What happened in each step of a training.

    Attributes:
        losses: The returned loss of each step; None where there is none.
        weights_ok: Whether all gradient norms were finite in it, and all weights after it.
        largest: Per step: module -> largest ``|output|`` of each example; NaN and Inf count as Inf.
        n_started: Steps begun, that which raised included.
    """

    def __init__(self) -> None:
        self.losses: list[float | None] = []
        self.weights_ok: list[bool] = []
        self.largest: list[dict[str, list[float]]] = []
        self.values: list[dict[str, Tensor]] = []
        self._norm_ok = True

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        for name, module in pl_module.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                module.register_forward_hook(lambda m, i, output, name=name: self._note(name, output))

    def on_train_batch_start(self, *_: Any) -> None:
        self.largest.append({})
        self.values.append({})

    def _note(self, name: str, output: Tensor) -> None:
        flat = output.detach().flatten(1).abs().amax(1)
        self.largest[-1].setdefault(name, torch.where(flat.isfinite(), flat, torch.inf).tolist())
        self.values[-1].setdefault(name, output.detach().clone())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]) if outputs else None)
        self.weights_ok.append(all(bool(p.isfinite().all()) for p in pl_module.parameters()) and self._norm_ok)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        norms = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
        self._norm_ok = bool(torch.stack(norms).isfinite().all())

    def first_nonfinite(self) -> int:
        """The first step with a NaN or Inf in its loss or in the weights it leaves."""
        bad = [not ok or not np.isfinite(loss or 0) for ok, loss in zip(self.weights_ok, self.losses, strict=True)]
        return bad.index(True) if True in bad else len(bad)

    def amplified(self, step: int, position: int) -> set[str]:
        """Modules that answer one example of a step at least ten times as strongly as the median one."""
        return {n for n, v in self.largest[step].items() if v[position] >= 10 * float(np.median(v))}


def _order(place: int) -> list[int]:
    """All examples twice, in order, with the abnormal one once, at ``place``."""
    others = [index for index in range(48) if index != ABNORMAL] * 2
    return [*others[:place], ABNORMAL, *others[place:]][:80]


def _run(
    make: Any, data: Any, folder: Path, place: int = 26, **options: Any
) -> tuple[Oracle, list[Finding], Recording]:
    oracle = Oracle()
    callback = DGMTrackerCallback(on_finding="ignore", max_overhead=None)
    for who in (oracle, callback):
        torch.manual_seed(1)
        train, name = loader(data, sampler=_order(place)), "bare" if who is oracle else "watched"
        with contextlib.suppress(ValueError):  # torch.distributions raises it on NaN
            fit(make(), train, folder / name, others=(who,), **options)
    recording = Recording.of(folder / "watched")
    assert [finding.to_json() for finding in recording.findings] == [finding.to_json() for finding in callback.findings]
    return oracle, callback.findings, recording


def _only(findings: list[Finding], kind: str) -> Finding:
    chosen = [finding for finding in findings if finding.kind == kind and finding.severity == "error"]
    assert len(chosen) == 1, [finding.summary for finding in findings]
    return chosen[0]


def _assert_names(finding: Finding, step: int, first_nonfinite: int) -> None:
    assert finding.step == finding.first_step == step
    assert finding.last_step == first_nonfinite
    assert finding.samples == [ABNORMAL]
    assert finding.evidence["sample_index"] == "dataset"
    assert str(ABNORMAL) in finding.summary


@pytest.mark.parametrize("place", [1, 26, 71])
@pytest.mark.parametrize("scale", [3e3, -1e4, 1e6])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_papers_case_is_found_at_once(scale: float, place: int, clip: float | None, tmp_path: Path) -> None:
    oracle, findings, _ = _run(VAE, images_with(ABNORMAL, scale), tmp_path, place, gradient_clip_val=clip)
    step, position = divmod(place, 8)
    values = {layer: oracle.values[step][layer][position].max() for layer in ("log_variance1", "log_variance2")}
    _assert_overflow_is_found(next(k for k, v in values.items() if v > EXP_LIMIT), oracle, findings, place)


def test_an_overflow_in_the_second_sampling_layer_is_found_there(tmp_path: Path) -> None:
    for scale in (450.0, 600.0, 800.0, 1000.0):  # where only the second one overflows depends on the rounding
        data = images_with(ABNORMAL, scale)
        oracle, findings, recording = _run(VAE, data, tmp_path / str(scale))
        first, second = (oracle.values[3][f"log_variance{n}"][2].max() for n in (1, 2))
        if first < EXP_LIMIT < second:
            _assert_overflow_is_found("log_variance2", oracle, findings, 26)
            _assert_evidence_is_recorded(recording, data, "log_variance2")
            return
    raise AssertionError("none of the scales overflows in the second layer only")


def _assert_overflow_is_found(layer: str, oracle: Oracle, findings: list[Finding], place: int) -> None:
    step, position = divmod(place, 8)
    assert oracle.first_nonfinite() == step
    finding, outlier = _only(findings, "nonfinite"), _only(findings, "outlier_sample")
    _assert_names(finding, step, step)
    _assert_names(outlier, step, step)
    assert finding.module == outlier.module == layer
    assert finding.evidence["op"] == "exp"
    assert "softplus" in finding.advice
    values = oracle.values[step][layer][position]
    assert finding.neurons[0] == int(values.argmax())
    assert set(finding.neurons) == {int(n) for n in torch.nonzero(values > EXP_LIMIT)}
    assert oracle.amplified(step, position) >= {outlier.module, *outlier.modules}


def _assert_evidence_is_recorded(recording: Recording, data: TensorDataset, layer: str) -> None:
    samples = recording.kind("samples")[0]
    assert samples.body["examples"][0]["index"] == ABNORMAL
    assert samples.body["examples"][0]["role"] == "abnormal"
    np.testing.assert_array_equal(samples.arrays["inputs"][0], data.tensors[0][ABNORMAL])
    matrices = [record for record in recording.kind("contribution") if record.body["finding"]]
    assert {record.body["samples"] for record in matrices} == {"batch", "abnormal", "normal"}
    assert recording.kind("relevance")[0].body["target"] == layer


@pytest.mark.parametrize(
    ("make", "scale"),
    [(lambda: VAE(SGD, 1e-2), 300.0), (Residual, 1e18)],
    ids=["vae", "residual"],
)
def test_an_example_that_spoils_the_weights_for_innocent_batches_is_blamed(
    make: Any, scale: float, tmp_path: Path
) -> None:
    n_delayed = 0
    for place in (3, 11, 26, 42, 60, 71):
        step, position = divmod(place, 8)
        oracle, findings, recording = _run(make, images_with(ABNORMAL, scale), tmp_path / str(place), place)
        shown = oracle.first_nonfinite()
        if shown == len(oracle.largest) or shown > step + 7:
            continue  # survived, or showed after the cause had left the ring
        finding = _only(findings, "nonfinite")
        _assert_names(finding, step, shown)
        _assert_names(_only(findings, "outlier_sample"), step, shown)
        assert finding.module in oracle.amplified(step, position)
        ring = recording.kind("ring")[0].arrays
        assert ring["indices"][list(ring["steps"]).index(step), position] == ABNORMAL
        if shown > step:
            n_delayed += 1
            assert "innocent" in finding.summary
    assert n_delayed >= 3, "the case is meant to show late"


def test_a_finite_loss_whose_clipped_gradient_is_nan_is_blamed_on_its_own_batch(tmp_path: Path) -> None:
    n_found = 0
    for place in (26, 71):
        for scale in (390.0, 400.0, 410.0, 420.0, 430.0):  # which loss is finite and its gradient not is rounding
            folder = tmp_path / f"{place}-{scale}"
            oracle, findings, _ = _run(VAE, images_with(ABNORMAL, scale), folder, place, gradient_clip_val=1.0)
            step, position = divmod(place, 8)
            if np.isfinite(oracle.losses[step] or 0) and not oracle.weights_ok[step]:
                n_found += 1
                finding = _only(findings, "nonfinite")
                _assert_names(finding, step, step)
                assert finding.module in oracle.amplified(step, position)
                break
    assert n_found


class _Norms(Classifier):
    """The square root of a sum of squares: its gradient at zero is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return torch.sqrt(self.body(batch[0]).square().sum(1)).mean()


def test_a_nan_that_appears_in_the_backward_pass_is_found_in_its_step(tmp_path: Path) -> None:
    oracle, findings, _ = _run(_Norms, images_with(ABNORMAL, 0.0), tmp_path)
    assert np.isfinite(oracle.losses[3] or 0)
    assert oracle.first_nonfinite() == 3
    finding = _only(findings, "nonfinite")
    assert (finding.step, finding.module, finding.evidence["symptom"]) == (3, "body.3", "backward")
    assert finding.samples == [ABNORMAL]


def test_a_nan_that_only_anomaly_detection_has_seen_is_found(tmp_path: Path) -> None:
    callback = DGMTrackerCallback(on_finding="ignore", max_overhead=None)
    train = loader(images_with(ABNORMAL, 0.0), sampler=_order(26))
    with pytest.raises(RuntimeError, match="returned nan"):
        fit(_Norms(), train, tmp_path, callback, detect_anomaly=True)
    finding = _only(callback.findings, "nonfinite")
    assert (finding.step, finding.module, finding.evidence["symptom"]) == (3, "body.3", "backward")
    assert finding.samples == [ABNORMAL]
    assert torch.is_anomaly_enabled() is False


def _nan_pixel() -> TensorDataset:
    data = images()
    data.tensors[0][ABNORMAL, 0, 3, 3] = torch.nan
    return data


@pytest.mark.parametrize(
    ("make", "module"), [(VAE, "encoder.0"), (CNN, "net.0"), (GAN, "discriminator.0"), (Residual, "stem")]
)
def test_nan_in_the_data_is_blamed_on_the_example(make: Any, module: str, tmp_path: Path) -> None:
    _, findings, recording = _run(make, _nan_pixel(), tmp_path)
    finding = _only(findings, "nonfinite")
    _assert_names(finding, 3, 3)
    assert finding.module == module
    assert recording.kind("samples")


def test_nan_in_the_data_is_not_blamed_on_an_earlier_example_that_only_looks_odd(tmp_path: Path) -> None:
    data = _nan_pixel()
    data.tensors[0][18] *= 30  # in the batch before
    _, findings, _ = _run(GAN, data, tmp_path)
    _assert_names(_only(findings, "nonfinite"), 3, 3)


@pytest.mark.parametrize("place", [2, 26, 71])
def test_findings_survive_a_step_that_raises_on_nan(place: int, tmp_path: Path) -> None:
    oracle, findings, recording = _run(DistributionVAE, images_with(ABNORMAL, 3e4), tmp_path, place)
    step = place // 8
    assert oracle.first_nonfinite() == len(oracle.losses) == step, "the step itself raises"
    finding = _only(findings, "nonfinite")
    _assert_names(finding, step, step)
    assert finding.evidence["op"] == "exp"
    assert finding.module == "log_variance1"
    assert recording.end["reason"] == "exception"
    assert "ValueError" in recording.end["exception"]
    assert recording.kind("samples")


def test_an_example_that_spoils_the_weights_until_a_later_step_raises_is_blamed(tmp_path: Path) -> None:
    for place in (3, 26, 42, 71):  # the variances come out as infinite or, which is no NaN at all, as zero
        make = lambda: DistributionVAE(SGD, 1e-2)  # noqa: E731
        oracle, findings, recording = _run(make, images_with(ABNORMAL, 270.0), tmp_path / str(place), place)
        step, position = divmod(place, 8)
        assert recording.end["reason"] == "exception"
        outlier = _only(findings, "outlier_sample")
        _assert_names(outlier, step, oracle.first_nonfinite())
        assert outlier.module in oracle.amplified(step, position)


def test_an_error_about_something_else_blames_no_example(tmp_path: Path) -> None:
    class Failing(CNN):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            if batch_idx == 4:
                raise ValueError("no such label")
            return super().training_step(batch, batch_idx)  # type: ignore[no-any-return]

    _, findings, _ = _run(Failing, images(), tmp_path)
    assert findings == []


def test_a_mistake_in_the_loss_blames_no_example(tmp_path: Path) -> None:
    class Mistaken(VAE):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss: Tensor = super().training_step(batch, batch_idx)
            return loss / (0.0 if batch_idx == 4 else 1.0)

    _, findings, _ = _run(Mistaken, images(), tmp_path)
    finding = _only(findings, "nonfinite")
    assert (finding.step, finding.samples, finding.evidence["op"]) == (4, [], "div")


def test_weights_spoilt_by_the_learning_rate_blame_no_example(tmp_path: Path) -> None:
    oracle, findings, _ = _run(lambda: VAE(SGD, 1e3), images(), tmp_path)
    finding = _only(findings, "nonfinite")
    assert finding.last_step == oracle.first_nonfinite()
    assert finding.samples == []
    assert len(findings) == 1, "one finding, however many steps stay NaN"


def test_a_model_with_odd_but_harmless_examples_yields_no_error(tmp_path: Path) -> None:
    _, findings, _ = _run(lambda: VAE(torch.optim.Adam, 1e-4), images_with(ABNORMAL, 20.0), tmp_path)
    assert [finding for finding in findings if finding.severity == "error"] == []
