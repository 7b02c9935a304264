"""Runs a short training and reads what it recorded, record by record, with nothing of the plugin."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from models import BATCH_SIZE
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dgm_tb import DGMTrackerCallback
from dgm_tb.graph import Graph
from dgm_tb.records import Finding, Record, parse


class Collected(L.Callback):
    """Keeps every batch's loss, as training gave it, and copies of its batch."""

    def __init__(self) -> None:
        self.losses: list[Tensor | None] = []
        self.batches: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self.losses.append(None if loss is None else loss.detach().clone())
        self.batches.append([tensor.clone() for tensor in batch])


def loader(data: Dataset[Any], *, seed: int = 3, **options: Any) -> DataLoader[Any]:
    """A shuffling loader whose order is the same in every call."""
    if not {"shuffle", "sampler", "batch_sampler"} & set(options):
        options |= {"shuffle": True, "generator": torch.Generator().manual_seed(seed)}
    if "batch_sampler" not in options:
        options.setdefault("batch_size", BATCH_SIZE)
    return DataLoader(data, **options)


def fit(
    model: L.LightningModule,
    train: Any,
    folder: Path,
    callback: DGMTrackerCallback | None = None,
    *,
    others: tuple[L.Callback, ...] = (),
    ckpt_path: str | None = None,
    val: Any = None,
    **options: Any,
) -> L.Trainer:
    """Train for a few steps, from a fixed seed, on the CPU."""
    options = {
        "max_steps": -1,
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": TensorBoardLogger(folder, name="", version="run"),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        **options,
    }
    chosen = [*others, *([callback] if callback is not None else [])]
    trainer = L.Trainer(callbacks=chosen, **options)
    L.seed_everything(5, verbose=False)
    trainer.fit(model, train, val, ckpt_path=ckpt_path)
    return trainer


def recordings(folder: Path) -> list[Path]:
    """The recording folders anywhere below ``folder``, the oldest first."""
    found = {path.parent for path in folder.rglob("*.dgm")}
    return sorted(found, key=lambda path: min(p.stat().st_mtime_ns for p in path.iterdir()))


def payloads(segment: Path) -> Iterator[bytes]:
    """The payloads of a TFRecord file, without a look at the checksums."""
    content, place = segment.read_bytes(), 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        yield content[place + 12 : place + 12 + length]
        place += 12 + length + 4


@dataclass
class Recording:
    """All records of one recording folder.

    Attributes:
        records: In the order of the file.
    """

    records: list[Record]

    @classmethod
    def of(cls, folder: Path) -> "Recording":
        """The only recording below ``folder``."""
        (only,) = recordings(folder)
        return cls.read(only)

    @classmethod
    def read(cls, folder: Path) -> "Recording":
        return cls([parse(p) for segment in sorted(folder.glob("*.dgm")) for p in payloads(segment)])

    def kind(self, kind: str) -> list[Record]:
        return [record for record in self.records if record.kind == kind]

    @property
    def graph(self) -> Graph:
        return Graph.from_json(self.kind("graph")[-1].body)

    @property
    def end(self) -> Any:
        (record,) = self.kind("end")
        return record.body

    @property
    def notes(self) -> list[str]:
        return [record.body["text"] for record in self.kind("note")]

    @property
    def findings(self) -> list[Finding]:
        return [Finding.from_json(record.body["finding"]) for record in self.kind("finding")]

    def losses(self) -> dict[str, dict[int, float]]:
        """Name -> step -> value."""
        series: dict[str, dict[int, float]] = {}
        for record in self.kind("loss"):
            for row, step in enumerate(record.arrays["steps"]):
                for column, name in enumerate(record.body["names"]):
                    if record.arrays["present"][row, column]:
                        series.setdefault(name, {})[int(step)] = float(record.arrays["values"][row, column])
        return series

    def steps(self) -> list[tuple[int, int]]:
        """Own step and Lightning's global step of every recorded step."""
        rows = [zip(r.arrays["steps"], r.arrays["global_steps"], strict=True) for r in self.kind("loss")]
        return [(int(step), int(global_step)) for row in rows for step, global_step in row]

    def rows(self, name: str, quantity: str) -> slice:
        """Where a layer's (or a module's weights') neurons are."""
        graph = self.graph
        if quantity in ("weight", "update"):
            entry = next(weight for weight in graph.weights if weight.module == name)
            return slice(entry.offset, entry.offset + entry.neurons)
        layer = next(layer for layer in graph.layers if layer.name == name)
        return slice(layer.offset, layer.offset + layer.neurons)

    def dynamics(self, name: str, quantity: str, aggregate: str) -> np.ndarray[Any, Any]:
        """``[windows, neurons]``."""
        rows = self.rows(name, quantity)
        parts = [
            record.arrays["values"][rows, :, record.body["aggregates"].index(aggregate)].T
            for record in self.kind("dynamics")
            if record.body["quantity"] == quantity
        ]
        return np.concatenate(parts).astype(np.float64)

    def windows(self, quantity: str = "activation") -> list[tuple[int, int]]:
        found = [r.arrays["windows"] for r in self.kind("dynamics") if r.body["quantity"] == quantity]
        return [(int(first), int(last)) for part in found for first, last in part]

    def layer_statistic(self, name: str, quantity: str, statistic: str) -> np.ndarray[Any, Any]:
        """``[steps]``."""
        graph = self.graph
        names = (
            [weight.module for weight in graph.weights]
            if quantity in ("weight", "update")
            else [layer.name for layer in graph.layers]
        )
        parts = [
            record.arrays["values"][:, names.index(name), record.body["statistics"].index(statistic)]
            for record in self.kind("layer_statistics")
            if record.body["quantity"] == quantity
        ]
        return np.concatenate(parts).astype(np.float64)
