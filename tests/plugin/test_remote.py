"""Recordings behind an fsspec address: routes answer as from a disk, and few bytes are asked for, none of them twice.

``counted://`` is fsspec's file system in memory with a book of what is asked of it: as an object store, it lists
folders and hands out ranges of objects.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import sample_recording as sample
from conftest import make_client
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.memory import MemoryFileSystem
from routes import ARRAY_SAMPLES, JSON_SAMPLES, get
from sample_recording import LOSS_STEPS
from tensorboard.plugins import base_plugin

from dgm_tb import open_run
from dgm_tb.cli import main
from dgm_tb.errors import NoRecordingError
from dgm_tb.plugin import runs as runs_module
from dgm_tb.plugin import segments
from dgm_tb.plugin.cache import CACHE
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.runs import Runs
from dgm_tb.plugin.storage import NEAR_BYTES, RemotePath
from dgm_tb.records import PLUGIN_NAME, Record, encode
from dgm_tb.segment_names import LIVE_NAME, segment_name

FOLDER = f"plugins/{PLUGIN_NAME}/{sample.NAME}"


class Counted(MemoryFileSystem):
    """Notes which ranges are read and which folders are listed, and fails when told to.

    As file systems of object stores do, it keeps lists of folders until it is told to forget them.
    """

    protocol = "counted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    reads: ClassVar[list[tuple[str, int, int]]] = []
    lists: ClassVar[list[str]] = []
    kept: ClassVar[dict[str, Any]] = {}
    failure: Exception | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("counted://").strip("/") if path.strip("/") else ""

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        assert start is not None, "a whole object"
        assert end is not None, "a whole object"
        content = super().cat_file(path, start, end, **options)
        self.reads.append((path.rpartition("/")[2], start, start + len(content)))
        return content

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        if path not in self.kept:
            self.lists.append(path)
            self.kept[path] = super().ls(path, detail, **options)
        return self.kept[path]

    def invalidate_cache(self, path: str | None = None) -> None:
        if path is not None:
            self.kept.pop(path, None)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        assert "r" not in mode, "nothing is opened as a file"
        return super()._open(path, mode, **options)


@pytest.fixture
def counted() -> Iterator[Counted]:
    fsspec.register_implementation("counted", Counted, clobber=True)
    system = fsspec.filesystem("counted", skip_instance_cache=True)
    for book in (system.store, system.reads, system.lists, system.kept):
        book.clear()
    yield system
    Counted.failure = None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the plugin's clock shows."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(runs_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def put(system: Counted, run: str, records: Iterable[Record], name: str = "000000.dgm") -> int:
    """Write an object; returns its size."""
    content = sample.framed(records)
    system.pipe_file(f"/{run}/{FOLDER}/{name}", content)
    return len(content)


def bytes_read(system: Counted) -> int:
    return sum(stop - start for _, start, stop in system.reads)


def covered(reads: list[tuple[str, int, int]], name: str) -> int:
    """Bytes of a file that were read at least once."""
    return len({byte for of, start, stop in reads if of == name for byte in range(start, stop)})


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["memory", "counted", "file"])
def test_every_route_answers_as_from_a_disk(scheme: str, counted: Counted, tmp_path: Path) -> None:
    place = sample.write(tmp_path / "ein Lauf" / "größe", sample.all_records()).relative_to(tmp_path)
    fsspec.filesystem("memory").pipe(f"/logs/{place.as_posix()}", (tmp_path / place).read_bytes())
    counted.pipe_file(f"/logs/{place.as_posix()}", (tmp_path / place).read_bytes())
    address = f"file://{tmp_path}" if scheme == "file" else f"{scheme}://logs"
    disk, remote = make_client(tmp_path), make_client(address)
    assert get(disk, "runs").json == get(remote, "runs").json
    for route, (known, *_) in {**JSON_SAMPLES, **ARRAY_SAMPLES}.items():
        arguments = {**known, "run": "ein Lauf/größe"}
        there, here = get(remote, route, **arguments), get(disk, route, **arguments)
        assert (there.status_code, there.data) == (here.status_code, here.data), route
        assert here.status_code == 200


def test_an_asynchronous_storage_answers_the_same(tmp_path: Path) -> None:
    """As those of s3 and gs are."""
    sample.write(tmp_path, sample.all_records())
    system = MemoryFileSystem(skip_instance_cache=True)
    put(system, "asynchronous", sample.all_records())
    run = Run(RemotePath(AsyncFileSystemWrapper(system), "/asynchronous"), tmp_path.name)
    here = open_run(tmp_path)
    assert run.findings == here.findings
    for layer in sample.LAYERS:
        np.testing.assert_array_equal(run.dynamics(layer).values, here.dynamics(layer).values)
        np.testing.assert_array_equal(run.polylines(layer).values, here.polylines(layer).values)


def test_the_command_line_takes_an_address(counted: Counted, capsys: pytest.CaptureFixture[str]) -> None:
    put(counted, "logs/one", sample.all_records())
    put(counted, "logs/two", [sample.recording_record()])
    assert main(["diagnose", "counted://logs", "--json"]) == 1
    assert {finding["run"] for finding in json.loads(capsys.readouterr().out)} == {"one"}
    assert main(["inspect", "counted://logs/one"]) == 0
    assert "run one: steps 0 to 11" in capsys.readouterr().out
    assert main(["inspect", "counted://nothing"]) == 2
    assert "counted:///nothing has no recording of dgm_tb" in capsys.readouterr().err


def test_addresses_in_a_logdir_spec(counted: Counted, tmp_path: Path) -> None:
    put(counted, "logs/deep/one", [sample.recording_record()])
    sample.write(tmp_path / "two", [sample.recording_record()])
    paths = {"A": "counted://logs/deep", "B/two": str(tmp_path / "two")}
    context = base_plugin.TBContext(logdir="", multiplexer=SimpleNamespace(RunPaths=lambda: paths))
    assert [item["run"] for item in Runs(context).listed()] == ["A/one", "B/two"]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("s3://bucket/logs", "s3://bucket/logs needs a package that is not installed: Install s3fs to access S3"),
        ("nowhere://logs", "nowhere://logs can't be read: fsspec knows no storage of that kind"),
        ("counted://denied", "counted:///denied can't be read: the key has expired"),
    ],
)
def test_an_address_that_can_not_be_read_is_answered_with_a_sentence(
    address: str, sentence: str, counted: Counted, capsys: pytest.CaptureFixture[str]
) -> None:
    Counted.failure = RuntimeError("the key has expired")
    with pytest.raises(NoRecordingError, match=sentence.replace("(", r"\(")):
        open_run(address)
    assert main(["diagnose", address]) == 2
    assert sentence in capsys.readouterr().err
    answer = get(make_client(address), "runs")
    assert (answer.status_code, answer.mimetype) == (404, "text/plain")
    assert sentence in answer.text


def test_fsspec_is_imported_for_an_address_only(tmp_path: Path) -> None:
    sample.write(tmp_path, sample.all_records())
    script = (
        "import sys; from dgm_tb import open_run; from dgm_tb.plugin.plugin import DGMTrackerPlugin\n"
        f"open_run({str(tmp_path)!r}).findings; print('fsspec' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]


# -- requests ----------------------------------------------------------------------------------------------------------


def test_the_index_reads_each_byte_once_in_blocks(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "REMOTE_BLOCK_BYTES", 2000)
    size = put(counted, "run", sample.all_records())
    run = open_run("counted://run")
    assert run.layers == sample.FLOW  # the graph's body is small enough to be kept
    assert covered(counted.reads, "000000.dgm") == bytes_read(counted) == size
    assert len(counted.reads) <= 2 * size / 2000


def test_nothing_is_read_again_at_a_refresh(counted: Counted) -> None:
    put(counted, "run", [sample.recording_record(), sample.loss_record(LOSS_STEPS[:4])])
    second = put(counted, "run", [sample.loss_record(LOSS_STEPS[4:8])], segment_name(1))
    run = open_run("counted://run")
    counted.reads.clear()
    counted.lists.clear()
    for _ in range(5):
        run.refresh()
    assert counted.reads == []
    assert len(counted.lists) == 5 * 3, "the run's recordings, what each holds, and it again: one list each"
    grown = put(
        counted, "run", [sample.loss_record(LOSS_STEPS[4:8]), sample.loss_record(LOSS_STEPS[8:])], segment_name(1)
    )
    run.refresh()
    beginning = segment_name(1), 0, segments.FINGERPRINT_BYTES  # is it the same object, but longer?
    assert counted.reads == [beginning, (segment_name(1), second, grown)]
    assert run.losses["train_loss"].steps.tolist() == list(LOSS_STEPS)


def test_a_torn_end_is_not_read_again_and_again(counted: Counted) -> None:
    content = sample.framed([sample.recording_record(), sample.loss_record()])
    counted.pipe_file(f"/run/{FOLDER}/000000.dgm", content[:-7])
    run = open_run("counted://run")
    counted.reads.clear()
    run.refresh()
    assert counted.reads == []


def large_records(n_windows: int = 40, neurons: int = 5000) -> Iterator[Record]:
    """Windows of many neurons, of which ``fc`` and the other layers have the first few."""
    window = next(record for record in sample.all_records() if record.kind == "dynamics")
    for number in range(n_windows):
        steps = np.arange(4 * number, 4 * number + 4)
        yield sample.loss_record(steps)
        values = np.full((neurons, 1, 7), number, np.float16)
        arrays = {"windows": np.array([[steps[0], steps[-1]]]), "values": values}
        yield replace(window, first_step=int(steps[0]), last_step=int(steps[-1]), arrays=arrays)


@pytest.mark.parametrize("ask", [lambda run: run.dynamics("fc"), lambda run: run.losses], ids=["dynamics", "losses"])
def test_a_view_reads_only_its_ranges(counted: Counted, ask: Callable[[Run], Any]) -> None:
    size = put(counted, "run", [sample.recording_record(), list(sample.all_records())[1], *large_records()])
    run = open_run("counted://run")
    CACHE.clear()
    counted.reads.clear()
    ask(run)
    needed = 40 * (4 * 7 * 2 + 2 * 8), 40 * (4 * (8 + 8 + 16 + 2) + 4)
    assert bytes_read(counted) <= max(needed) + 40 * NEAR_BYTES < size / 10
    assert covered(counted.reads, "000000.dgm") == bytes_read(counted), "no byte twice"
    assert len(counted.reads) <= 40
    counted.reads.clear()
    ask(run)
    assert counted.reads == [], "kept"


def test_detectors_read_each_window_once_while_a_recording_grows(counted: Counted) -> None:
    head = [sample.recording_record(), list(sample.all_records())[1]]
    put(counted, "run", [*head, *large_records(10)])
    run = open_run("counted://run")
    assert run.findings is not None
    put(counted, "run", [*head, *large_records(12)])
    run.refresh()
    counted.reads.clear()
    run._diagnosis._worked_out = -np.inf  # its rest is over
    assert run.findings is not None
    assert bytes_read(counted) < 3.5 * 5000 * 7 * 2


def test_the_live_object_is_read_when_it_was_replaced(counted: Counted) -> None:
    def begun(last: int) -> list[Record]:
        found = sample.quantity_records("activation", np.arange(8, last))
        return [record for record in found if record.kind != "layer_statistics"]

    steps = LOSS_STEPS[:8]
    put(counted, "run", [sample.recording_record(), list(sample.all_records())[1], sample.loss_record(steps),
                         *sample.quantity_records("activation", steps)])  # fmt: skip
    put(counted, "run", begun(9), LIVE_NAME)
    run = open_run("counted://run")
    assert run.dynamics("fc").steps.tolist() == [3, 7, 8]
    size = put(counted, "run", begun(11), LIVE_NAME)
    counted.reads.clear()
    for _ in range(3):
        run.refresh()
    assert counted.reads == [(LIVE_NAME, 0, size)]
    assert run.dynamics("fc").steps.tolist() == [3, 7, 10]


def test_segments_that_were_replaced_or_deleted_are_forgotten(counted: Counted) -> None:
    parts = [sample.loss_record(steps) for steps in np.array_split(LOSS_STEPS, 3)]
    for number, part in enumerate(parts):
        put(counted, "run", [sample.recording_record(), part], segment_name(number))
    run = open_run("counted://run")
    put(counted, "run", [sample.recording_record(), *parts[:2]], segment_name(0, 1))
    for number in range(2):
        counted.rm_file(f"/run/{FOLDER}/{segment_name(number)}")
    assert run.losses["train_loss"].steps.tolist() == list(LOSS_STEPS), "asked again after a refresh"
    put(counted, "run", [parts[0]], segment_name(2))
    run.refresh()
    assert run.losses["train_loss"].steps.tolist() == list(LOSS_STEPS[:8])


def test_a_storage_is_not_listed_more_often_than_allowed(counted: Counted, clock: SimpleNamespace) -> None:
    for name in ("a", "b/c"):
        put(counted, f"logs/{name}", sample.all_records(ends=False))
    counted.pipe_file("/logs/b/checkpoints/deep/inside/x.ckpt", b"1")
    client = make_client("counted://logs")
    get(client, "runs")
    assert not [path for path in counted.lists if "checkpoints" in path]
    put(counted, "logs/b/c", [sample.loss_record(LOSS_STEPS + 12)], segment_name(1))
    counted.lists.clear()
    counted.reads.clear()
    for _ in range(9):
        clock.now += 1
        assert [item["last_step"] for item in get(client, "runs").json] == [11, 11]
        get(client, "graph", run="a")
    assert (counted.lists, counted.reads) == ([], [])
    clock.now += 1
    assert [item["last_step"] for item in get(client, "runs").json] == [11, 23]
    assert max(counted.lists.count(path) for path in counted.lists) <= 3


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_storage_that_fails_for_a_while_loses_nothing(counted: Counted) -> None:
    put(counted, "run", sample.all_records())
    run = open_run("counted://run")
    revision, notes = run.revision, run.notes
    Counted.failure = RuntimeError("connection reset")
    run.refresh()
    assert run.losses["train_loss"].steps.tolist() == list(LOSS_STEPS)
    assert [note for note in run.notes if note not in notes] == [
        "counted:///run can't be read: connection reset",
        f"recording {sample.NAME}: can't be listed: connection reset",
    ]
    assert run.revision != revision
    Counted.failure = None
    put(counted, "run", [sample.loss_record(LOSS_STEPS + 12)], segment_name(1))
    run.refresh()
    assert run.notes == notes
    assert run.steps == (0, 23)


def test_runs_stay_listed_while_a_storage_fails(counted: Counted, clock: SimpleNamespace) -> None:
    put(counted, "logs/a", sample.all_records())
    runs = Runs(base_plugin.TBContext(logdir="counted://logs"))
    assert [item["run"] for item in runs.listed()] == ["a"]
    Counted.failure = TimeoutError("no answer")
    for _ in range(3):
        clock.now += 100
        assert [item["run"] for item in runs.listed()] == ["a"]
    assert runs.get("a").steps == (0, 11)


def test_objects_that_are_no_recording_are_left_alone(counted: Counted) -> None:
    put(counted, "run", sample.all_records())
    counted.pipe_file(f"/run/{FOLDER}/notes.txt", b"x")
    counted.pipe_file(f"/run/{FOLDER}/000001.dgm/inside", b"x")
    counted.pipe_file(f"/run/plugins/{PLUGIN_NAME}/000000.dgm", encode(sample.recording_record()))
    run = open_run("counted://run")
    assert run.layers == sample.FLOW
    assert run.gaps == []
