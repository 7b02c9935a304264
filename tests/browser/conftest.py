"""A real TensorBoard and a real Chromium for the page tests; any console, page or CSP error fails the test."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import synthetic

playwright = pytest.importorskip("playwright.sync_api")

from serving import CHROMIUM, FLAGS, Open, serve  # noqa: E402 - after the check that Playwright is there


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
