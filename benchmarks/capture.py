"""What recording costs a training, next to what other tools take for less; prints one Markdown table.

    python benchmarks/capture.py [--models DCGAN ResNet-18 MLP-VAE] [--blocks 6] [--peers]

Every contender is a real Lightning trainer with a model of its own, in a thread of its own; they take turns, one step
each, so that whatever else the machine does hits all of them alike. A turn is measured in process CPU time (one thread
of torch), and it waits until the recording's writer has put everything on disk. A ratio is the CPU time of a block of
steps over that of the bare trainer's same steps: the median over blocks, and the quartiles. The first steps, which
trace the graph, are left out; the governor is off. Bytes: what grows with the number of steps, per step.
"""
# ruff: noqa: D102  (Lightning's hooks)

import argparse
import contextlib
import importlib.util
import logging
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from models import MODELS
from torch.utils.tensorboard import SummaryWriter

from dgm_tb import DGMTrackerCallback
from dgm_tb.plugin.recording import Recording

WARM_UP = 2
BLOCKS = {"DCGAN": 10, "ResNet-18": 10, "MLP-VAE": 100}
"""Steps per block: enough to hold some windows of the recording and some flushes."""
GROWING = ("loss", "layer_statistics", "dynamics", "polylines")


class Turns:
    """Lets several threads run one step each, in turn, and notes the CPU time of every turn.

    Attributes:
        seconds: Per contender, the CPU time of every turn.
    """

    def __init__(self, names: list[str]) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self._batons = {name: threading.Event() for name in names}
        self._ended = threading.Event()

    def steps(self, name: str, batch: Any, n_steps: int, settle: Callable[[], None]) -> Iterator[Any]:
        """The batches of a contender; each comes when it is its turn, and the next request ends the turn."""
        for _ in range(n_steps):
            self._batons[name].wait()
            self._batons[name].clear()
            began = time.process_time()
            yield batch
            settle()
            self.seconds[name].append(time.process_time() - began)
            self._ended.set()

    def run(self, n_steps: int) -> None:
        """Hand out the turns, in an order that rotates."""
        names = list(self.seconds)
        for step in range(n_steps):
            for i in range(len(names)):
                self._ended.clear()
                self._batons[names[(step + i) % len(names)]].set()
                self._ended.wait()


class Batches(torch.utils.data.IterableDataset[Any]):
    """An iterator as a data set, for Lightning."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self.batches


class DetectAnomaly(L.Callback):
    """PyTorch's search for NaN in backward passes; a global switch, so it is on in this contender's turns only."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.autograd.set_detect_anomaly(True)

    def on_train_batch_end(self, *_: Any) -> None:
        torch.autograd.set_detect_anomaly(False)


class Histograms(L.Callback):
    """TensorBoard histograms of every parameter and its gradient in every step."""

    def __init__(self, folder: Path) -> None:
        self.writer = SummaryWriter(str(folder))

    def on_before_optimizer_step(self, trainer: L.Trainer, model: L.LightningModule, optimizer: Any) -> None:
        ours = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            if id(parameter) in ours:
                self.writer.add_histogram(name, parameter, trainer.global_step)
                if parameter.grad is not None:
                    self.writer.add_histogram(f"{name}.grad", parameter.grad, trainer.global_step)


class WandbWatch(L.Callback):
    """Weights & Biases' histograms of every parameter and its gradient in every step, offline."""

    def __init__(self, folder: Path) -> None:
        import wandb

        self.run = wandb.init(mode="offline", dir=str(folder), settings={"silent": True})

    def on_train_start(self, trainer: L.Trainer, model: L.LightningModule) -> None:
        self.run.watch(model, log="all", log_freq=1)

    def on_train_batch_end(self, *_: Any) -> None:
        self.run.log({"step": 1})


def ours(every_n_steps: int) -> Callable[[Path], L.Callback]:
    """Our callback without the governor and, beyond the first, without snapshots (benchmarks/attribution.py)."""
    return lambda folder: DGMTrackerCallback(
        logdir=folder, every_n_steps=every_n_steps, max_overhead=None, snapshot_steps=10**9, on_finding="ignore"
    )


CONTENDERS: dict[str, Callable[[Path], L.Callback | None]] = {
    "bare": lambda _: None,
    "every step": ours(1),
    "every 10th step": ours(10),
}
PEERS: dict[str, Callable[[Path], L.Callback | None]] = {
    "TensorBoard histograms of weights and gradients, every step": Histograms,
    "wandb.watch(log='all', log_freq=1)": WandbWatch,
    "autograd.set_detect_anomaly": lambda _: DetectAnomaly(),
}


def train(model: L.LightningModule, callback: L.Callback | None, batches: Iterator[Any]) -> None:
    """Run a trainer until the batches end."""
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[callback] if callback else [],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader(Batches(batches), batch_size=None))


def settle_of(callback: L.Callback | None) -> Callable[[], None]:
    """What waits until everything that a turn has queued is on disk."""

    def settle() -> None:
        recorder = getattr(callback, "recorder", None)
        if recorder is not None and recorder._writer is not None:
            recorder._writer.flush()

    return settle


def measure(model_name: str, contenders: dict[str, Any], n_blocks: int, folder: Path) -> dict[str, tuple[Any, ...]]:
    """Contender -> seconds per step, ratios of the blocks, and bytes per step."""
    n_steps = n_blocks * BLOCKS[model_name]
    turns = Turns(list(contenders))
    threads = []
    for name, make in contenders.items():
        torch.manual_seed(0)
        model = MODELS[model_name]()
        callback = make(folder / name)
        batches = turns.steps(name, model.batch(), WARM_UP + n_steps, settle_of(callback))
        threads.append(threading.Thread(target=train, args=(model, callback, batches)))
    for thread in threads:
        thread.start()
    turns.run(WARM_UP + n_steps)
    for thread in threads:
        thread.join()
    blocks = {name: _blocks(seconds[WARM_UP:], BLOCKS[model_name]) for name, seconds in turns.seconds.items()}
    return {
        name: (
            sum(blocks[name]) / n_steps,
            [own / bare for own, bare in zip(blocks[name], blocks["bare"], strict=True)],
            _bytes_per_step(folder / name, WARM_UP + n_steps),
        )
        for name in contenders
    }


def _blocks(seconds: list[float], size: int) -> list[float]:
    return [sum(seconds[i : i + size]) for i in range(0, len(seconds), size)]


def _bytes_per_step(folder: Path, n_steps: int) -> float:
    """Of a recording, what grows with the steps; of another tool's folder, all of it."""
    recordings = list(folder.glob("plugins/dgmtracker/*"))
    if recordings:
        recording = Recording(recordings[0])
        recording.refresh()
        return sum(recording.sizes().get(kind, 0) for kind in GROWING) / n_steps
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / n_steps


def contenders_for(has_peers: bool) -> dict[str, Any]:
    """Who is measured; says who is missing."""
    chosen = dict(CONTENDERS)
    if has_peers:
        for name, make in PEERS.items():
            if name.startswith("wandb") and importlib.util.find_spec("wandb") is None:
                print("wandb is not installed: skipped\n")
            else:
                chosen[name] = make
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what recording costs.")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--blocks", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--peers", action="store_true", help="measure other tools, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    contenders = contenders_for(options.peers)
    print("| model | recorded | CPU ms per step | ratio to bare (quartiles) | KB per step |\n|---|---|---|---|---|")
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(None):
            rows = measure(model, contenders, options.blocks, Path(folder))
        for name, (seconds, ratios, n_bytes) in rows.items():
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
            ratio = f"{middle:.3f} ({low:.3f} to {high:.3f})" if name != "bare" else "1"
            print(f"| {model} | {name} | {seconds * 1000:.1f} | {ratio} | {n_bytes / 1000:.1f} |", flush=True)


if __name__ == "__main__":
    main()
