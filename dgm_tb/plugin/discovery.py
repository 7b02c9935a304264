"""Finds recordings below a log folder."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from dgm_tb.records import PLUGIN_NAME
from dgm_tb.segment_names import current_segments

MAX_FOLDERS = 50_000
"""Folders looked at before giving up: a log folder set to "/" must not hang TensorBoard."""


def recordings_in(run_folder: Path) -> list[Path]:
    """Folders of the recordings of one run, by name."""
    place = run_folder / "plugins" / PLUGIN_NAME
    try:
        names = sorted(os.listdir(place))
    except OSError:
        return []
    return [place / name for name in names if (place / name).is_dir() and _has_segments(place / name)]


def find_runs(logdir: Path) -> dict[str, Path]:
    """Every run with a recording at or below ``logdir``.

    Links are followed, as TensorBoard does; a folder that was seen before is not entered again.

    Returns:
        Run name -> folder; the name is the path relative to ``logdir``, ``"."`` for itself.
    """
    runs = {}
    for folder in _walk(logdir):
        if recordings_in(folder):
            runs[folder.relative_to(logdir).as_posix()] = folder
    return dict(sorted(runs.items(), key=lambda item: natural_key(item[0])))


def _walk(logdir: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    n_folders = 0
    for root, folders, _ in os.walk(logdir, followlinks=True):
        try:
            status = os.stat(root)
        except OSError:
            continue
        n_folders += 1
        if n_folders > MAX_FOLDERS:
            return
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if name not in ("plugins", "checkpoints", ".git", "__pycache__")]
        yield Path(root)


def _has_segments(folder: Path) -> bool:
    try:
        return bool(current_segments(os.listdir(folder)))
    except OSError:
        return False


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key of run names: ``version_9`` comes before ``version_10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]
