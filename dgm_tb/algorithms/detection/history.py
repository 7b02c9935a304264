"""What detectors look at, and what they give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MIN_STEPS = 48
"""Fresh networks are given this many steps before anything is said of them."""


@dataclass(frozen=True)
class Track:
    """One number along the steps; NaN where it was not recorded.

    Attributes:
        steps: ``[T]``, ascending.
        values: ``[T]``.
    """

    steps: Array
    values: Array

    def known(self) -> "Track":
        """Without the steps at which it is not finite."""
        keep = np.isfinite(self.values)
        return self if keep.all() else Track(self.steps[keep], self.values[keep])

    def median(self, part: slice = slice(None)) -> float:
        """Median of a part; NaN if nothing is known of it."""
        values = self.values[part]
        values = values[np.isfinite(values)]
        return float(np.median(values)) if len(values) else float("nan")

    def largest(self) -> float:
        """Largest finite value; NaN if there is none."""
        values = self.values[np.isfinite(self.values)]
        return float(values.max()) if len(values) else float("nan")

    def __len__(self) -> int:
        return len(self.steps)


NOTHING = Track(np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True)
class LayerHistory:
    """What was recorded of one layer.

    Attributes:
        name: Its slot.
        module: Its module.
        steps: Last step of each window ``[W]``.
        low: Smallest activation of every neuron in each window ``[neurons, W]``.
        high: Largest one.
        clips: Whether it is a layer that outputs exact zeros by nature (ReLU).
        type: Class name of its module.
        shape: Shape of its output, examples first.
        tracks: Statistic -> the whole layer along the steps: ``mean``, ``std``, ``min``, ``max`` of its activations,
            ``gradient`` (rms), ``weight`` (norm), ``update`` (ratio).
        neurons: Statistic -> every neuron in each window ``[neurons, W]``: ``mean``, ``std``, ``gradient``, ``weight``.
    """

    name: str
    module: str
    steps: Array
    low: Array
    high: Array
    clips: bool
    type: str = ""
    shape: tuple[int, ...] = ()
    tracks: Mapping[str, Track] = field(default_factory=dict)
    neurons: Mapping[str, Array] = field(default_factory=dict)

    def track(self, statistic: str) -> Track:
        """The whole layer along the steps; empty if that was not recorded."""
        return self.tracks.get(statistic, NOTHING)

    @property
    def has_weights(self) -> bool:
        """Whether neurons of it have incoming weights."""
        return len(self.track("weight")) > 0

    def size(self) -> Track:
        """Root mean square of its activations along the steps."""
        mean, std = self.track("mean"), self.track("std")
        return Track(mean.steps, np.hypot(mean.values, std.values)) if len(mean) == len(std) else NOTHING

    def extreme(self) -> Track:
        """Largest magnitude of its activations along the steps."""
        low, high = self.track("min"), self.track("max")
        return Track(low.steps, np.maximum(np.abs(low.values), np.abs(high.values)))

    def gradient_norm(self) -> Track:
        """Norm of the loss's gradient with respect to all its activations, along the steps.

        It compares layers of different sizes: what flows back through a layer keeps its norm, not its mean square.
        """
        rms = self.track("gradient")
        return Track(rms.steps, rms.values * float(np.sqrt(np.prod(self.shape, dtype=float)))) if len(rms) else NOTHING


@dataclass(frozen=True)
class History:
    """What detectors look at.

    Attributes:
        layers: Layers in data-flow order, up to the first non-finite step.
        losses: Name -> steps and values, likewise.
        nodes: DAG node id -> its kind and module path.
        parents: DAG node id -> ids of the nodes it takes its inputs from.
        ops: DAG node id -> the class or function it is.
        examples: Layer -> largest ``|activation|`` of each example in the last steps ``[steps, examples]``.
        idle: What the callback saw of parameters that do not train: module -> ``detached`` or ``left out``.
        explosions: What the callback saw of exploding gradients: step, module, and the numbers.
        nonfinite_at: First non-finite step; None if there is none.
        blamed: First and last step of each example or batch that was found guilty while training.
    """

    layers: Sequence[LayerHistory]
    losses: Mapping[str, tuple[Array, Array]]
    nodes: Mapping[str, tuple[str, str]]
    parents: Mapping[str, Sequence[str]]
    ops: Mapping[str, str] = field(default_factory=dict)
    examples: Mapping[str, Array] = field(default_factory=dict)
    idle: Mapping[str, str] = field(default_factory=dict)
    explosions: Sequence[tuple[int, str, Mapping[str, Any]]] = ()
    nonfinite_at: int | None = None
    blamed: Sequence[tuple[int, int]] = ()

    def kind(self, node: str) -> str:
        """Kind of a DAG node; "" if it is not known."""
        return self.nodes.get(node, ("", ""))[0]

    @property
    def last_step(self) -> int:
        """The last step that anything was recorded of; -1 if nothing was."""
        ends = [int(layer.steps[-1]) for layer in self.layers if len(layer.steps)]
        ends += [int(steps[-1]) for steps, _ in self.losses.values() if len(steps)]
        return max(ends, default=-1)

    @property
    def weighted(self) -> list[LayerHistory]:
        """The layers with weights; of several calls of a module, the first."""
        found: dict[str, LayerHistory] = {}
        for layer in self.layers:
            if layer.has_weights:
                found.setdefault(layer.module, layer)
        return list(found.values())


@dataclass(frozen=True)
class Detection:
    """A finding as a detector gives it; fields as in ``records.Finding``."""

    kind: str
    severity: str
    step: int
    first_step: int
    last_step: int
    module: str
    summary: str
    modules: list[str] = field(default_factory=list)
    neurons: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)
    advice: str = ""
