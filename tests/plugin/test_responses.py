"""Headers, methods, and the files of the tab."""

import gzip
import json
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from conftest import BASE, make_client
from routes import ALL_ROUTES, RUN, assert_sentence, sample_arguments
from werkzeug.test import Client

from dgm_tb.plugin import assets
from dgm_tb.plugin import plugin as plugin_module


def static_names() -> list[str]:
    folder = Path(plugin_module.__file__).parent / "static"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def entry_module(client: Client) -> str:
    listing = json.loads(client.get("/data/plugins_listing").data)
    return str(listing["dgmtracker"]["loading_mechanism"]["module_path"])


def test_tensorboard_lists_the_tab(client: Client) -> None:
    listing = json.loads(client.get("/data/plugins_listing").data)["dgmtracker"]
    assert (listing["tab_name"], listing["enabled"]) == ("DGMTracker", True)
    assert client.get("/" + listing["loading_mechanism"]["module_path"].lstrip("/")).status_code == 200


@pytest.mark.parametrize("name", static_names())
def test_every_file_of_the_tab_is_served_with_its_type(client: Client, name: str) -> None:
    place = entry_module(client).removesuffix("index.js")
    answer = client.get(place + name)
    folder = Path(plugin_module.__file__).parent / "static"
    assert answer.status_code == 200
    assert answer.data == assets.served(folder / name)[0]
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    assert answer.content_type.split(";")[0] == types.get(Path(name).suffix, answer.content_type.split(";")[0])
    assert "max-age=31536000" in answer.headers["Cache-Control"]
    stale = client.get(f"{BASE}static/000000000000/{name}")
    assert (stale.status_code, stale.headers["Cache-Control"]) == (200, "no-cache, must-revalidate")


@pytest.mark.parametrize(
    "name",
    ["", "index", "../plugin.py", "..%2fplugin.py", "%2e%2e/plugin.py", "....//plugin.py", "/etc/passwd", "vendor",
     "views/", "../../../../../../etc/passwd", "index.js/", "INDEX.JS", "\x00", "<script>", "x/static/index.js"],
)  # fmt: skip
def test_what_is_no_file_of_the_tab_is_404(client: Client, name: str) -> None:
    for place in ("static/", "static/abc/"):
        assert client.get(f"{BASE}{place}{quote(name, safe='/%.')}").status_code in (404, 308, 301)


def test_routes_answer_below_a_path_prefix(logdir: Path) -> None:
    client = make_client(logdir, "/some/prefix")
    answer = client.get(f"/some/prefix{BASE}run?run={RUN}")
    assert answer.status_code == 200


@pytest.mark.parametrize("route", ["runs", *ALL_ROUTES, "static/x/index.js"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_anything_but_get_is_405(client: Client, route: str, method: str) -> None:
    assert_sentence(client.open(BASE + route, method=method, data=b"x"), 405)
    assert client.open(BASE + route, method=method).headers["Allow"] == "GET, HEAD"


# -- headers -----------------------------------------------------------------------------------------------------------

ADDRESSES = {
    "runs": f"{BASE}runs",
    **{route: f"{BASE}{route}?{urlencode(sample_arguments(route))}" for route in ALL_ROUTES},
    **{f"{route}, 404": f"{BASE}{route}?run=x" for route in ALL_ROUTES},
    **{f"{route}, 400": f"{BASE}{route}" for route in ALL_ROUTES},
    "a file": f"{BASE}static/x/index.js",
    "no file": f"{BASE}static/x/nothing.js",
}
WEAKENING = ("Access-Control-Allow-Origin", "Set-Cookie", "Content-Disposition", "Location", "Refresh")


@pytest.mark.parametrize("what", ADDRESSES)
def test_no_header_is_weaker_than_tensorboards_own(client: Client, what: str) -> None:
    answer = client.get(ADDRESSES[what])
    own = client.get("/data/plugins_listing" if answer.status_code == 200 else "/data/nothing")
    page = client.get("/data/plugin_entry.html?name=dgmtracker")
    for name in ("X-Content-Type-Options", "Cache-Control", "Expires", "X-Frame-Options", "Referrer-Policy"):
        assert answer.headers.get(name) == own.headers.get(name), name
    assert own.headers["X-Content-Type-Options"] == "nosniff"
    assert not set(WEAKENING) & set(answer.headers.keys())
    is_page = answer.mimetype in ("text/html", "application/xhtml+xml", "image/svg+xml")
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert not is_page or answer.headers.get("Content-Security-Policy") == page.headers["Content-Security-Policy"]
    if answer.mimetype.startswith("text/"):
        assert answer.content_type == f"{answer.mimetype}; charset=utf-8"


@pytest.mark.parametrize("what", ADDRESSES)
def test_head_is_get_without_its_body(client: Client, what: str) -> None:
    answer, head = client.get(ADDRESSES[what]), client.head(ADDRESSES[what])
    assert head.data == b""
    assert head.status_code == answer.status_code
    assert dict(head.headers) == dict(answer.headers)


@pytest.mark.parametrize("what", ADDRESSES)
def test_facts_and_sentences_are_compressed_as_tensorboard_does_it(client: Client, what: str) -> None:
    plain, answer = client.get(ADDRESSES[what]), client.get(ADDRESSES[what], headers={"Accept-Encoding": "gzip"})
    is_compressed = answer.headers.get("Content-Encoding") == "gzip"
    assert is_compressed == (answer.mimetype != "application/octet-stream")
    assert (gzip.decompress(answer.data) if is_compressed else answer.data) == plain.data
