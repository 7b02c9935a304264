"""Starting a real TensorBoard, and how to start Chromium."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright import sync_api as playwright

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
Open = Callable[..., "playwright.Frame"]


@contextmanager
def serve(logdir: Path, *options: str, page: "playwright.Page | None" = None) -> Iterator[str]:
    """TensorBoard over a log folder; gives its address. ``page`` leaves before the server stops."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    prefix = next((option.split("=")[1] for option in options if option.startswith("--path_prefix=")), "")
    url = f"http://127.0.0.1:{port}{prefix}/"
    try:
        _wait_for(url, process)
        yield url
    finally:
        if page is not None:
            page.goto("about:blank")
        process.terminate()
        process.wait(10)


def _wait_for(url: str, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"tensorboard stopped: {process.stderr.read()[-2000:] if process.stderr else ''}")
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail("tensorboard did not answer within 90 s")
