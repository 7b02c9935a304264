"""Numbers of a run as files: CSV, NumPy arrays, Parquet.

CSV and Parquet are wide tables: one row per window or step, its first and last step (or its step) in the first columns,
then one column per neuron, loss or statistic. A cell is empty (null) where nothing was recorded; a NaN was recorded.
"""

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dgm_tb import __version__
from dgm_tb.errors import DgmError
from dgm_tb.plugin.optional import optional
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.series import Series
from dgm_tb.records import STATISTICS

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK_CELLS = 1 << 18
"""Cells of a CSV file that are texts at one time."""


@dataclass(frozen=True)
class Table:
    """Numbers along the steps.

    Attributes:
        facts: What they are of.
        index: Name -> column of whole numbers ``[rows]``: where a row stands.
        names: Of the columns of ``values``.
        values: ``[columns, rows]``, floating point.
        present: Whether there is a value at all ``[columns, rows]``; None: everywhere.
        arrays: What ``npz`` has of all this, by name.
    """

    facts: Mapping[str, str]
    index: Mapping[str, Array]
    names: Sequence[str]
    values: Array
    present: Array | None
    arrays: Mapping[str, Array]


def neuron_table(run: Run, layer: str, quantity: str = "activation", statistic: str | None = None) -> Table:
    """The dynamics of a layer's neurons, as ``Run.dynamics`` gives them.

    Raises:
        UnknownNameError: If the recording has no such layer, quantity or statistic.
    """
    found = run.dynamics(layer, quantity, statistic)
    facts = _facts(run, layer=layer, quantity=quantity, statistic=statistic or STATISTICS[quantity][0].name)
    index = {"first_step": found.first_steps, "last_step": found.steps}
    names = [f"neuron_{neuron}" for neuron in found.neurons]
    arrays = {"first_steps": found.first_steps, "steps": found.steps, "neurons": found.neurons, "values": found.values}
    arrays |= {name: array for name, array in (("low", found.low), ("high", found.high)) if array is not None}
    return Table(facts, index, names, found.values, None, arrays)


def layer_table(run: Run, layer: str, quantity: str = "activation") -> Table:
    """The statistics of a whole layer at every observed step, as ``Run.layer_statistics`` gives them.

    Raises:
        UnknownNameError: If the recording has no such layer or quantity.
    """
    return _series_table(_facts(run, layer=layer, quantity=quantity), run.layer_statistics(layer, quantity))


def loss_table(run: Run) -> Table:
    """Every loss at every step.

    Raises:
        DgmError: If none was recorded.
    """
    losses = run.losses
    if not losses:
        raise DgmError(f"no loss of run {run.name!r} has been recorded yet")
    return _series_table(_facts(run), losses)


def _facts(run: Run, **facts: str) -> dict[str, str]:
    return {name: _unicode(fact) for name, fact in {"run": run.name, **facts, "dgm_tb_version": __version__}.items()}


def _unicode(text: str) -> str:
    """A text that can be written: names of folders and in recordings may hold halves of characters."""
    return text.encode("utf-8", "replace").decode()


def _series_table(facts: Mapping[str, str], series: Mapping[str, Series]) -> Table:
    """Several series side by side, on all steps that one of them has."""
    steps = np.unique(np.concatenate([one.steps for one in series.values()]))
    values = np.full((len(series), len(steps)), np.nan, np.result_type(*(one.values for one in series.values())))
    present = np.zeros(values.shape, np.bool_)
    index = {"step": steps}
    if all(len(one.global_steps) == len(one.steps) for one in series.values()):
        index["global_step"] = np.zeros(len(steps), np.int64)
    for number, one in enumerate(series.values()):
        rows = np.searchsorted(steps, one.steps)
        values[number, rows], present[number, rows] = one.values, True
        if "global_step" in index:
            index["global_step"][rows] = one.global_steps
    names = [_unicode(name if name not in index else f"loss {name}") for name in series]
    arrays = {f"{name}s": column for name, column in index.items()}
    arrays |= {"names": np.array(names), "values": values, "present": present}
    return Table(facts, index, names, values, present, arrays)


# -- formats -----------------------------------------------------------------------------------------------------------


def csv_lines(table: Table) -> Iterator[str]:
    """The lines of a CSV file, each as soon as it is asked for."""
    heads = io.StringIO()
    csv.writer(heads, lineterminator="\n").writerow([*table.index, *table.names])
    yield heads.getvalue()
    n_columns, n_rows = table.values.shape
    size = max(BLOCK_CELLS // max(n_columns, 1), 1)
    for first in range(0, n_rows, size):
        block = slice(first, first + size)
        cells = [list(map(str, column[block])) for column in table.index.values()]
        cells += [list(map(str, column)) for column in table.values[:, block]]
        for column, row in np.argwhere(~table.present[:, block]) if table.present is not None else ():
            cells[len(table.index) + column][row] = ""
        yield from (",".join(line) + "\n" for line in zip(*cells, strict=True))


def _write_csv(table: Table, file: BinaryIO) -> None:
    file.writelines(line.encode() for line in csv_lines(table))


def _write_npz(table: Table, file: BinaryIO) -> None:
    arrays: dict[str, Any] = {**table.arrays, **table.facts}
    np.savez_compressed(file, **arrays)


def _write_parquet(table: Table, file: BinaryIO) -> None:
    pyarrow, parquet = _pyarrow()
    masks = [None] * len(table.names) if table.present is None else ~table.present
    arrays = [pyarrow.array(column) for column in table.index.values()]
    arrays += [pyarrow.array(column, mask=mask) for column, mask in zip(table.values, masks, strict=True)]
    names = [*table.index, *table.names]
    made = pyarrow.Table.from_arrays(arrays, names=names, metadata=dict(table.facts))
    parquet.write_table(made, file, use_dictionary=False)


def _pyarrow() -> tuple[Any, Any]:
    return optional("pyarrow", "parquet"), optional("pyarrow.parquet", "parquet")


WRITERS: dict[str, Callable[[Table, BinaryIO], None]] = {
    "csv": _write_csv,
    "npz": _write_npz,
    "parquet": _write_parquet,
}
"""Format -> what writes it; the first one is the default."""


def choose_format(wanted: str | None, out: str | None) -> str:
    """The format of an export.

    Args:
        wanted: The one asked for; by default that of the file's suffix, else CSV.
        out: The file; None for the terminal.

    Raises:
        DgmError: If the terminal can't take it, the file's suffix is another one's, or the file is an address.
        MissingPackageError: If it needs a package that is not installed.
    """
    if out is not None and "://" in out:
        raise DgmError(f"--out is a file on this machine, not an address like {out}")
    suffix = Path(out).suffix.lower().removeprefix(".") if out is not None else ""
    chosen = wanted or (suffix if suffix in WRITERS else next(iter(WRITERS)))
    if out is None and chosen != "csv":
        raise DgmError(f"{chosen} is no text: name a file with --out")
    if suffix in WRITERS and suffix != chosen:
        raise DgmError(f"--out ends in .{suffix}, but the format is {chosen}: use --format {suffix}, or .{chosen}")
    if chosen == "parquet":
        _pyarrow()
    return chosen


def write(table: Table, out: Path, format_: str) -> None:
    """Write a table to a file, which has its name only when it is whole.

    Args:
        table: Numbers of a run.
        out: The file; what is there is replaced.
        format_: A key of ``WRITERS``.

    Raises:
        DgmError: If the file can't be written.
    """
    try:
        with _replacing(out) as file:
            WRITERS[format_](table, file)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DgmError(f"{out} can't be written: {error.strerror or error}") from error


@contextmanager
def _replacing(out: Path) -> Iterator[BinaryIO]:
    """A draft beside the file, renamed at the end; devices and pipes are written as they are."""
    place = Path(os.path.realpath(out))
    if place.exists() and not place.is_file():
        with open(place, "wb") as file:
            yield file
        return
    draft = place.with_name(f".dgm-tb-{os.getpid()}.part")
    try:
        with open(draft, "wb") as file:
            yield file
        if place.exists():
            shutil.copymode(place, draft)
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)
