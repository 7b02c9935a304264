"""Recordings that outgrow their folder: rows whose every number is known, the segments that are written of them."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dgm_tb.callback.retention import Retention
from dgm_tb.callback.windows import Row, Windows
from dgm_tb.framing import FOOTER_BYTES, HEADER_BYTES, OVERHEAD_BYTES, frame, payload_length
from dgm_tb.records import STATISTICS, Record, encode, expand, parse
from dgm_tb.segment_names import current_segments, segment_name, segment_span
from tests.sample_recording import LAYERS, NAME, WITH_WEIGHTS, graph, recording_record, rows_of

Array = np.ndarray[Any, np.dtype[Any]]

NAN, INF = float("nan"), float("inf")
WINDOW = 4
SEGMENT_BYTES = 4000
WEIGHED_EVERY = 2
N_LAYERS = {
    "activation": len(LAYERS),
    "gradient": len(LAYERS),
    "weight": len(WITH_WEIGHTS),
    "update": len(WITH_WEIGHTS),
}


class Rows:
    """Every statistic of every neuron at every step ``[steps, statistics, neurons]``, exact in float16."""

    def __init__(self, n_steps: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.n_steps = n_steps
        self.of = {
            quantity: rng.integers(-800, 800, (n_steps, len(statistics), sum(rows_of(quantity).values()))) / 8
            for quantity, statistics in STATISTICS.items()
        }
        for quantity in ("weight", "update"):
            self.of[quantity][np.arange(n_steps) % WEIGHED_EVERY > 0] = NAN
        self.losses = rng.integers(-800, 800, n_steps) / 8
        self.rng = rng

    def with_spikes(self, n: int) -> "Rows":
        """Plant values far from all others, and some that are not finite."""
        for number in range(n):
            step = int(self.rng.integers(self.n_steps // WEIGHED_EVERY)) * WEIGHED_EVERY
            values = list(self.of.values())[number % len(self.of)][step]
            place = tuple(self.rng.integers(values.shape))
            values[place] = [4096 + 4 * number, -4096 - 4 * number, INF, -INF, NAN][number // 4 % 5]
            self.losses[step] = values[place]
        return self

    def row(self, step: int) -> Row:
        quantities = {name: values[step].astype(np.float32) for name, values in self.of.items()}
        quantities["update"] = np.concatenate([quantities["update"], np.ones_like(quantities["update"])])
        if step % WEIGHED_EVERY:
            del quantities["weight"], quantities["update"]
        return Row(step, 2 * step, {"loss": float(self.losses[step])}, quantities=quantities, is_skipped=step % 50 == 7)


class Segments:
    """Appends records to segments, as the writer does."""

    def __init__(self, run: Path, records: Iterable[Record] = (), segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = run / "plugins" / "dgmtracker" / NAME
        self.folder.mkdir(parents=True)
        self.payloads: list[bytes] = []
        self.number, self.n_bytes, self.segment_bytes = 0, 0, segment_bytes
        for record in records:
            self.append(encode(record))

    def append(self, payload: bytes) -> None:
        if self.n_bytes and self.n_bytes + len(payload) > self.segment_bytes:
            self.seal()
        with open(self.folder / segment_name(self.number), "ab") as file:
            self.n_bytes += file.write(frame(payload))
        self.payloads.append(payload)

    def seal(self) -> None:
        self.number, self.n_bytes = self.number + 1, 0


def first_records() -> list[Record]:
    return [recording_record(window_steps=WINDOW), Record("graph", 0, 0, graph().to_json())]


def recorded(rows: Rows, window_steps: int = WINDOW, n_layers: int = len(LAYERS)) -> Iterator[Record]:
    """The records of all rows, in the order in which they are written."""
    windows = Windows(window_steps)
    for quantity in STATISTICS:
        offsets = np.cumsum([0, *rows_of(quantity).values()]).tolist()
        windows.layers[quantity] = list(zip(offsets, rows_of(quantity).values(), strict=False))[:n_layers]
    for step in range(rows.n_steps):
        windows.add(rows.row(step))
        if step % 10 == 9:
            yield from windows.take()
    yield from windows.take(is_last=True)


def segments_in(folder: Path) -> list[str]:
    return current_segments(os.listdir(folder))


def payloads_in(folder: Path) -> list[bytes]:
    """What a reader finds, none of it damaged."""
    return [payload for name in segments_in(folder) for payload in payloads_of((folder / name).read_bytes())]


def payloads_of(content: bytes) -> Iterator[bytes]:
    while content:
        length = payload_length(content)
        assert length is not None
        yield content[HEADER_BYTES : HEADER_BYTES + length]
        own, content = content[: length + OVERHEAD_BYTES], content[length + OVERHEAD_BYTES :]
        assert frame(own[HEADER_BYTES:-FOOTER_BYTES]) == own


def records_in(folder: Path, kind: str) -> list[Record]:
    return [record for record in map(parse, payloads_in(folder)) if record.kind == kind]


def thinned(run: Path, records: Iterable[Record], max_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> Path:
    """Write records while their segments are thinned out; returns the recording's folder."""
    segments = Segments(run, segment_bytes=segment_bytes)
    keeper = Retention(segments.folder, max_bytes)
    for record in records:
        segments.append(encode(record))
        while keeper.step(segments.number - 1):
            pass
    return segments.folder


def thin_once(segments: Segments, last_sealed: int = 3) -> None:
    """Thin out the first four segments."""
    keeper = Retention(segments.folder, 1)
    while keeper.step(last_sealed):
        pass
    assert levels(segments.folder)[:2] == [1, 0]


def levels(folder: Path) -> list[int]:
    """How often each segment has been thinned, oldest first."""
    spans = filter(None, map(segment_span, segments_in(folder)))
    return [round(np.log2(last - first + 1) / 2) for first, last in spans]


def check_windows(folder: Path, rows: Rows) -> None:
    """Every window of a recording, against the rows of its steps: extremes are exact, and no step is counted twice."""
    bounds: dict[str, list[Array]] = {quantity: [] for quantity in STATISTICS}
    for record in records_in(folder, "dynamics"):
        quantity = record.body["quantity"]
        names = [statistic.name for statistic in STATISTICS[quantity]]
        values = expand("values", record.arrays["values"], record.body)
        bounds[quantity].append(record.arrays["windows"])
        for column, aggregate in enumerate(record.body["aggregates"]):
            statistic, _, how = aggregate.partition("/")
            if how == "mean":
                continue
            reduce = {"min": np.fmin.reduce, "max": np.fmax.reduce}[how]
            raw = rows.of[quantity][:, names.index(statistic)]
            expected = [reduce(raw[first : last + 1]) for first, last in record.arrays["windows"]]
            np.testing.assert_array_equal(values[:, :, column].T, expected)
    for quantity, found in bounds.items():
        ordered = np.concatenate(found)
        ordered = ordered[np.argsort(ordered[:, 0])]
        assert (ordered[1:, 0] > ordered[:-1, 1]).all()
        if quantity == "activation":
            assert ordered[0, 0] == 0
            assert (ordered[1:, 0] == ordered[:-1, 1] + 1).all()


def check_rows(steps: Array, values: Array, kept_steps: Array, kept: Array) -> None:
    """Around every row that was, the rows that are left reach as far, and as far only as rows that were."""
    assert (np.diff(kept_steps) > 0).all()
    assert np.isin(kept_steps, steps).all()
    for before, after in zip(values.T, kept.T, strict=True):
        assert np.isin(after[~np.isnan(after)], before).all()
    first = np.maximum(np.searchsorted(kept_steps, steps, "right") - 4, 0)
    last = np.minimum(np.searchsorted(kept_steps, steps, "left") + 4, len(kept_steps))
    for value, start, stop in zip(values, first, last, strict=True):
        around = kept[start:stop]
        is_nan = np.isnan(value)
        assert ((np.fmin.reduce(around) <= value) | is_nan).all()
        assert ((np.fmax.reduce(around) >= value) | is_nan).all()
        assert (np.isnan(around).any(0) | ~is_nan).all()


def joined(records: list[Record], name: str) -> Array:
    return np.concatenate([record.arrays[name] for record in records])


def kind_of(payload: bytes) -> str:
    try:
        return parse(payload).kind
    except ValueError:
        return ""
