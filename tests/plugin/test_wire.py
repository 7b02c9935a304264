from pathlib import Path

import numpy as np
import pytest
from golden import write as golden

from dgm_tb.plugin.wire import Arguments, BadArgument, nonfinite_codes, pack, unpack

GOLDEN = Path(__file__).parents[1] / "golden" / "wire-1.bin"


def test_facts_and_arrays_come_back() -> None:
    facts, arrays = unpack(pack(golden.WIRE_FACTS, golden.WIRE_ARRAYS))
    assert facts == {"layer": "énc.0", "neurons": 3, "low": "NaN", "high": "Infinity", "reason": None}
    assert list(arrays) == list(golden.WIRE_ARRAYS)
    for name, array in golden.WIRE_ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_the_wire_bytes_stay_what_they_are() -> None:
    assert pack(golden.WIRE_FACTS, golden.WIRE_ARRAYS) == GOLDEN.read_bytes()


@pytest.mark.parametrize(
    ("dtype", "code"),
    [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), (">f4", "f4"), ("i8", "i4"), ("u1", "u1"), ("?", "u1")],
)
def test_arrays_travel_in_the_types_that_javascript_has(dtype: str, code: str) -> None:
    values = np.array([[0, 1], [1, 0]]).astype(dtype)
    _, arrays = unpack(pack({}, {"x": values.T}))
    assert arrays["x"].dtype == np.dtype(code)
    np.testing.assert_array_equal(arrays["x"], values.T)


def test_other_bytes_are_no_message() -> None:
    with pytest.raises(ValueError, match="magic"):
        unpack(b"<html>")


def test_codes_tell_what_is_not_finite() -> None:
    assert nonfinite_codes(np.array([1, np.nan, np.inf, -np.inf])).tolist() == [0, 1, 2, 3]


def test_arguments_have_defaults_choices_and_ranges() -> None:
    arguments = Arguments({"layer": "fc", "k": "5", "empty": ""})
    assert arguments.text("layer") == "fc"
    assert arguments.text("missing", "default") == arguments.text("empty", "default") == "default"
    assert arguments.number("k", 1, 0, 9) == 5
    assert arguments.number("missing", 7, 0, 9) == arguments.number("empty", 7, 0, 9) == 7
    assert arguments.optional_number("missing") is None
    for wrong in (
        lambda: arguments.text("missing"),
        lambda: arguments.text("layer", None, ("a", "b")),
        lambda: arguments.number("k", 1, 6, 9),
        lambda: arguments.number("missing", None, 0, 9),
        lambda: arguments.number("layer", 1, 0, 9),
    ):
        with pytest.raises(BadArgument):
            wrong()
