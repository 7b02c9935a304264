"""Leaves everything running: a training that records, TensorBoard, and eight clients that ask as the tab does.

    python benchmarks/soak.py                # 10 minutes
    python benchmarks/soak.py --minutes 2

The training is a plain PyTorch loop with ``max_disk_mb`` so small that old windows are thinned out again and again. At
half time it is killed with SIGKILL and started again in the same run folder. In single steps one neuron, whose output
no loss uses, is pushed far out: a spike that nobody but the recording sees. The log folder holds twenty runs. Printed
at the end, as Markdown: memory of both processes (after a fifth of the time, at the end, the largest), how long the
clients waited, how old the newest step was that they saw, what was lost by the kill, whether every spike is still
there, and damage.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dgm_tb.plugin.opening import open_run
from dgm_tb.plugin.run import Run

RUN = "soak"
OTHER_RUNS = 19
CLIENTS = 8
MAX_DISK_MB = 48
SPIKE_EVERY = 997
SPIKE = 1000.0
NEURONS = 64
CLOCK_SECONDS = 0.1
SAMPLE_SECONDS = 2.0
LAYERS = ("encoder.0", "encoder.2", "probe", "decoder.0", "decoder.2")


def train(folder: Path, resume_step: int) -> None:
    """Train until killed or terminated; one line ``step time`` every tenth of a second tells how far it is."""
    import torch
    from torch import nn

    import dgm_tb

    class Model(nn.Module):
        """An autoencoder with a side branch that nothing depends on."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64))
            self.probe = nn.Linear(64, NEURONS)
            self.decoder = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.encoder(x)
            self.probe(z.detach())
            return self.decoder(z)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, batches = Model(), torch.randn(64, 32, 256)
    optimizer = torch.optim.Adam([*model.encoder.parameters(), *model.decoder.parameters()], 1e-4)
    options = {"max_disk_mb": MAX_DISK_MB, "max_overhead": None, "on_finding": "ignore", "resume_step": resume_step}
    with dgm_tb.record(model, folder, **options) as recorder, (folder / "clock").open("a", buffering=1) as clock:
        step, said = resume_step, 0.0
        while True:
            spike = spike_of(step)
            with torch.no_grad():
                model.probe.bias.zero_()
                if spike is not None:
                    model.probe.bias[spike] = SPIKE
            x = batches[step % len(batches)]
            loss = (model(x) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(loss)
            if time.time() - said > CLOCK_SECONDS:
                said = time.time()
                clock.write(f"{step} {said}\n")
            step += 1


def spike_of(step: int) -> int | None:
    """The neuron that is pushed out in a step, or None."""
    return step // SPIKE_EVERY % NEURONS if step and step % SPIKE_EVERY == 0 else None


@dataclass
class Client:
    """What the tab does, every second: are there news? Then everything that is drawn."""

    address: str
    rng: random.Random
    waited: dict[str, list[float]] = field(default_factory=dict)
    ages: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    revision: str = ""

    def run(self, folder: Path, ended: threading.Event) -> None:
        """Ask until it ends."""
        while not ended.wait(self.rng.uniform(0.8, 1.2)):
            listed = json.loads(self.get("runs") or b"[]")
            facts = next((run for run in listed if run["run"] == RUN), None)
            if facts is None or facts["revision"] == self.revision or not facts["layers"]:
                continue
            self.revision = facts["revision"]
            self.ages.append(age_of(folder, facts["last_step"] or 0))
            layer, run = self.rng.choice(LAYERS), {"run": RUN}
            for route, arguments in (
                ("run", run),
                ("losses", run),
                ("findings", run),
                ("minis", run),
                ("dynamics", {**run, "layer": layer}),
                ("neurons", {**run, "layer": layer, "step": facts["last_step"]}),
            ):
                self.get(route, arguments)

    def get(self, route: str, arguments: dict[str, object] | None = None) -> bytes | None:
        """Ask a route; what goes wrong is noted."""
        began = time.monotonic()
        try:
            address = f"{self.address}/{route}?{urllib.parse.urlencode(arguments or {})}"
            with urllib.request.urlopen(address, timeout=60) as answer:
                content: bytes = answer.read()
        except (OSError, urllib.error.HTTPError) as error:
            text = error.read()[:200].decode() if isinstance(error, urllib.error.HTTPError) else ""
            self.errors.append(f"{route}: {error} {text}")
            return None
        self.waited.setdefault(route, []).append(time.monotonic() - began)
        return content


def age_of(folder: Path, step: int) -> float:
    """Seconds since the training did the step after this one, as far as its clock tells; 0 if there is none yet."""
    later = [float(at) for number, at in _clock(folder) if int(number) > step]
    return max(0.0, time.time() - later[0]) if later else 0.0


def _clock(folder: Path) -> list[list[str]]:
    with (folder / "clock").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
        lines = file.read().decode().split("\n")[1:-1]
    return [pair for line in lines if len(pair := line.split()) == 2]


@contextmanager
def tensorboard(logdir: Path) -> Iterator[tuple[int, str]]:
    """A TensorBoard; gives its process and the address of our routes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/data/plugin/dgmtracker"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/runs", timeout=5).read()
                break
            except OSError:
                time.sleep(0.1)
        yield process.pid, address
    finally:
        process.terminate()
        process.wait(30)


def memory_mb(process: int) -> float:
    """Resident memory of a process, in MB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


@dataclass
class Outcome:
    """What is measured while it goes on."""

    memory: dict[str, list[float]] = field(default_factory=lambda: {"training": [], "TensorBoard": []})
    lost_seconds: float = 0.0
    lost_steps: int = 0


def start(folder: Path, resume_step: int) -> subprocess.Popen[bytes]:
    """Start the training."""
    return subprocess.Popen([sys.executable, __file__, "--train", str(folder), str(resume_step)])


def soak(logdir: Path, seconds: float, address: str, server: int) -> tuple[Outcome, list[Client]]:
    """Let everything run; kill and restart the training at half time."""
    folder, outcome = logdir / RUN, Outcome()
    folder.mkdir(parents=True)
    (folder / "clock").touch()
    training, began, has_killed = start(folder, 0), time.monotonic(), False
    ended = threading.Event()
    clients = [Client(address, random.Random(number)) for number in range(CLIENTS)]
    threads = [threading.Thread(target=client.run, args=(folder, ended)) for client in clients]
    for thread in threads:
        thread.start()
    while (elapsed := time.monotonic() - began) < seconds:
        time.sleep(SAMPLE_SECONDS)
        outcome.memory["training"].append(memory_mb(training.pid))
        outcome.memory["TensorBoard"].append(memory_mb(server))
        if elapsed > seconds / 2 and not has_killed:
            has_killed = True
            training.kill()
            training.wait()
            training = start(folder, _after_the_kill(folder, outcome))
    training.send_signal(signal.SIGTERM)
    training.wait(60)
    time.sleep(3)
    ended.set()
    for thread in threads:
        thread.join()
    return outcome, clients


def _after_the_kill(folder: Path, outcome: Outcome) -> int:
    """Note what the kill has cost; the step to go on from."""
    steps = open_run(folder).steps
    last = steps[1] if steps else -1
    clock = _clock(folder)
    outcome.lost_steps = int(clock[-1][0]) - last
    outcome.lost_seconds = max(
        0.0, float(clock[-1][1]) - max((float(t) for s, t in clock if int(s) <= last), default=0)
    )
    return last + 1


def lost_spikes(run: Run) -> tuple[int, list[int]]:
    """How many spikes there were, and the steps of those that the dynamics do not show in their window any more."""
    first, last = run.steps or (0, -1)
    found = run.dynamics("probe", "activation", "mean")
    assert found.high is not None
    expected = [step for step in range(first, last + 1) if spike_of(step) is not None]
    lost = []
    for step in expected:
        window = int(np.searchsorted(found.steps, step))
        is_inside = window < len(found.steps) and found.first_steps[window] <= step
        if not is_inside or not found.high[spike_of(step), window] > SPIKE / 2:
            lost.append(step)
    return len(expected), lost


def report(folder: Path, outcome: Outcome, clients: list[Client], seconds: float) -> None:
    """Print what was found."""
    run = open_run(folder)
    first, last = run.steps or (0, -1)
    n_spikes, lost = lost_spikes(run)
    losses = run.losses["loss"]
    n_bytes = sum(file.stat().st_size for file in folder.rglob("*.dgm"))
    n_twice = len(losses.steps) - len(np.unique(losses.steps))
    rows = [
        ("minutes", f"{seconds / 60:.1f}"),
        ("steps", f"{last - first + 1:,}"),
        *_memory_rows(outcome),
        *_client_rows(clients),
        ("lost by SIGKILL", f"{outcome.lost_seconds:.1f} s, {outcome.lost_steps} steps"),
        ("spikes, of these not to be seen any more", f"{n_spikes}, {len(lost)} {lost[:5] if lost else ''}"),
        ("steps with a loss; of these twice", f"{len(losses.steps):,}; {n_twice}"),
        ("windows; the longest in steps", _windows(run)),
        ("on disk (two recordings)", f"{n_bytes / 2**20:.0f} MB with max_disk_mb={MAX_DISK_MB} each"),
        ("damage", str(len(run.gaps))),
    ]
    print("| | |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")
    for text in [error for client in clients for error in client.errors][:5]:
        print(f"\nfailed: {text}")


def _memory_rows(outcome: Outcome) -> list[tuple[str, str]]:
    warm = len(outcome.memory["training"]) // 5
    return [
        (
            f"memory of {who} in MB: after a fifth of the time, at the end, largest",
            f"{sizes[warm]:.0f}, {sizes[-1]:.0f}, {max(sizes):.0f}",
        )
        for who, sizes in outcome.memory.items()
    ]


def _client_rows(clients: list[Client]) -> list[tuple[str, str]]:
    rows = []
    for route in sorted({route for client in clients for route in client.waited}):
        waited = [1000 * seconds for client in clients for seconds in client.waited.get(route, ())]
        median, late = np.percentile(waited, [50, 95])
        rows.append((f"`{route}`, {len(waited):,} times: median, 95 % in ms", f"{median:.0f}, {late:.0f}"))
    ages = [age for client in clients for age in client.ages]
    median, late, oldest = np.percentile(ages, [50, 95, 100])
    text = "age of the newest step that a client sees: median, 95 %, largest in s"
    rows.append((text, f"{median:.1f}, {late:.1f}, {oldest:.1f}"))
    rows.append(("requests that failed", str(sum(len(client.errors) for client in clients))))
    return rows


def _windows(run: Run) -> str:
    found = run.dynamics("probe", "activation", "mean")
    sizes = found.steps - found.first_steps + 1
    return f"{len(sizes):,}; {int(sizes.max())}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Leave everything running for a while.")
    parser.add_argument("--minutes", type=float, default=10.0, help="default: %(default)s")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(Path(options.train[0]), int(options.train[1]))
        return
    with tempfile.TemporaryDirectory() as place:
        logdir = Path(place)
        example = logdir / "run 0"
        example.mkdir()
        short = start(example, 0)
        time.sleep(10)
        short.send_signal(signal.SIGTERM)
        short.wait(60)
        for number in range(1, OTHER_RUNS):
            shutil.copytree(example, logdir / f"run {number}")
        with tensorboard(logdir) as (server, address):
            outcome, clients = soak(logdir, options.minutes * 60, address, server)
        report(logdir / RUN, outcome, clients, options.minutes * 60)


if __name__ == "__main__":
    main()
