"""Documents that derive from code, or name it, keep up with it."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sample_recording as sample
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from dgm_tb.records import Record, as_json, compact

PROJECT = Path(__file__).parent.parent
PAGES = [*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")]


def test_the_page_of_records_is_what_the_schema_says() -> None:
    page = runpy.run_path(str(PROJECT / "docs" / "write_records.py"))["page"]

    assert (PROJECT / "docs" / "records.md").read_text(encoding="utf-8") == page(), "run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    named = re.findall(r"`((?:dgm_tb|tests|docs|benchmarks|examples|tools|\.ci)/[\w./-]+)`", text)

    missing = [name for name in linked if not (page.parent / name).exists()]
    missing += [name for name in named if not (PROJECT / name).exists()]

    assert missing == []


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The program that the page of records shows, as a file."""
    page = (PROJECT / "docs" / "records.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert not re.search(r"^\s*(import|from) dgm_tb", block, re.MULTILINE)
    (tmp_path / "example.py").write_text(block, encoding="utf-8")
    return tmp_path / "example.py"


def test_the_page_of_records_shows_how_to_read_them_without_dgm_tb(example: Path, tmp_path: Path) -> None:
    tiny, scale = compact({"values": np.array([[1e-9, -3e-8, np.inf]], np.float32)})
    assert scale["exponents"]["values"]
    tiny |= {"steps": np.array([12]), "neurons": np.arange(3), "outliers": np.zeros(3, np.uint8)}
    scaled = Record("polylines", 12, 12, {"quantity": "gradient", "statistic": "rms", **scale}, tiny)
    thinned, later = [*sample.all_records(ends=False)], [scaled, sample.ring_record()]
    segment = sample.write(tmp_path, thinned)
    segment.rename(segment.with_name("000000-000002.dgm"))
    sample.write(tmp_path, later, segment=3)
    for replaced in (segment, segment.with_name("000002.dgm"), segment.with_name("live.dgm")):
        replaced.write_bytes(sample.framed([sample.loss_record()]))
    torn = segment.with_name("000004.dgm")
    torn.write_bytes(sample.framed([sample.loss_record()])[:-1])

    found = list(runpy.run_path(str(example))["records"](segment.parent))

    assert len(found) == len(thinned) + len(later)
    for (kind, first, last, body, arrays), record in zip(found, [*thinned, *later], strict=True):
        assert (kind, first, last) == (record.kind, record.first_step, record.last_step)
        assert body == {"version": 1, "first_step": first, **json.loads(json.dumps(as_json(record.body)))}
        assert list(arrays) == list(record.arrays)
        for name, values in record.arrays.items():
            expected = np.array([[1e-9, -3e-8, np.inf]]) if record is scaled and name == "values" else values
            np.testing.assert_allclose(arrays[name], expected, rtol=1e-3)


def test_the_program_on_the_page_of_records_runs(example: Path, tmp_path: Path) -> None:
    folder = sample.write(tmp_path, sample.all_records()).parent
    command = [sys.executable, str(example), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [record.kind for record in sample.all_records()]


def test_tensorboards_own_reader_finds_the_same_payloads(example: Path, tmp_path: Path) -> None:
    segment = sample.write(tmp_path, sample.all_records())
    assert list(runpy.run_path(str(example))["payloads"](segment)) == list(RawEventFileLoader(str(segment)).Load())
