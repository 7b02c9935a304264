"""How many bytes a recording takes, and how many the numbers would have taken that it was made of."""

import contextlib
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dgm_tb.framing import OVERHEAD_BYTES
from dgm_tb.plugin import storage
from dgm_tb.plugin.entry import Entry
from dgm_tb.plugin.recording import Recording
from dgm_tb.plugin.storage import Place
from dgm_tb.plugin.tracks import observed_steps
from dgm_tb.records import STATISTICS
from dgm_tb.segment_names import segment_name, segment_span

GROWING = ("loss", "layer_statistics", "dynamics", "polylines")
"""Kinds of records that come with the steps; all others come once, or when something happens."""

FLOAT_BYTES = 4
MAX_BYTES = 1 << 60
"""No step has more: a graph that says so is damaged."""


class Sizes(NamedTuple):
    """Bytes of a recording, and the steps that they tell of.

    Attributes:
        n_bytes: All files of its folder.
        n_growing_bytes: Records that come with the steps.
        n_steps: From the first to the last one recorded.
        n_observed: Steps in which the neurons were observed; of thinned ones as many as ``every_n_steps`` says.
        n_thinned: Steps that are kept at reduced detail, since the recording had become too large.
        row_bytes: Per observed step: every activation statistic of every neuron, as float32; 0 if it is unknown.
        activation_bytes: Likewise the output of every layer, with the shapes of the traced batch.
    """

    n_bytes: int
    n_growing_bytes: int
    n_steps: int
    n_observed: int
    n_thinned: int
    row_bytes: int
    activation_bytes: int


def sizes_of(recording: Recording) -> Sizes:
    """Measure a recording, also while it is being written."""
    first, last = recording.steps or (0, -1)
    growing = [entry for kind in GROWING for entry in recording.entries(kind)]
    thinned = np.array(_intervals(entry for entry in growing if _is_thinned(entry.path.name))).reshape(-1, 2)
    n_thinned = int((thinned[:, 1] - thinned[:, 0] + 1).sum())
    observed = observed_steps([(recording, np.inf)], "activation")
    n_whole = int((np.searchsorted(thinned[:, 0], observed, "right") == np.searchsorted(thinned[:, 1], observed)).sum())
    layers = recording.graph.layers
    return Sizes(
        n_bytes=bytes_in(recording.folder),
        n_growing_bytes=sum(entry.length + OVERHEAD_BYTES for entry in growing),
        n_steps=last - first + 1,
        n_observed=n_whole + n_thinned // _every_n_steps(recording),
        n_thinned=n_thinned,
        row_bytes=_float_bytes(layer.neurons * len(STATISTICS["activation"]) for layer in layers),
        activation_bytes=_float_bytes(math.prod(layer.shape) for layer in layers),
    )


def bytes_in(folder: Place) -> int:
    """Bytes of all files of a folder; one that goes while they are counted has none."""
    n_bytes = 0
    try:
        found = storage.items(folder)
    except OSError:
        return 0
    for item in found:
        with contextlib.suppress(OSError):
            status = item.status or storage.status_of(folder / item.name)
            n_bytes += status.size if status.is_file else 0
    return n_bytes


def _float_bytes(n_values: Iterable[int]) -> int:
    n_bytes = sum(n_values) * FLOAT_BYTES
    return n_bytes if 0 <= n_bytes <= MAX_BYTES else 0


def _is_thinned(name: str) -> bool:
    span = segment_span(name)
    return span is not None and name != segment_name(span[0])


def _every_n_steps(recording: Recording) -> int:
    options = recording.facts.get("options")
    steps = options.get("every_n_steps") if isinstance(options, dict) else None
    return steps if isinstance(steps, int) and steps > 0 else 1


def _intervals(entries: Iterable[Entry]) -> list[tuple[int, int]]:
    """First and last steps that some records tell of, in order and apart from each other."""
    found: list[tuple[int, int]] = []
    for first, last in sorted((entry.first_step, entry.last_step) for entry in entries):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return found
