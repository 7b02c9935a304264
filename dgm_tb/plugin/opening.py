"""Opens the runs of a folder, or of an address that fsspec knows (``s3://bucket/logs``)."""

from collections.abc import Callable
from pathlib import Path

from dgm_tb.errors import NoRecordingError
from dgm_tb.plugin.discovery import find_runs, recordings_in
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.storage import Place, place_of, reason

HOW_TO_RECORD = "record one with L.Trainer(callbacks=[dgm_tb.DGMTrackerCallback()]) or dgm_tb.record(model, logdir)"


def open_run(path: str | Path) -> Run:
    """Open the recordings of one run.

    Args:
        path: A run folder, or a log folder that holds exactly one run; also the address of one (``s3://bucket/logs``).

    Raises:
        NoRecordingError: If there is no recording there, or more than one run.
    """
    runs = _runs_at(path, lambda folder: {".": folder} if recordings_in(folder) else find_runs(folder))
    if len(runs) > 1:
        raise NoRecordingError(f"{path} holds {len(runs)} runs; open one of them: {', '.join(runs)}")
    ((name, folder),) = runs.items()
    return Run(folder, name)


def open_runs(path: str | Path) -> list[Run]:
    """Open every run at or below a folder, in natural order of names.

    Raises:
        NoRecordingError: If there is no recording there.
    """
    return [Run(folder, name) for name, folder in _runs_at(path, find_runs).items()]


def _runs_at(path: str | Path, find: Callable[[Place], dict[str, Place]]) -> dict[str, Place]:
    """Names and folders of the runs that ``find`` finds; the folder that was asked for has its own name."""
    place = place_of(path)
    try:
        runs = find(place)
    except OSError as error:
        raise NoRecordingError(f"{place} can't be read: {reason(error)}") from error
    if not runs:
        what = "is no folder" if isinstance(place, Path) and not place.is_dir() else "has no recording of dgm_tb"
        raise NoRecordingError(f"{place} {what}; {HOW_TO_RECORD}")
    return {_own_name(folder) if name == "." else name: folder for name, folder in runs.items()}


def _own_name(place: Place) -> str:
    return (place.resolve().name if isinstance(place, Path) else place.name) or str(place)
