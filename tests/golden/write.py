"""Write the golden files of the current schema: ``python tests/golden/write.py``.

``schema-<n>.dgm`` is a segment with every kind of record, ``wire-1.bin`` one binary answer. Files of released versions
are never written again: what they hold must stay readable. All values and wall times are fixed.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import sample_recording as sample  # noqa: E402

from dgm_tb.plugin.wire import pack  # noqa: E402
from dgm_tb.records import SCHEMA_VERSION  # noqa: E402

WIRE_FACTS = {"layer": "énc.0", "neurons": 3, "low": float("nan"), "high": float("inf"), "reason": None}
WIRE_ARRAYS = {
    "steps": np.array([0, 1, 2**40], np.float64),
    "values": np.array([[1, np.nan, np.inf], [-np.inf, 0, -2.5]], np.float32),
    "neurons": np.array([-7], np.int32),
    "outlier": np.array([0, 1, 255], np.uint8),
    "empty": np.zeros((0, 3), np.float32),
}


def golden_segment() -> bytes:
    """The segment of the current schema."""
    return sample.framed(sample.all_records())


def golden_message() -> bytes:
    """The binary answer."""
    return pack(WIRE_FACTS, WIRE_ARRAYS)


if __name__ == "__main__":
    (HERE / f"schema-{SCHEMA_VERSION}.dgm").write_bytes(golden_segment())
    (HERE / "wire-1.bin").write_bytes(golden_message())
