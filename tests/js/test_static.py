"""The tab's files: small modules that find each other, types that hold, a bundle that the lockfile gives again."""

import gzip
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dgm_tb.plugin import assets

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "dgm_tb" / "plugin" / "static"
OWN = sorted(path for path in STATIC.rglob("*.js") if path.parent.name != "vendor")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
needs_packages = pytest.mark.skipif(
    shutil.which("node") is None or not (ROOT / "node_modules").is_dir(), reason="needs node and `npm ci`"
)


def run(*command: str) -> str:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[-2000:]}"
    return result.stdout


def test_modules_are_few_and_short() -> None:
    assert len(OWN) <= 25
    assert {path.name: lines for path in OWN if (lines := path.read_text().count("\n")) > 400} == {}


@pytest.mark.parametrize("path", OWN, ids=lambda path: str(path.relative_to(STATIC)))
def test_every_import_is_a_file_of_the_tab(path: Path) -> None:
    for target in re.findall(r"""(?:\bfrom|new URL\()\s*["'](\.[^"']+)["']""", path.read_text()):
        assert (path.parent / target).is_file(), f"{path.name} imports {target}"


def test_nothing_is_loaded_from_elsewhere_and_no_markup_is_made_of_strings() -> None:
    for path in [*OWN, STATIC / "style.css"]:
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|document\.write", text)
        assert not re.search(r"""(?:src|href|url\(|fetch\(|import)\s*[=(]?\s*["'`]?https?://""", text), path.name


def test_the_scripts_fit_their_budget() -> None:
    sizes = {path: len(gzip.compress(assets.served(path)[0], 9)) for path in STATIC.rglob("*.js")}
    assert sum(sizes.values()) <= 110_000


@pytest.mark.parametrize("path", OWN, ids=lambda path: str(path.relative_to(STATIC)))
def test_scripts_are_served_without_comments_and_otherwise_as_they_are(path: Path) -> None:
    written, sent = path.read_text().split("\n"), assets.served(path)[0].decode().split("\n")
    assert len(sent) == len(written), "positions in error messages stay true"
    left_out = [number for number, (before, after) in enumerate(zip(written, sent, strict=True)) if before != after]
    for number in left_out:
        assert sent[number] == ""
        assert re.match(r"\s*(//|/\*|\*)", written[number]), written[number]
        assert "\n".join(written[:number]).count("`") % 2 == 0, "a text over several lines is no comment"
    assert left_out or not re.search(r"^\s*/[/*]", path.read_text(), re.MULTILINE)


def test_licences_of_all_vendored_packages_are_shipped() -> None:
    text = (STATIC / "vendor" / "LICENSES.txt").read_text()
    for package in ("preact", "@preact/signals", "htm", "uplot", "@dagrejs/dagre"):
        assert re.search(rf"^{re.escape(package)} \d", text, re.MULTILINE), package


def test_the_lockfile_names_no_registry() -> None:
    assert '"resolved"' not in (ROOT / "package-lock.json").read_text()


@needs_node
def test_unit_tests_of_the_modules() -> None:
    run("node", "--test", *(str(path) for path in sorted((ROOT / "tests" / "js").glob("*.test.js"))))


@needs_packages
def test_types_hold() -> None:
    run("npx", "--no-install", "tsc", "--project", "jsconfig.json")


@needs_packages
def test_the_lockfile_gives_the_vendored_bytes_again(tmp_path: Path) -> None:
    run("node", "tools/vendor.mjs", str(tmp_path))
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (STATIC / "vendor" / path.name).read_bytes(), path.name
    assert {path.name for path in tmp_path.iterdir()} == {"vendor.js", "dagre.js", "uPlot.css", "LICENSES.txt"}
