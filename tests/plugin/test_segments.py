import os
import random
import struct
import time
from pathlib import Path

import pytest

from dgm_tb import framing
from dgm_tb.plugin.segments import PATIENCE_SECONDS, Segment
from dgm_tb.resync import find_header

PAYLOADS = [bytes([65 + number]) * (20 + 7 * number) for number in range(5)]
FRAMED = [framing.frame(payload) for payload in PAYLOADS]
FILE = b"".join(FRAMED)
STARTS = [sum(map(len, FRAMED[:number])) for number in range(len(FRAMED))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "000000.dgm"


def read(segment: Segment, *, is_sealed: bool = False) -> list[bytes]:
    return [payload.content for payload in segment.read(is_sealed=is_sealed)]


def make_old(path: Path) -> None:
    long_ago = time.time() - PATIENCE_SECONDS - 10
    os.utime(path, (long_ago, long_ago))


def assert_all_bytes_accounted_for(segment: Segment, found: list[bytes], size: int) -> None:
    lost = sum(gap.n_bytes for gap in segment.gaps)
    assert lost + sum(len(payload) + framing.OVERHEAD_BYTES for payload in found) == size


def test_payloads_come_with_their_place_in_the_file(path: Path) -> None:
    path.write_bytes(FILE)
    for payload in Segment(path).read(is_sealed=False):
        assert FILE[payload.offset : payload.offset + len(payload.content)] == payload.content


def test_a_growing_file_is_handed_out_once_however_it_grows(path: Path) -> None:
    rng = random.Random(0)
    for _ in range(30):
        path.write_bytes(b"")
        segment, found, written = Segment(path), [], 0
        while written < len(FILE):
            n_bytes = rng.choice([1, 3, 11, 12, 40, 200])
            with path.open("ab") as file:
                file.write(FILE[written : written + n_bytes])
            written += n_bytes
            found += read(segment)
            assert segment.gaps == []
        assert found == PAYLOADS


def test_a_reader_that_stops_half_way_goes_on_where_it_stopped(path: Path) -> None:
    path.write_bytes(FILE)
    segment = Segment(path)
    first = next(iter(segment.read(is_sealed=True)))
    assert [first.content, *read(segment, is_sealed=True)] == PAYLOADS


def test_a_file_cut_at_any_byte_gives_what_is_intact_and_one_gap(path: Path) -> None:
    for cut in range(len(FILE) + 1):
        path.write_bytes(FILE[:cut])
        segment = Segment(path)
        found = read(segment, is_sealed=True)
        whole = sum(start + len(framed) <= cut for start, framed in zip(STARTS, FRAMED, strict=True))
        assert found == PAYLOADS[:whole]
        assert_all_bytes_accounted_for(segment, found, cut)
        assert len(segment.gaps) == (cut > sum(map(len, FRAMED[:whole])))


@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_torn_tail_that_is_completed_later_is_read_even_after_long(path: Path, is_sealed: bool) -> None:
    for cut in range(1, len(FILE)):
        path.write_bytes(FILE[:cut])
        make_old(path)
        segment = Segment(path)
        found = read(segment, is_sealed=is_sealed)
        path.open("ab").write(FILE[cut:])
        assert found + read(segment, is_sealed=is_sealed) == PAYLOADS
        assert segment.gaps == []


def test_a_fresh_torn_tail_is_no_gap_yet_an_old_one_is(path: Path) -> None:
    path.write_bytes(FILE[:-1])
    segment = Segment(path)
    read(segment)
    assert segment.gaps == []
    make_old(path)
    read(segment)
    assert [(gap.offset, gap.n_bytes) for gap in segment.gaps] == [(STARTS[-1], len(FRAMED[-1]) - 1)]


@pytest.mark.parametrize("is_sealed", [False, True])
def test_one_damaged_byte_anywhere_costs_one_record(path: Path, is_sealed: bool) -> None:
    for at in range(STARTS[-1]):  # damage in the last record of a live file may still be being written
        damaged = bytearray(FILE)
        damaged[at] ^= 0x41
        path.write_bytes(damaged)
        segment = Segment(path)
        hit = sum(start <= at for start in STARTS) - 1
        found = read(segment, is_sealed=is_sealed)
        assert found == PAYLOADS[:hit] + PAYLOADS[hit + 1 :]
        assert [(gap.offset, gap.n_bytes) for gap in segment.gaps] == [(STARTS[hit], len(FRAMED[hit]))]


def test_a_damaged_last_record_is_a_gap_once_the_segment_is_sealed(path: Path) -> None:
    path.write_bytes(FILE[:-1] + b"?")
    segment = Segment(path)
    assert read(segment) == PAYLOADS[:-1]
    assert segment.gaps == []
    assert read(segment, is_sealed=True) == []
    assert [gap.reason for gap in segment.gaps] == ["damaged record"]


@pytest.mark.parametrize("n_zeros", [1, 11, 12, 4096, 3_000_000])
def test_zeros_at_the_end_are_a_gap_and_records_after_them_are_read(path: Path, n_zeros: int) -> None:
    path.write_bytes(FILE + bytes(n_zeros))
    segment = Segment(path)
    assert read(segment, is_sealed=True) == PAYLOADS
    assert sum(gap.n_bytes for gap in segment.gaps) == n_zeros
    path.open("ab").write(FILE)
    assert read(segment, is_sealed=True) == PAYLOADS
    assert [(gap.offset, gap.n_bytes) for gap in segment.gaps] == [(len(FILE), n_zeros)]


def test_random_bytes_between_records_are_one_gap(path: Path) -> None:
    noise = random.Random(1).randbytes(2_500_000)
    path.write_bytes(FILE + noise + FILE)
    segment = Segment(path)
    assert read(segment) == PAYLOADS * 2
    assert [(gap.offset, gap.n_bytes) for gap in segment.gaps] == [(len(FILE), len(noise))]


@pytest.mark.parametrize("announced", [1 << 63, 1 << 40, framing.MAX_PAYLOAD_BYTES, 5000])
def test_a_valid_header_that_announces_more_than_there_is_costs_only_itself(path: Path, announced: int) -> None:
    length = struct.pack("<Q", announced)
    header = length + struct.pack("<I", framing.masked_crc(length))
    path.write_bytes(FILE + header + FILE)
    segment = Segment(path)
    assert read(segment, is_sealed=True) == PAYLOADS * 2
    assert [(gap.offset, gap.n_bytes) for gap in segment.gaps] == [(len(FILE), len(header))]


def test_a_replaced_file_is_noticed(path: Path, tmp_path: Path) -> None:
    path.write_bytes(FILE)
    segment = Segment(path)
    assert not segment.was_replaced()
    read(segment)
    assert not segment.was_replaced()
    path.open("ab").write(FRAMED[0])
    assert not segment.was_replaced()
    other = tmp_path / "other"
    other.write_bytes(FILE * 2)
    other.rename(path)
    assert segment.was_replaced()


def test_a_file_rewritten_in_place_is_noticed_by_its_beginning_or_its_length(path: Path) -> None:
    path.write_bytes(FILE)
    segment = Segment(path)
    read(segment)
    with path.open("r+b") as file:
        file.write(framing.frame(PAYLOADS[3]))
    assert segment.was_replaced()
    with path.open("r+b") as file:
        file.write(FILE)
    assert not segment.was_replaced()
    os.truncate(path, len(FILE) - 1)
    assert segment.was_replaced()


def test_a_deleted_file_is_noticed_if_something_was_read(path: Path) -> None:
    assert not Segment(path).was_replaced()
    path.write_bytes(FILE)
    segment = Segment(path)
    read(segment)
    path.unlink()
    assert segment.was_replaced()
    assert read(segment) == []


def test_what_is_no_file_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.dgm").touch()
    (tmp_path / "folder.dgm").mkdir()
    os.mkfifo(tmp_path / "pipe.dgm")
    (tmp_path / "loop.dgm").symlink_to(tmp_path / "loop.dgm")
    for name in ("missing", "empty", "folder", "pipe", "loop"):
        segment = Segment(tmp_path / f"{name}.dgm")
        assert read(segment, is_sealed=True) == []
        assert segment.gaps == []


def test_headers_are_found_where_a_slow_search_finds_them() -> None:
    rng = random.Random(2)
    for trial in range(200):
        noise = bytes(rng.choice([0, 0, 0, 1, 16, rng.randrange(256)]) for _ in range(rng.randrange(60)))
        stretch = noise + (framing.frame(bytes(rng.randrange(1, 30))) if trial % 3 else b"") + bytes(rng.randrange(20))
        n_bytes = len(stretch) - rng.randrange(0, 30)
        slow = (
            at
            for at in range(len(stretch) - framing.HEADER_BYTES + 1)
            if (length := framing.payload_length(stretch[at : at + framing.HEADER_BYTES]))
            and at + length + framing.OVERHEAD_BYTES <= n_bytes
        )
        assert find_header(stretch, n_bytes) == next(slow, None)
