"""Recordings with anything wrong in them: bodies, arrays, tags, order, framing. Most checksums are right.

Every mutation is one function in a table; all of them draw from the ``random.Random`` that they are given, so that a
seed names a file for ever.
"""

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import sample_recording as sample
from mutated_arrays import ARRAY_MUTATIONS, SIZES, Event, Events

from dgm_tb.framing import OVERHEAD_BYTES, frame, masked_crc
from dgm_tb.records import KINDS, PLUGIN_NAME, encode
from dgm_tb.segment_names import LIVE_NAME, segment_name

NUMBERS = [*SIZES, 2**53, 2**53 + 1, -(2**63), 10**400, -0.0, 0.5, 1e308, float("nan"), float("inf"), -float("inf")]
TEXTS = [
    "", " ", "x", "..", "../../../etc/passwd", "/etc/passwd", "C:\\con", "\x00", "a\x00b", "\ud800", "\udfff\ud800",
    "\u202eabc",
    "<script>window.broken=1</script>", "\"><img src=x onerror=window.broken=1>", "javascript:window.broken=1", "a/b/c",
    "NaN", "1e999", "-1", "fc", "conv", "out", "mean/mean", "min/min", "f1", "0-f1", "9" * 5000, "é" * 300,
    "n" * 100_000,
]  # fmt: skip
VALUES: list[Any] = [None, True, False, [], {}, [[]], [None], [{}], {"": {}}, *NUMBERS, *TEXTS]
KEYS = "exponents first_step finding rank order level window_steps first_nonfinite_step repeats".split()
"""Of bodies, and of what is in them; not all records have them."""
MAX_BODY_BYTES = 8 << 20
"""Of a list that is repeated: large for its kind, not for the process that makes it."""
BOMBS = [
    b"[" * 100_000, b"[" * 5000 + b"]" * 5000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"1e999", b"-1e999", b"9" * 5000,
    b"1" + b"0" * 4000, b"NaN", b"-Infinity", b'"\xff\xfe"', b'"\\ud800"', b'"\\u0000"', b"null", b"[]", b"",
    b"\xef\xbb\xbf{}", b'"' + b"a" * 1_000_000 + b'"', b"[" + b"0," * 100_000 + b"0]", b"[[]" + b",[]" * 50_000 + b"]",
]  # fmt: skip


def mutated(rng: random.Random) -> dict[str, bytes]:
    """Path inside the run folder -> content of a segment or a live file, of one or two recordings."""
    events = [Event.FromString(encode(record)) for record in sample.all_records(rng.choice([sample.WINDOW, 1]))]
    for _ in range(rng.choice([1, 1, 2, 4, 12])):
        rng.choice(MUTATIONS)(rng, events)
    if rng.random() < 0.2:
        rng.shuffle(events)
    framed = [frame(payload(event)) for event in events]
    if rng.random() < 0.3:
        framed = [rng.choice(FRAMES)(rng, piece) if rng.random() < 0.1 else piece for piece in framed]
    names = [sample.NAME] if rng.random() < 0.7 else [sample.NAME, "20260102-120000-1"]
    files = {}
    for name in names:
        middle = rng.choice([0, 0, rng.randrange(len(framed) + 1)])
        parts = [framed[:middle], framed[middle:]] if middle else [framed]
        place = f"plugins/{PLUGIN_NAME}/{name}"
        for number, part in enumerate(parts):
            last = rng.choice([None, None, None, None, number, number + 1])
            files[f"{place}/{segment_name(number, last)}"] = b"".join(part)
        if rng.random() < 0.2:
            files[f"{place}/{LIVE_NAME}"] = b"".join(rng.sample(framed, rng.randrange(len(framed) + 1)))
    return files


def payload(event: Event) -> bytes:
    """The bytes of an event."""
    return bytes(event.SerializeToString())


def body_of(event: Event) -> dict[str, Any]:
    """The body of a record; empty if it is none any more."""
    try:
        body = json.loads(event.summary.value[0].metadata.plugin_data.content)
    except (IndexError, ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def set_body(event: Event, body: Any) -> None:
    """Give a record another body, whatever it is."""
    if event.summary.value:
        event.summary.value[0].metadata.plugin_data.content = json.dumps(body).encode()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values inside a body."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def put(body: Any, path: tuple[Any, ...], value: Any) -> None:
    """Change the value at a path."""
    for key in path[:-1]:
        body = body[key]
    body[path[-1]] = value


def at(body: Any, path: tuple[Any, ...]) -> Any:
    """The value at a path."""
    for key in path:
        body = body[key]
    return body


# -- bodies ------------------------------------------------------------------------------------------------------------


def _body_value(rng: random.Random, events: Events) -> None:
    event = rng.choice(events)
    body = body_of(event)
    found = list(places(body))
    for _ in range(rng.choice([1, 1, 3]) if found else 0):
        path = rng.choice(found)
        try:
            put(body, path, rng.choice(VALUES))
        except (KeyError, TypeError, IndexError):  # an earlier change took the place away
            continue
    set_body(event, body)


def _body_values_swapped(rng: random.Random, events: Events) -> None:
    a, b = rng.choice(events), rng.choice(events)
    bodies = body_of(a), body_of(b)
    if not all(bodies):
        return
    paths = [rng.choice(list(places(body))) for body in bodies]
    values = [copy.deepcopy(at(body, path)) for body, path in zip(bodies, paths, strict=True)]
    if a is b:
        put(bodies[0], paths[0], values[1])
    else:
        for body, path, value in zip(bodies, paths, reversed(values), strict=True):
            put(body, path, value)
        set_body(b, bodies[1])
    set_body(a, bodies[0])


def _body_key(rng: random.Random, events: Events) -> None:
    event = rng.choice(events)
    body = body_of(event)
    inner = [body, *(found for path in places(body) if isinstance(found := at(body, path), dict))]
    changed = rng.choice(inner)
    if changed and rng.random() < 0.5:
        del changed[rng.choice(list(changed))]
    else:
        changed[rng.choice([*KEYS, *TEXTS[:9]])] = rng.choice(VALUES)
    set_body(event, body)


def _body_bomb(rng: random.Random, events: Events) -> None:
    event = rng.choice(events)
    if not event.summary.value:
        return
    bomb = rng.choice(BOMBS)
    content = event.summary.value[0].metadata.plugin_data.content
    if rng.random() < 0.7 and b":" in content:
        values = [i for i, byte in enumerate(content) if byte == ord(":")]
        start = rng.choice(values) + 1
        stops = [i for i, byte in enumerate(content) if byte in b",}" and i >= start]
        bomb = content[:start] + bomb + content[stops[0] if stops else len(content) :]
    event.summary.value[0].metadata.plugin_data.content = bomb


def _body_repeated(rng: random.Random, events: Events) -> None:
    event = rng.choice(events)
    body = body_of(event)
    lists = [path for path in places(body) if isinstance(at(body, path), list) and at(body, path)]
    if lists:
        path, times = rng.choice(lists), rng.choice([2, 100, 3000])
        if len(json.dumps(at(body, path))) * times < MAX_BODY_BYTES:
            put(body, path, at(body, path) * times)
            set_body(event, body)


# -- graphs ------------------------------------------------------------------------------------------------------------


def _graph(rng: random.Random, events: Events) -> None:
    event = next((event for event in events if body_of(event).get("layers") and "edges" in body_of(event)), None)
    if event is None:
        return
    body = body_of(event)
    try:
        _change_graph(rng, body)
    except (KeyError, TypeError, AttributeError, IndexError):  # an earlier mutation was here
        return
    set_body(event, body)


def _change_graph(rng: random.Random, body: dict[str, Any]) -> None:
    names = [node["id"] for node in body["nodes"]]
    match rng.randrange(8):
        case 0:  # cycles, loops, edges to nowhere
            body["edges"] += [
                {"source": rng.choice(names), "target": rng.choice([*names, "nowhere"])} for _ in range(9)
            ]
        case 1:  # ids and names twice
            for key, name in (("nodes", "id"), ("layers", "name"), ("layers", "module"), ("weights", "module")):
                rng.choice(body[key])[name] = rng.choice(body[key])[name]
        case 2:  # layers that overlap, lie beyond every array, or are huge
            for rows in (body["layers"], body["weights"]):
                rng.choice(rows)[rng.choice(["offset", "neurons"])] = rng.choice([0, 1, 13, 14, 100, 2**20, 2**24])
        case 3:
            rng.choice(body["links"])[rng.choice(["start", "group"])] = rng.choice([0, 1, 3, 1000, 2**24])
        case 4:
            link = rng.choice(body["links"])
            link["source"], link["target"] = rng.choice(names), rng.choice(names)
        case 5:  # an odd name, wherever it stands
            old, new = rng.choice(sample.FLOW), rng.choice(TEXTS)
            named = [path for path in places(body) if at(body, path) == old]
            for path in named[: MAX_BODY_BYTES // (len(new) + 1)]:
                put(body, path, new)
        case 6:  # very many
            key = rng.choice(["nodes", "edges", "layers", "weights", "links"])
            if len(json.dumps(body[key])) * 3000 < MAX_BODY_BYTES * len(body[key]):
                body[key] = [dict(rng.choice(body[key])) for _ in range(3000)]
        case 7:
            rng.choice(body["layers"])["neurons"] = 0


# -- records -----------------------------------------------------------------------------------------------------------


def _event_fields(rng: random.Random, events: Events) -> None:
    event = rng.choice(events)
    event.step = rng.choice([size for size in SIZES if size < 2**63])
    event.wall_time = rng.choice([0.0, -1.0, 1e308, float("nan"), float("inf")])


def _event_kind(rng: random.Random, events: Events) -> None:
    event = rng.choice(events)
    if event.summary.value:
        kinds = [*KINDS, "song", "../loss", "", "a" * 300, "loss/values", "<b>"]
        event.summary.value[0].tag = rng.choice([f"{PLUGIN_NAME}/", "", "x"]) + rng.choice(kinds)


def _event_copied(rng: random.Random, events: Events) -> None:
    copy = Event()
    copy.CopyFrom(rng.choice(events))
    events.insert(rng.randrange(len(events) + 1), copy)


def _event_dropped(rng: random.Random, events: Events) -> None:
    if len(events) > 1:
        del events[rng.randrange(len(events))]


def _event_bytes(rng: random.Random, events: Events) -> None:
    """Bits that differ in a record that is still a protocol buffer."""
    number = rng.randrange(len(events))
    content = bytearray(payload(events[number]))
    for _ in range(rng.choice([1, 2, 8]) if content else 0):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    try:
        events[number] = Event.FromString(bytes(content))
    except Exception:  # such records are what _broken_payload makes
        return


MUTATIONS: list[Callable[[random.Random, Events], None]] = [
    _body_value, _body_value, _body_values_swapped, _body_key, _body_bomb, _body_repeated, _graph, _graph,
    *ARRAY_MUTATIONS, _event_fields, _event_kind, _event_copied, _event_dropped, _event_bytes,
]  # fmt: skip


# -- framing -----------------------------------------------------------------------------------------------------------


def _claimed(rng: random.Random, piece: bytes) -> bytes:
    """A length with a right checksum, and too little behind it."""
    length = struct.pack("<Q", rng.choice([2**63, 2**64 - 1, 2**40, 2**28, 2**28 + 1, 0, len(piece)]))
    return length + struct.pack("<I", masked_crc(length)) + piece[12:]


def _flipped(rng: random.Random, piece: bytes) -> bytes:
    found = bytearray(piece)
    found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _broken_payload(rng: random.Random, piece: bytes) -> bytes:
    content = bytearray(piece[12:-4])
    for _ in range(rng.choice([1, 4, 64]) if content else 0):
        content[rng.randrange(len(content))] = rng.randrange(256)
    start = rng.randrange(len(content) + 1)
    if rng.random() < 0.4:
        del content[start : start + rng.choice([1, 8, 300])]
    return frame(bytes(content))


FRAMES: list[Callable[[random.Random, bytes], bytes]] = [
    _claimed, _flipped, _broken_payload, _broken_payload,
    lambda rng, piece: piece[: rng.randrange(len(piece))],
    lambda rng, piece: bytes(len(piece)),
    lambda rng, piece: rng.randbytes(OVERHEAD_BYTES) + piece,
    lambda rng, piece: piece * 3,
]  # fmt: skip
