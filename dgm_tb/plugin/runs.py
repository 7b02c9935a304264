"""Which runs there are below the log folder, each read up to now; found and read again at most every few seconds."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin

from dgm_tb.errors import NoRecordingError, UnknownNameError
from dgm_tb.plugin import views
from dgm_tb.plugin.discovery import find_runs, natural_key
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.storage import Place, place_of, reason

REFRESH_SECONDS = 1.0
DISCOVERY_SECONDS = 5.0
REMOTE_SECONDS = 10.0
"""Either of them, where asking costs requests."""
DISCOVERY_SHARE = 0.05
"""Part of the time that may go into walking the log folder, however large it is."""
LISTING_SECONDS = 0.7
"""A list of runs waits no longer for recordings that are still being indexed."""
MAX_THREADS = 4


class Runs:
    """The runs below the log folder.

    Args:
        context: TensorBoard's: the log folder, or the folders of ``--logdir_spec``.
    """

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._found: dict[str, _Followed] = {}
        self._next_look = 0.0
        self._threads = ThreadPoolExecutor(MAX_THREADS, "dgm_tb-index")

    def listed(self) -> list[dict[str, Any]]:
        """Facts of every run, recorded or not, in natural order of names."""
        self._discover()
        found = self._found
        pending = [
            futures[1] for followed in found.values() if (futures := followed.refresh(self._threads)) is not None
        ]
        wait(pending, LISTING_SECONDS)
        facts = {name: {**followed.summary(), "run": name} for name, followed in found.items()}
        for name in self._known_to_tensorboard():
            facts.setdefault(name, {"run": name, "recorded": False})
        return [facts[name] for name in sorted(facts, key=natural_key)]

    def get(self, name: str) -> Run:
        """A run, read up to now.

        Raises:
            UnknownNameError: If there is none of that name.
        """
        if name not in self._found:
            self._discover()
        followed = self._found.get(name)
        if followed is None:
            known = ", ".join(self._found) or "none"
            raise UnknownNameError(f"no recording of a run {name[:80]!r}; there are {known[:400]}")
        futures = followed.refresh(self._threads)
        if futures is not None:
            futures[0].result()
        if followed.run is None:
            followed.work()
        assert followed.run is not None
        return followed.run

    def _discover(self) -> None:
        with self._lock:
            if time.monotonic() < self._next_look:
                return
            roots = self._roots()
            self._next_look = float("inf")
            is_remote = not all(isinstance(root, Path) for root in roots.values())
            if is_remote and self._found:  # nobody waits for what is known already
                self._threads.submit(self._look, roots, REMOTE_SECONDS)
            else:
                self._look(roots, REMOTE_SECONDS if is_remote else DISCOVERY_SECONDS)

    def _look(self, roots: dict[str, Place], rest: float) -> None:
        began = time.monotonic()
        try:
            places, trouble = _places(roots)
            before = self._found
            found = {
                name: before[name] if name in before and before[name].folder == folder else _Followed(folder, name)
                for name, folder in places.items()
            }
            self._found = found if trouble is None else {**before, **found}
        finally:
            now = time.monotonic()
            self._next_look = now + max(rest, (now - began) / DISCOVERY_SHARE)
        if trouble is not None and not self._found:
            raise NoRecordingError(trouble)

    def _roots(self) -> dict[str, Place]:
        """Where to look, each with the name that stands before its runs."""
        if self._context.logdir:
            return {".": place_of(self._context.logdir)}
        multiplexer = getattr(self._context, "multiplexer", None)
        paths = multiplexer.RunPaths() if multiplexer is not None else {}
        return {name: place_of(path) for name, path in paths.items()}

    def _known_to_tensorboard(self) -> list[str]:
        provider = getattr(self._context, "data_provider", None)
        if provider is None:
            return []
        try:
            return [run.run_name for run in provider.list_runs(RequestContext(), experiment_id="")]
        except Exception:  # a provider that can't answer leaves the list to our own recordings
            return []


def _places(roots: dict[str, Place]) -> tuple[dict[str, Place], str | None]:
    """The runs below some folders, and which of these did not answer."""
    places: dict[str, Place] = {}
    trouble = None
    for name, root in roots.items():
        try:
            runs = find_runs(root)
        except OSError as error:
            trouble = f"{root} can't be read: {reason(error)}"
            continue
        for inner, folder in runs.items():
            places[name if inner == "." else f"{name}/{inner}".replace("/./", "/").removeprefix("./")] = folder
    return {name: places[name] for name in sorted(places, key=natural_key)}, trouble


class _Followed:
    """One run folder, indexed and summed up in threads of others."""

    def __init__(self, folder: Place, name: str) -> None:
        self.folder = folder
        self.run: Run | None = None
        self._name = name
        self._lock = threading.Lock()
        self._refreshed = -float("inf")
        self._indexed: Future[None] | None = None
        self._summed_up: Future[None] | None = None
        self._summary = views.UNREAD

    def refresh(self, threads: ThreadPoolExecutor) -> tuple[Future[None], Future[None]] | None:
        """Begin to read what was written since, if the last time is long enough ago.

        Returns:
            What is done when it is read, and when the summary is of it; None if nothing was begun and nothing is left.
        """
        with self._lock:
            rest = REFRESH_SECONDS if isinstance(self.folder, Path) else REMOTE_SECONDS
            is_read = self._indexed is None or self._indexed.done()
            if is_read and time.monotonic() - self._refreshed >= rest:
                self._refreshed = time.monotonic()
                self._indexed = threads.submit(self.work)
                if self._summed_up is None or self._summed_up.done():  # it begins later: no thread waits in vain
                    self._summed_up = threads.submit(self._sum_up, self._indexed)
            futures = self._indexed, self._summed_up
            if futures[0] is None or futures[1] is None or (futures[0].done() and futures[1].done()):
                return None
            return futures[0], futures[1]

    def work(self) -> None:
        """Read what was written since."""
        if self.run is None:
            self.run = Run(self.folder, self._name)
        else:
            self.run.refresh()

    def _sum_up(self, indexed: Future[None]) -> None:
        indexed.result()
        run = self.run
        assert run is not None
        self._summary = run.settled(lambda: views.summary(run))

    def summary(self) -> dict[str, Any]:
        """The facts of the run so far."""
        future = self._summed_up
        is_indexing = future is not None and not future.done()
        if future is not None and not is_indexing:
            future.result()
        return {**self._summary, "indexing": is_indexing}
