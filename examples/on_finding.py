"""Act on a finding while the training runs: save what is needed to look into it, and stop.

    python examples/on_finding.py

The training set has one example with infinite pixels. ``on_finding`` may also be "warn", "stop" or "ignore".
"""
# ruff: noqa: D101, D102

import json
from pathlib import Path

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dgm_tb import DGMTrackerCallback
from dgm_tb.records import Finding

REPORT = Path("finding.json")


class AutoEncoder(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.ReLU(), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self.decoder(self.encoder(batch[0])), batch[0])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


class Reporter:
    """Writes the first error to a file and ends the training."""

    def __init__(self) -> None:
        self.trainer: L.Trainer | None = None

    def __call__(self, finding: Finding) -> None:
        if finding.severity == "error" and not REPORT.exists():
            REPORT.write_text(json.dumps(finding.to_json(), indent=1))
            print(f"\nstep {finding.step}: {finding.summary}; examples {finding.samples}; see {REPORT}")
            if self.trainer is not None:
                self.trainer.should_stop = True


def main() -> None:
    L.seed_everything(0)
    images = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    images[1234] = float("inf")
    batches = DataLoader(TensorDataset(images), batch_size=16, shuffle=True)
    reporter = Reporter()
    trainer = L.Trainer(max_epochs=2, callbacks=[DGMTrackerCallback(on_finding=reporter)], enable_checkpointing=False)
    reporter.trainer = trainer
    trainer.fit(AutoEncoder(), batches)
    print(f"ended after {trainer.global_step} of {2 * len(batches)} steps")


if __name__ == "__main__":
    main()
