"""Read a recording with TensorBoard's classes alone.

python docs/read_records.py RUN_FOLDER/plugins/dgmtracker/RECORDING
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
from tensorboard.compat.proto import event_pb2
from tensorboard.util.tensor_util import make_ndarray


def segments(folder):
    """The segments in order, without those that another one replaces."""
    spans = {path: [int(number) for number in path.stem.split("-")] for path in Path(folder).glob("[0-9]*.dgm")}
    end = -1
    for path in sorted(spans, key=lambda path: (spans[path][0], -spans[path][-1], path.name)):
        if spans[path][-1] > end:
            end = spans[path][-1]
            yield path


def payloads(path):
    """The serialized events of a file; the checksums are passed over."""
    with open(path, "rb") as file:
        while len(head := file.read(12)) == 12:  # length and its checksum
            (length,) = struct.unpack("<Q", head[:8])
            record = file.read(length + 4)  # payload and its checksum
            if len(record) < length + 4:
                return  # it is still being written
            yield record[:-4]


def records(folder):
    """Kind, first and last step, body and arrays of every record."""
    for path in segments(folder):
        for payload in payloads(path):
            event = event_pb2.Event.FromString(payload)
            head, *values = event.summary.value
            body = json.loads(head.metadata.plugin_data.content)
            arrays = {value.tag.split("/")[2]: make_ndarray(value.tensor) for value in values}
            for name, exponent in body.get("exponents", {}).items():
                arrays[name] = np.ldexp(arrays[name].astype(np.float32), exponent)
            yield head.tag.split("/")[1], body["first_step"], event.step, body, arrays


if __name__ == "__main__":
    for kind, first_step, last_step, body, arrays in records(sys.argv[1]):
        print(kind, first_step, last_step, sorted(body), {name: array.shape for name, array in arrays.items()})
