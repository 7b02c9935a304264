"""4xx and a sentence for whatever is wrong with a request; nothing at all where nothing was recorded."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest
import sample_recording as sample
from conftest import BASE, make_client
from routes import (
    ALL_ROUTES,
    ARRAY_SAMPLES,
    JSON_SAMPLES,
    RUN,
    assert_sentence,
    get,
    get_arrays,
    get_json,
    sample_arguments,
)
from werkzeug.test import Client

from dgm_tb.plugin import plugin as plugin_module

REQUIRED = {
    "dynamics": ["layer"], "neurons": ["layer"], "contributions": ["layer"], "matrix": ["source", "target"],
    "samples": ["finding"], "density": ["layer"], "nearest": ["layer"], "brush": ["layer"], "similar": ["layer"],
    "unusual": ["layer"],
}  # fmt: skip
LINES = ["layer", "quantity", "statistic"]
NAMES = {
    "minis": ["quantity", "statistic"], "dynamics": ["layer", "quantity", "statistic"], "neurons": ["layer"],
    "contributions": ["layer", "samples"], "matrix": ["source", "target", "direction", "samples"],
    "samples": ["finding"], "lines": [*LINES], "density": [*LINES, "scale"], "nearest": [*LINES, "scale"],
    "brush": [*LINES, "scale", "kind"], "similar": [*LINES], "unusual": [*LINES],
}  # fmt: skip
VIEW = {"first": None, "last": None, "columns": (1, 4000)}
NUMBERS = {
    "lines": VIEW,
    "density": {**VIEW, "width": (1, 1200), "height": (1, 500)},
    "nearest": {**VIEW, "limit": (1, 256)},
    "brush": VIEW,
    "similar": {"first": None, "last": None, "neuron": (0, 4), "limit": (1, 2000)},
    "unusual": {"first": None, "last": None, "limit": (1, 500)},
    "losses": {"first": None, "last": None, "columns": (1, 4000)},
    "minis": {"center": None, "span": (1, 100_000), "columns": (1, 4000)},
    "dynamics": {"first": None, "last": None, "k": (1, 2000), "columns": (1, 4000)},
    "neurons": {"step": None},
    "contributions": {"neuron": (0, 3), "step": None},
    "matrix": {"step": None, "k": (1, 256)},
}
REALS = {
    "density": {"threshold": (1e-38, 1e38), "low": (-1e300, 9.5), "high": (-9.5, 1e300)},
    "nearest": {"threshold": (1e-38, 1e38), "step": (0, 2**53), "value": (-1e300, 1e300)},
    "brush": {
        "threshold": (1e-38, 1e38), "step1": (0, 2**53), "value1": (-1e300, 1e300), "step2": (0, 2**53),
        "value2": (-1e300, 1e300),
    },
}  # fmt: skip
LISTS = {"lines": ["neurons"]}
ODD_TEXTS = [
    "x", "../../etc/passwd", "/etc/passwd", "<script>alert(1)</script>", "\x00", "\udcff", "fc\n", " fc", "a" * 5000,
    "%", "é", "[]", "null", "\u202e",
]  # fmt: skip
ODD_NUMBERS = ["x", "1.5", "1e3", "-1", "0x10", "NaN", "inf", "9" * 400, str(2**64), "١", "²", "--1", "-", "1 ", "<b>"]


ARGUMENTS = {
    route: ["run", *dict.fromkeys(name for table in (NAMES, NUMBERS, REALS, LISTS) for name in table.get(route, ()))]
    for route in ALL_ROUTES
}


def test_every_documented_argument_is_tested() -> None:
    text = (Path(plugin_module.__file__).parent / "http_api.md").read_text()
    chapters = dict(re.findall(r"^### `(\w+)`\n\n`\?([^`]*)`", text, re.M))
    assert {route: set(re.findall(r"(\w+)=", found)) for route, found in chapters.items()} == {
        route: set(names) for route, names in ARGUMENTS.items()
    }


@pytest.mark.parametrize(("route", "name"), [(route, name) for route, names in ARGUMENTS.items() for name in names])
def test_an_argument_that_is_given_twice_is_400(client: Client, route: str, name: str) -> None:
    query = [*sample_arguments(route).items(), (name, "1"), (name, "1")]
    answer = client.get(f"{BASE}{route}?" + "&".join(f"{key}={quote(value)}" for key, value in query))
    assert_sentence(answer, 400)
    assert re.search(rf"\b{name} was given several times", answer.text)


@pytest.mark.parametrize("route", ALL_ROUTES)
def test_a_run_that_is_missing_is_400_and_an_unknown_one_404(client: Client, route: str) -> None:
    arguments = sample_arguments(route)
    assert_sentence(get(client, route, **{**arguments, "run": ""}), 400)
    del arguments["run"]
    answer = get(client, route, **arguments)
    assert_sentence(answer, 400)
    assert "'run' is missing: the name of a run" in answer.text
    for name in ["nothing", "a", "a/run/", "./a/run", "A/RUN", *ODD_TEXTS]:
        address = f"{BASE}{route}?run={quote(name.encode('utf-8', 'surrogateescape'))}"
        answer = client.get(address)
        assert_sentence(answer, 404)
        assert "no recording of a run" in answer.text
        assert "a/run, every_step" in answer.text


@pytest.mark.parametrize(("route", "name"), [(route, name) for route, names in REALS.items() for name in names])
def test_a_number_with_decimals_that_is_none_or_out_of_range_is_400(client: Client, route: str, name: str) -> None:
    odd = [value for value in ODD_NUMBERS if value not in ("1.5", "1e3", "-1", str(2**64))]
    for value in [*odd, "1e999", "-1e301", "1,5", "1.5.5", "Infinity", "0" * 40]:
        answer = get(client, route, **{**sample_arguments(route), name: value})
        assert_sentence(answer, 400)
        assert re.fullmatch(rf"{name} is a number from \S+ to \S+; got '.+'", answer.text)
    for value in REALS[route][name]:
        answer = get(client, route, **{**sample_arguments(route), name: value})
        assert answer.status_code == 200, (value, answer.text)


@pytest.mark.parametrize(("route", "name"), [(route, name) for route, names in REQUIRED.items() for name in names])
def test_an_argument_that_is_missing_is_400(client: Client, route: str, name: str) -> None:
    arguments = sample_arguments(route)
    assert_sentence(get(client, route, **{**arguments, name: ""}), 400)
    del arguments[name]
    answer = get(client, route, **arguments)
    assert_sentence(answer, 400)
    assert re.search(rf"'{name}' is missing: the (name of a layer|id of a finding)", answer.text)


@pytest.mark.parametrize(("route", "name"), [(route, name) for route, names in NAMES.items() for name in names])
@pytest.mark.parametrize("value", ODD_TEXTS, ids=lambda value: ascii(value)[:20])
def test_a_name_that_is_not_there_is_4xx(client: Client, route: str, name: str, value: str) -> None:
    arguments = {**sample_arguments(route), name: value}
    query = "&".join(f"{key}={quote(text.encode('utf-8', 'surrogateescape'))}" for key, text in arguments.items())
    answer = client.get(f"{BASE}{route}?{query}")
    assert_sentence(answer, 400, 404)
    what = {"source": "layer", "target": "layer"}.get(name, name)
    assert re.search(rf"\b({name}|{what})\b", answer.text)
    assert re.search(r"there are|is one of|findings that have some|at most", answer.text), "what was expected"
    assert re.search(r"'.*'|got 5000", answer.text, re.S), "what came"


@pytest.mark.parametrize(("route", "name"), [(route, name) for route, names in NUMBERS.items() for name in names])
def test_a_number_that_is_none_or_out_of_range_is_400(client: Client, route: str, name: str) -> None:
    span = NUMBERS[route][name]
    for value in ODD_NUMBERS:
        answer = get(client, route, **{**sample_arguments(route), name: value})
        assert_sentence(answer, 400)
        assert re.fullmatch(rf"{name} is a whole number from \d+ to \d+; got '.+'", answer.text)
        assert repr(value[:60]) in answer.text
    for value in (span[0] - 1, span[1] + 1, 10**15) if span else ():
        assert_sentence(get(client, route, **{**sample_arguments(route), name: value}), 400)
    for value in span or (0, 1, 10**12, 2**53):
        answer = get(client, route, **{**sample_arguments(route), name: value})
        assert answer.status_code == 200, (value, answer.text)


def test_unknown_arguments_are_ignored(client: Client) -> None:
    assert get_json(client, "run", colour="red", first="x") == get_json(client, "run")


def test_a_range_that_ends_before_it_begins_has_no_points(client: Client) -> None:
    header, _ = get_arrays(client, "losses", first=9, last=3)
    assert header["points"][0] <= 1
    for route, layer in (("dynamics", "fc"), ("dynamics", "out")):
        assert get(client, route, run=RUN, layer=layer, first=9, last=3).status_code == 200


def test_ranges_beyond_the_recording_are_empty(client: Client) -> None:
    for first in (500, 10**12):
        _, arrays = get_arrays(client, "dynamics", layer="fc", first=first, last=first + 5)
        assert arrays["values"].shape[1] == len(arrays["steps"]) == arrays["quantiles"].shape[1] == 0
        assert get_arrays(client, "losses", first=first)[0]["points"] == [0, 0]


@pytest.mark.parametrize("route", ARRAY_SAMPLES)
def test_a_recording_that_has_only_begun_answers_every_route(tmp_path: Path, route: str) -> None:
    for number, records in enumerate([[sample.recording_record()], list(sample.all_records())[:2]]):
        sample.write(tmp_path / str(number), records)
        client = make_client(tmp_path / str(number))
        for name in JSON_SAMPLES:
            assert get(client, name, **{**sample_arguments(name), "run": "."}).status_code in (200, 404)
        answer = get(client, route, **{**sample_arguments(route), "run": "."})
        assert answer.status_code in (200, 404)
        if answer.status_code == 404:
            assert_sentence(answer, 404)
