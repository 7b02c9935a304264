"""Which runs are found below a log folder, and what happens while they are being read."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sample_recording as sample
from conftest import make_client
from routes import ARRAY_SAMPLES, JSON_SAMPLES, get, sample_arguments
from tensorboard.plugins import base_plugin

from dgm_tb.algorithms.detection import Detection
from dgm_tb.errors import UnknownNameError
from dgm_tb.framing import frame
from dgm_tb.plugin import diagnosis, discovery
from dgm_tb.plugin import runs as runs_module
from dgm_tb.plugin.discovery import find_runs, natural_key
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.runs import Runs
from dgm_tb.records import encode


def write(folder: Path) -> Path:
    sample.write(folder, [sample.recording_record()])
    return folder


def test_runs_are_found_at_any_depth_and_named_by_their_path(tmp_path: Path) -> None:
    for name in ("a/b/c", "with space", "größe", "a"):
        write(tmp_path / name)
    (tmp_path / "empty" / "plugins" / "dgmtracker" / "x").mkdir(parents=True)
    assert list(find_runs(tmp_path)) == ["a", "a/b/c", "größe", "with space"]
    write(tmp_path)
    assert find_runs(tmp_path)["."] == tmp_path


def test_names_are_sorted_as_people_count() -> None:
    names = ["version_10", "version_9", "b/version_1", "version_09", "a2b10", "a2b9", ".", "version_²", "a" + "9" * 200]
    found = sorted(names, key=natural_key)
    assert found.index("version_9") < found.index("version_10")
    assert found.index("a2b9") < found.index("a2b10")
    assert sorted(reversed(names), key=natural_key) == found


def test_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "run")
    logdir = tmp_path / "logs"
    logdir.mkdir()
    (logdir / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (logdir / "link" / "run" / "loop").symlink_to(logdir, target_is_directory=True)
    (logdir / "broken").symlink_to(tmp_path / "nowhere")
    assert list(find_runs(logdir)) == ["link/run"]


def test_a_huge_folder_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "MAX_FOLDERS", 5)
    for number in range(20):
        write(tmp_path / f"{number:02}")
    assert len(find_runs(tmp_path)) < 5


def test_runs_of_a_logdir_spec_carry_its_names(tmp_path: Path) -> None:
    inner = write(tmp_path / "y" / "inner")
    paths = {"A/one": str(write(tmp_path / "x" / "one")), "B/.": str(tmp_path / "y"), "B/inner": str(inner)}
    multiplexer = SimpleNamespace(RunPaths=lambda: paths)
    context = base_plugin.TBContext(logdir="", multiplexer=multiplexer)
    assert [item["run"] for item in Runs(context).listed()] == ["A/one", "B/inner"]
    assert Runs(base_plugin.TBContext(logdir="")).listed() == []


def test_a_provider_that_fails_leaves_our_own_runs(tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no connection")

    provider = SimpleNamespace(list_runs=fail)
    write(tmp_path / "a")
    context = base_plugin.TBContext(logdir=str(tmp_path), data_provider=provider)
    assert [item["run"] for item in Runs(context).listed()] == ["a"]


def test_a_list_of_runs_does_not_wait_for_a_large_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "LISTING_SECONDS", 0.2)
    write(tmp_path / "large")
    write(tmp_path / "small")
    may_end, refresh = threading.Event(), Run.refresh

    def slow(run: Run) -> None:
        if run.name == "large":
            assert may_end.wait(30)
        refresh(run)

    monkeypatch.setattr(Run, "refresh", slow)
    runs = Runs(base_plugin.TBContext(logdir=str(tmp_path)))
    try:
        found = {item["run"]: item for item in runs.listed()}
        assert {name: item["indexing"] for name, item in found.items()} == {"large": True, "small": False}
        assert set(found["large"]) == set(found["small"])
        assert runs.get("small").name == "small"
    finally:
        may_end.set()
    assert runs.get("large").name == "large"
    assert not any(item["indexing"] for item in runs.listed())


def test_a_run_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(UnknownNameError, match="no recording of a run 'b'; there are a"):
        Runs(base_plugin.TBContext(logdir=str(tmp_path))).get("b")


def test_eight_clients_read_a_growing_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "REFRESH_SECONDS", 0.0)
    path = sample.write(tmp_path, sample.all_records(ends=False))
    client = make_client(tmp_path)
    requests = [(route, {**sample_arguments(route), "run": "."}) for route in (*JSON_SAMPLES, *ARRAY_SAMPLES)] * 4
    is_over = threading.Event()

    def grow() -> None:
        with path.open("ab", buffering=0) as file:
            for first in range(sample.STEPS, 2000, 4):
                if is_over.is_set():
                    return
                steps = np.arange(first, first + 4)
                for record in [sample.loss_record(steps), *sample.quantity_records("activation", steps)]:
                    file.write(frame(encode(record)))

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda request: get(client, request[0], **request[1]), requests))
    finally:
        is_over.set()
        writer.join(30)
    assert {answer.status_code for answer in answers} == {200}, [a.text for a in answers if a.status_code != 200][:3]
    assert json.loads(get(client, "run", run=".").data)["gaps"] == []


def test_eight_clients_read_twenty_growing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "REFRESH_SECONDS", 0.0)
    names = [f"run {number}" for number in range(20)]
    paths = [sample.write(tmp_path / name, sample.all_records(ends=False)) for name in names]
    client, is_over = make_client(tmp_path), threading.Event()

    def grow() -> None:
        for first in range(sample.STEPS, 400, 4):
            for path in paths:
                if is_over.is_set():
                    return
                steps = np.arange(first, first + 4)
                with path.open("ab", buffering=0) as file:
                    file.write(
                        sample.framed([sample.loss_record(steps), *sample.quantity_records("activation", steps)])
                    )

    def ask(number: int) -> list[int]:
        codes = [get(client, "runs").status_code]
        for route in (*JSON_SAMPLES, *ARRAY_SAMPLES):
            name = names[(7 * number + len(codes)) % len(names)]
            codes.append(get(client, route, **{**sample_arguments(route), "run": name}).status_code)
        return codes

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with ThreadPoolExecutor(8) as threads:
            codes = [future.result(timeout=60) for future in [threads.submit(ask, number) for number in range(16)]]
    finally:
        is_over.set()
        writer.join(30)
    assert {code for found in codes for code in found} == {200}
    facts = get(client, "runs").json
    assert sorted(item["run"] for item in facts) == sorted(names)
    assert not any(item["indexing"] for item in facts)


def test_the_revision_changes_when_findings_come_later_than_their_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(diagnosis, "time", SimpleNamespace(monotonic=lambda: clock.now))
    path = sample.write(tmp_path, sample.all_records(ends=False))
    run = Run(tmp_path)
    before = run.findings
    path.open("ab").write(frame(encode(sample.loss_record(np.arange(12, 16)))))
    run.refresh()
    late = Detection("saturated", "warning", 12, 12, 15, "fc", "found in what has just been written")
    monkeypatch.setattr(diagnosis, "detect", lambda history: [late])
    clock.now += 1
    assert run.findings == before, "detectors rest"
    seen = run.revision
    clock.now += diagnosis.REST_SECONDS
    assert [finding.kind for finding in run.findings if finding not in before] == ["saturated"]
    assert run.revision != seen, "whoever asks again when the revision changes gets it"
    seen = run.revision
    clock.now += 10 * diagnosis.REST_SECONDS
    assert run.findings
    assert run.revision == seen
