"""Heads of records: what the quick reader finds is what protobuf finds, and damage never passes for a record."""

import random
from pathlib import Path

import numpy as np
import pytest
import sample_recording as sample

from dgm_tb.errors import RecordError
from dgm_tb.plugin.layout import Head, HeadReader, _prefix, _quick_prefix, load_body
from dgm_tb.records import Record, encode, parse

RECORDS = list(sample.all_records())


def arrays_of(head: Head, payload: bytes) -> dict[str, np.ndarray]:
    return {
        place.name: np.frombuffer(payload, place.dtype, int(np.prod(place.shape)), head.base + place.offset).reshape(
            place.shape
        )
        for place in head.arrays
    }


@pytest.mark.parametrize("wall_time", [0.0, 1.7e9])
@pytest.mark.parametrize("step", [0, 1, 127, 128, 40_000_000])
def test_a_head_holds_what_protobuf_parses(wall_time: float, step: int) -> None:
    reader = HeadReader()
    for record in [Record(r.kind, 0, step, r.body, r.arrays, wall_time) for r in RECORDS] * 2:
        payload = encode(record)
        head, parsed = reader.read(payload), parse(payload)
        assert (head.kind, head.last_step, head.wall_time) == (parsed.kind, parsed.last_step, parsed.wall_time)
        body = load_body(head.kind, head.content)
        body.pop("first_step")
        assert body == parsed.body
        found = arrays_of(head, payload)
        assert list(found) == list(parsed.arrays)
        for name, array in parsed.arrays.items():
            np.testing.assert_array_equal(found[name], array)


def test_the_quick_reader_is_the_usual_one() -> None:
    for record in RECORDS:
        assert _quick_prefix(encode(Record(record.kind, 0, 7, record.body, record.arrays, 1.7e9))) is not None


def test_the_quick_reader_agrees_with_the_slow_one_on_damaged_records() -> None:
    rng = random.Random(0)
    payload = encode(Record("loss", 3, 300, sample.loss_record(np.arange(9)).body, {}, 1.7e9))
    n_agreed = 0
    for _ in range(20_000):
        damaged = bytearray(payload)
        damaged[rng.randrange(len(payload))] = rng.randrange(256)
        quick = _quick_prefix(bytes(damaged))
        if quick is not None:
            slow = _prefix(bytes(damaged))
            assert quick[1:] == slow[1:]
            n_agreed += 1
    assert n_agreed > 1000


def test_layouts_seen_before_do_not_hide_another_one() -> None:
    reader = HeadReader()
    steps, values = np.arange(4), np.ones((4, 2))
    body = sample.loss_record(np.arange(4)).body
    wide = Record("loss", 0, 9, body, {"steps": steps, "values": values}, 1.0)
    tall = Record("loss", 0, 9, body, {"steps": steps, "values": values.reshape(2, 4)}, 1.0)
    for record in (wide, tall, wide):
        payload = encode(record)
        found = arrays_of(reader.read(payload), payload)
        assert found["values"].shape == record.arrays["values"].shape


def test_damaged_records_raise_our_error_or_parse(tmp_path: Path) -> None:
    rng = random.Random(1)
    reader = HeadReader()
    for record in RECORDS:
        payload = encode(record)
        for _ in range(200):
            damaged = bytearray(payload)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(payload))] = rng.randrange(256)
            try:
                head = reader.read(bytes(damaged))
            except RecordError:
                continue
            assert all(0 <= head.base + p.offset <= len(payload) - p.nbytes for p in head.arrays if p.nbytes)
