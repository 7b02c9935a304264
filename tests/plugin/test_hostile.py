"""Files that somebody broke, by chance or on purpose: nothing but our own errors, 4xx, and an end in finite time."""

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample_recording as sample
from conftest import BASE, make_client
from routes import ARRAY_SAMPLES, JSON_SAMPLES, get
from tensorboard.compat.proto import event_pb2
from werkzeug.test import Client

from dgm_tb import open_run
from dgm_tb.errors import DgmError
from dgm_tb.framing import frame
from dgm_tb.plugin import diagnosis
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.wire import unpack
from dgm_tb.records import KINDS, STATISTICS, Record, encode

GOLDEN = (Path(__file__).parents[1] / "golden" / "schema-1.dgm").read_bytes()
RECORDS = [encode(record) for record in sample.all_records()]
SECONDS = 20.0
"""A hang is longer than this on any machine; all requests together take about 0.1 s."""

ODD_VALUES: list[Any] = [
    None, True, -1, 0, 1.5, 2**53 + 1, 10**400, float("nan"), float("inf"), "", "x", "../../etc/passwd", "\ud800",
    "<script>alert(1)</script>", "a" * 100_000, [], [[]], [None], [1, "x"], ["x"] * 3, {}, {"x": {}}, [{}],
    [{"name": 1}], [[[[[[]]]]]],
]  # fmt: skip


def ask_everything(folder: Path) -> None:
    """Everything that a client or a notebook can ask of a run must be answered or refused properly."""
    client = make_client(folder)
    began = time.monotonic()
    assert get(client, "runs").status_code == 200
    answers = {}
    for route in JSON_SAMPLES:
        answers[route] = ask(client, route)
    for route, (arguments, _, _) in ARRAY_SAMPLES.items():
        answers[route] = ask(client, route, **arguments)
    ask(client, "dynamics", layer="fc", quantity="update", first=2, last=6, columns=2)
    ask(client, "minis", quantity="gradient", span=3, columns=1)
    ask(client, "contributions", layer="out", samples="abnormal")
    ask(client, "matrix", source="fc", target="unfold", direction="backward")
    read_everything(open_run(folder))
    assert time.monotonic() - began < SECONDS


def ask(client: Client, route: str, **arguments: object) -> int:
    answer = get(client, route, run=".", **arguments)
    assert answer.status_code in (200, 400, 404), (route, answer.status_code, answer.text[:2000])
    if answer.status_code != 200:
        assert answer.content_type.startswith("text/plain")
        assert "Traceback" not in answer.text
    elif route in JSON_SAMPLES:
        json.loads(answer.data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return answer.status_code


def read_everything(run: Run) -> None:
    _ = run.findings, run.losses, run.snapshots, run.notes, run.gaps, run.steps, run.ended, run.last_wall_time
    for layer in (*run.layers[:5], "fc"):
        for quantity in STATISTICS:
            for read in (run.layer_statistics, run.dynamics, run.polylines):
                with suppress(DgmError):
                    read(layer, quantity)
    for source, target in (("conv", "fc"), ("fc", "out"), ("fc", "unfold")):
        with suppress(DgmError):
            _ = run.contribution(source, target, 0).scaled


def write(folder: Path, content: bytes) -> Path:
    path = sample.write(folder, [])
    path.write_bytes(content)
    return folder


def mutations(content: bytes, n: int, seed: int) -> Iterator[bytes]:
    """Bits flipped, stretches overwritten, cut out, doubled, swapped, zeroed; two of these each."""
    rng = random.Random(seed)
    for _ in range(n):
        found = bytearray(content)
        for _ in range(2):
            a, b = sorted(rng.randrange(len(found) + 1) for _ in range(2))
            b = min(b, a + rng.choice([1, 4, 64, 4096]))
            match rng.randrange(6):
                case 0:
                    found[a : a + 1] = bytes([rng.randrange(256)])
                case 1:
                    found[a:b] = rng.randbytes(b - a)
                case 2:
                    del found[a:b]
                case 3:
                    found[b:b] = found[a:b]
                case 4:
                    found[a:b] = bytes(b - a)
                case 5:
                    found[a:b] = found[a:b][::-1]
        yield bytes(found)


def test_broken_bytes_are_skipped(tmp_path: Path) -> None:
    for number, content in enumerate(mutations(GOLDEN, 60, seed=0)):
        ask_everything(write(tmp_path / str(number), content))


def test_broken_payloads_with_right_checksums_are_skipped(tmp_path: Path) -> None:
    rng = random.Random(1)
    for number in range(80):
        payloads = RECORDS[:]
        for _ in range(4):
            at = rng.randrange(len(payloads))
            payloads[at] = next(mutations(payloads[at], 1, seed=rng.randrange(10**9)))
        ask_everything(write(tmp_path / str(number), b"".join(map(frame, payloads))))


def with_body(payload: bytes, body: dict[str, Any]) -> bytes:
    """A record whose body is whatever, checks of the encoder evaded."""
    event = event_pb2.Event.FromString(payload)
    event.summary.value[0].metadata.plugin_data.content = json.dumps(body).encode()
    return bytes(event.SerializeToString())


def body_of(payload: bytes) -> dict[str, Any]:
    event = event_pb2.Event.FromString(payload)
    return dict(json.loads(event.summary.value[0].metadata.plugin_data.content))


@pytest.mark.parametrize("kind", KINDS)
def test_bodies_of_another_form_are_skipped(kind: str, tmp_path: Path) -> None:
    rng = random.Random(2)
    at = next(i for i, record in enumerate(sample.all_records()) if record.kind == kind)
    body = body_of(RECORDS[at])
    wrong = [{**body, key: value} for key in body for value in rng.sample(ODD_VALUES, 6)]
    wrong += [{key: value for key, value in body.items() if key != missing} for missing in body]
    for inner in [key for key, value in body.items() if isinstance(value, dict)]:
        wrong += [{**body, inner: {**body[inner], key: rng.choice(ODD_VALUES)}} for key in body[inner]]
    for inner in [
        key for key, value in body.items() if isinstance(value, list) and value and isinstance(value[0], dict)
    ]:
        first, *rest = body[inner]
        wrong += [
            {**body, inner: [{**first, key: value}, *rest]} for key in first for value in rng.sample(ODD_VALUES, 3)
        ]
    everything = b"".join(map(frame, RECORDS))
    for number in range(0, len(wrong), 6):  # several in one file: each is a record of its own
        bad = [frame(with_body(RECORDS[at], body)) for body in wrong[number : number + 6]]
        ask_everything(write(tmp_path / f"first{number}", b"".join(bad) + everything))
        ask_everything(write(tmp_path / f"last{number}", everything + b"".join(bad)))


def odd_arrays(array: np.ndarray) -> list[np.ndarray]:
    return [
        np.zeros((0, *array.shape[1:]), array.dtype),
        np.zeros((*array.shape[:-1], 0), array.dtype),
        array[:1],
        np.concatenate([array, array]),
        np.full(array.shape, np.nan, np.float32),
        np.full(array.shape, -1, np.int64),
        np.full(array.shape, 2**62, np.int64),
        np.full(array.shape, np.inf, np.float64),
        np.flip(array),
    ]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, known in KINDS.items() for name in known.arrays])
def test_arrays_of_another_form_are_skipped(kind: str, name: str, tmp_path: Path) -> None:
    records = list(sample.all_records())
    at = next(i for i, record in enumerate(records) if record.kind == kind)
    record: Record = records[at]
    wrong = [replace(record, arrays={**record.arrays, name: array}) for array in odd_arrays(record.arrays[name])]
    wrong.append(replace(record, arrays={other: a for other, a in record.arrays.items() if other != name}))
    for number, bad in enumerate(wrong):
        ask_everything(write(tmp_path / f"instead{number}", sample.framed([*records[:at], bad, *records[at + 1 :]])))
    ask_everything(write(tmp_path / "more", sample.framed([*records, *wrong])))


def test_a_body_nested_without_end_is_skipped(tmp_path: Path) -> None:
    note = RECORDS[next(i for i, record in enumerate(sample.all_records()) if record.kind == "note")]
    bombs = []
    for depth in (30, 500, 5000, 100_000):
        event = event_pb2.Event.FromString(note)
        event.summary.value[0].metadata.plugin_data.content = (
            b'{"text":"x","more":' + b"[" * depth + b"]" * depth + b"}"
        )
        bombs.append(frame(event.SerializeToString()))
    ask_everything(write(tmp_path, b"".join(bombs) + GOLDEN))


@pytest.mark.parametrize("size", [2**24, 2**40, 2**62])
def test_tensors_that_claim_more_than_they_bring_are_skipped(size: int, tmp_path: Path) -> None:
    at = next(i for i, record in enumerate(sample.all_records()) if record.kind == "loss")
    event = event_pb2.Event.FromString(RECORDS[at])
    for value in event.summary.value[1:]:
        value.tensor.tensor_shape.dim[0].size = size
    payloads = [event.SerializeToString(), *RECORDS]
    ask_everything(write(tmp_path, b"".join(map(frame, payloads))))
    run = open_run(tmp_path)
    assert len(run.gaps) == 1
    assert len(run.losses["train_loss"].steps) == sample.STEPS


def test_a_graph_that_claims_endless_layers_does_not_fill_the_memory(tmp_path: Path) -> None:
    graph = sample.graph().to_json()
    for neurons in (2**31, 2**50):
        graph["layers"][0]["neurons"] = neurons
        records = [sample.recording_record(), Record("graph", 0, 0, graph), *list(sample.all_records())[2:]]
        ask_everything(write(tmp_path / str(neurons), sample.framed(records)))


def test_names_with_markup_stay_text(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>"
    graph = sample.graph().to_json()
    for key in ("name", "module", "type"):
        graph["layers"][2][key] = bad
    sample.write(tmp_path, [sample.recording_record(), Record("graph", 0, 0, graph)])
    client = make_client(tmp_path)
    answer = get(client, "run", run=".")
    assert answer.content_type.startswith("application/json")
    assert json.loads(answer.data)["layers"][0]["name"] in (bad, "conv")
    answer = client.get(f"{BASE}dynamics?run=.&layer=<script>alert(1)</script>")
    assert (answer.status_code, answer.mimetype, answer.headers["X-Content-Type-Options"]) == (
        404, "text/plain", "nosniff",
    )  # fmt: skip


def test_texts_that_can_not_be_encoded_do_no_harm(tmp_path: Path) -> None:
    finding = replace(sample.FINDINGS["f1"], summary="half a \ud83d pair")
    loss = replace(sample.loss_record(), body={"names": ["\udc80", "d_loss"]})
    sample.write(
        tmp_path,
        [sample.recording_record(), loss, Record("finding", 9, 9, {"id": "\ud800", "finding": finding.to_json()})],
    )
    client = make_client(tmp_path)
    assert json.loads(get(client, "findings", run=".").data)[0]["summary"] == finding.summary
    assert get(client, "losses", run=".").status_code == 200
    assert get(client, "samples", run=".", finding="x").status_code == 404
    ask_everything(tmp_path)


def test_the_id_of_a_finding_is_no_number_of_another_script(tmp_path: Path) -> None:
    sample.write(tmp_path, sample.all_records())
    sample.write(tmp_path, [sample.recording_record("later", started=sample.STARTED + 1)], name="later")
    client = make_client(tmp_path)
    assert get(client, "samples", run=".", finding="0-f1").status_code == 200
    for number in ("²", "١", "x", "", "2", "-1"):
        assert get(client, "samples", run=".", finding=f"{number}-f1").status_code == 404


def test_a_graph_of_very_many_layers_costs_no_more_than_it_is_long(tmp_path: Path) -> None:
    graph = sample.graph().to_json()
    graph["layers"] += [{**graph["layers"][1], "name": f"part{number}"} for number in range(20_000)]
    sample.write(tmp_path, [sample.recording_record(), Record("graph", 0, 0, graph), *list(sample.all_records())[2:]])
    ask_everything(tmp_path)


def test_a_graph_that_goes_round_is_sent_without_the_way_back(tmp_path: Path) -> None:
    graph = sample.graph().to_json()
    graph["nodes"] += [graph["nodes"][1], {**graph["nodes"][2], "op": "twice"}]
    back = [("fc", "conv"), ("fc", "fc"), ("loss", "batch[0]"), ("fc", "nowhere"), ("nowhere", "fc")]
    graph["edges"] += [{"source": source, "target": target} for source, target in back]
    sample.write(tmp_path, [sample.recording_record(), Record("graph", 0, 0, graph)])
    assert json.loads(get(make_client(tmp_path), "graph", run=".").data) == sample.graph().to_json()


def test_names_nested_deeper_than_a_tree_can_be_drawn_are_skipped(tmp_path: Path) -> None:
    for number, (levels, code) in enumerate([(50, 200), (50_000, 404)]):
        graph = sample.graph().to_json()
        graph["nodes"][1]["module"] = "a." * levels + "a"
        sample.write(tmp_path / str(number), [sample.recording_record(), Record("graph", 0, 0, graph)])
        assert get(make_client(tmp_path), "graph", run=str(number)).status_code == code


@pytest.mark.parametrize("shape", [(3, 0, 1 << 20, 1 << 20), (3, 0), (3, 2, 1), (3, 1, 2, 1, 1)])
def test_examples_have_as_many_axes_as_they_are_said_to_have(shape: tuple[int, ...], tmp_path: Path) -> None:
    records = list(sample.all_records())
    at = next(number for number, record in enumerate(records) if record.kind == "samples")
    inputs = np.zeros(shape, np.float32)
    records[at] = replace(records[at], arrays={**records[at].arrays, "inputs": inputs})
    sample.write(tmp_path, records)
    facts, arrays = unpack(get(make_client(tmp_path), "samples", run=".", finding="f1").data)
    assert len(facts["axes"]) == arrays["inputs"].ndim
    assert np.prod(arrays["inputs"].shape) == inputs.size
    assert max(arrays["inputs"].shape) <= 3


@pytest.mark.parametrize("change", [{"position": "x"}, {"role": 1}, {"label": {}}, {"label": ["x"]}, {"index": {}}])
def test_examples_of_another_form_are_skipped(change: dict[str, Any], tmp_path: Path) -> None:
    records = list(sample.all_records())
    at = next(number for number, record in enumerate(records) if record.kind == "samples")
    examples = [{**example, **change} for example in sample.EXAMPLES]
    records[at] = replace(records[at], body={**records[at].body, "examples": examples})
    sample.write(tmp_path, records)
    assert len(open_run(tmp_path).gaps) == 1
    assert get(make_client(tmp_path), "samples", run=".", finding="f1").status_code == 404


def test_of_layers_of_one_name_the_first_counts_everywhere(tmp_path: Path) -> None:
    graph = sample.graph().to_json()
    graph["layers"].append({**graph["layers"][2], "neurons": 1})
    sample.write(tmp_path, [sample.recording_record(), Record("graph", 0, 0, graph), *list(sample.all_records())[2:]])
    client = make_client(tmp_path)
    for layer in ("fc", "out", "conv"):
        assert get(client, "contributions", run=".", layer=layer, neuron=2).status_code == 200
    facts, arrays = unpack(get(client, "contributions", run=".", layer="out").data)
    assert [column["neurons"] for column in facts["columns"]] == [4, 3, 5]
    assert arrays["forward_0"].shape == (4,)


def test_a_sparse_file_is_not_as_long_as_it_says(tmp_path: Path) -> None:
    path = sample.write(tmp_path, sample.all_records())
    size = path.stat().st_size
    os.truncate(path, 1 << 40)
    began = time.process_time()
    ask_everything(tmp_path)
    assert time.process_time() - began < SECONDS
    run = open_run(tmp_path)
    assert len(run.losses["train_loss"].steps) == sample.STEPS
    assert [(gap["offset"], gap["bytes"]) for gap in run.gaps] == [(size, (1 << 40) - size)]


def test_a_detector_that_fails_leaves_the_other_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(history: Any) -> list[Any]:
        raise IndexError("no such window")

    monkeypatch.setattr(diagnosis, "detect", fail)
    sample.write(tmp_path, sample.all_records())
    client = make_client(tmp_path)
    assert get(client, "runs").status_code == 200
    assert {item["id"] for item in json.loads(get(client, "findings", run=".").data)} == set(sample.FINDINGS)
    notes = json.loads(get(client, "run", run=".").data)["notes"]
    assert notes[-1] == "no findings by the detectors, since one failed: IndexError: no such window"
