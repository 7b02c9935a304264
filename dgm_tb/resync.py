"""Finds the next record header in damaged bytes, at all positions at once: such a file may be long and hostile."""

from functools import cache
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from dgm_tb import framing

_LENGTH_BYTES = 8
_LOW_BYTES = 4  # a payload is shorter than 2**32 bytes: the length's other bytes are 0


def find_header(stretch: bytes, n_bytes: int) -> int | None:
    """The first position at which a valid record header stands.

    Args:
        stretch: Bytes to search.
        n_bytes: Bytes from the beginning of the stretch to the end of the file: the announced record must fit in.

    Returns:
        The position, or None. Empty records are not looked for: nobody writes any, and zeros would be full of them.
    """
    octets = np.frombuffer(stretch, np.uint8)
    n = len(octets) - framing.HEADER_BYTES + 1
    if n <= 0 or not octets.any():  # a file of zeros may claim any size
        return None
    low = [octets[i : i + n] for i in range(_LOW_BYTES)]
    is_candidate = low[0] | low[1] | low[2] | low[3] != 0
    for i in range(_LOW_BYTES, _LENGTH_BYTES):
        is_candidate &= octets[i : i + n] == 0
    candidates = np.flatnonzero(is_candidate)
    lengths = _number(octets, candidates).astype(np.int64)
    fits = candidates + lengths + framing.OVERHEAD_BYTES <= n_bytes
    candidates = candidates[fits & (lengths <= framing.MAX_PAYLOAD_BYTES)]
    is_header = _checksums(octets, candidates) == _number(octets, candidates + _LENGTH_BYTES)
    return int(candidates[is_header][0]) if is_header.any() else None


def _number(octets: npt.NDArray[np.uint8], at: npt.NDArray[np.intp]) -> npt.NDArray[np.uint32]:
    """The little-endian numbers of four bytes at some positions."""
    parts = [octets[at + i].astype(np.uint32) << np.uint32(8 * i) for i in range(4)]
    return np.asarray(parts[0] | parts[1] | parts[2] | parts[3])


def _checksums(octets: npt.NDArray[np.uint8], at: npt.NDArray[np.intp]) -> npt.NDArray[np.uint32]:
    """``framing.masked_crc`` of the lengths at some positions, whose high bytes are 0."""
    zero, tables = _tables()
    crc = np.full(len(at), zero, np.uint32)
    for i in range(_LOW_BYTES):
        crc ^= tables[i][octets[at + i]]
    rotated = crc >> np.uint32(15) | crc << np.uint32(17)
    return np.asarray(rotated + np.uint32(0xA282EAD8))


@cache
def _tables() -> tuple[np.uint32, npt.NDArray[Any]]:
    """CRC-32C of eight zeros, and what each value of each low byte changes in it: a CRC is linear in its bits."""
    zero = google_crc32c.value(bytes(_LENGTH_BYTES))
    changes = [
        [google_crc32c.value(bytes(i) + bytes([value]) + bytes(_LENGTH_BYTES - 1 - i)) ^ zero for value in range(256)]
        for i in range(_LOW_BYTES)
    ]
    return np.uint32(zero), np.array(changes, np.uint32)
