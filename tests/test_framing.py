import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader, RawEventFileLoader
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from dgm_tb import framing
from dgm_tb.records import Record, encode

NOTE = encode(Record("note", 3, 3, {"text": "x"}, wall_time=1.5))


@given(st.binary(max_size=300))
def test_checksums_equal_tensorboards(payload: bytes) -> None:
    assert framing.masked_crc(payload) == masked_crc32c(payload)


@given(st.binary(max_size=300))
def test_a_framed_payload_comes_back(payload: bytes) -> None:
    framed = framing.frame(payload)
    assert framing.payload_length(framed[: framing.HEADER_BYTES]) == len(payload)
    content = framed[framing.HEADER_BYTES : -framing.FOOTER_BYTES]
    assert content == payload
    assert framing.is_intact(content, framed[-framing.FOOTER_BYTES :])
    assert len(framed) == len(payload) + framing.OVERHEAD_BYTES


def test_every_flipped_bit_is_noticed() -> None:
    framed = framing.frame(b"payload")
    for at in range(len(framed)):
        for bit in range(8):
            damaged = bytearray(framed)
            damaged[at] ^= 1 << bit
            length = framing.payload_length(bytes(damaged[: framing.HEADER_BYTES]))
            content, footer = damaged[framing.HEADER_BYTES : -framing.FOOTER_BYTES], damaged[-framing.FOOTER_BYTES :]
            assert length is None or not framing.is_intact(bytes(content), bytes(footer))


@pytest.mark.parametrize("length", [0, 11])
def test_a_short_header_announces_nothing(length: int) -> None:
    assert framing.payload_length(framing.frame(b"x")[:length]) is None


@pytest.mark.parametrize("announced", [framing.MAX_PAYLOAD_BYTES + 1, 1 << 62, (1 << 64) - 1])
def test_a_header_that_announces_too_much_is_refused_though_its_checksum_is_right(announced: int) -> None:
    length = struct.pack("<Q", announced)
    assert framing.payload_length(length + struct.pack("<I", framing.masked_crc(length))) is None


@pytest.mark.parametrize("footer", [b"", b"abc", b"abcde"])
def test_a_footer_of_another_length_is_not_intact(footer: bytes) -> None:
    assert not framing.is_intact(b"payload", footer)


def test_tensorboards_own_loaders_read_our_segments(tmp_path: Path) -> None:
    path = tmp_path / "000000.dgm"
    path.write_bytes(framing.frame(NOTE) * 3)
    assert list(RawEventFileLoader(str(path)).Load()) == [NOTE] * 3
    events = list(EventFileLoader(str(path)).Load())
    assert [event.step for event in events] == [3] * 3
    assert events[0].summary.value[0].tag == "dgmtracker/note"
