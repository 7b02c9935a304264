"""A real TensorBoard and a real Chromium for the page tests; any console, page or CSP error fails the test."""

import re
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
import synthetic

playwright = pytest.importorskip("playwright.sync_api")

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


@pytest.fixture(scope="session")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: one whose loss goes NaN, one healthy and still training."""
    folder = tmp_path_factory.mktemp("logs")
    synthetic.write_run(folder / "vae_nan", synthetic.vae_records())
    synthetic.write_run(folder / "vae_healthy", synthetic.vae_records(seed=1, fails=False, ends=False))
    return folder


@pytest.fixture(scope="session")
def tensorboard(logdir: Path) -> Iterator[str]:
    """TensorBoard over the two runs."""
    with serve(logdir) as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator["playwright.Browser"]:
    """Headless Chromium: the system's, else Playwright's own."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "playwright.Browser") -> Iterator["playwright.Page"]:
    """A page of 1280 x 800 that fails its test on any error it reports."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    errors: list[str] = []
    page.on("console", lambda message: _note_error(message, errors))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(20_000)
    yield page
    page.close()
    allowed = getattr(page, "allowed_errors", r"(?!)")
    assert [error for error in errors if not re.search(allowed, error)] == []


def _note_error(message: "playwright.ConsoleMessage", errors: list[str]) -> None:
    # TensorBoard asks for its own font without the path prefix; that 404 is not ours.
    if message.type == "error" and "/font-roboto/" not in message.location.get("url", ""):
        errors.append(message.text)


@pytest.fixture
def open_tab(page: "playwright.Page", tensorboard: str) -> Open:
    """Opens the tab and gives its frame: ``open_tab("&p.dgmtracker.run=vae_nan")``."""

    def open_(hash_: str = "", url: str = tensorboard) -> "playwright.Frame":
        page.goto(f"{url}#dgmtracker{hash_}")
        handle = page.wait_for_selector("iframe")
        frame = handle.content_frame() if handle else None
        assert frame is not None
        frame.wait_for_selector("main")
        return frame

    return open_
