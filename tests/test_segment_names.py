"""Which files of a recording count."""

import pytest

from dgm_tb.segment_names import LIVE_NAME, current_segments, segment_name, segment_span


def test_a_name_and_its_span_belong_together():
    assert segment_name(7) == "000007.dgm"
    assert segment_name(4, 7) == "000004-000007.dgm"
    for span in ((0, 0), (123456, 123456), (1234567, 1234567)):
        assert segment_span(segment_name(span[0])) == span
    assert segment_span(segment_name(4, 7)) == (4, 7)


@pytest.mark.parametrize("name", [LIVE_NAME, "000001.dgm.tmp", "1.dgm", "000007-000004.dgm", "000001.tfevents", "x"])
def test_other_files_are_no_segments(name):
    assert segment_span(name) is None


def test_what_another_one_replaces_is_left_out():
    names = ["000000.dgm", "000001.dgm", "000000-000003.dgm", "000003.dgm", "000004.dgm", "live.dgm", "000010.dgm"]
    assert current_segments(names) == ["000000-000003.dgm", "000004.dgm", "000010.dgm"]


def test_thinned_again():
    names = ["000000-000003.dgm", "000004-000007.dgm", "000000-000015.dgm", "000016.dgm"]
    assert current_segments(names) == ["000000-000015.dgm", "000016.dgm"]
