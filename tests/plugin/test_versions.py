"""Recordings of every version that was released, and of versions that are still to come."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sample_recording as sample
from conftest import make_client
from routes import get_arrays, get_json
from sample_recording import STEPS
from tensorboard.compat.proto import event_pb2, summary_pb2
from werkzeug.test import Client

from dgm_tb import open_run
from dgm_tb.framing import frame
from dgm_tb.plugin.run import Run
from dgm_tb.records import PLUGIN_NAME, encode

GOLDEN = Path(__file__).parents[1] / "golden"
DIGESTS = {
    "schema-1.dgm": "5dd5ba9b298121d3d8189322ef16bcaed518642cc433ec1087ac2638d82148d9",
    "schema-1-exponents.dgm": "2aa7876f74341b81ba1a426ce2139f9090b6254e00b7dc2260c3a97c754152a8",
}
# What the numbers of a file were multiplied with: activations, gradients, contributions.
POWERS = {"schema-1.dgm": (1.0, 1.0, 1.0), "schema-1-exponents.dgm": (2.0**40, 2.0**-60, 2.0**-50)}


def opened(name: str, folder: Path) -> Run:
    place = folder / "plugins" / PLUGIN_NAME / "r"
    place.mkdir(parents=True)
    (place / "000000.dgm").write_bytes((GOLDEN / name).read_bytes())
    return open_run(folder)


def test_golden_files_stay_what_they_are() -> None:
    assert {path.name for path in GOLDEN.glob("schema-*")} == set(DIGESTS) == set(POWERS)
    for name, digest in DIGESTS.items():
        assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest() == digest, f"{name} must never change"


@pytest.mark.parametrize("name", DIGESTS)
def test_the_numbers_of_released_schemas_are_read(name: str, tmp_path: Path) -> None:
    run = opened(name, tmp_path)
    of_activation, of_gradient, of_contribution = POWERS[name]
    assert run.gaps == []
    assert run.layers == ["conv", "fc", "unfold", "out"]
    assert (run.steps, run.ended, run.snapshots) == ((0, 11), "finished", [0, 8])
    assert run.notes == ["step 5: no relevance for GroupNorm (layer 'norm')"]
    losses = run.losses
    np.testing.assert_allclose(losses["train_loss"].values[[0, 3, 7]], [10, 2.5, 1.25])
    np.testing.assert_array_equal(losses["train_loss"].values[[9, 10]], [np.nan, np.inf])
    np.testing.assert_array_equal(losses["d_loss"].steps, [0, 2, 4, 6, 8, 10])
    np.testing.assert_array_equal(losses["d_loss"].global_steps, [0, 4, 8, 12, 16, 20])
    assert losses["d_loss"].steps.dtype == losses["d_loss"].global_steps.dtype == np.int64
    windows = run.dynamics("fc")
    np.testing.assert_array_equal(windows.steps, [3, 7, 11])
    np.testing.assert_array_equal(windows.values[2] / of_activation, [10.9375, 10.375, 11.125])
    np.testing.assert_array_equal(windows.low[2] / of_activation, [10.0, 10.0, 10.75])  # type: ignore[index]
    np.testing.assert_array_equal(windows.values[1] / of_activation, [9.5625, 9.75, np.nan])
    np.testing.assert_array_equal(run.dynamics("fc", "gradient").values[0] / of_gradient, [8.625, 8.6875, 8.75])
    np.testing.assert_array_equal(run.dynamics("fc", "weight").values[2], [10.9375, 10.375, 11.125])
    drawn = run.polylines("fc", k=4)
    line = drawn.values[drawn.neurons.tolist().index(1)] / of_activation
    np.testing.assert_array_equal(line[[0, 1, 9]], [9.0, 10.25, np.nan])
    matrix = np.asarray(run.contribution("conv", "fc", 0)) / of_contribution
    np.testing.assert_array_equal(matrix, [[-7, -3, 1], [5, 9, 2], [-5, -1, 3], [7, 11, -7]])
    np.testing.assert_allclose(run.layer_statistics("fc")["std"].values[:2], [120.0, 120.5])
    assert {finding.kind for finding in run.findings} >= {"nonfinite", "outlier_sample", "dead_units"}


@pytest.mark.parametrize("name", DIGESTS)
def test_the_numbers_of_released_schemas_are_sent(name: str, tmp_path: Path) -> None:
    opened(name, tmp_path)
    client: Client = make_client(tmp_path)
    of_activation, of_gradient, of_contribution = POWERS[name]
    assert [item["id"] for item in get_json(client, "findings", run=".") if item["has_samples"]] == ["f1"]
    assert get_json(client, "run", run=".")["recordings"][0]["schema"] == 1
    _, arrays = get_arrays(client, "losses", run=".")
    np.testing.assert_allclose(arrays["values_0"][[0, 3, 7]], [10, 2.5, 1.25])
    _, arrays = get_arrays(client, "dynamics", run=".", layer="fc", k=10)
    line = arrays["values"][arrays["neurons"].tolist().index(1)] / of_activation
    np.testing.assert_array_equal(line[[0, 1, 9]], [9.0, 10.25, np.nan])
    _, arrays = get_arrays(client, "neurons", run=".", layer="fc", step=5)
    np.testing.assert_array_equal(arrays["gradient.rms"][:1] / of_gradient, [8.6875])
    np.testing.assert_array_equal(arrays["activation.mean"][2:3] / of_activation, [10.375])
    _, arrays = get_arrays(client, "matrix", run=".", source="conv", target="fc", step=0)
    np.testing.assert_array_equal(arrays["values"][0] / of_contribution, [-7, -3, 1])
    np.testing.assert_allclose(arrays["scaled"][0], [-1, -3 / 7, 1 / 7], rtol=1e-6)
    facts, arrays = get_arrays(client, "samples", run=".", finding="f1")
    assert (facts["low"], facts["high"]) == (0.0, 5.0)
    np.testing.assert_array_equal(arrays["relevance_0"], [[[0.5], [-2.0]]])


def test_records_of_an_unknown_kind_are_skipped_with_a_note(tmp_path: Path) -> None:
    content = b'{"version":9,"first_step":3,"pitch":440}'
    data = summary_pb2.SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content)
    value = summary_pb2.Summary.Value(tag=f"{PLUGIN_NAME}/song", metadata=summary_pb2.SummaryMetadata(plugin_data=data))
    song = event_pb2.Event(step=3, summary=summary_pb2.Summary(value=[value])).SerializeToString()
    path = sample.write(tmp_path, [sample.recording_record()])
    path.open("ab").write(frame(song) * 2 + sample.framed([sample.loss_record()]))
    run = open_run(tmp_path)
    assert list(run.losses["train_loss"].steps) == list(range(STEPS))
    assert run.gaps == []
    assert run.notes == ["2 records of the unknown kind 'song' were skipped: a newer dgm_tb wrote them"]


def test_keys_of_a_newer_version_in_known_records_do_no_harm(tmp_path: Path) -> None:
    records = [replace(record, body={**record.body, "later": {"x": [1]}}) for record in sample.all_records()]
    sample.write(tmp_path, records)
    run = open_run(tmp_path)
    assert run.gaps == []
    assert run.layers == sample.FLOW


def test_arrays_of_a_newer_version_are_skipped_with_a_note(tmp_path: Path) -> None:
    payloads = [encode(record) for record in sample.all_records()]
    for number, record in enumerate(sample.all_records()):
        if record.kind in ("loss", "dynamics"):
            event = event_pb2.Event.FromString(payloads[number])
            added = event.summary.value.add(tag=f"{PLUGIN_NAME}/{record.kind}/pitch")
            added.tensor.dtype = 14  # bfloat16, which this version does not know
            added.tensor.tensor_content = b"xx" * 5000
            payloads[number] = event.SerializeToString()
    sample.write(tmp_path / "a", [])
    (tmp_path / "a" / "plugins" / PLUGIN_NAME / sample.NAME / "000000.dgm").write_bytes(b"".join(map(frame, payloads)))
    sample.write(tmp_path / "b", sample.all_records())
    run, plain = open_run(tmp_path / "a"), open_run(tmp_path / "b")
    assert run.gaps == []
    assert list(run.losses["train_loss"].steps) == list(range(STEPS))
    np.testing.assert_array_equal(run.dynamics("fc").values, plain.dynamics("fc").values)
    assert [note for note in run.notes if note not in plain.notes] == [
        "1 array 'loss.pitch' was skipped: a newer dgm_tb wrote it",
        "4 arrays 'dynamics.pitch' were skipped: a newer dgm_tb wrote them",
    ]


def test_a_recording_of_a_newer_schema_is_shown_with_a_note(tmp_path: Path) -> None:
    head, *others = sample.all_records()
    sample.write(tmp_path, [replace(head, body={**head.body, "schema": 7}), *others])
    run = open_run(tmp_path)
    assert run.gaps == []
    assert list(run.losses["train_loss"].steps) == list(range(STEPS))
    assert run.notes[-1] == (
        f"recording {sample.NAME} has schema 7, this version reads up to 1: update dgm_tb to see all of it"
    )
