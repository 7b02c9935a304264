"""What the README tells a newcomer to do works as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dgm_tb import open_run
from dgm_tb.cli import main

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
TRAINING, READING, PANDAS, PLAIN = PYTHON
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines() if line]
LOCAL_LINKS = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first snippet has been run."""
    place: Path = tmp_path_factory.mktemp("readme")
    run(TRAINING, place)
    return place


def run(snippet: str, place: Path) -> str:
    done = subprocess.run([sys.executable, "-c", snippet], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_snippet_ends_before_line_30() -> None:
    assert README[: README.index(TRAINING) + len(TRAINING)].count("\n") < 30


def test_what_was_recorded_is_read(folder: Path) -> None:
    out = run(READING, folder)
    assert "net.0" in out
    assert "(16, " in out
    assert "(64, 16)" in out


def test_what_was_recorded_is_a_table(folder: Path) -> None:
    out = run(PANDAS, folder)
    recorded = open_run(folder / "lightning_logs")
    assert str(recorded.dynamics("net.0", "weight").to_pandas()) in out
    assert "\n99 " in out, "the last of 100 steps of the loss"


def test_the_plain_loop_is_recorded(tmp_path: Path) -> None:
    run(PLAIN, tmp_path)
    recorded = open_run(tmp_path / "runs")
    assert (recorded.steps, recorded.ended, recorded.layers) == ((0, 19), "finished", ["0", "1", "2"])
    assert recorded.losses["loss"].values[-1] < recorded.losses["loss"].values[0]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("dgm-tb") and " demo" not in line])
def test_reader_commands_run(folder: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert main(shlex.split(line, comments=True)[1:]) == 0


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("dgm-tb demo")])
def test_demo_commands_name_a_scenario(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The demos themselves run in tests/demo and tests/test_cli.py."""
    seen: list[str] = []
    monkeypatch.setattr("dgm_tb.cli.demo", lambda options: seen.append(options.scenario) or 0)
    assert main(shlex.split(line, comments=True)[1:]) == 0
    assert seen


def test_every_other_command_is_known() -> None:
    known = ("dgm-tb ", "pip install .", "tensorboard --logdir lightning_logs")
    assert [line for line in COMMANDS if not line.startswith(known)] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", README)) <= targets


def test_scripts_exist() -> None:
    scripts = re.findall(r"`python (\S+\.py)", README)
    assert scripts
    assert all((PROJECT / script).is_file() for script in scripts)


@pytest.mark.parametrize("link", sorted(set(LOCAL_LINKS)))
def test_links_lead_to_files(link: str) -> None:
    assert (PROJECT / link).is_file()
