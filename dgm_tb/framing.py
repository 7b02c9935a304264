"""TFRecord framing: length, masked CRC-32C of the length, payload, masked CRC-32C of the payload.

The framing of TensorFlow's record files, so that any TFRecord reader opens a segment. The checksum comes from
``google-crc32c`` (C): TensorBoard's own Python checksum manages 4 MB per CPU second, this one several GB.

Source: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

import struct

import google_crc32c

HEADER_BYTES = 12
FOOTER_BYTES = 4
OVERHEAD_BYTES = HEADER_BYTES + FOOTER_BYTES
MAX_PAYLOAD_BYTES = 1 << 28

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")


def masked_crc(payload: bytes) -> int:
    """The CRC-32C of ``payload``, rotated and offset as TFRecord asks."""
    crc = google_crc32c.value(payload)
    return int(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame(payload: bytes) -> bytes:
    """Wrap one record's payload for appending to a segment."""
    length = _LENGTH.pack(len(payload))
    return b"".join((length, _CRC.pack(masked_crc(length)), payload, _CRC.pack(masked_crc(payload))))


def payload_length(header: bytes) -> int | None:
    """The payload length that a 12-byte record header announces.

    Returns:
        The length in bytes, or None if the header is damaged or announces more than ``MAX_PAYLOAD_BYTES``.
    """
    if len(header) < HEADER_BYTES or _CRC.unpack_from(header, 8)[0] != masked_crc(header[:8]):
        return None
    length: int = _LENGTH.unpack_from(header)[0]
    return length if length <= MAX_PAYLOAD_BYTES else None


def is_intact(payload: bytes, footer: bytes) -> bool:
    """Whether the four footer bytes are the checksum of ``payload``."""
    return len(footer) == FOOTER_BYTES and bool(_CRC.unpack(footer)[0] == masked_crc(payload))
