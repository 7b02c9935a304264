"""Write the golden files of the current schema that are not there yet: ``python tests/golden/write.py``.

``schema-<n>.dgm`` is a segment with every kind of record, ``wire-1.bin`` one binary answer. ``schema-1-exponents.dgm``
has the same records with what came to the schema later: whole numbers of 32 bits, and float16 values scaled by powers
of two. Files of released versions are never written again: what they hold must stay readable. All values and wall times
are fixed.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import sample_recording as sample  # noqa: E402

from dgm_tb.plugin.wire import pack  # noqa: E402
from dgm_tb.records import SCHEMA_VERSION, Record, compact  # noqa: E402

WIRE_FACTS = {"layer": "énc.0", "neurons": 3, "low": float("nan"), "high": float("inf"), "reason": None}
WIRE_ARRAYS = {
    "steps": np.array([0, 1, 2**40], np.float64),
    "values": np.array([[1, np.nan, np.inf], [-np.inf, 0, -2.5]], np.float32),
    "neurons": np.array([-7], np.int32),
    "outlier": np.array([0, 1, 255], np.uint8),
    "empty": np.zeros((0, 3), np.float32),
}
POWERS = {"activation": 40, "gradient": -60, "contribution": -50}
"""Quantity, or kind of record, whose values are too large or too small for float16 -> by which power of two."""


def golden_segment() -> bytes:
    """The segment of the current schema."""
    return sample.framed(sample.all_records())


def exponents_segment() -> bytes:
    """The same with scaled values and smaller whole numbers."""
    return sample.framed(map(_scaled, sample.all_records()))


def _scaled(record: Record) -> Record:
    """A record with its values far from 1, and as small as ``compact`` makes them."""
    arrays = {n: a.astype(np.int32) if a.dtype == np.int64 else a for n, a in record.arrays.items()}
    power = POWERS.get(record.kind) or POWERS.get(record.body.get("quantity", ""))
    if record.kind == "layer_statistics" or "values" not in arrays or power is None:
        return replace(record, arrays=arrays)
    values, scales = compact({"values": np.ldexp(arrays["values"].astype(np.float64), power)})
    assert scales, "float16 holds these values without a scale"
    return replace(record, body={**record.body, **scales}, arrays={**arrays, **values})


def golden_message() -> bytes:
    """The binary answer."""
    return pack(WIRE_FACTS, WIRE_ARRAYS)


FILES = {
    f"schema-{SCHEMA_VERSION}.dgm": golden_segment,
    "schema-1-exponents.dgm": exponents_segment,
    "wire-1.bin": golden_message,
}

if __name__ == "__main__":
    for name, content in FILES.items():
        if not (HERE / name).exists():
            (HERE / name).write_bytes(content())
