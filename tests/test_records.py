import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample_recording as sample
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from dgm_tb import framing
from dgm_tb.errors import RecordError
from dgm_tb.graph import Graph
from dgm_tb.records import (
    FINDING_KINDS,
    KINDS,
    SEVERITIES,
    STATISTICS,
    Finding,
    Record,
    as_json,
    check,
    compact,
    encode,
    expand,
    parse,
    severity_order,
)

GOLDEN = Path(__file__).parent / "golden"
SAMPLES: dict[str, Record] = {record.kind: record for record in sample.all_records()}
NAMES = [(kind, name) for kind, known in KINDS.items() for name in known.arrays]


def assert_equal(found: Record, expected: Record) -> None:
    assert (found.kind, found.first_step, found.last_step) == (expected.kind, expected.first_step, expected.last_step)
    assert found.wall_time == expected.wall_time
    assert {key: found.body[key] for key in expected.body} == as_json(dict(expected.body))
    assert sorted(found.arrays) == sorted(expected.arrays)
    for name, array in expected.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_as_it_was_written(kind: str) -> None:
    assert kind in SAMPLES, f"the new kind {kind!r} needs a record in sample_recording.all_records"
    assert set(SAMPLES[kind].arrays) == set(KINDS[kind].arrays)
    assert_equal(parse(encode(SAMPLES[kind])), SAMPLES[kind])


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_arrays_with_other_axes_are_refused(kind: str, name: str) -> None:
    record, axes = SAMPLES[kind], KINDS[kind].arrays[name]
    wrong = [np.zeros((1,) * (len(axes) + 1))] if "*" not in axes else []
    wrong += [np.zeros((1,) * (len(axes) - 1))] if "*" not in axes else []
    wrong += [np.zeros((1,) * (len(axes) - 2))] if "*" in axes and len(axes) >= 2 else []
    for array in wrong:
        with pytest.raises(RecordError, match=rf"{kind}\.{name} has the axes"):
            check(replace(record, arrays={**record.arrays, name: array}))


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, known in KINDS.items() for key in known.body])
def test_a_missing_key_is_named(kind: str, key: str) -> None:
    body = {name: value for name, value in SAMPLES[kind].body.items() if name != key}
    with pytest.raises(RecordError, match=key):
        encode(replace(SAMPLES[kind], body=body))


def test_unknown_kinds_and_arrays_are_refused_with_what_is_known() -> None:
    with pytest.raises(RecordError, match="this version knows recording, graph"):
        encode(Record("song", 0, 0))
    with pytest.raises(RecordError, match="it has steps, global_steps"):
        encode(replace(SAMPLES["loss"], arrays={"volume": np.zeros(3)}))


@pytest.mark.parametrize("array", [np.zeros(3, np.int16), np.zeros(3, complex), np.array(["a"] * 3)])
def test_dtypes_that_the_schema_lacks_are_refused(array: np.ndarray) -> None:
    with pytest.raises(RecordError, match="dtype"):
        encode(replace(SAMPLES["loss"], arrays={"steps": array}))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_nan_and_infinity_in_arrays_survive(dtype: str) -> None:
    values = np.array([[np.nan, np.inf], [-np.inf, -0.0]], dtype)
    record = Record("contribution", 1, 1, SAMPLES["contribution"].body, {"values": values})
    np.testing.assert_array_equal(parse(encode(record)).arrays["values"], values)


def test_numbers_in_bodies_that_json_lacks_become_strings() -> None:
    body = {"text": [float("nan"), np.float32("inf"), -np.inf, np.int64(3), np.array([1.5, np.nan])]}
    found = parse(encode(Record("note", 1, 1, body))).body["text"]
    assert found == ["NaN", "Infinity", "-Infinity", 3, [1.5, "NaN"]]
    assert json.dumps(as_json(body), allow_nan=False)


def test_big_endian_and_strided_arrays_come_back_equal() -> None:
    values = np.arange(12, dtype=">f4").reshape(3, 4)[::2, ::-1]
    record = Record("contribution", 1, 1, SAMPLES["contribution"].body, {"values": values})
    np.testing.assert_array_equal(parse(encode(record)).arrays["values"], values)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_arrays_without_elements_keep_their_shape(shape: tuple[int, int]) -> None:
    record = Record("contribution", 1, 1, SAMPLES["contribution"].body, {"values": np.zeros(shape, np.float32)})
    assert parse(encode(record)).arrays["values"].shape == shape


@pytest.mark.parametrize("payload", [b"", b"\xff" * 40, b"x" * 100, encode(SAMPLES["loss"])[:-30]])
def test_other_bytes_are_a_record_error(payload: bytes) -> None:
    with pytest.raises(RecordError):
        parse(payload)


@given(
    arrays_of.arrays(
        st.sampled_from(["f4", "f8"]), arrays_of.array_shapes(min_dims=1, max_dims=2), elements=st.floats(width=32)
    )
)
def test_compact_loses_nothing_that_matters(values: np.ndarray) -> None:
    arrays, scale = compact({"values": values})
    stored, found = arrays["values"], expand("values", arrays["values"], scale)
    assert stored.dtype in (np.float16, np.float32)
    finite = np.isfinite(values)
    np.testing.assert_array_equal(np.isfinite(found), finite)
    np.testing.assert_array_equal(found[~finite], values[~finite])
    if stored.dtype == np.float32:
        np.testing.assert_array_equal(found, values.astype(np.float32))
        return
    normal = finite & (np.abs(values) >= 2.0 ** (-14 + scale.get("exponents", {}).get("values", 0)))
    np.testing.assert_allclose(found[normal].astype(np.float64), values[normal], rtol=2**-11)
    assert np.count_nonzero(finite & (values != 0) & ~normal) <= 0.05 * np.count_nonzero(finite & (values != 0))


@pytest.mark.parametrize(
    ("values", "dtype", "exponent"),
    [
        ([1, 2, np.nan], np.float16, 0),
        ([0, 0], np.float16, 0),
        ([np.nan], np.float16, 0),
        ([65504], np.float16, 0),
        ([65519], np.float16, 1),
        ([1e5, 1], np.float16, 2),
        ([1e-6, 1e-9, np.inf], np.float16, -34),
        ([1e-6, 1e5], np.float32, 0),
        ([1e-44], np.float32, 0),
    ],
)
def test_compact_halves_what_float16_can_hold(values: list[float], dtype: type, exponent: int) -> None:
    arrays, scale = compact({"values": np.array(values, np.float32)})
    assert arrays["values"].dtype == dtype
    assert scale == ({"exponents": {"values": exponent}} if exponent else {})


def test_findings_come_back_and_drop_keys_of_newer_versions() -> None:
    for finding in sample.FINDINGS.values():
        found = Finding.from_json({**json.loads(json.dumps(finding.to_json())), "colour": "red"})
        assert found.to_json() == finding.to_json()
    with pytest.raises(RecordError, match="a finding needs kind"):
        Finding.from_json({"kind": "nonfinite"})


def test_findings_are_sorted_worst_first_then_earliest() -> None:
    findings = sorted(sample.FINDINGS.values(), key=severity_order)
    assert [finding.step for finding in findings] == [8, 9, 3]
    odd = replace(findings[0], severity="whatever")
    assert sorted([odd, *findings], key=severity_order)[-1] is odd
    assert set(SEVERITIES) == {"error", "warning", "info"}
    assert len(set(FINDING_KINDS)) == 19


def test_a_graph_comes_back_from_its_record() -> None:
    assert Graph.from_json(parse(encode(SAMPLES["graph"])).body) == sample.graph()


def test_every_quantity_has_a_main_statistic_with_a_main_aggregate() -> None:
    assert list(STATISTICS) == ["activation", "gradient", "weight", "update"]
    assert all(statistics and all(s.windows for s in statistics) for statistics in STATISTICS.values())


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("schema-?.dgm")), ids=lambda path: path.name)
def test_released_schemas_stay_readable(path: Path) -> None:
    records = [parse(payload) for payload in payloads(path.read_bytes())]
    expected = list(sample.all_records())
    assert [record.kind for record in records] == [record.kind for record in expected]
    for record, known in zip(records, expected, strict=True):
        added = set(known.arrays) - set(record.arrays)
        assert added <= KINDS[record.kind].optional, "an array that came later is one that may be missing"
        assert_equal(record, replace(known, arrays={n: a for n, a in known.arrays.items() if n not in added}))


def payloads(segment: bytes) -> list[bytes]:
    found: list[Any] = []
    while segment:
        length = framing.payload_length(segment[: framing.HEADER_BYTES])
        assert length is not None
        end = framing.HEADER_BYTES + length
        assert framing.is_intact(segment[framing.HEADER_BYTES : end], segment[end : end + framing.FOOTER_BYTES])
        found.append(segment[framing.HEADER_BYTES : end])
        segment = segment[end + framing.FOOTER_BYTES :]
    return found
