"""How long a recording takes to open and a view to answer, and how much memory it needs.

    python benchmarks/reader.py              # 100 MB
    python benchmarks/reader.py --gigabyte   # 1 GB

The recording is synthetic: 24 layers with 4032 neurons, windows of 16 steps, one flush per window (the worst case for
the index: small records). The file is in the page cache. Views are called as the HTTP routes call them, without the
network; "cold" is the first call after the caches were emptied, "warm" the median of further ones.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from dgm_tb.framing import frame
from dgm_tb.graph import Edge, Graph, Layer, Link, Node, Weight
from dgm_tb.plugin.cache import CACHE
from dgm_tb.plugin.opening import open_run
from dgm_tb.plugin.plugin import ARRAY_ROUTES, JSON_ROUTES, view
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.wire import Arguments, pack
from dgm_tb.records import PLUGIN_NAME, STATISTICS, Record, encode

LAYERS = [64, 128, 256, 512, 512, 256, 128, 64, 64, 128, 192, 192, 128, 64, 64, 64, 128, 256, 256, 256, 128, 64, 64, 64]
WINDOW_STEPS = 16
SAMPLED = 24
SEGMENT_BYTES = 64 << 20
REPEATS = 7


def graph() -> Graph:
    """A chain of linear layers."""
    offsets = np.cumsum([0, *LAYERS])
    names = [f"net.{number}" for number in range(len(LAYERS))]
    layers = [
        Layer(n, n, "Linear", size, int(o), [64, size]) for n, size, o in zip(names, LAYERS, offsets, strict=False)
    ]
    weights = [Weight(layer.name, "weight", layer.neurons, layer.offset) for layer in layers]
    nodes = [Node(layer.name, "module", "Linear", "net", layer.shape, layer.name) for layer in layers]
    pairs = list(itertools.pairwise(names))
    links = [Link(a, b, "channels", 0, 1) for a, b in pairs]
    return Graph(nodes, [Edge(a, b) for a, b in pairs], {"": "Net", "net": "Sequential"}, layers, weights, links)


def window_records(first: int, rng: np.random.Generator) -> list[Record]:
    """All records of one window."""
    last, neurons = first + WINDOW_STEPS - 1, sum(LAYERS)
    steps = np.arange(first, last + 1)
    losses = rng.normal(1, 0.1, (WINDOW_STEPS, 3))
    arrays = {"steps": steps, "global_steps": steps, "values": losses, "present": np.ones_like(losses, np.uint8)}
    made = [Record("loss", first, last, {"names": ["loss", "kl", "mse"]}, arrays)]
    base = rng.normal(0, 1, neurons).astype(np.float32)
    for quantity, known in STATISTICS.items():
        names = [statistic.name for statistic in known]
        per_layer = rng.normal(0, 1, (WINDOW_STEPS, len(LAYERS), len(names))).astype(np.float32)
        body = {"quantity": quantity, "statistics": names}
        made.append(Record("layer_statistics", first, last, body, {"steps": steps, "values": per_layer}))
        aggregates = [f"{statistic.name}/{name}" for statistic in known for name in statistic.windows]
        values = np.repeat(base[:, None, None], len(aggregates), 2) + rng.normal(0, 0.1, (neurons, 1, 1))
        values = values.astype(np.float16)
        body = {"quantity": quantity, "aggregates": aggregates}
        windows = np.array([[first, last]])
        made.append(Record("dynamics", first, last, body, {"windows": windows, "values": values}))
    sampled = np.concatenate([np.arange(layer.offset, layer.offset + SAMPLED) for layer in graph().layers])
    for quantity in ("activation", "gradient"):
        values = (base[sampled] + rng.normal(0, 0.1, (WINDOW_STEPS, len(sampled)))).astype(np.float16)
        body = {"quantity": quantity, "statistic": STATISTICS[quantity][0].name}
        outliers = (np.arange(len(sampled)) % SAMPLED == 0).astype(np.uint8)
        arrays = {"steps": steps, "neurons": sampled, "outliers": outliers, "values": values}
        made.append(Record("polylines", first, last, body, arrays))
    return made


def write_recording(run: Path, n_bytes: int) -> int:
    """Write a recording of about ``n_bytes``; returns its number of records."""
    folder = run / "plugins" / PLUGIN_NAME / "20260101-000000-1"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    body = {"schema": 1, "recording": folder.name, "options": {}, "versions": {}, "model": "Net", "resume_step": 0}
    records = [Record("recording", 0, 0, {**body, "window_steps": WINDOW_STEPS, "started": 1.0})]
    records.append(Record("graph", 0, 0, graph().to_json()))
    for link in graph().links:
        for direction in ("forward", "backward"):
            shape = LAYERS[int(link.target[4:])], LAYERS[int(link.source[4:])]
            body = {"step": 0, "target": link.target, "direction": direction, "samples": "batch", "columns": "channel"}
            values = rng.normal(0, 1, shape).astype(np.float32)
            records.append(Record("contribution", 0, 0, body, {"values": values}))
    written, n_records, segment, first = 0, 0, 0, 0
    file = (folder / f"{segment:06d}.dgm").open("wb")
    while written < n_bytes:
        for record in records:
            framed = frame(encode(replace(record, wall_time=1.7e9 + record.last_step)))
            if file.tell() + len(framed) > SEGMENT_BYTES:
                file.close()
                segment += 1
                file = (folder / f"{segment:06d}.dgm").open("wb")
            file.write(framed)
            written, n_records = written + len(framed), n_records + 1
        records, first = window_records(first, rng), first + WINDOW_STEPS
    file.close()
    return n_records


def measure(run: Path) -> None:
    """Open a recording and call every view; prints a table."""
    before = _memory_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    opened = open_run(run)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    first, last = opened.steps or (0, 0)
    print(f"steps {first} to {last}")
    print(f"index: {wall:.2f} s wall, {cpu:.2f} s CPU, {_memory_mb() - before:.0f} MB more memory\n")
    print("| view | cold ms | warm ms | warm CPU ms | kB |\n|---|---|---|---|---|")
    middle = str((first + last) // 2)
    layer = {"layer": "net.3"}
    zoomed = {"first": middle, "last": str(int(middle) + 500)}
    stroke = {"kind": "line", "step1": middle, "value1": "-1", "step2": str(int(middle) + last // 10), "value2": "1"}
    views: list[tuple[str, str, dict[str, str]]] = [
        ("run", "run", {}),
        ("graph", "graph", {}),
        ("losses, all steps", "losses", {}),
        ("minis", "minis", {"center": middle}),
        ("dynamics, all steps", "dynamics", layer),
        ("dynamics, 500 steps", "dynamics", {**layer, **zoomed}),
        ("dynamics of weights", "dynamics", {**layer, "quantity": "weight"}),
        ("neurons", "neurons", {**layer, "step": middle}),
        ("contributions", "contributions", {**layer, "neuron": "3", "step": middle}),
        ("matrix", "matrix", {"source": "net.3", "target": "net.4"}),
        ("lines of 64 neurons", "lines", {**layer, "neurons": ",".join(map(str, range(0, 512, 8)))}),
        ("nearest of all, all steps", "nearest", {**layer, "step": middle, "value": "0.5"}),
        ("nearest of all, 500 steps", "nearest", {**layer, **zoomed, "step": str(int(middle) + 99), "value": "0.5"}),
        ("box over all steps", "brush", {**layer, "step1": "0", "step2": str(last), "value1": "5", "value2": "9"}),
        ("line over a tenth of them", "brush", {**layer, **stroke}),
        ("density, made anew", "density", layer),
        ("similar", "similar", {**layer, "neuron": "3"}),
        ("unusual", "unusual", layer),
    ]
    for title, route, query in views:
        CACHE.clear()
        times, cpu_times = [], []
        for number in range(REPEATS + 1):
            if route == "density":  # an answer is kept as long as nothing is recorded
                query = {**query, "height": str(200 + number)}
            start, cpu_start = time.perf_counter(), time.process_time()
            size = answer(opened, route, query)
            times.append(1000 * (time.perf_counter() - start))
            cpu_times.append(1000 * (time.process_time() - cpu_start))
        warm, warm_cpu = statistics.median(times[1:]), statistics.median(cpu_times[1:])
        print(f"| {title} | {times[0]:.0f} | {warm:.0f} | {warm_cpu:.0f} | {size / 1000:.0f} |", flush=True)
    start = time.perf_counter()
    for _ in range(20):
        opened.refresh()
    print(f"\nrefresh with nothing new: {50 * (time.perf_counter() - start):.2f} ms")
    print(f"peak memory {_memory_mb():.0f} MB, of it {before:.0f} MB before opening")


def answer(opened: Run, route: str, query: dict[str, str]) -> int:
    """Call a route; returns the size of its answer in bytes."""
    arguments = Arguments(query)
    if route in JSON_ROUTES:
        return len(json.dumps(view(JSON_ROUTES[route])(opened, arguments)))
    return len(pack(*view(ARRAY_ROUTES[route])(opened, arguments)))


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run the benchmark; measuring is a process of its own, so that writing does not count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabyte", action="store_true", help="1 GB instead of 100 MB")
    parser.add_argument("--measure", type=Path, help="only measure the recording of this run folder")
    parser.add_argument("--keep", type=Path, help="write the recording to this new folder and keep it")
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    with tempfile.TemporaryDirectory() as scratch:
        run = options.keep or Path(scratch) / "run"
        n_records = write_recording(run, 1_000_000_000 if options.gigabyte else 100_000_000)
        print(f"{n_records} records, {'1 GB' if options.gigabyte else '100 MB'}", flush=True)
        subprocess.run([sys.executable, __file__, "--measure", str(run)], check=True)


if __name__ == "__main__":
    main()
