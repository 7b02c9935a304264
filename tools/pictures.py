"""Makes the pictures of the documents from the real thing: trains the demo, opens TensorBoard, photographs the tab.

Usage: ``.venv/bin/python tools/pictures.py`` writes docs/images/tab.png and docs/images/tab-dark.png.
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from serving import CHROMIUM, FLAGS, serve  # noqa: E402 - the page tests know how to start both

from dgm_tb.demo.training import record  # noqa: E402


def photograph(browser: Browser, url: str, theme: str, path: Path) -> None:
    """Open the tab in one theme and save what is on the screen."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.add_init_script(f"localStorage.setItem('_tb_global_settings', JSON.stringify({{theme: '{theme}'}}))")
    page.goto(f"{url}#dgmtracker")
    frame = page.frame_locator("iframe")
    frame.get_by_role("region", name="Samples").get_by_role("button", name="abnormal example").wait_for()
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1500)  # the model's layout settles
    page.screenshot(path=str(path))
    page.close()


def main() -> None:
    """Train, serve, photograph."""
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        record("vae-nan", Path(folder), enable_progress_bar=False)
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with serve(Path(folder)) as url:
            photograph(browser, url, "light", images / "tab.png")
            photograph(browser, url, "dark", images / "tab-dark.png")
        browser.close()


if __name__ == "__main__":
    main()
