"""The demo ``vae-nan`` against an observer of its own: plain forward hooks in the same training."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from dgm_tb import DGMTrackerCallback, open_run
from dgm_tb.demo import SCENARIOS, vae_nan
from dgm_tb.demo.training import fit
from dgm_tb.plugin.run import Run
from dgm_tb.records import Finding

OVERFLOW = torch.finfo(torch.float32).max


class Observer(L.Callback):
    """Keeps what the log-variance layers gave out in every step, up to the first exponential that is infinite."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.overflow: tuple[int, str, torch.Tensor] | None = None
        self.pixels: torch.Tensor = torch.empty(0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name in ("gaussian1.log_variance", "gaussian2.log_variance"):
            look = functools.partial(self._look, name)
            pl_module.get_submodule(name).register_forward_hook(lambda module, inputs, output, look=look: look(output))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        outputs, batch, batch_idx = args
        self.losses.append(float(outputs["loss"]))
        if self.overflow is not None and self.overflow[0] == batch_idx:
            self.pixels = batch[0].amax(dim=(1, 2, 3))

    def _look(self, name: str, output: torch.Tensor) -> None:
        if self.overflow is None and bool((output.double().exp() > OVERFLOW).any()):
            self.overflow = len(self.losses), name, output.detach().clone()


@dataclass(frozen=True)
class Story:
    findings: list[Finding]
    observer: Observer
    run: Run


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder: Path = tmp_path_factory.mktemp("demo")
    observer, callback = Observer(), DGMTrackerCallback(logdir=folder, window_steps=8, on_finding="ignore")
    fit(SCENARIOS["vae-nan"].build(), [observer, callback], enable_progress_bar=False)
    return Story(callback.findings, observer, open_run(folder))


def test_training_is_healthy_for_hundreds_of_steps_and_goes_on_after_it_died(story: Story) -> None:
    losses = torch.tensor(story.observer.losses)
    step = death(story)
    assert step > 300
    assert torch.isfinite(losses[:step]).all()
    assert losses[step - 50 : step].mean() < 0.35 * losses[:5].mean()
    assert not torch.isfinite(losses[step:]).any()
    assert 10 <= len(losses) - step <= 200


def test_the_abnormal_record_is_what_overflows(story: Story) -> None:
    assert story.observer.overflow is not None
    _, name, output = story.observer.overflow
    assert name == "gaussian1.log_variance"
    hit = (output.double().exp() > OVERFLOW).any(dim=1)
    assert hit.sum() == 1
    assert story.observer.pixels[hit].item() > 1000
    assert output.max() > 3 * 88.7, "so far beyond the limit that rounding on another processor changes nothing"


def test_finding_names_step_layer_neurons_and_dataset_index(story: Story) -> None:
    assert story.observer.overflow is not None
    step, name, output = story.observer.overflow
    finding = next(f for f in story.findings if f.kind == "nonfinite")
    assert (finding.severity, finding.step, finding.module) == ("error", step, name)
    assert finding.samples == [vae_nan.ABNORMAL_INDEX]
    assert finding.evidence["sample_index"] == "dataset"
    overflowed = set(torch.nonzero(output.double().exp().amax(dim=0) > OVERFLOW).flatten().tolist())
    assert finding.neurons
    assert set(finding.neurons) <= overflowed
    assert finding.neurons[0] == int(output.amax(dim=0).argmax())


def test_nothing_else_is_blamed(story: Story) -> None:
    assert {f.kind for f in story.findings} <= {"nonfinite", "outlier_sample"}
    assert {f.step for f in story.findings} == {death(story)}


def test_recording_tells_the_same_story(story: Story) -> None:
    step = death(story)
    assert [f.kind for f in story.run.findings] == [f.kind for f in story.findings]
    losses = story.run.losses["train_loss"]
    assert losses.steps[~torch.isfinite(torch.tensor(losses.values))][0] == step
    random = [node.id for node in story.run.graph.nodes if node.kind == "random"]
    assert len(random) == 2, "two sampling layers"


def death(story: Story) -> int:
    assert story.observer.overflow is not None
    return story.observer.overflow[0]
