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


def test_arguments_with_decimals_are_finite_numbers_in_a_range() -> None:
    arguments = Arguments({"value": "-1.25e-2", "whole": "3", "open": "7."})
    assert arguments.real("value", -1, 1) == -0.0125
    assert (arguments.optional_real("whole", 0, 3), arguments.optional_real("open", 0, 9)) == (3, 7)
    assert arguments.optional_real("missing", 0, 1) is None
    with pytest.raises(BadArgument, match="is missing: a number from 0 to 1"):
        arguments.real("missing", 0, 1)
    with pytest.raises(BadArgument, match="whole is a number from 0 to 2; got '3'"):
        arguments.real("whole", 0, 2)


@pytest.mark.parametrize(
    "text", ["NaN", "inf", "-Infinity", "1e999", "0x1", "1_0", "1,5", " 1", "1 ", "+1", ".5", "e3", "١"]
)
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(BadArgument, match="is a number from"):
        Arguments({"value": text}).real("value", -1e300, 1e300)


def test_a_list_of_numbers_keeps_its_order_and_each_number_once() -> None:
    assert Arguments({"neurons": "3,17,0,3"}).numbers("neurons", 3, 17) == [3, 17, 0]
    assert Arguments({"neurons": ",".join(["9007199254740992"] * 9)}).numbers("neurons", 9, 1 << 53) == [1 << 53]


@pytest.mark.parametrize("text", ["", ",", "1,", "1,,2", "-1", "1.5", "18", "1 2", "a", "0,1,2,3", "9" * 17, "²"])
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(BadArgument, match="neurons"):
        Arguments({"neurons": text}).numbers("neurons", 3, 17)
