"""The callback knows which examples of the data set are in a batch, or says that it can't know."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from models import CNN, Classifier, images
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
    default_collate,
)
from training import Recording, fit, loader

from dgm_tb import DGMTrackerCallback


class Numbered(Dataset[Any]):
    """Images whose first pixel is their own number."""

    def __init__(self, n: int = 44) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.full((1, 8, 8), 0.5)
        image[0, 0, 0] = index
        return image, index % 3


class Stream(IterableDataset[Any]):
    """The same without numbers to ask for."""

    def __iter__(self) -> Iterator[Any]:
        return (Numbered()[index] for index in range(40))


class Batches:
    """Batches that were made beforehand, in the order given."""

    def __init__(self, data: Dataset[Any], n: int, size: int) -> None:
        self.batches = [default_collate([data[k] for k in range(m, m + size)]) for m in range(0, n, size)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Linear(Classifier):
    def __init__(self) -> None:
        super().__init__(lr=0.0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


class Seen(L.Callback):
    """The numbers of the images in each batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        batch = batch["main"] if isinstance(batch, dict) else batch
        self.batches.append([int(number) for number in batch[0][:, 0, 0, 0]])


class _First(Linear):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch["main"] if isinstance(batch, dict) else batch, batch_idx)


def _indices(train: Any, folder: Path, **options: Any) -> tuple[list[list[int]], list[list[int] | None]]:
    """The numbers in each batch, and what the ring of the recording says they are."""
    seen = Seen()
    callback = DGMTrackerCallback(ring_steps=1000, on_finding="ignore", max_overhead=None)
    fit(_First(), train, folder, callback, others=(seen,), **options)
    rows = Recording.of(folder).kind("ring")[-1].arrays["indices"]
    known = [[int(index) for index in row if index >= 0] or None for row in rows]
    return seen.batches, known


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2},
        {"num_workers": 2, "shuffle": False, "batch_size": 1},
        {"shuffle": False},
        {"drop_last": True},
        {"batch_sampler": BatchSampler(RandomSampler(range(44), generator=torch.Generator().manual_seed(1)), 7, False)},
        {"sampler": WeightedRandomSampler([1.0 + n for n in range(44)], 30)},
        {"shuffle": False, "batch_size": 1},
    ],
    ids=lambda options: ",".join(options) or "shuffle",
)
def test_indices_are_those_of_the_examples(options: dict[str, Any], tmp_path: Path) -> None:
    batches, known = _indices(loader(Numbered(), **options), tmp_path, max_epochs=2)
    assert known == batches


def test_indices_are_right_with_persistent_workers_over_epochs(tmp_path: Path) -> None:
    batches, known = _indices(loader(Numbered(), num_workers=2, persistent_workers=True), tmp_path, max_epochs=3)
    assert known == batches


@pytest.mark.parametrize("workers", [0, 2])
def test_indices_are_right_when_epochs_end_early(workers: int, tmp_path: Path) -> None:
    batches, known = _indices(loader(Numbered(), num_workers=workers), tmp_path, max_epochs=2, limit_train_batches=3)
    assert len(batches) == 6
    assert known == batches


def test_indices_are_right_when_the_loader_is_made_anew_each_epoch(tmp_path: Path) -> None:
    class Renewing(Linear):
        def train_dataloader(self) -> DataLoader[Any]:
            return loader(Numbered(), seed=self.current_epoch)

    seen = Seen()
    callback = DGMTrackerCallback(ring_steps=1000)
    fit(Renewing(), None, tmp_path, callback, others=(seen,), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    rows = Recording.of(tmp_path).kind("ring")[-1].arrays["indices"]
    assert [[int(i) for i in row if i >= 0] for row in rows] == seen.batches


def test_indices_are_right_with_validation_in_between(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "val": loader(images(), shuffle=False),
        "val_check_interval": 2,
        "num_sanity_val_steps": 1,
    }
    batches, known = _indices(loader(Numbered()), tmp_path, max_epochs=2, **options)
    assert known == batches


def test_indices_are_those_of_the_first_of_several_loaders(tmp_path: Path) -> None:
    train = {"main": loader(Numbered()), "other": loader(Numbered(), seed=9)}
    batches, known = _indices(train, tmp_path)
    assert known == batches


def test_indices_are_right_after_a_batch_that_the_loader_left_out(tmp_path: Path) -> None:
    def collate(items: list[Any]) -> Any:
        return None if any(int(image[0, 0, 0]) == 17 for image, _ in items) else default_collate(items)

    batches, known = _indices(loader(Numbered(), collate_fn=collate), tmp_path, max_epochs=2)
    assert len(batches) == 10
    assert known == batches


def test_indices_are_right_after_resuming_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    trainer = fit(_First(), loader(Numbered()), tmp_path / "one", DGMTrackerCallback(), max_epochs=2, max_steps=8)
    trainer.save_checkpoint(tmp_path / "middle.ckpt")
    batches, known = _indices(
        loader(Numbered()), tmp_path / "two", max_epochs=3, ckpt_path=str(tmp_path / "middle.ckpt")
    )
    assert batches
    assert known == batches


def test_indices_are_unknown_where_they_cannot_be_known(tmp_path: Path) -> None:
    batches = Batches(Numbered(), 12, 4)
    whole = DataLoader(batches.batches, batch_size=None)
    for number, train in enumerate([loader(Stream(), shuffle=False), batches, whole]):
        _, known = _indices(train, tmp_path / str(number))
        assert known
        assert set(map(str, known)) == {"None"}


def test_a_finding_names_positions_where_indices_are_unknown(tmp_path: Path) -> None:
    data = images()
    data.tensors[0][10] = float("nan")
    callback = DGMTrackerCallback(on_finding="ignore")
    fit(CNN(), Batches(data, 48, 8), tmp_path, callback)
    assert callback.findings[0].samples[:1] == [2]
    assert callback.findings[0].evidence["sample_index"] == "batch"
