"""The quick part of the zoo: truths hold, causes are found, healthy trainings are left alone."""

from collections import Counter
from pathlib import Path

import pytest

from dgm_tb.records import FINDING_KINDS

from .running import CASES, run

QUICK = [name for name, case in CASES.items() if case.quick]


@pytest.mark.parametrize("name", QUICK)
def test_the_cause_is_found_and_nothing_where_there_is_none(name: str, tmp_path: Path) -> None:
    result = run(name, tmp_path)
    found = [(f.kind, f.severity, f.module, f.step) for f in result.findings]
    assert result.is_true, "the oracle does not confirm the truth of this case"
    assert result.score.alarms == 0, found
    for verdict in (result.score.kind, result.score.first, result.score.top1, result.score.sample):
        assert verdict is not False, found
    assert result.score.step is None or result.score.step <= 2, found


def test_the_zoo_has_every_kind_twice_and_many_healthy_trainings() -> None:
    counts = Counter(case.kind for case in CASES.values())
    assert {kind for kind in FINDING_KINDS if counts[kind] < 2} == set()
    assert counts[""] >= 15
    assert 0.25 < sum(case.held_out for case in CASES.values()) / len(CASES) < 0.5
