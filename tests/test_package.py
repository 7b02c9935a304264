"""What a user installs: public names, and a wheel that holds everything, built without a network."""

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dgm_tb
from dgm_tb import records
from dgm_tb.errors import DgmError

PROJECT = Path(dgm_tb.__file__).parent.parent


def test_the_public_names_are_pinned() -> None:
    assert dgm_tb.__all__ == ["DGMTrackerCallback", "open_run", "record"]
    assert all(callable(getattr(dgm_tb, name)) for name in dgm_tb.__all__)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known() -> None:
    with pytest.raises(AttributeError, match="DGMTrackerCallback, open_run"):
        dgm_tb.Tracker  # noqa: B018


def test_the_schema_is_pinned() -> None:
    """Whoever changes this raises SCHEMA_VERSION if an older reader would misread the files."""
    assert records.SCHEMA_VERSION == 1
    assert {name: {s.name for s in statistics} for name, statistics in records.STATISTICS.items()} == {
        "activation": {"mean", "std", "min", "max", "zero_fraction"},
        "gradient": {"rms"},
        "weight": {"norm"},
        "update": {"ratio"},
    }
    kinds = "recording graph loss layer_statistics dynamics polylines samples contribution relevance finding ring note"
    assert set(records.KINDS) == {*kinds.split(), "end"}


def test_every_error_is_caught_as_one_class() -> None:
    from dgm_tb import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert classes
    assert all(issubclass(value, DgmError) for value in classes)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (PROJECT / "pyproject.toml").exists():
        pytest.skip("the package is installed without its sources")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(PROJECT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "dgm_tb"], cwd=PROJECT, capture_output=True, text=True, check=False)
    expected = set(tracked.stdout.split()) or {"dgm_tb/__init__.py", "dgm_tb/py.typed"}

    names = set(zipfile.ZipFile(wheel).namelist())

    assert expected - names == set()
    assert "dgm_tb/plugin/static/vendor/LICENSES.txt" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs", "node_modules"))]


def test_the_wheel_declares_the_command_the_plugin_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"dgm_tb-{dgm_tb.__version__}.dist-info"
        entry_points = configparser.ConfigParser()
        entry_points.read_string(archive.read(f"{info}/entry_points.txt").decode())
        metadata = archive.read(f"{info}/METADATA").decode()

    assert dict(entry_points["console_scripts"]) == {"dgm-tb": "dgm_tb.cli:main"}
    assert dict(entry_points["tensorboard_plugins"]) == {"dgmtracker": "dgm_tb.plugin.loader:DGMTrackerLoader"}
    assert "License-Expression: Apache-2.0" in metadata


def test_the_installed_wheel_works_without_its_sources(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import dgm_tb\n"
        "from dgm_tb.plugin.loader import DGMTrackerLoader\n"
        "from importlib.metadata import entry_points\n"
        "(point,) = {p.load() for p in entry_points(group='tensorboard_plugins', name='dgmtracker')}\n"
        "print(dgm_tb.__file__, point is DGMTrackerLoader)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(target)], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert run.stdout.split() == [str(target / "dgm_tb" / "__init__.py"), "True"]


def test_the_command_prints_its_version() -> None:
    run = subprocess.run([sys.executable, "-m", "dgm_tb", "--version"], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == f"dgm-tb {dgm_tb.__version__}"
