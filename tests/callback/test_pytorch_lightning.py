"""Users of ``pytorch_lightning`` get the same recording; the two packages need not know of each other."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from pytorch_lightning.loggers import TensorBoardLogger as OtherTensorBoardLogger
from torch import Tensor, nn
from training import Recording

import dgm_tb
from dgm_tb.callback.pytorch_lightning import DGMTrackerCallback as OtherCallback

ABNORMAL = 21
LOGGERS = {lightning: TensorBoardLogger, pytorch_lightning: OtherTensorBoardLogger}


def _model(package: Any) -> Any:
    class AutoEncoder(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = nn.functional.mse_loss(self.net(batch), batch)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    torch.manual_seed(1)
    return AutoEncoder()


def _recorded(package: Any, callback: Any, folder: Path) -> Recording:
    data = torch.rand(48, 16, generator=torch.Generator().manual_seed(2))
    data[ABNORMAL] = 1e30
    batches = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3))
    trainer = package.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=LOGGERS[package](folder, name="", version="run"),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(_model(package), batches)
    return Recording.of(folder)


@pytest.mark.parametrize("make", [dgm_tb.DGMTrackerCallback, OtherCallback])
@pytest.mark.parametrize("package", [lightning, pytorch_lightning], ids=lambda package: package.__name__)
def test_either_callback_records_with_either_trainer(package: Any, make: Any, tmp_path: Path) -> None:
    reference = _recorded(lightning, dgm_tb.DGMTrackerCallback(on_finding="ignore"), tmp_path / "reference")
    recording = _recorded(package, make(on_finding="ignore"), tmp_path / "run")
    np.testing.assert_equal(recording.losses(), reference.losses())
    assert recording.findings == reference.findings
    assert recording.findings[0].samples == [ABNORMAL]
    assert recording.end["reason"] == "finished"
    assert recording.kind("recording")[0].body["versions"][package.__name__] == package.__version__
    assert len(list(tmp_path.glob("run/run/*tfevents*"))) == 1, "the marker goes through the user's own logger"


def _run_without(package: str, script: str) -> str:
    blocked = f"import sys; sys.modules[{package!r}] = None\n{script}"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_callback_of_pytorch_lightning_needs_no_lightning() -> None:
    out = _run_without(
        "lightning",
        "from dgm_tb.callback.pytorch_lightning import DGMTrackerCallback\n"
        "import pytorch_lightning\n"
        "print(isinstance(DGMTrackerCallback(), pytorch_lightning.Callback))\n"
        "try:\n"
        "    from dgm_tb import DGMTrackerCallback\n"
        "except ImportError as error:\n"
        "    print(error)",
    )
    assert out.startswith("True\n")
    assert "from dgm_tb.callback.pytorch_lightning import DGMTrackerCallback" in out, "it says what to do instead"
    assert "dgm_tb.record" in out


def test_the_callback_of_lightning_needs_no_pytorch_lightning() -> None:
    script = "import dgm_tb, lightning; print(isinstance(dgm_tb.DGMTrackerCallback(), lightning.Callback))"
    assert _run_without("pytorch_lightning", script) == "True\n"


def test_both_have_the_same_options_and_the_same_words() -> None:
    assert OtherCallback.__doc__ == dgm_tb.DGMTrackerCallback.__doc__
    assert OtherCallback().state_key == dgm_tb.DGMTrackerCallback().state_key, "checkpoints of one serve the other"
