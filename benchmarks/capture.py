"""What recording costs a training, next to what other tools take for less; prints one Markdown table.

    python benchmarks/capture.py [--models DCGAN ResNet-18 MLP-VAE] [--seconds 300] [--peers]

Every contender is a real Lightning trainer with a model of its own, in a thread of its own; they take turns, so that
whatever else the machine does hits all of them alike. A turn is one step of a large model or ten of a small one (which
would find the caches cold after every turn, as no real training does). It is measured in process CPU time, with one
thread of torch, and it waits until the recording's writer has put everything on disk. A ratio is the CPU time of a
block of turns over that of the bare trainer's same turns: the median over blocks, and the quartiles. A block is long
enough to hold what happens only now and then: an observed step, a flush. The first turns, which trace the graph, are
left out; the governor is off. "alarms only" observes no neurons: losses and the checks for NaN and Inf. Bytes: what
grows with the number of steps, per step.
"""
# ruff: noqa: D102  (Lightning's hooks)

import argparse
import importlib.util
import logging
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # torch.set_num_threads would hold for this thread only

import lightning as L
import torch
from models import MODELS
from torch.utils.tensorboard import SummaryWriter

from dgm_tb import DGMTrackerCallback
from dgm_tb.plugin.recording import Recording
from dgm_tb.plugin.sizes import GROWING

MEASURED = slice(2, -1)
"""Turns: the first ones trace the graph and warm up, and after the last one Lightning still has a batch in hand."""
WINDOW_STEPS = 16
TURN_STEPS = {"DCGAN": 1, "ResNet-18": 1, "MLP-VAE": 10}
BLOCK_TURNS = {"DCGAN": 1, "ResNet-18": 1, "MLP-VAE": 10}
"""Turns per block. The steps of the large models take so long that each is followed by a flush."""


Settle = Callable[[], None]


class Turns:
    """Lets several threads run one step each, in turn, and notes the CPU time of every turn.

    Attributes:
        seconds: Per contender, the CPU time of every turn.
    """

    def __init__(self, names: list[str]) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self._batons = {name: threading.Event() for name in names}
        self._ended = threading.Event()

    def batches(self, name: str, batch: Any, n_turns: int, turn_steps: int, settle: Settle) -> Iterator[Any]:
        """The batches of a contender; they come when it is its turn, and the request for one more ends the turn."""
        for _ in range(n_turns):
            self._batons[name].wait()
            self._batons[name].clear()
            began = time.process_time()
            for _ in range(turn_steps):
                yield batch
            settle()
            self.seconds[name].append(time.process_time() - began)
            self._ended.set()

    def run(self, n_turns: int) -> None:
        """Hand out the turns, in an order that rotates."""
        names = list(self.seconds)
        for turn in range(n_turns):
            for i in range(len(names)):
                self._ended.clear()
                self._batons[names[(turn + i) % len(names)]].set()
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

        self.run = wandb.init(mode="offline", dir=str(folder), settings={"silent": True}, reinit="finish_previous")

    def on_train_start(self, trainer: L.Trainer, model: L.LightningModule) -> None:
        self.run.watch(model, log="all", log_freq=1)

    def on_train_batch_end(self, *_: Any) -> None:
        self.run.log({"step": 1})


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        make: From a folder to write to, to the trainer's callback.
        cadence: Steps from one expensive step to the next.
    """

    make: Callable[[Path], L.Callback | None]
    cadence: int = 1


def ours(every_n_steps: int) -> Callable[[Path], L.Callback]:
    """Our callback without the governor and, beyond the first, without snapshots (benchmarks/attribution.py)."""
    return lambda folder: DGMTrackerCallback(
        logdir=folder, every_n_steps=every_n_steps, max_overhead=None, snapshot_steps=10**9, on_finding="ignore"
    )


CONTENDERS: dict[str, Contender] = {
    "bare": Contender(lambda _: None),
    "every step": Contender(ours(1)),
    "every 10th step": Contender(ours(10), cadence=10),
    "alarms only": Contender(ours(10**6)),
}
PEERS: dict[str, Contender] = {
    "TensorBoard histograms of weights and gradients, every step": Contender(Histograms),
    "wandb.watch(log='all', log_freq=1)": Contender(WandbWatch),
    "autograd.set_detect_anomaly": Contender(lambda _: DetectAnomaly()),
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


def settle_of(callback: L.Callback | None) -> Settle:
    """What waits until everything that a turn has queued is on disk."""

    def settle() -> None:
        recorder = getattr(callback, "recorder", None)
        if recorder is not None:
            recorder.output.sync()

    return settle


@dataclass(frozen=True)
class Result:
    """What was measured of one contender: seconds per step, ratios of its blocks, bytes per step."""

    seconds: float
    ratios: list[float]
    n_bytes: float


def measure(model_name: str, contenders: dict[str, Contender], seconds: float, folder: Path) -> dict[str, Result]:
    """Train all contenders in turns for about so many seconds of CPU time."""
    turn_steps = TURN_STEPS[model_name]
    turn_seconds = statistics.median(_take_turns(model_name, {"bare": CONTENDERS["bare"]}, 5, folder)["bare"])
    n_turns = max(2, int(seconds / len(contenders) / turn_seconds / WINDOW_STEPS)) * WINDOW_STEPS
    turns = _take_turns(model_name, contenders, n_turns, folder)
    results = {}
    for name, contender in contenders.items():
        size = max(-(-contender.cadence // turn_steps), BLOCK_TURNS[model_name])
        own, bare = (_blocks(turns[who][MEASURED], size) for who in (name, "bare"))
        ratios = [mine / its for mine, its in zip(own, bare, strict=True)]
        per_step = statistics.fmean(turns[name][MEASURED]) / turn_steps
        results[name] = Result(per_step, ratios, _bytes_per_step(folder / name, n_turns * turn_steps))
    return results


def _take_turns(
    model_name: str, contenders: dict[str, Contender], n_turns: int, folder: Path
) -> dict[str, list[float]]:
    """Contender -> seconds of every turn."""
    turns = Turns(list(contenders))
    threads = []
    for name, contender in contenders.items():
        torch.manual_seed(0)
        model = MODELS[model_name]()
        callback = contender.make(folder / name)
        batches = turns.batches(name, model.batch(), n_turns, TURN_STEPS[model_name], settle_of(callback))
        threads.append(threading.Thread(target=train, args=(model, callback, batches)))
    for thread in threads:
        thread.start()
    turns.run(n_turns)
    for thread in threads:
        thread.join()
    return turns.seconds


def _blocks(seconds: list[float], size: int) -> list[float]:
    return [sum(seconds[i : i + size]) for i in range(0, len(seconds) - size + 1, size)]


def _bytes_per_step(folder: Path, n_steps: int) -> float:
    """Of a recording, what grows with the steps; of another tool's folder, all of it."""
    recordings = list(folder.glob("plugins/dgmtracker/*"))
    if recordings:
        recording = Recording(recordings[0])
        recording.refresh()
        return sum(recording.sizes().get(kind, 0) for kind in GROWING) / n_steps
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / n_steps


def contenders_for(has_peers: bool) -> dict[str, Contender]:
    """Who is measured; says who is missing."""
    chosen = dict(CONTENDERS)
    if has_peers:
        for name, contender in PEERS.items():
            if name.startswith("wandb") and importlib.util.find_spec("wandb") is None:
                print("wandb is not installed: skipped\n")
            else:
                chosen[name] = contender
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what recording costs.")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=300, help="CPU time per model; default: %(default)s")
    parser.add_argument("--peers", action="store_true", help="measure other tools, too")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    contenders = contenders_for(options.peers)
    print("| model | recorded | CPU ms per step | ratio to bare (quartiles) | KB per step |\n|---|---|---|---|---|")
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            results = measure(model, contenders, options.seconds, Path(folder))
        for name, result in results.items():
            low, middle, high = statistics.quantiles(result.ratios, n=4, method="inclusive")
            ratio = f"{middle:.3f} ({low:.3f} to {high:.3f})" if name != "bare" else "1"
            cells = f"{result.seconds * 1000:.1f} | {ratio} | {result.n_bytes / 1000:.1f}"
            print(f"| {model} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
