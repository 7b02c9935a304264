"""Trainings of two processes on the CPU, for ``test_distributed.py``.

``distributed_worker.py <folder> <scenario> ...`` runs scenarios one after the other, each in a folder of its own. Rank
0 starts the second process itself, with the same arguments, as Lightning does. Each rank saves what it saw.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import GAN, VAE, Classifier, DistributionVAE, images, images_with

import dgm_tb
from dgm_tb import DGMTrackerCallback
from dgm_tb.callback.distributed import agreement, leader, mailbox, member

ABNORMAL = 21
BATCH = 4
PLACE = 10
"""Where in rank 1's own order the abnormal example stands: step 2, position 2."""
SEED = 6
UNEVEN = [[[0, 2, 4, 6], [8, 10, 12], [14]], [[1, 3], [5, 7, 9, 11], [13, 15, 17]]]
"""Batches of each rank."""


class Net(Classifier):
    """A convolution, in-place activations and two dense layers; nothing random, nothing that mixes examples."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Flatten())
        self.hidden = nn.Linear(64, 8)
        self.act = nn.Sigmoid()
        self.head = nn.Linear(8, 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.head(self.act(self.hidden(self.features(batch[0])))), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class SometimesUnused(Net):
    """A head that only every other step uses, on every rank."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        z = self.hidden(self.features(batch[0]))
        loss = 0.1 * z.abs().mean()
        return loss if batch_idx % 2 else loss + F.cross_entropy(self.head(self.act(z)), batch[1])


class Leaping(Net):
    """Its loss overflows for the abnormal example."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 1e-3 * torch.exp(self.hidden(self.features(batch[0]))).mean()


class Norms(Classifier):
    """The square root of a sum of squares: its gradient at zero is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return torch.sqrt(self.net(batch[0]).square().sum(1)).mean()


class Seen(L.Callback):
    """What one rank saw of a training.

    Attributes:
        losses: Every loss.
        weights: Parameters and buffers at the end.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach().clone() if outputs else torch.zeros(0))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}


class OwnOrder(Sampler[int]):
    """What this rank draws: its half of the examples again and again, with the abnormal one once, on rank 1."""

    def __init__(self, n: int = 48, place: int = PLACE) -> None:
        self.n, self.place = n, place

    def __iter__(self) -> Iterator[int]:
        rank = int(os.environ["LOCAL_RANK"])
        own = ([index for index in range(48) if index % 2 == rank and index != ABNORMAL] * (self.n // 23 + 1))[: self.n]
        yield from [*own[: self.place], ABNORMAL, *own[self.place + 1 :]] if rank else own

    def __len__(self) -> int:
        return self.n


def fit(folder: Path, make: Callable[[], Any], data: Dataset[Any], *callbacks: L.Callback, **options: Any) -> Seen:
    """Train, and save what this rank saw as ``<folder>/<rank>.pt``."""
    torch.manual_seed(1)
    seen = Seen()
    loader = {"batch_size": BATCH, "shuffle": True, **options.pop("loader", {})}
    chosen = {"strategy": "ddp", "devices": 2, "max_epochs": 1, **options}
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, seen],
        logger=TensorBoardLogger(folder, name="", version="run"),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **chosen,
    )
    L.seed_everything(SEED, verbose=False)
    try:
        trainer.fit(make(), DataLoader(data, **loader))
    finally:
        found = [finding.to_json() for callback in callbacks for finding in getattr(callback, "findings", [])]
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(
            {"losses": seen.losses, "weights": seen.weights, "findings": found}, folder / f"{trainer.global_rank}.pt"
        )
    return seen


def tracker(**options: Any) -> DGMTrackerCallback:
    """The callback with every step recorded whole."""
    return DGMTrackerCallback(**{"window_steps": 1, "max_overhead": None, "on_finding": "ignore", **options})


def abnormal(make: Callable[[], Any], data: Dataset[Any], **options: Any) -> Callable[[Path], Any]:
    """A training in which rank 1 meets the abnormal example."""

    def run(folder: Path) -> Seen:
        loader = {"sampler": OwnOrder(), "shuffle": None}
        return fit(folder, make, data, tracker(), loader=loader, use_distributed_sampler=False, **options)

    return run


class Halved(Net):
    """Weights of which half lie in one process, half in the other (FSDP2)."""

    def configure_model(self) -> None:
        for module in (self.features, self.hidden, self.head, self):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


class HalvedLeaping(Halved, Leaping):
    """The same, with a loss that may overflow."""


def sharded() -> dict[str, Any]:
    """Options of a training of sharded weights."""
    return {"strategy": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)}


def uneven(folder: Path, *callbacks: L.Callback) -> Seen:
    """Ranks with batches of other sizes, the last ones included."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    loader = {"batch_sampler": UNEVEN[rank], "batch_size": 1, "shuffle": False}
    return fit(folder, Net, images(), *callbacks, loader=loader, use_distributed_sampler=False)


def unused(folder: Path, *callbacks: L.Callback) -> Seen:
    """The abnormal example comes when there is a history, in a step with all parameters before one with some."""
    loader, data = {"sampler": OwnOrder(64, 41), "shuffle": None}, images_with(ABNORMAL, 1e4)
    return fit(folder, SometimesUnused, data, *callbacks, loader=loader, use_distributed_sampler=False, **UNUSED)


def nan_pixel() -> Dataset[Any]:
    """Images of which one holds a NaN."""
    data = images()
    data.tensors[0][ABNORMAL, 0, 3, 3] = torch.nan
    return data


def stopping(folder: Path) -> Seen:
    """Many short steps, of which an early one asks for a stop."""
    agreement.AHEAD_SECONDS = 0.5
    loader = {"sampler": OwnOrder(12000), "shuffle": None}
    data, callback = images_with(ABNORMAL, 1e4), tracker(on_finding="stop")
    return fit(folder, Leaping, data, callback, loader=loader, use_distributed_sampler=False)


def plain(folder: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    """A loop of plain PyTorch, in the process group that Lightning has made for the scenario before."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    model = wrap(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with dgm_tb.record(model, folder, window_steps=1, max_overhead=None, on_finding="ignore") as recorder:
        for x, y in DataLoader(nan_pixel(), batch_size=BATCH, sampler=OwnOrder()):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(loss)


def halved(net: nn.Module) -> nn.Module:
    """The model with half of its weights in each process."""
    return fully_shard(net, mesh=init_device_mesh("cpu", (2,)))


def mute(folder: Path) -> Seen:
    """The store fails."""
    with mock.patch.object(mailbox.Mailbox, "collect", side_effect=OSError("gone")):
        return fit(folder, Net, images(), tracker())


def late(folder: Path) -> Seen:
    """Rank 1 never says anything."""
    with mock.patch.object(member.Member, "_run"), mock.patch.object(leader, "CLOSE_SECONDS", 0.5):
        return fit(folder, Net, images(), tracker())


SPAWNED = {"detect_anomaly": True, "strategy": "ddp_spawn", "devices": 1}
UNUSED = {"strategy": "ddp_find_unused_parameters_true"}
SlowVAE = partial(VAE, lr=1e-4)

DATA = images_with(ABNORMAL, 300.0)

SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "watched": lambda folder: fit(folder, Net, images(), tracker()),
    "bare": lambda folder: fit(folder, Net, images()),
    "outlier_watched": lambda folder: fit(folder, SlowVAE, images_with(ABNORMAL, 40.0), tracker(), max_epochs=4),
    "outlier_bare": lambda folder: fit(folder, SlowVAE, images_with(ABNORMAL, 40.0), max_epochs=4),
    "gan_watched": lambda folder: fit(folder, GAN, DATA, tracker(), max_epochs=4, **UNUSED),
    "gan_bare": lambda folder: fit(folder, GAN, DATA, max_epochs=4, **UNUSED),
    "unused_watched": lambda folder: unused(folder, tracker()),
    "unused_bare": unused,
    "sharded": lambda folder: fit(folder, Halved, images(), tracker(), **sharded()),
    "sharded_overflow": lambda folder: abnormal(HalvedLeaping, images_with(ABNORMAL, 1e4), **sharded())(folder),
    "uneven": lambda folder: uneven(folder, tracker()),
    "overflow": abnormal(Leaping, images_with(ABNORMAL, 1e4)),
    "shuffled": lambda folder: fit(folder, Leaping, images_with(ABNORMAL, 1e4), tracker()),
    "spoilt": abnormal(lambda: VAE(torch.optim.SGD, 1e-2), images_with(ABNORMAL, 160.0)),
    "backward": abnormal(Norms, images_with(ABNORMAL, 0.0)),
    "gan": abnormal(GAN, nan_pixel(), **UNUSED),
    "plain": lambda folder: plain(folder, DistributedDataParallel),
    "plain_sharded": lambda folder: plain(folder, halved),
    "stopping": stopping,
    "raises": abnormal(DistributionVAE, images_with(ABNORMAL, 3e4)),
    "anomaly": abnormal(Norms, images_with(ABNORMAL, 0.0), detect_anomaly=True),
    "spawned": lambda folder: fit(folder, Norms, images_with(ABNORMAL, 0.0), tracker(), **SPAWNED),
    "mute": mute,
    "late": late,
}


def main() -> None:
    """Run the scenarios that the command line names."""
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        SCENARIOS[name](Path(sys.argv[1]) / name)


if __name__ == "__main__":
    main()
