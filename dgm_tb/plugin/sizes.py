"""How many bytes a recording takes, and how many the numbers would have taken that it was made of."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dgm_tb.framing import OVERHEAD_BYTES
from dgm_tb.plugin.entry import Entry
from dgm_tb.plugin.recording import Recording
from dgm_tb.plugin.tracks import observed_steps
from dgm_tb.records import STATISTICS
from dgm_tb.segment_names import segment_name, segment_span

GROWING = ("loss", "layer_statistics", "dynamics", "polylines")
"""Kinds of records that come with the steps; all others come once, or when something happens."""

FLOAT_BYTES = 4


class Sizes(NamedTuple):
    """Bytes of a recording, and the steps that they tell of.

    Attributes:
        n_bytes: All files of its folder.
        n_growing_bytes: Records that come with the steps.
        n_steps: From the first to the last one recorded.
        n_observed: Steps in which the neurons were observed.
        n_thinned: Steps that are kept at reduced detail, since the recording had become too large.
        row_bytes: Per observed step: every activation statistic of every neuron, as float32.
        activation_bytes: Per observed step: the output of every layer, as float32, with the shapes of the traced batch.
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
    layers = recording.graph.layers
    return Sizes(
        n_bytes=bytes_in(recording.folder),
        n_growing_bytes=sum(entry.length + OVERHEAD_BYTES for entry in growing),
        n_steps=last - first + 1,
        n_observed=len(observed_steps([(recording, np.inf)], "activation")),
        n_thinned=_n_steps(entry for entry in growing if _is_thinned(entry.path.name)),
        row_bytes=sum(layer.neurons for layer in layers) * len(STATISTICS["activation"]) * FLOAT_BYTES,
        activation_bytes=sum(math.prod(layer.shape) for layer in layers) * FLOAT_BYTES,
    )


def bytes_in(folder: Path) -> int:
    """Bytes of all files of a folder; one that goes while they are counted has none."""
    n_bytes = 0
    try:
        for file in os.scandir(folder):
            try:
                n_bytes += file.stat().st_size if file.is_file() else 0
            except OSError:
                continue
    except OSError:
        return n_bytes
    return n_bytes


def _is_thinned(name: str) -> bool:
    span = segment_span(name)
    return span is not None and name != segment_name(span[0])


def _n_steps(entries: Iterable[Entry]) -> int:
    """Steps that some records tell of."""
    n_steps, end = 0, -1
    for first, last in sorted((entry.first_step, entry.last_step) for entry in entries):
        n_steps += max(last - max(first, end + 1) + 1, 0)
        end = max(end, last)
    return n_steps
