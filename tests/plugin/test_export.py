"""Numbers of a run as files: every format brings back what was recorded, and no file is ever half there."""

import csv
import errno
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import sample_recording as sample
from pyarrow import parquet
from sample_recording import LOSS_STEPS, STEPS, WINDOW

from dgm_tb import __version__, open_run
from dgm_tb.errors import DgmError, MissingPackageError
from dgm_tb.plugin import export
from dgm_tb.plugin.export import WRITERS, Table, choose_format, csv_lines, layer_table, loss_table, neuron_table, write
from dgm_tb.plugin.run import Run
from dgm_tb.records import Record

Array = np.ndarray[Any, np.dtype[Any]]
Columns = dict[str, Array]

FC = sample.span_of("fc")
STARTS = LOSS_STEPS[::WINDOW]
PRESENT = np.stack([np.ones(STEPS, np.bool_), LOSS_STEPS % 2 == 0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder: Path = tmp_path_factory.mktemp("logs") / "first"
    sample.write(folder, sample.all_records())
    return open_run(folder)


TABLES: dict[str, tuple[Callable[[Run], Table], Columns, dict[str, str]]] = {
    "neurons": (
        lambda run: neuron_table(run, "fc"),
        {
            "first_step": STARTS,
            "last_step": STARTS + WINDOW - 1,
            **{
                f"neuron_{number}": values
                for number, values in enumerate(sample.window_values("activation", "mean/mean")[FC])
            },
        },
        {"layer": "fc", "quantity": "activation", "statistic": "mean"},
    ),
    "layer": (
        lambda run: layer_table(run, "fc", "update"),
        {"step": LOSS_STEPS, "ratio": sample.layer_values("update")[:, list(sample.WITH_WEIGHTS).index("fc"), 0]},
        {"layer": "fc", "quantity": "update"},
    ),
    "losses": (
        loss_table,
        {
            "step": LOSS_STEPS,
            "global_step": LOSS_STEPS * 2,
            "train_loss": sample.loss_values()[:, 0],
            "d_loss": np.where(PRESENT[1], sample.loss_values()[:, 1], np.nan),
        },
        {},
    ),
}


def columns_of_csv(file: Path) -> Columns:
    names, *rows = csv.reader(file.read_text(encoding="utf-8").splitlines())
    return {name: np.array([cell or "nan" for cell in cells], float) for name, *cells in zip(names, *rows, strict=True)}


def columns_of_npz(file: Path) -> Columns:
    with np.load(file) as arrays:
        if "neurons" in arrays:
            names, index = (
                [f"neuron_{n}" for n in arrays["neurons"]],
                {"first_step": "first_steps", "last_step": "steps"},
            )
        else:
            names, index = arrays["names"].tolist(), {"step": "steps", "global_step": "global_steps"}
        found = {name: arrays[key] for name, key in index.items() if key in arrays}
        return found | dict(zip(names, arrays["values"], strict=True))


def columns_of_parquet(file: Path) -> Columns:
    table = parquet.read_table(file)
    return {name: table[name].to_numpy() for name in table.column_names}


READERS = {"csv": columns_of_csv, "npz": columns_of_npz, "parquet": columns_of_parquet}


@pytest.mark.parametrize("format_", WRITERS)
@pytest.mark.parametrize("table", TABLES)
def test_every_format_brings_back_what_was_recorded(run: Run, table: str, format_: str, tmp_path: Path) -> None:
    make, expected, _ = TABLES[table]
    write(make(run), tmp_path / "out", format_)
    found = READERS[format_](tmp_path / "out")
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name].astype(values.dtype), values)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("table", TABLES)
def test_parquet_has_whole_steps_float_values_and_says_what_it_is_of(run: Run, table: str, tmp_path: Path) -> None:
    make, expected, facts = TABLES[table]
    write(make(run), tmp_path / "t.parquet", "parquet")
    schema = parquet.read_schema(tmp_path / "t.parquet")
    assert [str(kind) for kind in schema.types] == [
        {"int64": "int64", "float32": "float", "float64": "double"}[str(values.dtype)] for values in expected.values()
    ]
    found = {key.decode(): fact.decode() for key, fact in schema.metadata.items()}
    assert found == {"run": "first", "dgm_tb_version": __version__, **facts}
    with np.load(_written(make(run), tmp_path / "t.npz", "npz")) as arrays:
        assert {name: str(arrays[name]) for name in found} == found


def test_a_loss_that_was_not_there_is_told_from_one_that_was_nan(run: Run, tmp_path: Path) -> None:
    rows = [line.split(",") for line in "".join(csv_lines(loss_table(run))).splitlines()[1:]]
    assert [[cell != "" for cell in row[2:]] for row in rows] == PRESENT.T.tolist()
    assert rows[sample.NAN_STEP][2] == "nan"
    table = parquet.read_table(_written(loss_table(run), tmp_path / "t", "parquet"))
    assert [table[name].is_valid().to_pylist() for name in ("train_loss", "d_loss")] == PRESENT.tolist()
    with np.load(_written(loss_table(run), tmp_path / "t", "npz")) as arrays:
        np.testing.assert_array_equal(arrays["present"], PRESENT)


def test_npz_has_the_extremes_of_the_windows_where_they_are_kept(run: Run, tmp_path: Path) -> None:
    with np.load(_written(neuron_table(run, "fc"), tmp_path / "a", "npz")) as arrays:
        np.testing.assert_array_equal(arrays["low"], sample.window_values("activation", "mean/min")[FC])
        np.testing.assert_array_equal(arrays["high"], sample.window_values("activation", "mean/max")[FC])
    with np.load(_written(neuron_table(run, "fc", "gradient"), tmp_path / "g", "npz")) as arrays:
        assert "low" not in arrays
        np.testing.assert_array_equal(arrays["high"], sample.window_values("gradient", "rms/max")[FC])


@pytest.mark.parametrize("format_", WRITERS)
def test_names_of_losses_may_be_anything(format_: str, tmp_path: Path) -> None:
    names = ['a,b "c"', "step", "größe", "half \ud800"]
    arrays = {
        "steps": np.arange(2), "global_steps": np.arange(2), "values": np.arange(8.0).reshape(2, 4),
        "present": np.ones((2, 4), np.uint8),
    }  # fmt: skip
    sample.write(tmp_path / "run", [sample.recording_record(), Record("loss", 0, 1, {"names": names}, arrays)])
    file = _written(loss_table(open_run(tmp_path / "run")), tmp_path / "out", format_)
    found = READERS[format_](file)
    assert list(found)[2:] == ['a,b "c"', "loss step", "größe", "half ?"]
    assert found["loss step"].tolist() == [1, 5]


def test_a_run_without_losses_says_so(tmp_path: Path) -> None:
    sample.write(tmp_path / "run", [sample.recording_record()])
    with pytest.raises(DgmError, match="no loss of run 'run'"):
        loss_table(open_run(tmp_path / "run"))


@pytest.mark.parametrize("n_cells", [1, 13, 24])
def test_csv_is_the_same_in_pieces_of_any_size(run: Run, n_cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for make, *_ in TABLES.values():
        whole = list(csv_lines(make(run)))
        with monkeypatch.context() as patched:
            patched.setattr(export, "BLOCK_CELLS", n_cells)
            assert list(csv_lines(make(run))) == whole


def test_a_large_csv_is_never_in_memory_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "BLOCK_CELLS", 2000)
    values = np.random.default_rng(0).normal(size=(100, 1000)).astype(np.float32)
    table = Table({}, {"step": np.arange(1000)}, [f"neuron_{n}" for n in range(100)], values, None, {})
    tracemalloc.start()
    n_characters = sum(map(len, csv_lines(table)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_characters > 1_000_000 > 2 * peak


def _half_written(table: Table, file: BinaryIO) -> None:
    file.write(b"half of ")
    file.flush()
    raise OSError(errno.ENOSPC, "No space left on device")


def _interrupted(table: Table, file: BinaryIO) -> None:
    file.write(b"half of ")
    raise KeyboardInterrupt


@pytest.mark.parametrize("failing", [_half_written, _interrupted])
@pytest.mark.parametrize("before", [None, b"an older export"])
def test_an_export_that_breaks_off_leaves_what_was_there(
    run: Run, failing: Any, before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WRITERS, "csv", failing)
    out = tmp_path / "t.csv"
    if before is not None:
        out.write_bytes(before)
    with pytest.raises((DgmError, KeyboardInterrupt)) as caught:
        write(loss_table(run), out, "csv")
    assert (out.read_bytes() if out.exists() else None) == before
    assert len(list(tmp_path.iterdir())) == (before is not None)
    if failing is _half_written:
        assert str(caught.value) == f"{out} can't be written: No space left on device"


def test_an_older_file_is_replaced_where_a_link_leads_with_its_mode(run: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "t.csv"
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / "link.csv").symlink_to(target)
    write(loss_table(run), tmp_path / "link.csv", "csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert target.read_text().startswith("step,")
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_device_is_written_and_stays_a_device(run: Run) -> None:
    write(loss_table(run), Path("/dev/null"), "npz")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("place", "why"), [("", "Is a directory"), ("no/t.csv", "No such file"), ("file/t.csv", "Not a directory")]
)
def test_a_place_that_cant_be_written_is_named(run: Run, place: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(DgmError, match=f"{tmp_path / place} can't be written: {why}"):
        write(loss_table(run), tmp_path / place, "csv")


@pytest.mark.parametrize(
    ("wanted", "out", "chosen"),
    [
        (None, None, "csv"), (None, "t.txt", "csv"), (None, "a.b/t", "csv"), (None, "T.NPZ", "npz"),
        (None, "t.parquet", "parquet"), ("npz", "t", "npz"), ("npz", "t.data", "npz"), ("csv", None, "csv"),
    ],
)  # fmt: skip
def test_the_format_is_the_one_asked_for_or_the_suffix(wanted: str | None, out: str | None, chosen: str) -> None:
    assert choose_format(wanted, out) == chosen


@pytest.mark.parametrize("format_", ["npz", "parquet"])
def test_what_is_no_text_needs_a_file(format_: str) -> None:
    with pytest.raises(DgmError, match=f"{format_} is no text: name a file with --out"):
        choose_format(format_, None)


def test_a_suffix_of_another_format_is_no_silent_surprise() -> None:
    with pytest.raises(DgmError, match=r"ends in \.npz, but the format is parquet"):
        choose_format("parquet", "t.npz")


def test_an_address_is_no_file() -> None:
    with pytest.raises(DgmError, match="is a file on this machine"):
        choose_format(None, "s3://bucket/t.csv")


@pytest.mark.parametrize("wanted", [None, "parquet"])
def test_without_pyarrow_the_error_says_what_to_install(wanted: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match="parquet needs the package pyarrow: pip install pyarrow"):
        choose_format(wanted, "t.parquet")
    assert choose_format("npz", "t.npz") == "npz"


def _written(table: Table, file: Path, format_: str) -> Path:
    write(table, file, format_)
    return file
