"""Documents that derive from code, or name it, keep up with it."""

import re
import runpy
from pathlib import Path

import pytest

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
