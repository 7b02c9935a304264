"""What the plugin adds to TensorBoard's start: CPU time until its pages can be served, with and without us.

    python benchmarks/startup.py [--repeats 15]

Each start is a process of its own; with and without take turns. Measured is the CPU time from the beginning of the
process until the list of plugins has been answered once, on a log folder with one run.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tensorboard.summary.writer.event_file_writer import EventFileWriter

CODE = """
import sys, time
from tensorboard import default, program
from werkzeug.test import Client
plugins = [p for p in default.get_plugins() if sys.argv[2] == "with" or "dgm_tb" not in getattr(p, "__module__", "")]
board = program.TensorBoard(plugins=plugins)
board.configure(argv=["tensorboard", "--logdir", sys.argv[1], "--load_fast=false", "--reload_interval=0"])
from tensorboard.backend import application
from tensorboard.backend.event_processing import data_ingester
ingester = data_ingester.LocalDataIngester(board.flags)
make = application.TensorBoardWSGIApp
app = make(board.flags, board.plugin_loaders, ingester.data_provider, board.assets_zip_provider)
listing = Client(app).get("/data/plugins_listing").get_data(as_text=True)
assert ("dgmtracker" in listing) == (sys.argv[2] == "with")
print(time.process_time())
"""


def seconds(logdir: Path, how: str) -> float:
    """CPU seconds of one start."""
    command = [sys.executable, "-c", CODE, str(logdir), how]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the plugin adds to TensorBoard's start.")
    parser.add_argument("--repeats", type=int, default=15, help="default: %(default)s")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as place:
        EventFileWriter(place).close()
        pairs = [(seconds(Path(place), "without"), seconds(Path(place), "with")) for _ in range(repeats)]
    bare = statistics.median(without for without, _ in pairs)
    low, middle, high = statistics.quantiles([1000 * (ours - without) for without, ours in pairs], n=4)
    print("| TensorBoard's start | CPU ms |\n|---|---|")
    print(f"| without dgm_tb | {1000 * bare:.0f} |")
    print(f"| more with it (quartiles) | {middle:.0f} ({low:.0f} to {high:.0f}) |")


if __name__ == "__main__":
    main()
