"""Arrays with anything wrong in them: what they claim, what they bring, their order and their names."""

import random
from collections.abc import Callable

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2

from dgm_tb.records import PLUGIN_NAME

Event = event_pb2.Event
Events = list[Event]

SIZES = [-1, 0, 1, 2, 3, 7, 2**16, 2**24, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1]
DTYPES = {
    "f2": types_pb2.DT_HALF, "f4": types_pb2.DT_FLOAT, "f8": types_pb2.DT_DOUBLE, "i4": types_pb2.DT_INT32,
    "i8": types_pb2.DT_INT64, "u1": types_pb2.DT_UINT8,
}  # fmt: skip


def _tensor(rng: random.Random, events: Events) -> tuple[Event, summary_pb2.Summary.Value] | None:
    found = [event for event in events if len(event.summary.value) > 1]
    if not found:
        return None
    event = rng.choice(found)
    return event, rng.choice(event.summary.value[1:])


def _array_shape(rng: random.Random, events: Events) -> None:
    if (found := _tensor(rng, events)) is None:
        return
    dims = found[1].tensor.tensor_shape.dim
    if dims and rng.random() < 0.8:
        rng.choice(dims).size = rng.choice(SIZES)
    else:
        for size in rng.choices(SIZES, k=rng.choice([1, 3, 30])):
            dims.add(size=size)


def _array_content(rng: random.Random, events: Events) -> None:
    if (found := _tensor(rng, events)) is None:
        return
    tensor = found[1].tensor
    content = tensor.tensor_content
    match rng.randrange(6):
        case 0:
            tensor.tensor_content = content[: rng.randrange(len(content) + 1)]
        case 1:
            tensor.tensor_content = content * 2
        case 2:
            tensor.tensor_content = rng.randbytes(len(content))
        case 3:
            tensor.tensor_content = b"\xff" * len(content)
        case 4:
            tensor.tensor_content = content[::-1]
        case 5:
            tensor.tensor_content = b""
            tensor.float_val.extend([1.0] * 9)


def _array_replaced(rng: random.Random, events: Events) -> None:
    """Another array, whole in itself: what it says is what it brings."""
    if (found := _tensor(rng, events)) is None:
        return
    code = rng.choice(list(DTYPES))
    sizes = [dim.size for dim in found[1].tensor.tensor_shape.dim] or [1]
    if rng.random() < 0.3:  # nothing, of a huge shape
        sizes = [rng.choice([0, 1, 2**12, 2**20, 2**24, 2**39]) for _ in sizes]
        sizes[rng.randrange(len(sizes))] = 0
    elif rng.random() < 0.5:
        sizes[rng.randrange(len(sizes))] = rng.choice([0, 1, 2, 5, 11, 12, 13, 500])
    n_values = min(int(np.prod([max(0, min(size, 2**20)) for size in sizes])), 1 << 20)
    kind = rng.choice(["zero", "random", "odd", "range"])
    values = np.zeros(n_values, np.dtype(f"<{code}"))
    with np.errstate(all="ignore"):
        if kind == "random":
            values = np.frombuffer(rng.randbytes(values.nbytes), values.dtype)
        elif kind == "odd":
            odd = [0, 1, -1, 2**62, -(2**63)] if code[0] in "iu" else [0, np.nan, np.inf, -np.inf, 1e308, 1e-320, -1]
            values = np.array(rng.choices(odd, k=n_values)).astype(values.dtype)
        elif kind == "range":
            values = (np.arange(n_values)[:: rng.choice([1, -1])] * rng.choice([1, 1, 2**40])).astype(values.dtype)
    tensor = tensor_pb2.TensorProto(dtype=DTYPES[code], tensor_content=values.tobytes())
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    found[1].tensor.CopyFrom(tensor)


def _array_dtype(rng: random.Random, events: Events) -> None:
    if (found := _tensor(rng, events)) is not None:
        found[1].tensor.dtype = rng.choice([0, 7, 10, 23, *DTYPES.values()])


def _array_order(rng: random.Random, events: Events) -> None:
    """Steps, windows, neurons backwards, twice, negative, far away."""
    if (found := _tensor(rng, events)) is None:
        return
    tensor = found[1].tensor
    if tensor.dtype != types_pb2.DT_INT64 or len(tensor.tensor_content) % 8:
        return
    values = np.frombuffer(tensor.tensor_content, np.int64).copy()
    if not len(values):
        return
    values = rng.choice(
        [values[::-1], values * 0, -values, np.roll(values, 1), values * 2**30, values + 2**52, values // 2]
    )
    tensor.tensor_content = np.ascontiguousarray(values).tobytes()


def _array_tag(rng: random.Random, events: Events) -> None:
    if (found := _tensor(rng, events)) is None:
        return
    event, value = found
    if rng.random() < 0.3:
        event.summary.value.add().CopyFrom(value)
    elif rng.random() < 0.3:
        event.summary.value.remove(value)
    else:
        tags = [f"{PLUGIN_NAME}/loss/{text}" for text in ("values", "../values", "")] + [
            rng.choice(event.summary.value).tag
        ]
        value.tag = rng.choice(tags)


ARRAY_MUTATIONS: list[Callable[[random.Random, Events], None]] = [
    _array_shape, _array_content, _array_replaced, _array_replaced, _array_dtype, _array_order, _array_tag,
]  # fmt: skip
"""From a source of chance and all records to another array in one of them; each as often as it stands here."""
