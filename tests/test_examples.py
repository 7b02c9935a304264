"""Every example runs as it stands there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dgm_tb import open_run

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-W", "error::UserWarning:dgm_tb", str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "training goes on" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("plain")
    run("plain_pytorch.py", folder)
    return folder


def test_a_plain_loop_is_recorded_whole(plain: Path) -> None:
    recorded = open_run(plain / "runs")

    assert recorded.steps == (0, 299)
    assert recorded.ended == "finished"
    assert set(recorded.losses) == {"d_loss", "g_loss"}
    assert {name.partition(".")[0] for name in recorded.layers} == {"generator", "discriminator"}
    assert recorded.notes == []


def test_a_recording_is_read_layer_by_layer(plain: Path) -> None:
    output = run("read_recording.py", plain, "runs")

    assert [line.split()[0] for line in output.splitlines()[1:]] == open_run(plain / "runs").layers


def test_a_finding_ends_the_training_and_names_the_example(tmp_path: Path) -> None:
    output = run("on_finding.py", tmp_path)

    assert "examples [1234]" in output
    assert (tmp_path / "finding.json").exists()


def test_every_example_has_a_test() -> None:
    text = Path(__file__).read_text(encoding="utf-8")

    assert [file.name for file in EXAMPLES.glob("*.py") if f'"{file.name}"' not in text] == []
