"""The binary form of answers, and the arguments of requests. See http_api.md."""

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from dgm_tb.errors import DgmError
from dgm_tb.records import as_json

MAGIC = b"DGM1"
MAX_TEXT = 600
_MEANING = {
    "run": "the name of a run, as the route runs lists it",
    "layer": "the name of a layer, as the route run lists it",
    "source": "the name of a layer, as the route run lists it",
    "target": "the name of a layer, as the route run lists it",
    "neurons": "whole numbers from 0, separated by commas",
    "finding": "the id of a finding, as the route findings lists it",
}
_REAL = re.compile(r"-?[0-9]{1,32}(\.[0-9]{0,32})?([eE][+-]?[0-9]{1,4})?")
_DTYPES = {"f4": "<f4", "f8": "<f8", "i4": "<i4", "u1": "u1"}

Array = np.ndarray[Any, np.dtype[Any]]


class BadArgument(DgmError, ValueError):
    """An argument of a request that is missing or malformed; the message is what the client reads."""


def pack(facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Facts and arrays in the binary form.

    Args:
        facts: The header's own keys.
        arrays: Name -> values; float32, float64, int32 or uint8 (other integers become int32).
    """
    entries, buffers, offset = [], [], 0
    for name, array in arrays.items():
        code = _code(array)
        content = np.ascontiguousarray(array, dtype=_DTYPES[code]).tobytes()
        entries.append({"name": name, "dtype": code, "shape": list(array.shape), "offset": offset})
        padding = -len(content) % 8
        buffers += [content, b"\0" * padding]
        offset += len(content) + padding
    header = json.dumps(as_json({**facts, "arrays": entries}), separators=(",", ":"), allow_nan=False).encode()
    header += b" " * (-(8 + len(header)) % 8)
    return b"".join([MAGIC, len(header).to_bytes(4, "little"), header, *buffers])


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """The facts and arrays in a message that ``pack`` made.

    Raises:
        ValueError: If it is none.
    """
    if message[:4] != MAGIC:
        raise ValueError("not a message of dgm_tb: wrong magic")
    start = 8 + int.from_bytes(message[4:8], "little")
    facts = json.loads(message[8:start])
    arrays = {}
    for entry in facts.pop("arrays"):
        count = math.prod(entry["shape"])
        at = start + entry["offset"]
        arrays[entry["name"]] = np.frombuffer(message, _DTYPES[entry["dtype"]], count, at).reshape(entry["shape"])
    return facts, arrays


def nonfinite_codes(values: Array) -> Array:
    """0 finite, 1 NaN, 2 +Inf, 3 -Inf; uint8, same shape."""
    codes = np.zeros(values.shape, np.uint8)
    codes[np.isnan(values)] = 1
    codes[np.isposinf(values)] = 2
    codes[np.isneginf(values)] = 3
    return codes


class Arguments:
    """The query of one request.

    Args:
        query: Name -> text; an empty one counts as none.
        repeated: Names that were given several times. None of a route's own may be; others are ignored.
    """

    def __init__(self, query: Mapping[str, str], repeated: Collection[str] = ()) -> None:
        self._query = query
        self._repeated = repeated

    def text(
        self, name: str, default: str | None = None, choices: tuple[str, ...] = (), longest: int = MAX_TEXT
    ) -> str:
        """A text argument.

        Raises:
            BadArgument: If it is missing without a default, repeated, longer than any name, or none of the choices.
        """
        value = self._value(name) or default
        if value is None:
            raise BadArgument(f"the argument {name!r} is missing: {_MEANING.get(name, 'a text')} was expected")
        if len(value) > longest:
            raise BadArgument(f"{name} has at most {longest} characters; got {len(value)}")
        if choices and value not in choices:
            raise BadArgument(f"{name} is one of {', '.join(choices)}; got {value[:60]!r}")
        return value

    def number(self, name: str, default: int | None, low: int, high: int) -> int:
        """A whole-number argument.

        Raises:
            BadArgument: If it is missing without a default, repeated, no whole number, or out of range.
        """
        found = self.optional_number(name, low, high)
        if found is not None:
            return found
        if default is None:
            raise BadArgument(f"the argument {name!r} is missing: a whole number from {low} to {high}")
        return default

    def optional_number(self, name: str, low: int = 0, high: int = 1 << 53) -> int | None:
        """A whole-number argument that may be left out.

        Raises:
            BadArgument: If it is repeated, no whole number, or out of range.
        """
        value = self._value(name)
        if value == "":
            return None
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 16) or not low <= int(value) <= high:
            raise BadArgument(f"{name} is a whole number from {low} to {high}; got {value[:60]!r}")
        return int(value)

    def optional_real(self, name: str, low: float, high: float) -> float | None:
        """An argument that is a number with or without decimals, and may be left out.

        Raises:
            BadArgument: If it is repeated, no such number, or out of range.
        """
        value = self._value(name)
        if value == "":
            return None
        if not _REAL.fullmatch(value) or not low <= float(value) <= high:
            raise BadArgument(f"{name} is a number from {low:g} to {high:g}; got {value[:60]!r}")
        return float(value)

    def real(self, name: str, low: float, high: float) -> float:
        """Like ``optional_real``, but it must be there."""
        found = self.optional_real(name, low, high)
        if found is None:
            raise BadArgument(f"the argument {name!r} is missing: a number from {low:g} to {high:g}")
        return found

    def numbers(self, name: str, most: int, high: int) -> list[int]:
        """An argument of several whole numbers from 0, separated by commas; each once.

        Raises:
            BadArgument: If it is missing, repeated, something else, has too many or one above ``high``.
        """
        given = self.text(name, longest=most * 17).split(",")
        expected = f"{name} is 1 to {most} whole numbers from 0 to {high}, separated by commas"
        for value in given:
            if not (value.isascii() and value.isdigit() and len(value) <= 16) or int(value) > high:
                raise BadArgument(f"{expected}; got {value[:60]!r}")
        found = list(dict.fromkeys(map(int, given)))
        if len(found) > most:
            raise BadArgument(f"{expected}; got {len(found)}")
        return found

    def _value(self, name: str) -> str:
        if name in self._repeated:
            raise BadArgument(f"{name} was given several times; it is expected once")
        return self._query.get(name, "")


def _code(array: Array) -> str:
    if array.dtype.kind == "f":
        return "f8" if array.dtype.itemsize == 8 else "f4"
    return "u1" if array.dtype == np.uint8 or array.dtype == np.bool_ else "i4"
