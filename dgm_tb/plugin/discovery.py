"""Finds recordings below a log folder."""

import os
import re
from collections import deque
from pathlib import Path

from dgm_tb.plugin.storage import Item, Place, items
from dgm_tb.records import PLUGIN_NAME
from dgm_tb.segment_names import current_segments

MAX_FOLDERS = 50_000
"""Folders looked at before giving up: a log folder set to "/" must not hang TensorBoard."""
MAX_REMOTE_FOLDERS = 2000

_PASSED_OVER = {"plugins", "checkpoints", ".git", "__pycache__"}


def recordings_in(run_folder: Place) -> list[Place]:
    """Folders of the recordings of one run, by name.

    Raises:
        OSError: If a storage does not answer.
    """
    place = run_folder / "plugins" / PLUGIN_NAME
    names = sorted(item.name for item in _listed(place) if item.is_folder)
    return [place / name for name in names if current_segments(item.name for item in _listed(place / name))]


def find_runs(logdir: Place) -> dict[str, Place]:
    """Every run with a recording at or below ``logdir``.

    Links are followed, as TensorBoard does; a folder that was seen before is not entered again.

    Returns:
        Run name -> folder; the name is the path relative to ``logdir``, ``"."`` for itself.

    Raises:
        OSError: If a storage does not answer.
    """
    runs: dict[str, Place] = {}
    seen: set[tuple[int, int]] = set()
    waiting: deque[tuple[str, Place]] = deque([(".", logdir)])
    left = MAX_FOLDERS if isinstance(logdir, Path) else MAX_REMOTE_FOLDERS
    while waiting and left:
        name, folder = waiting.popleft()
        left -= 1
        if isinstance(folder, Path) and not _is_new(folder, seen):
            continue
        inside = [item.name for item in _listed(folder) if item.is_folder]
        if "plugins" in inside and recordings_in(folder):
            runs[name] = folder
        below = "" if name == "." else f"{name}/"
        waiting += [(f"{below}{child}", folder / child) for child in inside if child not in _PASSED_OVER]
    return dict(sorted(runs.items(), key=lambda item: natural_key(item[0])))


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder can be entered, and has not been yet."""
    try:
        status = os.stat(folder)
    except OSError:
        return False
    identity = status.st_dev, status.st_ino
    is_new = identity not in seen
    seen.add(identity)
    return is_new


def _listed(folder: Place) -> list[Item]:
    """What is in a folder; nothing if there is none, or it is not ours to look into."""
    try:
        return items(folder)
    except OSError as error:
        is_answer = isinstance(error, (FileNotFoundError, NotADirectoryError, PermissionError))
        if is_answer or isinstance(folder, Path):
            return []
        raise


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key of run names: ``version_9`` comes before ``version_10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]
