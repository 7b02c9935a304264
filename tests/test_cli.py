"""The command ``dgm-tb``: what it prints, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pandas
import pytest
from browser.synthetic import BAD_INDEX, BAD_LAYER, BAD_STEP, vae_records, write_run

from dgm_tb import open_run
from dgm_tb.cli import main
from dgm_tb.framing import frame
from dgm_tb.plugin.sizes import Sizes
from dgm_tb.records import STATISTICS, Finding, Record, encode

FIELDS = {
    "run": str, "kind": str, "severity": str, "step": int, "first_step": int, "last_step": int, "module": str,
    "modules": list, "neurons": list, "samples": list, "summary": str, "evidence": dict, "advice": str,
}  # fmt: skip


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log folder with a failing run, a healthy one and one that found only a warning."""
    folder: Path = tmp_path_factory.mktemp("logs")
    write_run(folder / "failing", vae_records(480))
    write_run(folder / "healthy", vae_records(64, fails=False))
    mild = Finding("dead_units", "warning", 5, 0, 9, "encoder.1", "half of the layer is dead", evidence={"share": 0.5})
    write_finding(folder / "warned" / "version_0", mild)
    return folder


def write_finding(folder: Path, finding: Finding) -> None:
    records = [
        Record("recording", 0, 0, {"schema": 1, "recording": "r", "options": {}, "versions": {}, "model": "M",
                                   "resume_step": 0}),
        Record("finding", finding.step, finding.last_step, {"id": "f0", "finding": finding.to_json()}),
        Record("end", 9, 9, {"reason": "finished", "last_step": 9}),
    ]  # fmt: skip
    place = folder / "plugins" / "dgmtracker" / "r"
    place.mkdir(parents=True)
    (place / "000000.dgm").write_bytes(b"".join(frame(encode(record)) for record in records))


def test_diagnose_lists_all_runs_worst_first(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(logdir), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    ranks = [["error", "warning", "info"].index(f["severity"]) for f in findings]
    assert ranks == sorted(ranks)
    assert {f["run"] for f in findings} == {"failing", "warned/version_0"}
    assert findings[0]["step"] == BAD_STEP
    assert findings[0]["module"] == BAD_LAYER
    assert BAD_INDEX in findings[0]["samples"]


def test_diagnose_json_has_the_fields_of_the_contract(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["diagnose", str(logdir), "--json"])
    for finding in json.loads(capsys.readouterr().out):
        assert {name: type(value) for name, value in finding.items()} == FIELDS


def test_diagnose_tells_step_layer_example_and_advice(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["diagnose", str(logdir)])
    out = capsys.readouterr().out
    finding = open_run(logdir / "failing").findings[0]
    flat = " ".join(out.split())
    for part in (finding.summary, finding.advice, f"step {BAD_STEP}", BAD_LAYER, str(BAD_INDEX), "in 3 runs"):
        assert part in flat


def test_a_run_folder_itself_can_be_diagnosed(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["diagnose", str(logdir / "failing"), "--json"])
    assert {f["run"] for f in json.loads(capsys.readouterr().out)} == {"failing"}


@pytest.mark.parametrize(("run", "code"), [("failing", 1), ("healthy", 0), ("warned", 0)])
def test_exit_code_is_1_only_for_an_error(logdir: Path, run: str, code: int) -> None:
    assert main(["diagnose", str(logdir / run)]) == code


def test_no_finding_is_an_empty_list(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["diagnose", str(logdir / "healthy"), "--json"])
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("command", [["diagnose"], ["inspect"], ["export", "--layer", "x"]])
@pytest.mark.parametrize("place", ["empty", "missing", "file"])
def test_folder_without_recording_is_wrong_use(
    command: list[str], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    assert main([*command, str(tmp_path / place)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "DGMTrackerCallback" in err


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["diagnose"], ["demo", "--scenario", "flow"], ["export", "."]])
def test_wrong_arguments_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_inspect_lists_runs_layers_steps_and_sizes(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(logdir)]) == 0
    out = capsys.readouterr().out
    run = open_run(logdir / "failing")
    for part in ("run failing: steps 0 to 479", "run healthy: steps 0 to 63", "run warned/version_0", *run.layers):
        assert part in out
    recording = run.recordings[0]
    n_bytes = sum(file.stat().st_size for file in recording.folder.iterdir())
    assert f"{n_bytes:,} bytes on disk" in out
    for kind, size in recording.sizes().items():
        assert any(line.split()[:3:2] == [kind, f"{size:,}"] for line in out.splitlines())


@pytest.mark.parametrize(
    ("sizes", "lines"),
    [
        (
            Sizes(9_000_000, 1_210_000, 100, 100, 0, 227_000, 79_000_000),
            [
                "9,000,000 bytes on disk, of which 1,210,000 grow with the steps: 12.1 KB per step",
                "these are 1/19 of every neuron at full resolution (227 KB per step), "
                "1/6,529 of the activations (79 MB per step)",
            ],
        ),
        (
            Sizes(2000, 1000, 100, 10, 1234, 280, 40),
            [
                "2,000 bytes on disk, of which 1,000 grow with the steps: 10 bytes per step",
                "these are 1/2.8 of every neuron at full resolution (280 bytes per observed step), "
                "2.5 times the size of the activations (40 bytes per observed step)",
                "1,234 of the steps are kept at reduced detail, to stay below max_disk_mb",
            ],
        ),
        (Sizes(500, 0, 0, 0, 0, 280, 40), ["500 bytes on disk"]),
        (Sizes(500, 100, 1, 1, 0, 0, 0), ["500 bytes on disk, of which 100 grow with the steps: 100 bytes per step"]),
    ],
)
def test_inspect_says_what_grows_beside_what_it_was_made_of(
    sizes: Sizes, lines: list[str], logdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dgm_tb.cli.sizes_of", lambda recording: sizes)
    main(["inspect", str(logdir / "healthy")])
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    first = next(number for number, line in enumerate(said) if "on disk" in line)
    assert said[first : first + len(lines) + 1] == [*lines, said[first + len(lines)]]
    assert said[first + len(lines)].startswith("record kind")


def test_every_reader_command_takes_an_address(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = fsspec.filesystem("memory")
    for file in (logdir / "healthy").rglob("*.dgm"):
        memory.pipe_file(f"/test_cli/{file.relative_to(logdir)}", file.read_bytes())
    said = []
    for place in (f"{logdir}/healthy", "memory://test_cli/healthy"):
        codes = [main([*command, place]) for command in (["inspect"], ["diagnose"], ["export", "--losses"])]
        said.append((codes, capsys.readouterr().out))
    assert said[0] == said[1]


def test_no_text_of_a_recording_reaches_the_terminal_as_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "\x1b[2Jx\x07\x9b\u202e\ud800\r"
    finding = Finding("dead_units", "error", 5, 0, 9, bad, f"{bad} is dead", modules=[bad], advice=bad, evidence={})
    write_finding(tmp_path / "run", finding)
    note = frame(encode(Record("note", 5, 5, {"text": f"note\n{bad}"})))
    (tmp_path / "run" / "plugins" / "dgmtracker" / "r" / "000001.dgm").write_bytes(note)
    for command in (["diagnose"], ["inspect"], ["export", "--layer", bad]):
        main([*command, str(tmp_path)])
        out, err = capsys.readouterr()
        assert "[2J" in out + err
        assert not set(bad) - {"x", "[", "2", "J"} & set(out + err)


@pytest.mark.parametrize("quantity", STATISTICS)
def test_exported_csv_is_the_dynamics(logdir: Path, quantity: str, tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    folder, statistic = str(logdir / "failing"), STATISTICS[quantity][-1].name
    arguments = ["--layer", "encoder.0", "--quantity", quantity, "--statistic", statistic, "--out", str(out)]
    assert main(["export", folder, *arguments]) == 0
    header, *rows = [line.split(",") for line in out.read_text().splitlines()]
    dynamics = open_run(folder).dynamics("encoder.0", quantity, statistic)
    assert header == ["first_step", "last_step", *(f"neuron_{n}" for n in dynamics.neurons)]
    table = np.array(rows, float)
    assert np.array_equal(table[:, 0], dynamics.first_steps)
    assert np.array_equal(table[:, 1], dynamics.steps)
    assert np.array_equal(table[:, 2:].astype(np.float32), dynamics.values.T, equal_nan=True)


def test_csv_goes_to_the_terminal(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(logdir / "healthy"), "--layer", "to_mu"]) == 0
    assert capsys.readouterr().out.startswith("first_step,last_step,neuron_0,")


def test_exported_arrays_are_the_dynamics(logdir: Path, tmp_path: Path) -> None:
    out = tmp_path / "arrays.npz"
    folder = str(logdir / "failing")
    assert main(["export", folder, "--layer", "to_mu", "--format", "npz", "--out", str(out)]) == 0
    dynamics = open_run(folder).dynamics("to_mu")
    with np.load(out) as arrays:
        for name in ("first_steps", "steps", "neurons", "values"):
            assert np.array_equal(arrays[name], getattr(dynamics, name), equal_nan=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["failing", "--layer", "encoder.99"], "encoder.0"),
        (["failing", "--layer", "to_mu", "--statistic", "median"], "mean"),
        (["failing", "--layer", "encoder.1", "--quantity", "weight"], "no weights"),
        (["failing", "--layer", "to_mu", "--format", "npz"], "--out"),
        (["failing", "--layer", "to_mu", "--format", "npz", "--out", "x.csv"], "ends in .csv"),
        (["failing", "--layer", "encoder.99", "--layer-statistics"], "encoder.0"),
        (["failing", "--layer", "to_mu", "--layer-statistics", "--statistic", "mean"], "leave --statistic out"),
        (["failing", "--losses", "--quantity", "weight"], "--losses takes no --quantity"),
        (["failing", "--losses", "--layer-statistics"], "--losses takes no --layer-statistics"),
        (["failing", "--layer", "to_mu", "--out", "no/such/folder/x.csv"], "no/such/folder"),
        ([".", "--layer", "to_mu"], "failing, healthy, warned/version_0"),
    ],
)
def test_export_says_what_there_is(
    logdir: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(logdir / arguments[0]), *arguments[1:]]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_without_pyarrow_parquet_is_wrong_use_and_leaves_no_file(
    logdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    out = tmp_path / "t.parquet"
    assert main(["export", str(logdir / "healthy"), "--losses", "--out", str(out)]) == 2
    assert "pip install pyarrow" in capsys.readouterr().err
    assert not out.exists()


def test_the_suffix_chooses_the_format(logdir: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    assert main(["export", str(logdir / "healthy"), "--losses", "--out", str(out)]) == 0
    losses = open_run(logdir / "healthy").losses
    frame = pandas.read_parquet(out).set_index("step").drop(columns="global_step")
    pandas.testing.assert_frame_equal(frame, pandas.DataFrame({name: s.to_pandas() for name, s in losses.items()}))


def test_a_layer_as_a_whole_is_a_table_of_its_statistics(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "export",
        str(logdir / "healthy"),
        "--layer",
        "to_mu",
        "--quantity",
        "activation",
        "--layer-statistics",
    ]
    assert main(arguments) == 0
    header, *rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    statistics = open_run(logdir / "healthy").layer_statistics("to_mu", "activation")
    assert header == ["step", *statistics]
    np.testing.assert_array_equal(
        np.array(rows, np.float32)[:, 1:].T, [series.values for series in statistics.values()]
    )


def test_reader_commands_load_neither_torch_nor_what_is_optional(logdir: Path) -> None:
    code = (
        "import sys; from dgm_tb.cli import main; main(['inspect', sys.argv[1]]); main(['diagnose', sys.argv[1]]); "
        "main(['export', sys.argv[1] + '/healthy', '--losses']); "
        "sys.exit(sum(m in sys.modules for m in ('torch', 'lightning', 'sklearn', 'pandas', 'pyarrow')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(logdir)], check=False, capture_output=True)
    assert done.returncode == 0


def test_module_can_be_run_and_a_closed_pipe_is_no_error(logdir: Path) -> None:
    command = f"{sys.executable} -m dgm_tb export {logdir / 'failing'} --layer encoder.0 | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("first_step")


def test_demo_trains_says_what_was_found_and_how_to_look(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dgm_tb", "demo", "--no-serve", "--logdir", str(tmp_path / "my logs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ERROR nonfinite" in done.stdout
    assert f"tensorboard --logdir '{tmp_path / 'my logs'}'" in done.stdout
    assert open_run(tmp_path / "my logs").findings


def test_demo_serves_the_log_folder(logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[str] = []
    monkeypatch.setattr("dgm_tb.demo.training.record", lambda scenario, folder: logdir / "healthy")
    monkeypatch.setattr("os.execv", lambda program, arguments: served.extend(arguments))
    main(["demo", "--logdir", "logs", "--port", "6123"])
    assert served == [sys.executable, "-m", "tensorboard.main", "--logdir", "logs", "--port", "6123"]
