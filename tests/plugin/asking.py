"""Asks every route for everything, with right and wrong arguments, and checks that each answer is a proper one.

Run as a program it does so with mutated recordings, in a process that may not have more memory than a small machine:

    python tests/plugin/asking.py --seeds 0:100
    python tests/plugin/asking.py --seconds 600 --seeds 5000: --keep failures.txt
    python tests/plugin/asking.py --greedy
"""

import argparse
import gc
import json
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import greedy  # noqa: E402
import mutations  # noqa: E402
import numpy as np  # noqa: E402
import sample_recording as sample  # noqa: E402
from tensorboard.backend.application import TensorBoardWSGI  # noqa: E402
from tensorboard.plugins import base_plugin  # noqa: E402
from werkzeug.test import Client, TestResponse  # noqa: E402

from dgm_tb import open_run  # noqa: E402
from dgm_tb.errors import DgmError  # noqa: E402
from dgm_tb.plugin import plugin as plugin_module  # noqa: E402
from dgm_tb.plugin.plugin import ARRAY_ROUTES, JSON_ROUTES, DGMTrackerPlugin  # noqa: E402
from dgm_tb.plugin.wire import unpack  # noqa: E402
from dgm_tb.records import STATISTICS, Record  # noqa: E402

BASE = "/data/plugin/dgmtracker/"
CPU_SECONDS = 5.0
"""No answer takes that long; the slowest of a small recording takes a tenth of a second."""
MEMORY_BYTES = 300 << 20
"""What the reader may need, however it is attacked."""
MAX_SENTENCE = 1000
INNARDS = re.compile(r"Traceback|File \"|0x[0-9a-f]{6}|site-packages|object at")

COMMON = ("run", "layer", "quantity", "statistic", "first", "last")
"""What `...` stands for in http_api.md."""


def documented_arguments() -> dict[str, tuple[str, ...]]:
    """Route -> its arguments, of all routes there are, as http_api.md says."""
    text = (Path(plugin_module.__file__).parent / "http_api.md").read_text()
    chapters = re.findall(r"^#{3,4} `(\w+)`\n\n`(\.\.\.)?[?&]([^`]*)`", text, re.MULTILINE)
    known = {route: (COMMON if dots else ()) + tuple(re.findall(r"(\w+)=", query)) for route, dots, query in chapters}
    return {"runs": (), **{route: known[route] for route in (*JSON_ROUTES, *ARRAY_ROUTES)}}


ARGUMENTS = documented_arguments()
TEXTS = [
    "", " ", "x", "../../etc/passwd", "..%2f..", "/etc/passwd", "C:\\x", "\x00", "\udcff", "\ud800", "é", "\u202e", "%",
    "<script>alert(1)</script>", "None", "null", "[]", "{}", "a" * 601, "n" * 70_000, "fc\n", " fc", "FC", ".",
    "fc,out", "1,2", "1,,2", "0,0", ",",
]  # fmt: skip
NUMBERS = [*map(str, [-1, 0, 1, 2, 3, 4, 12, 128, 4000, 4001, 100_000, 2**31, 2**53, 2**53 + 1]), "9" * 400]
NO_NUMBERS = ["x", "1.5", "1e3", "1e999", "0x10", "NaN", "inf", "١", "²", "--1", "-", "1 ", "+1", "1_000", "true"]


def make_client(logdir: Path) -> Client:
    """A client of TensorBoard's application with nothing but our plugin."""
    plugin = DGMTrackerPlugin(base_plugin.TBContext(logdir=str(logdir)))
    return Client(TensorBoardWSGI([plugin]))


def ask(client: Client, route: str, query: list[tuple[str, str]]) -> TestResponse:
    """Ask a route; whatever it answers must be a proper answer, and come in time."""
    text = "&".join(f"{quote(name)}={quote(value.encode('utf-8', 'surrogatepass'))}" for name, value in query)
    began = time.process_time()
    with deadline():
        answer = client.get(f"{BASE}{route}?{text}")
    assert time.process_time() - began < CPU_SECONDS
    check(route, answer)
    return answer


@contextmanager
def deadline() -> Iterator[None]:
    """Raise where something does not end."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no answer after {CPU_SECONDS} s of CPU")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def check(route: str, answer: TestResponse) -> None:
    """An answer is facts or arrays of the documented form, or a sentence with 4xx."""
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    if answer.status_code == 200:
        if route in ARRAY_ROUTES:
            assert answer.mimetype == "application/octet-stream"
            size = int.from_bytes(answer.data[4:8], "little")
            strict_json(answer.data[8 : 8 + size])
            unpack(answer.data)
        else:
            assert answer.mimetype == "application/json"
            strict_json(answer.data)
        return
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.data[:2000])
    assert answer.mimetype == "text/plain"
    assert 10 < len(answer.text) <= MAX_SENTENCE
    assert not INNARDS.search(answer.text), answer.text


def strict_json(content: bytes) -> Any:
    """Facts in JSON as JavaScript reads it: UTF-8, and every number finite."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(content.decode("utf-8"), parse_constant=refuse)


def ask_everything(folder: Path, rng: random.Random) -> None:
    """Every route of the run ``.`` with right arguments and with wrong ones, and the reader itself."""
    client = make_client(folder)
    ask(client, "runs", [])
    facts = ask(client, "run", [("run", ".")])
    known = strict_json(facts.data) if facts.status_code == 200 else {}
    assert not [note for note in known.get("notes", ()) if note.startswith("no findings by the detectors")], known[
        "notes"
    ]
    names = known_names(client, known)
    for route, arguments in ARGUMENTS.items():
        right = {name: rng.choice(names[name]) for name in arguments if name in names}
        ask(client, route, list(right.items()))
        for _ in range(2):
            query = dict(right)
            for name in rng.sample(arguments[1:], rng.randrange(len(arguments))) if arguments else []:
                query[name] = rng.choice([*TEXTS, *NUMBERS, *NO_NUMBERS, *names.get(name, ())])
            repeated = [(name, rng.choice(TEXTS)) for name in query if rng.random() < 0.1]
            ask(client, route, [*query.items(), *repeated])
    with deadline():
        read_everything(folder, [name for name in names["layer"] if len(name) < 1000][:4])


def known_names(client: Client, facts: dict[str, Any]) -> dict[str, list[str]]:
    """Values of arguments that may be there, also those that a file made up."""
    layers = [*sample.FLOW, *(layer["name"] for layer in facts.get("layers", ())[:6])]
    findings = ask(client, "findings", [("run", ".")])
    ids = [str(item["id"]) for item in strict_json(findings.data)[:4]] if findings.status_code == 200 else []
    statistics = [name for found in facts.get("statistics", {}).values() for name in found[:9]]
    return {
        "run": ["."],
        "layer": layers,
        "source": layers,
        "target": layers,
        "finding": ["f1", "f3", *ids],
        "quantity": list(STATISTICS),
        "statistic": ["mean", "rms", *map(str, statistics)],
        "samples": ["batch", "abnormal", "normal"],
        "direction": ["forward", "backward"],
        "neuron": ["0", "1", "4"],
        "neurons": ["0", "2,1"],
        "scale": ["linear", "symlog", "log"],
        "kind": ["box", "line", "nonfinite"],
        **{name: ["0", "5", "9"] for name in ("step", "step1", "step2", "value", "value1", "value2", "low", "high")},
    }


def read_everything(folder: Path, layers: list[str]) -> None:
    """What a notebook asks for."""
    with suppress(DgmError), np.errstate(all="ignore"):
        run = open_run(folder)
        _ = run.findings, run.losses, run.snapshots, run.notes, run.gaps, run.steps, run.ended, run.last_wall_time
        for layer in layers:
            for quantity in STATISTICS:
                for read in (run.layer_statistics, run.dynamics, run.polylines):
                    with suppress(DgmError):
                        read(layer, quantity)
        for link in run.graph.links[:3]:
            with suppress(DgmError):
                _ = run.contribution(link.source, link.target, 0).scaled


def limit_memory(n_bytes: int) -> None:
    """Let this process have only so much more than it has now."""
    status = Path("/proc/self/status")
    if status.exists():
        used = int(re.findall(r"^VmSize:\s+(\d+) kB", status.read_text(), re.M)[0]) << 10
        resource.setrlimit(resource.RLIMIT_AS, (used + n_bytes, resource.RLIM_INFINITY))


def ask_greedy(name: str, records: Iterator[Record]) -> None:
    """Ask for as much as a route gives, of a file that is small and claims more."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = sample.write(Path(folder), records)
        client = make_client(Path(folder))
        layers = ["out", "fc", "layer0", "layer7" + "x" * 60_000]
        for layer in layers:
            for route in ("neurons", "contributions", "dynamics"):
                ask(client, route, [("run", "."), ("layer", layer)])
            ask(client, "dynamics", [("run", "."), ("layer", layer), ("k", "2000"), ("columns", "4000")])
        ask(client, "minis", [("run", "."), ("span", "100000"), ("columns", "4000")])
        ask(client, "losses", [("run", "."), ("columns", "4000")])
        ask(client, "matrix", [("run", "."), ("source", "conv"), ("target", "fc")])
        ask_everything(Path(folder), random.Random(0))
        print(f"{name}: {path.stat().st_size / 1e6:.1f} MB, {time.process_time() - began:.1f} s", flush=True)


def fuzz(seeds: Iterator[int], until: float, keep: Path | None) -> int:
    """Mutate and ask; a failure names its seed. Returns how many recordings were asked."""
    done = 0
    for seed in seeds:
        if time.monotonic() > until:
            break
        rng = random.Random(seed)
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{seed}-"))
        try:
            for name, content in mutations.mutated(rng).items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            began = time.process_time()
            ask_everything(folder, rng)
            if time.process_time() - began > CPU_SECONDS:
                print(f"seed {seed}: {time.process_time() - began:.1f} s", flush=True)
        except BaseException as error:
            import traceback

            print(f"seed {seed}: {type(error).__name__} {str(error)[:500]}", flush=True)
            if keep is None:
                raise
            with keep.open("a") as file:
                file.write(f"==== seed {seed}\n{traceback.format_exc()[-3000:]}\n")
            if isinstance(error, KeyboardInterrupt):
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        done += 1
        if not done % 8:
            gc.collect()  # the threads of plugins that nobody asks any more end with them
    return done


def main() -> None:
    """Ask about the recordings of some seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:", help="first:stop, or first: for no end")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--greedy", action="store_true", help="ask about small files that claim much, instead")
    parser.add_argument("--keep", type=Path, help="append failures to this file, and go on")
    options = parser.parse_args()
    first, _, stop = options.seeds.partition(":")
    seeds = range(int(first or 0), int(stop) if stop else sys.maxsize)
    with tempfile.TemporaryDirectory() as folder:
        sample.write(Path(folder), sample.all_records())
        ask_everything(Path(folder), random.Random(0))  # whatever is imported or allocated once
    limit_memory(MEMORY_BYTES)
    if options.greedy:
        for name, scenario in greedy.SCENARIOS.items():
            ask_greedy(name, scenario())
        return
    done = fuzz(iter(seeds), time.monotonic() + options.seconds, options.keep)
    print(f"{done} recordings asked")


if __name__ == "__main__":
    main()
