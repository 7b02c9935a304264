"""The TensorBoard plugin: routes, and which runs there are. GET only, no side effects, no paths from clients."""

import hashlib
import mimetypes
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tensorboard.backend import http_util
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from werkzeug import Request, Response, wrappers

from dgm_tb.errors import DgmError, UnknownNameError
from dgm_tb.plugin import charts, contributions, views
from dgm_tb.plugin.discovery import find_runs
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.wire import Arguments, BadArgument, pack
from dgm_tb.records import PLUGIN_NAME

STATIC = Path(__file__).parent / "static"
REFRESH_SECONDS = 1.0
DISCOVERY_SECONDS = 5.0
YEAR_SECONDS = 365 * 24 * 3600

JSON_ROUTES: dict[str, Callable[[Run, Arguments], Any]] = {
    "run": views.run_facts,
    "graph": views.graph,
    "findings": views.findings,
}
ARRAY_ROUTES: dict[str, Callable[[Run, Arguments], views.Answer]] = {
    "losses": charts.losses,
    "minis": charts.minis,
    "dynamics": charts.dynamics,
    "neurons": views.neurons,
    "contributions": contributions.contributions,
    "matrix": contributions.matrix,
    "samples": views.samples,
}

_MIME_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".json": "application/json"}


class DGMTrackerPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """The tab *DGMTracker*.

    Args:
        context: TensorBoard's.
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._runs = Runs(context)
        self._version, self._files = _static_files()

    def get_plugin_apps(self) -> dict[str, Any]:
        """Every route; see http_api.md."""
        apps = {"/runs": _route(self._list_runs), "/static/*": _route(self._serve_static)}
        apps |= {f"/{name}": _route(partial(self._answer_json, view)) for name, view in JSON_ROUTES.items()}
        apps |= {f"/{name}": _route(partial(self._answer_arrays, view)) for name, view in ARRAY_ROUTES.items()}
        return apps

    def is_active(self) -> bool:
        """Always: a log folder without records shows how to record."""
        return True

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Name of the tab and its entry module."""
        return base_plugin.FrontendMetadata(
            es_module_path=f"/static/{self._version}/index.js", tab_name="DGMTracker", disable_reload=False
        )

    def _list_runs(self, request: Request) -> Response:
        return _respond(request, self._runs.listed(), "application/json")

    def _answer_json(self, view: Callable[[Run, Arguments], Any], request: Request) -> Response:
        arguments = _arguments(request)
        return _respond(request, view(self._runs.get(arguments.text("run")), arguments), "application/json")

    def _answer_arrays(self, view: Callable[[Run, Arguments], views.Answer], request: Request) -> Response:
        arguments = _arguments(request)
        facts, arrays = view(self._runs.get(arguments.text("run")), arguments)
        return _respond(request, pack(facts, arrays), "application/octet-stream")

    def _serve_static(self, request: Request) -> Response:
        version, _, name = request.path.rpartition("/static/")[2].partition("/")
        path = self._files.get(name)
        if path is None:
            return _respond(request, f"the tab has no file {name[:80]!r}", "text/plain", code=404)
        mime = _MIME_TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "text/plain"
        return _respond(request, path.read_bytes(), mime, expires=YEAR_SECONDS if version == self._version else 0)


class Runs:
    """The runs below the log folder, found and read again at most every few seconds.

    Args:
        context: TensorBoard's: the log folder, or the folders of ``--logdir_spec``.
    """

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._found: dict[str, Run] = {}
        self._looked = -DISCOVERY_SECONDS
        self._refreshed: dict[str, float] = {}

    def listed(self) -> list[dict[str, Any]]:
        """Facts of every run, recorded or not."""
        self._discover()
        facts = []
        for name in list(self._found):
            run = self.get(name)
            facts.append({**views.summary(run), "run": name})
        known = set(self._found)
        return facts + [{"run": name, "recorded": False} for name in self._unrecorded() if name not in known]

    def get(self, name: str) -> Run:
        """A run, read up to now.

        Raises:
            UnknownNameError: If there is none of that name.
        """
        if name not in self._found:
            self._discover()
        run = self._found.get(name)
        if run is None:
            known = ", ".join(self._found) or "none"
            raise UnknownNameError(f"no recording of a run {name[:80]!r}; there are {known[:400]}")
        now = time.monotonic()
        with self._lock:
            is_due = now - self._refreshed.get(name, -REFRESH_SECONDS) >= REFRESH_SECONDS
            if is_due:
                self._refreshed[name] = now
        if is_due:
            run.refresh()
        return run

    def _discover(self) -> None:
        with self._lock:
            if time.monotonic() - self._looked < DISCOVERY_SECONDS and self._found:
                return
            places = self._places()
            for name, folder in places.items():
                if name not in self._found or self._found[name].folder != folder:
                    self._found[name] = Run(folder, name)
            for name in [name for name in self._found if name not in places]:
                del self._found[name]
            self._looked = time.monotonic()

    def _places(self) -> dict[str, Path]:
        if self._context.logdir:
            return find_runs(Path(self._context.logdir).expanduser())
        multiplexer = getattr(self._context, "multiplexer", None)
        paths = multiplexer.RunPaths() if multiplexer is not None else {}
        return {
            (name if inner == "." else f"{name}/{inner}"): folder
            for name, path in paths.items()
            for inner, folder in find_runs(Path(path)).items()
        }

    def _unrecorded(self) -> list[str]:
        """Runs that TensorBoard knows of, in its own order."""
        provider = getattr(self._context, "data_provider", None)
        if provider is None:
            return []
        try:
            return [run.run_name for run in provider.list_runs(RequestContext(), experiment_id="")]
        except Exception:  # a provider that can't answer leaves the list to our own recordings
            return []


def _route(respond: Callable[[Request], Response]) -> Any:
    """A WSGI application that answers GET and turns our errors into sentences."""

    @wrappers.Request.application
    def application(request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            text = f"this address answers GET only; got {request.method[:20]}"
            return _respond(request, text, "text/plain", code=405)
        try:
            return respond(request)
        except DgmError as error:
            return _respond(request, str(error), "text/plain", code=_status(error))

    return application


def _status(error: DgmError) -> int:
    return 400 if isinstance(error, BadArgument) else 404 if isinstance(error, UnknownNameError) else 422


def _arguments(request: Request) -> Arguments:
    return Arguments({name: values[0] for name, values in request.args.lists()})


def _respond(request: Request, content: Any, mime: str, code: int = 200, expires: int = 0) -> Response:
    response: Response = http_util.Respond(request, content, mime, code=code, expires=expires)
    return response


def _static_files() -> tuple[str, dict[str, Path]]:
    """A short hash of the tab's files, and the files by their path inside the folder."""
    paths = sorted(path for path in STATIC.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(STATIC).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12], {path.relative_to(STATIC).as_posix(): path for path in paths}
