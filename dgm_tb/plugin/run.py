"""One run, read: losses, statistics, dynamics, contributions and findings of all its recordings together."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from dgm_tb.errors import RecordError, StaleIndexError, UnknownNameError
from dgm_tb.graph import Graph, Link
from dgm_tb.plugin import starts, tracks
from dgm_tb.plugin.diagnosis import Diagnosis
from dgm_tb.plugin.discovery import recordings_in
from dgm_tb.plugin.drawing import draw
from dgm_tb.plugin.entry import Entry
from dgm_tb.plugin.recording import Recording
from dgm_tb.plugin.rows import find_layer, neuron_span
from dgm_tb.plugin.series import ContributionMatrix, Dynamics, Series
from dgm_tb.plugin.storage import Place, reason
from dgm_tb.records import STATISTICS, Finding, severity_order

Array = np.ndarray[Any, np.dtype[Any]]
P = ParamSpec("P")
T = TypeVar("T")

DIRECTIONS = ("forward", "backward")
EXAMPLES = ("batch", "abnormal", "normal")
ENDS = ("total", "arrived", "leaked", "stopped", "noise")


def _settled(method: "Callable[Concatenate[Run, P], T]") -> "Callable[Concatenate[Run, P], T]":
    """A method that answers again if a segment was replaced while it read."""

    @wraps(method)
    def answer(run: "Run", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run.settled(lambda: method(run, *args, **kwargs))

    return answer


class Run:
    """All recordings of one run folder; a later one supersedes the earlier ones' steps from where it resumed.

    Args:
        folder: The run folder.
        name: How findings name it.
    """

    def __init__(self, folder: Place, name: str = "") -> None:
        self.folder = folder
        self.name = name or folder.name
        self._recordings: dict[Place, Recording] = {}
        self._trouble: str | None = None
        self._diagnosis = Diagnosis()
        self.refresh()

    def refresh(self) -> None:
        """Take in what was written since."""
        try:
            places, self._trouble = recordings_in(self.folder), None
        except OSError as error:  # a storage that does not answer now may do so later
            places, self._trouble = [], f"{self.folder} can't be read: {reason(error)}"
        for place in places:
            self._recordings.setdefault(place, Recording(place))
        for recording in list(self._recordings.values()):
            recording.refresh()

    def settled(self, answer: Callable[[], T]) -> T:
        """What ``answer`` returns; asked for again where a segment was replaced while it was read.

        Raises:
            StaleIndexError: If segments go faster than they can be read.
        """
        for _ in range(4):
            try:
                return answer()
            except StaleIndexError:
                self.refresh()
        return answer()

    # -- what there is -------------------------------------------------------------------------------------------------

    @property
    def recordings(self) -> list[Recording]:
        """The recordings, oldest first."""
        return starts.in_order(list(self._recordings.values()))

    @property
    def revision(self) -> str:
        """Changes exactly when something new was read, or the detectors found something else in it."""
        n_recordings, n_read = self.read_revision
        return f"{n_recordings}.{n_read + self._diagnosis.change}"

    @property
    def read_revision(self) -> tuple[int, int]:
        """Changes exactly when something new was read."""
        found = list(self._recordings.values())
        return len(found), sum(recording.revision for recording in found)

    @property
    @_settled
    def graph(self) -> Graph:
        """The newest traced graph."""
        graphs = [recording.graph for recording in self.recordings]
        return next((graph for graph in reversed(graphs) if graph.layers or graph.nodes), Graph())

    @property
    def layers(self) -> list[str]:
        """Slots with neurons, in data-flow order."""
        return [layer.name for layer in self.graph.flow_order()]

    @property
    def findings(self) -> list[Finding]:
        """Everything found, worst first, then earliest first."""
        return [finding for _, finding in self.numbered_findings()]

    @_settled
    def numbered_findings(self) -> list[tuple[str, Finding]]:
        """The findings with their ids, unique within the run: the callback's, and the detectors'."""
        found = self.recorded_findings()
        for finding in self._diagnosis.findings(self):
            found[f"{finding.kind}-{finding.module}"] = finding
        return sorted(found.items(), key=lambda item: severity_order(item[1]))

    @_settled
    def recorded_findings(self) -> dict[str, Finding]:
        """What the callback found while training, by id.

        Of a later recording, its number stands before the id: an id stays what it is when another recording begins.
        """
        found: dict[str, Finding] = {}
        for number, (recording, limit) in enumerate(self.spans()):
            for entry in recording.entries("finding"):
                body = entry.body
                try:
                    finding = replace(Finding.from_json(body["finding"]), run=self.name)
                except (RecordError, TypeError, AttributeError):
                    continue
                if finding.step < limit:
                    found[f"{number}-{body['id']}" if number else str(body["id"])] = finding
        return found

    @property
    @_settled
    def losses(self) -> dict[str, Series]:
        """Every loss by name: returned (``loss``), logged, and each manual backward pass (``backward.0``, ...)."""
        return tracks.losses(list(self.spans()))

    @property
    @_settled
    def skipped_steps(self) -> Array:
        """Steps in which a gradient scaler left an optimizer step out, as a gradient had overflowed ``[steps]``."""
        return tracks.skipped_steps(list(self.spans()))

    @property
    def snapshots(self) -> list[int]:
        """Steps with contribution matrices of the whole batch."""
        found = self._entries("contribution", samples="batch")
        return sorted({entry.last_step for entry, limit in found if entry.last_step < limit})

    @property
    def polyline_quantities(self) -> set[str]:
        """Quantities with neurons at full step resolution."""
        return {str(of) for recording in self.recordings for of, _ in recording.variants("polylines")}

    @property
    @_settled
    def notes(self) -> list[str]:
        """What the callback said could not be recorded, and what this version could not read; each said once."""
        found = [f"step {entry.last_step}: {entry.body['text']}" for entry, _ in self._entries("note")]
        recordings = self.recordings
        troubles = starts.at_once(recordings), self._trouble, self._diagnosis.trouble
        found += [text for text in troubles if text is not None]
        for recording in recordings:
            found += recording.troubles
            found += starts.newer(recording)
        return list(dict.fromkeys(found))

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """Bytes that could not be read."""
        return [gap for recording in self.recordings for gap in recording.gaps]

    @property
    def steps(self) -> tuple[int, int] | None:
        """First and last step with a loss or a statistic; None if there is none."""
        spans = [(recording.steps, limit) for recording, limit in self.spans()]
        found = [(steps[0], min(steps[1], limit - 1)) for steps, limit in spans if steps and steps[0] < limit]
        return (min(first for first, _ in found), int(max(last for _, last in found))) if found else None

    @property
    def ended(self) -> str | None:
        """Why the newest recording ended (``finished``, ``exception``, ``interrupted``), or None while it goes on."""
        recordings = self.recordings
        found = recordings[-1].entries("end") if recordings else []
        return str(found[-1].body["reason"]) if found else None

    @property
    def last_wall_time(self) -> float | None:
        """When the newest record was written, in seconds since 1970."""
        kinds = ("loss", "layer_statistics", "end", "recording")
        newest = [found[-1] for recording in self.recordings for kind in kinds if (found := recording.entries(kind))]
        return max((entry.wall_time for entry in newest), default=None)

    # -- numbers -------------------------------------------------------------------------------------------------------

    @_settled
    def layer_statistics(self, layer: str, quantity: str = "activation") -> dict[str, Series]:
        """Statistics of a whole layer at every observed step.

        Args:
            layer: A name in ``layers``.
            quantity: ``activation``, ``gradient``, ``weight`` or ``update``.

        Raises:
            UnknownNameError: If the recording has no such layer or quantity.
        """
        found = tracks.layer_statistics(list(self.spans()), layer, quantity)
        if not found:
            raise self.missing(layer, quantity)
        return found

    @_settled
    def dynamics(self, layer: str, quantity: str = "activation", statistic: str | None = None) -> Dynamics:
        """The history of every neuron of a layer, at the finest detail kept for all of them.

        Args:
            layer: A name in ``layers``.
            quantity: ``activation``, ``gradient``, ``weight`` or ``update``.
            statistic: One of ``records.STATISTICS[quantity]``; its first one by default.

        Raises:
            UnknownNameError: If the recording has no such layer, quantity or statistic.
        """
        statistic = statistic or (STATISTICS[quantity][0].name if quantity in STATISTICS else "")
        found = tracks.windows(list(self.spans()), layer, quantity, statistic)
        if found is None:
            raise self.missing(layer, quantity)
        lines = dict(zip(found.aggregates, np.moveaxis(found.values.astype(np.float32), (2, 1), (0, 1)), strict=True))
        neurons = np.arange(found.values.shape[1])
        bounds = found.bounds
        return Dynamics(bounds[:, 1], lines["main"], neurons, bounds[:, 0], lines.get("min"), lines.get("max"))

    @_settled
    def polylines(
        self, layer: str, quantity: str = "activation", k: int = 64, first: int | None = None, last: int | None = None
    ) -> Dynamics:
        """A blue-noise sample of a layer's neurons, and every outlier, at full step resolution where that was kept.

        Args:
            layer: A name in ``layers``.
            quantity: ``activation``, ``gradient``, ``weight`` or ``update``.
            k: Neurons to draw; outliers come on top.
            first: First step of the range that is sampled and returned; all of them by default.
            last: Last step of it.

        Returns:
            Their histories; where a neuron was not kept at full resolution, the value of its window. Outliers first.

        Raises:
            UnknownNameError: If the recording has no such layer or quantity.
        """
        spans = list(self.spans())
        low, high = (first if first is not None else -np.inf), (last if last is not None else np.inf)
        statistic = STATISTICS[quantity][0].name if quantity in STATISTICS else ""
        found = tracks.windows(spans, layer, quantity, statistic, first=low, last=high)
        if found is None:
            raise self.missing(layer, quantity)
        drawn = draw(spans, layer, quantity, found, k, low, high)
        points = tracks.polyline_points(spans, layer, quantity, low, high)
        lines = tracks.at_every_step(spans, quantity, found, drawn.neurons, points, low, high)
        values = np.ascontiguousarray(lines.values.T)
        return Dynamics(lines.steps, values, drawn.neurons, lines.steps, outliers=drawn.is_outlier)

    @_settled
    def contribution(
        self, source: str, target: str, step: int, direction: str = "forward", samples: str = "batch"
    ) -> ContributionMatrix:
        """Who contributed to whom between two neighbouring layers.

        Args:
            source: The earlier layer.
            target: The later one.
            step: A snapshot in ``snapshots``; for the examples of a finding, its step.
            direction: ``forward``: relevance by LRP epsilon with the target's own output as relevance, summed over the
                examples; ``backward``: input times weight times the gradient of the target.
            samples: ``batch``, ``abnormal`` or ``normal``.

        Returns:
            ``[target neurons, source neurons]``, float32, raw; its ``scaled`` is in [-1, 1].

        Raises:
            UnknownNameError: If the layers are no neighbours, or the step has no such matrix.
        """
        for name, known in ((direction, DIRECTIONS), (samples, EXAMPLES)):
            if name not in known:
                raise UnknownNameError(f"no contributions {name!r}; there are {', '.join(known)}")
        link = self.link(source, target)
        found = self._contributions(link, direction, samples)
        if step not in found:
            steps = ", ".join(map(str, sorted(found))) or "none"
            raise UnknownNameError(
                f"no {direction} contributions of {samples} into {target!r} at step {step}; snapshots: {steps}"
            )
        body, matrix = found[step].body, found[step].read("values").astype(np.float32)
        if body.get("reason"):
            raise UnknownNameError(f"no contributions from {source!r} to {target!r} at step {step}: {body['reason']}")
        layers = find_layer(self.graph, source), find_layer(self.graph, target)
        n_source, n_target = (layer.neurons if layer is not None else -1 for layer in layers)
        group = max(link.group, 1)
        part = matrix[:, link.start : link.start + n_source * group]
        if part.shape != (n_target, n_source * group):
            raise UnknownNameError(
                f"the matrix {list(matrix.shape)} of {target!r} at step {step} does not fit its link from {source!r}"
            )
        result = ContributionMatrix(part.reshape(n_target, n_source, group).sum(2), step, link.kind)
        if "relevance" in found[step].arrays:
            result.relevance = found[step].read("relevance").astype(np.float32)
        result.ended = {key: body[key] for key in ENDS if key in body}
        return result

    def link(self, source: str, target: str) -> Link:
        """The link between two layers.

        Raises:
            UnknownNameError: If there is none; says why, and which layers do lead there.
        """
        graph = self.graph
        for link in graph.links:
            if (link.source, link.target) == (source, target):
                return link
        known = ", ".join(link.source for link in graph.links if link.target == target) or "none"
        reason = graph.no_contribution.get(target, "")
        raise UnknownNameError(
            f"no contributions from {source!r} to {target!r}; layers that lead to {target!r}: {known}"
            + (f" ({reason})" if reason else "")
        )

    def contribution_steps(self, link: Link, direction: str, samples: str) -> list[int]:
        """Steps with a matrix of the layers that a link joins."""
        return sorted(self._contributions(link, direction, samples))

    def evidence(self, kind: str, finding: str) -> list[Entry]:
        """Records of a kind (``samples``, ``relevance``) that belong to a finding, by its id."""
        spans = list(self.spans())
        number, _, name = finding.partition("-")
        if number.isascii() and number.isdigit() and len(number) < 10 and int(number) < len(spans):
            return spans[int(number)][0].entries(kind, finding=name)
        return spans[0][0].entries(kind, finding=finding) if spans else []

    # -- internals -----------------------------------------------------------------------------------------------------

    def spans(self) -> Iterator[tuple[Recording, float]]:
        """Each recording with the step from which a later one supersedes it.

        A start that has recorded no step yet (or never did) supersedes nothing.
        """
        found: list[tuple[Recording, float]] = []
        limit = np.inf
        for recording in reversed(self.recordings):
            found.append((recording, limit))
            if recording.steps is not None:
                limit = min(limit, float(recording.resume_step))
        yield from reversed(found)

    def _entries(self, kind: str, **wanted: Any) -> list[tuple[Entry, float]]:
        return [
            (entry, limit)
            for recording, limit in self.spans()
            for entry in recording.entries(kind, **wanted)
            if entry.first_step < limit
        ]

    def _contributions(self, link: Link, direction: str, samples: str) -> dict[int, Entry]:
        columns = {"unflatten": "position", "exact": "neurons"}.get(link.kind, "channel")
        source = link.source if link.kind == "exact" else None
        wanted = {"target": link.target, "direction": direction, "samples": samples}
        found = self._entries("contribution", **wanted, columns=columns, source=source)
        return {entry.last_step: entry for entry, limit in found if entry.last_step < limit}

    def missing(self, layer: str, quantity: str) -> UnknownNameError:
        """The error for a layer or quantity that is not there: says what is."""
        graph = self.graph
        if quantity not in STATISTICS:
            return UnknownNameError(f"no quantity {quantity!r}; there are {', '.join(STATISTICS)}")
        if layer not in {known.name for known in graph.layers}:
            return UnknownNameError(f"no layer {layer!r}; there are {', '.join(self.layers) or 'none'}")
        if neuron_span(graph, layer, quantity) is None:
            return UnknownNameError(f"layer {layer!r} has no {quantity}: it has no weights of its own")
        return UnknownNameError(f"no {quantity} of layer {layer!r} has been recorded yet")
