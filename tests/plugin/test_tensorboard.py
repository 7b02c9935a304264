"""The plugin inside a real TensorBoard process, and what importing it costs."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import sample_recording as sample
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from dgm_tb.plugin.wire import unpack

PREFIX = "/some/prefix"
START_SECONDS = 60


@contextmanager
def tensorboard(logdir: Path, *options: str) -> Iterator[str]:
    """A TensorBoard over a log folder; gives the address of our routes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
    command += ["--host", "127.0.0.1", f"--path_prefix={PREFIX}", *options]
    log = logdir.parent / f"log{port}"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log.open("w"))
    address = f"http://127.0.0.1:{port}{PREFIX}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{address}/data/plugins_listing", timeout=10).read()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"tensorboard did not start: {log.read_text()[-2000:]}")
        yield address
    finally:
        process.terminate()
        process.wait(20)


def fetch(address: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def write_scalar(folder: Path) -> None:
    writer = EventFileWriter(str(folder))
    value = summary_pb2.Summary.Value(tag="loss", simple_value=1.0)
    writer.add_event(event_pb2.Event(step=1, summary=summary_pb2.Summary(value=[value])))
    writer.close()


@pytest.mark.parametrize("load_fast", ["auto", "false"])
def test_a_real_tensorboard_lists_the_tab_and_answers(load_fast: str, tmp_path: Path) -> None:
    logdir = tmp_path / "logs"
    for name in ("first", "größer/version 2"):
        sample.write(logdir / name, sample.all_records())
    write_scalar(logdir / "unrecorded")
    with tensorboard(logdir, f"--load_fast={load_fast}") as address:
        _, listing = fetch(f"{address}/data/plugins_listing")
        tab = json.loads(listing)["dgmtracker"]
        assert (tab["tab_name"], tab["enabled"]) == ("DGMTracker", True)
        base = f"{address}/data/plugin/dgmtracker"
        assert fetch(f"{address.removesuffix(PREFIX)}{tab['loading_mechanism']['module_path']}")[0] == 200
        deadline = time.monotonic() + 20  # TensorBoard finds runs without recording when it has read their events
        while len(runs := json.loads(fetch(f"{base}/runs")[1])) < 3 and time.monotonic() < deadline:
            pass
        assert [(run["run"], run["recorded"]) for run in runs] == [
            ("first", True), ("größer/version 2", True), ("unrecorded", False),
        ]  # fmt: skip
        for run in ("first", "gr%C3%B6%C3%9Fer/version%202"):
            assert json.loads(fetch(f"{base}/run?run={run}")[1])["snapshots"] == [0, 8]
            status, message = fetch(f"{base}/dynamics?run={run}&layer=fc&k=2")
            assert status == 200
            np.testing.assert_array_equal(unpack(message)[1]["steps"], np.arange(sample.STEPS))
        for wrong in ("run", "run?run=unrecorded", "dynamics?run=first&layer=x", "run?run=../first", "static/x/y"):
            status, sentence = fetch(f"{base}/{wrong}")
            assert status in (400, 404)
            assert b"Traceback" not in sentence


def test_importing_the_plugin_loads_neither_torch_nor_lightning() -> None:
    code = """
import sys
import dgm_tb.plugin.loader
assert not {"numpy", "dgm_tb.plugin.plugin"} & set(sys.modules), "the loader is imported at every start"
import dgm_tb.plugin.plugin, dgm_tb
dgm_tb.open_run
heavy = {"torch", "lightning", "sklearn", "scipy", "pandas", "captum"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
