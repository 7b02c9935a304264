"""The TensorBoard plugin: every route of http_api.md. GET only, no side effects, no paths from clients."""

import json
import threading
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import Request, Response, wrappers

from dgm_tb.errors import DgmError
from dgm_tb.plugin import assets

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from dgm_tb.plugin.run import Run
    from dgm_tb.plugin.runs import Runs
    from dgm_tb.plugin.wire import Arguments

PLUGIN_NAME = "dgmtracker"
"""As in ``records``, which is not imported at start."""
YEAR_SECONDS = 365 * 24 * 3600
MAX_RUN_NAME = 1 << 16
MAX_SENTENCE = 1000
"""An error may name all layers there are, and a file may have any number of them, named at any length."""

JSON_ROUTES = {
    "run": "views.run_facts",
    "graph": "views.graph",
    "findings": "views.findings",
    "unusual": "unusual.unusual",
}
ARRAY_ROUTES = {
    "losses": "charts.losses",
    "minis": "charts.minis",
    "dynamics": "charts.dynamics",
    "lines": "questions.lines",
    "density": "questions.density",
    "nearest": "questions.nearest",
    "brush": "questions.brush",
    "similar": "questions.similar",
    "neurons": "views.neurons",
    "contributions": "contributions.contributions",
    "matrix": "contributions.matrix",
    "samples": "views.samples",
}
"""Route -> module and function: from a run and the arguments to facts, or to facts and arrays.

They are imported with the first request: TensorBoard starts without waiting for them (50 ms of CPU).
"""


class DGMTrackerPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """The tab *DGMTracker*.

    Args:
        context: TensorBoard's.
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._found: Runs | None = None
        self._version, self._files = assets.find()

    @property
    def _runs(self) -> "Runs":
        from dgm_tb.plugin.runs import Runs

        with self._lock:
            if self._found is None:
                self._found = Runs(self._context)
        return self._found

    def get_plugin_apps(self) -> dict[str, Any]:
        """Every route; see http_api.md."""
        apps = {"/runs": _route(self._list_runs), "/static/*": _route(self._serve_static)}
        apps |= {f"/{name}": _route(partial(self._answer_json, place)) for name, place in JSON_ROUTES.items()}
        apps |= {f"/{name}": _route(partial(self._answer_arrays, place)) for name, place in ARRAY_ROUTES.items()}
        return apps

    def is_active(self) -> bool:
        """Always: a log folder without records shows how to record."""
        return True

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Name of the tab and its entry module; asked for with every page, so files edited since get a new address."""
        self._version, self._files = assets.find()
        return base_plugin.FrontendMetadata(
            es_module_path=f"/static/{self._version}/index.js", tab_name="DGMTracker", disable_reload=False
        )

    def _list_runs(self, request: Request) -> Response:
        with _quiet():
            return _respond(request, self._runs.listed(), "application/json")

    def _answer_json(self, place: str, request: Request) -> Response:
        run, arguments = self._asked(request)
        with _quiet():
            return _respond(request, run.settled(lambda: view(place)(run, arguments)), "application/json")

    def _answer_arrays(self, place: str, request: Request) -> Response:
        from dgm_tb.plugin.wire import pack

        run, arguments = self._asked(request)
        with _quiet():
            facts, arrays = run.settled(lambda: view(place)(run, arguments))
            return _respond(request, pack(facts, arrays), "application/octet-stream")

    def _asked(self, request: Request) -> "tuple[Run, Arguments]":
        from dgm_tb.plugin.wire import Arguments

        given = dict(request.args.lists())
        arguments = Arguments(
            {name: values[0] for name, values in given.items()}, [name for name in given if len(given[name]) > 1]
        )
        return self._runs.get(arguments.text("run", longest=MAX_RUN_NAME)), arguments

    def _serve_static(self, request: Request) -> Response:
        version, _, name = request.path.partition(f"/{PLUGIN_NAME}/static/")[2].partition("/")
        path = self._files.get(name)
        if path is None:
            return _refuse(request, f"the tab has no file {name[:80]!r}", 404)
        content, mime = assets.served(path)
        return _respond(request, content, mime, expires=YEAR_SECONDS if version == self._version else 0)


def view(place: str) -> "Callable[[Run, Arguments], Any]":
    """The function that answers a route, imported when first asked for."""
    module, _, name = place.partition(".")
    found: Callable[[Run, Arguments], Any] = getattr(import_module(f"dgm_tb.plugin.{module}"), name)
    return found


def _quiet() -> "AbstractContextManager[object]":
    """NaN and Inf are what a recording is about: no warnings of NumPy in TensorBoard's log."""
    from numpy import errstate

    return errstate(all="ignore")


def _route(respond: Callable[[Request], Response]) -> Any:
    """A WSGI application that answers GET and turns our errors into sentences."""

    @wrappers.Request.application
    def application(request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            response = _refuse(request, f"this address answers GET only; got {request.method[:20]}", 405)
            response.headers["Allow"] = "GET, HEAD"
            return response
        try:
            return respond(request)
        except DgmError as error:
            return _refuse(request, str(error), _status(error))

    return application


def _status(error: DgmError) -> int:
    """400 for a wrong argument; 404 for what is not there, or can't be read (any more)."""
    from dgm_tb.plugin.wire import BadArgument

    return 400 if isinstance(error, BadArgument) else 404


def _refuse(request: Request, sentence: str, code: int) -> Response:
    """A response that says what is wrong."""
    if len(sentence) > MAX_SENTENCE:
        sentence = f"{sentence[: MAX_SENTENCE - 2]} …"
    return _respond(request, sentence, "text/plain", code=code)


def _respond(request: Request, content: Any, mime: str, code: int = 200, expires: int = 0) -> Response:
    """A response of bytes, a text, or facts; http_util can't encode every text that a file may hold."""
    if mime == "application/json":
        from dgm_tb.records import as_json

        content = json.dumps(as_json(content), allow_nan=False)
    if isinstance(content, str):
        content = content.encode("utf-8", "replace")
    response: Response = http_util.Respond(request, content, mime, code=code, expires=expires)
    return response
