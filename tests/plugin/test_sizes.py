"""Bytes of a recording and of what it was made of, counted by hand."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sample_recording as sample

from dgm_tb.plugin import storage
from dgm_tb.plugin.recording import Recording
from dgm_tb.plugin.sizes import bytes_in, sizes_of
from dgm_tb.records import Record

N_NEURONS = 5 + 3 + 4 + 2


def read(segment: Path) -> Recording:
    recording = Recording(segment.parent)
    recording.refresh()
    return recording


def test_what_comes_with_the_steps_is_told_from_the_rest(tmp_path: Path) -> None:
    segment = sample.write(tmp_path, sample.all_records())
    records = [*sample.all_records()]
    growing = [r for r in records if r.kind in ("loss", "layer_statistics", "dynamics", "polylines")]
    found = sizes_of(read(segment))
    assert found.n_bytes == segment.stat().st_size == len(sample.framed(records))
    assert found.n_growing_bytes == len(sample.framed(growing))
    assert (found.n_steps, found.n_observed, found.n_thinned) == (sample.STEPS, sample.STEPS, 0)


def test_raw_sizes_are_those_of_float32(tmp_path: Path) -> None:
    found = sizes_of(read(sample.write(tmp_path, sample.all_records())))
    assert found.row_bytes == N_NEURONS * 5 * 4
    assert found.activation_bytes == sum(2 * neurons for neurons in sample.LAYERS.values()) * 4


def test_a_graph_that_claims_absurd_sizes_is_not_believed(tmp_path: Path) -> None:
    graph = sample.graph().to_json()
    graph["layers"][0] |= {"shape": [2**31] * 40}
    found = sizes_of(read(sample.write(tmp_path, [sample.recording_record(), Record("graph", 0, 0, graph)])))
    assert (found.row_bytes, found.activation_bytes) == (N_NEURONS * 5 * 4, 0)


def test_steps_whose_neurons_were_not_observed_count_as_steps_only(tmp_path: Path) -> None:
    steps = np.arange(0, 100, 10)
    records = [sample.recording_record(), sample.loss_record(np.arange(100))]
    records += sample.quantity_records("activation", steps)
    found = sizes_of(read(sample.write(tmp_path, records)))
    assert (found.n_steps, found.n_observed) == (100, 10)
    assert (found.row_bytes, found.activation_bytes) == (0, 0), "without a graph"


@pytest.mark.parametrize("every", [1, 2])
def test_steps_of_thinned_segments_are_counted_once(every: int, tmp_path: Path) -> None:
    start = sample.recording_record()
    start = replace(start, body={**start.body, "options": {"every_n_steps": every}})
    segment = sample.write(tmp_path, [start, *_steps(0, 40)])
    segment.rename(segment.with_name("000000-000003.dgm"))
    sample.write(tmp_path, _steps(60, 80), segment=4).rename(segment.with_name("000004-000004.dgm"))
    sample.write(tmp_path, _steps(80, 100, every), segment=5)
    found = sizes_of(read(segment))
    assert (found.n_steps, found.n_thinned) == (100, 40 + 20)
    assert found.n_observed == 80 // every, "of which three in four are not kept any more"


def _steps(first: int, stop: int, every: int = 4) -> Iterator[Record]:
    yield sample.loss_record(np.arange(first, stop))
    for at in range(first, stop, 10):
        yield from sample.quantity_records("activation", np.arange(at, at + 10, every))


def test_every_file_counts_and_one_that_goes_meanwhile_has_no_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in {"000000.dgm": 100, "live.dgm": 20, ".live.dgm.tmp": 3, "gone.dgm": 4000}.items():
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")

    def list_then_delete(folder: Path) -> list[storage.Item]:
        found = items(folder)
        (tmp_path / "gone.dgm").unlink()
        return found

    items = storage.items
    monkeypatch.setattr(storage, "items", list_then_delete)
    assert bytes_in(tmp_path) == 123


def test_a_folder_that_is_gone_has_no_bytes(tmp_path: Path) -> None:
    assert bytes_in(tmp_path / "gone") == 0
