"""A batch with wrong labels: the loss leaps in one step and comes back; the batch is named."""

from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training import fit, loader

from dgm_tb import DGMTrackerCallback


class Digits(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def digits(wrong: slice) -> TensorDataset:
    found = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0)).repeat(4)
    images = torch.tensor(found.images, dtype=torch.float32).flatten(1)[order] / 16
    labels = torch.tensor(found.target)[order]
    labels[wrong] = (labels[wrong] + 3) % 10
    return TensorDataset(images, labels)


def test_the_batch_behind_a_spike_is_named_by_dataset_index(tmp_path: Path) -> None:
    callback = DGMTrackerCallback(on_finding="ignore")
    torch.manual_seed(0)
    data = digits(slice(5760, 5792))
    fit(Digits(), loader(data, shuffle=False, batch_size=32), tmp_path, callback)
    (finding,) = callback.findings
    assert (finding.kind, finding.severity, finding.step) == ("loss_spike", "warning", 180)
    assert finding.samples == list(range(5760, 5792))
    assert finding.evidence["sample_index"] == "dataset"
    assert "5760" in finding.summary


def test_a_few_wrong_labels_are_no_spike(tmp_path: Path) -> None:
    callback = DGMTrackerCallback(on_finding="ignore")
    torch.manual_seed(0)
    fit(Digits(), loader(digits(slice(5760, 5762)), shuffle=False, batch_size=32), tmp_path, callback)
    assert callback.findings == []
