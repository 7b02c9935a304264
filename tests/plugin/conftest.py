"""The plugin inside TensorBoard's own WSGI application, without a server."""

from collections.abc import Callable
from pathlib import Path

import one_layer
import pytest
import sample_recording as sample
from tensorboard.backend.application import TensorBoardWSGI
from tensorboard.plugins import base_plugin
from werkzeug.test import Client

from dgm_tb.plugin.plugin import DGMTrackerPlugin

BASE = "/data/plugin/dgmtracker/"

MakeClient = Callable[..., Client]


@pytest.fixture(scope="session")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log folder with the run ``a/run`` in windows, the run ``every_step``, and a folder without recording."""
    folder = tmp_path_factory.mktemp("logs")
    sample.write(folder / "a" / "run", sample.all_records())
    sample.write(folder / "every_step", sample.all_records(window_steps=1, ends=False))
    (folder / "nothing").mkdir()
    return folder


def make_client(logdir: Path, path_prefix: str = "") -> Client:
    """A client of TensorBoard's application with nothing but our plugin."""
    plugin = DGMTrackerPlugin(base_plugin.TBContext(logdir=str(logdir)))
    return Client(TensorBoardWSGI([plugin], path_prefix))


@pytest.fixture(scope="session")
def client(logdir: Path) -> Client:
    return make_client(logdir)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Client:
    """The neurons in windows, two of them at every step as well, and in a second run at every step."""
    folder = tmp_path_factory.mktemp("wide")
    one_layer.write(folder / "windows", one_layer.VALUES, one_layer.WINDOW, one_layer.SAMPLED)
    one_layer.write(folder / "steps", one_layer.VALUES, 1)
    return make_client(folder)
