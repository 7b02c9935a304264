"""How many bytes the writer writes in a second of CPU time, and what a record costs the thread that trains.

    python benchmarks/writer.py              # 512 MB of each size
    python benchmarks/writer.py --folder /dev/shm

CPU time is that of the whole process, for everything from ``write`` to the closed segment: queue, encoding, checksums,
the system's copy, ``fsync``; not what the system does later to bring its cache to the disk. The last rows show what
``write`` takes in the training's thread: while the writer keeps up, and where the disk has stalled, so that each record
pushes out an older one.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from dgm_tb.callback import backlog
from dgm_tb.callback.backlog import Backlog
from dgm_tb.callback.writer import SegmentWriter
from dgm_tb.records import Record

SIZES = {"4 KB": 4 << 10, "64 KB": 64 << 10, "256 KB": 256 << 10, "1 MB": 1 << 20}
TOTAL_BYTES = 512 << 20
WAITING_BYTES = backlog.MAX_BYTES // 4
REPEATS = 3
PUTS = 20_000


def record_of(n_bytes: int) -> Record:
    """A record of windows whose array has that size."""
    values = np.random.default_rng(0).normal(size=(n_bytes // 64, 4, 8)).astype(np.float16)
    windows = np.arange(8).reshape(4, 2)
    body = {"quantity": "activation", "aggregates": [f"statistic/{number}" for number in range(8)]}
    return Record("dynamics", 0, 7, body, {"windows": windows, "values": values})


def megabytes_per_second(folder: Path, n_bytes: int) -> tuple[float, float]:
    """Megabytes per second of CPU time, and of time."""
    record = record_of(n_bytes)
    n_records = TOTAL_BYTES // n_bytes
    out = SegmentWriter(folder)
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(n_records):
        out.write(record)
        if number % (WAITING_BYTES // n_bytes) == 0:
            out.flush()
    out.close()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    written = sum(path.stat().st_size for path in folder.iterdir())
    if written < n_records * n_bytes:
        raise RuntimeError(f"only {written:,} bytes were written; is the disk full?")
    for path in folder.iterdir():
        path.unlink()
    return written / 1e6 / cpu, written / 1e6 / wall


def microseconds_of_write(folder: Path) -> float:
    """What ``write`` takes in its thread while the writer keeps up; in microseconds of the thread's CPU time."""
    out = SegmentWriter(folder)
    records = [record_of(4 << 10)] * 20
    out.write(records[0])
    times = []
    for _ in range(PUTS // len(records)):  # a flush of the recorder is about 20 records
        start = time.thread_time()
        for record in records:
            out.write(record)
        times.append(time.thread_time() - start)
        out.flush()
    out.close()
    return 1e6 * statistics.median(times) / len(records)


def microseconds_of_overflow() -> float:
    """What ``put`` takes where nothing is taken any more; in microseconds of the thread's CPU time."""
    queue, record = Backlog(), record_of(256 << 10)
    for _ in range(backlog.MAX_BYTES // (256 << 10)):
        queue.put(record)
    start = time.thread_time()
    for _ in range(PUTS):
        queue.put(record)
    return 1e6 * (time.thread_time() - start) / PUTS


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder by default")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as scratch:
        print(f"In {Path(scratch).parent}:\n\n| record | MB per CPU second | MB per second |\n|---|---|---|")
        for name, n_bytes in SIZES.items():
            runs = [megabytes_per_second(Path(scratch) / f"{n_bytes}-{n}", n_bytes) for n in range(REPEATS)]
            cpu, wall = map(statistics.median, zip(*runs, strict=True))
            print(f"| {name} | {cpu:.0f} | {wall:.0f} |", flush=True)
        print("\n| in the training's thread | CPU microseconds |\n|---|---|")
        print(f"| `write`, a record of 4 KB | {microseconds_of_write(Path(scratch) / 'puts'):.1f} |")
        print(f"| the same, where each leaves out an older one | {microseconds_of_overflow():.1f} |")


if __name__ == "__main__":
    main()
