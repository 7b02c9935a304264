"""Detectors: each looks at a whole recording for one kind of trouble. Pure functions of recorded numbers.

``DETECTORS`` names them all. A false alarm costs more trust than a miss: every threshold says why healthy trainings
stay on the other side of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MIN_STEPS = 48
"""Fresh networks are given this many steps before anything is said of them."""

DEAD_SHARE = 0.05
"""Up to one neuron in twenty dead from the start is not mentioned."""

BURIED = 2.0
"""Neurons that die by an unlucky initial weight stay close below zero and may come back (a fifth of a small healthy
layer can be such); one whose input stays further below than this many times what its neighbours span is broken."""

HALF_DEAD = 0.5
"""A layer that lost half of its neurons from the start is broken whatever their inputs are."""

DIED_SHARE = 0.9
"""A layer that lost nine neurons in ten on the way is beyond the pruning that healthy trainings show (below 60 %)."""

PERFECT_LOSS = 0.02
"""A discriminator whose loss stays below this tells real from generated without fail; healthy ones stay above 0.2."""


@dataclass(frozen=True)
class LayerHistory:
    """Recorded windows of one layer.

    Attributes:
        name: Its slot.
        module: Its module.
        steps: Last step of each window ``[W]``.
        low: Smallest activation of every neuron in each window ``[neurons, W]``.
        high: Largest one.
        clips: Whether it is a layer that outputs exact zeros by nature (ReLU).
    """

    name: str
    module: str
    steps: Array
    low: Array
    high: Array
    clips: bool


@dataclass(frozen=True)
class History:
    """What detectors look at.

    Attributes:
        layers: Layers in data-flow order, up to the first non-finite step.
        losses: Name -> steps and values, likewise.
        nodes: DAG node id -> its kind and module path.
        parents: DAG node id -> ids of the nodes it takes its inputs from.
    """

    layers: Sequence[LayerHistory]
    losses: Mapping[str, tuple[Array, Array]]
    nodes: Mapping[str, tuple[str, str]]
    parents: Mapping[str, Sequence[str]]


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
    evidence: dict[str, Any] = field(default_factory=dict)
    advice: str = ""


def dead_units(history: History) -> list[Detection]:
    """Neurons of clipping layers whose output was zero for every example.

    Two patterns: dead from the first window on, in more than ``DEAD_SHARE`` of a layer; or at least ``DIED_SHARE`` of a
    layer dead at the end. A neuron counts only if its smallest and largest activation were exactly zero.
    """
    found = []
    for layer in history.layers:
        if not layer.clips or len(layer.steps) < 3 or layer.steps[-1] + 1 < MIN_STEPS:
            continue
        dead = (layer.low == 0) & (layer.high == 0)
        always = np.flatnonzero(dead.all(1))
        at_end = np.flatnonzero(dead[:, -max(1, dead.shape[1] // 4) :].all(1))
        if len(always) > DEAD_SHARE * len(dead):
            buried = _buried(history, layer, always)
            is_broken = len(buried) > DEAD_SHARE * len(dead) or len(always) >= HALF_DEAD * len(dead)
            named = buried if len(buried) and len(always) < HALF_DEAD * len(dead) else always
            found.append(_dead(layer, named, 0, "never", len(dead), "warning" if is_broken else "info"))
        elif len(at_end) >= DIED_SHARE * len(dead):
            alive = ~dead[at_end].all(0)
            last_alive = int(np.flatnonzero(alive)[-1]) if alive.any() else -1
            found.append(_dead(layer, at_end, int(layer.steps[max(last_alive, 0)]), "no longer", len(dead), "warning"))
    return found


def _buried(history: History, layer: LayerHistory, dead: Array) -> Array:
    """Those of the dead neurons whose input stayed far below zero, as the layer before shows it."""
    sources = [before for before in history.layers if before.name in history.parents.get(layer.name, ())]
    source = next((before for before in sources if len(before.high) == len(layer.high)), None)
    if source is None or not source.high.size:
        return np.zeros(0, np.int64)
    alive = np.setdiff1d(np.arange(len(layer.high)), dead)
    if not len(alive):
        return dead
    span = float(np.median(np.maximum(np.abs(source.low[alive]), np.abs(source.high[alive])).max(1)))
    return np.asarray(dead[source.high[dead].max(1) < -BURIED * span])


def _dead(layer: LayerHistory, neurons: Array, since: int, when: str, n_neurons: int, severity: str) -> Detection:
    everything = len(neurons) == n_neurons
    who = f"none of its {n_neurons} neurons" if everything else f"{len(neurons)} of its {n_neurons} neurons"
    fires = ("fires" if everything else "never fire") if when == "never" else "fires any more" if everything else "died"
    return Detection(
        kind="dead_units",
        severity="error" if everything else severity,
        step=since,
        first_step=since,
        last_step=int(layer.steps[-1]),
        module=layer.module,
        neurons=[int(n) for n in neurons[:64]],
        summary=f"{layer.module}: {who} {fires}: zero for every example, up to step {layer.steps[-1]}",
        evidence={"dead": len(neurons), "neurons": n_neurons, "share": len(neurons) / n_neurons},
        advice="look at the biases and at the scale of the layer before it; a smaller learning rate, LeakyReLU or a "
        "normalisation layer keeps neurons alive",
    )


def gan_imbalance(history: History) -> list[Detection]:
    """A discriminator that tells real from generated without fail, so that the generator learns nothing.

    The discriminator is what takes in the detached output of another module and is called more than once per step;
    its loss is the one computed from that call. Only losses that never go below zero are judged (not WGAN's).
    """
    detached = [node for node, (kind, _) in history.nodes.items() if kind == "detach"]
    losses = {node: _upstream(history, node) for node in history.nodes if node == "loss" or node.startswith("loss@")}
    for node, upstream in losses.items():
        name = f"backward.{node.partition('@')[2] or 0}"
        is_cut = any(cut in upstream for cut in detached)
        first = _perfect_since(*history.losses[name]) if is_cut and name in history.losses else None
        if first is None:
            continue
        before = {parent for cut in detached for parent in _upstream(history, cut)}
        discriminator = _common_module(history, [parent for parent in upstream - before if "@" in parent])
        generator = _common_module(history, list(before))
        trains_generator = any(
            not any(cut in other for cut in detached) and {discriminator, generator} <= _modules(history, other)
            for other in losses.values()
        )
        if discriminator and generator and trains_generator:
            return [_imbalance(discriminator, generator, name, first, *history.losses[name])]
    return []


def _perfect_since(steps: Array, values: Array) -> int | None:
    """The step from which a loss that began high stays near zero to the end; None if it does not."""
    if len(values) < MIN_STEPS or not np.nanmin(values) >= 0 or not values[0] > 5 * PERFECT_LOSS:
        return None
    late = values[-max(MIN_STEPS // 2, len(values) // 4) :]
    if not np.median(late) < PERFECT_LOSS:
        return None
    return int(steps[int(np.argmax(values < PERFECT_LOSS))])


def _imbalance(discriminator: str, generator: str, name: str, first: int, steps: Array, values: Array) -> Detection:
    late = float(np.median(values[-max(MIN_STEPS // 2, len(values) // 4) :]))
    return Detection(
        kind="gan_imbalance",
        severity="error",
        step=first,
        first_step=first,
        last_step=int(steps[-1]),
        module=discriminator,
        modules=[generator],
        summary=f"{discriminator} tells real from generated without fail: its loss is {late:.2g}, below {PERFECT_LOSS} "
        f"since step {first}, so {generator} gets no useful gradient",
        evidence={"loss": name, "median_loss": late, "first_loss": float(values[0])},
        advice="weaken the discriminator (fewer steps, smaller learning rate, dropout, label smoothing, noise on its "
        "inputs) or use a loss that does not saturate",
    )


DETECTORS: dict[str, Callable[[History], list[Detection]]] = {
    "dead_units": dead_units,
    "gan_imbalance": gan_imbalance,
}
"""Kind of finding -> its detector."""


def detect(history: History) -> list[Detection]:
    """Run every detector."""
    return [detection for detector in DETECTORS.values() for detection in detector(history)]


def _upstream(history: History, node: str) -> set[str]:
    """The node and everything it depends on."""
    seen, queue = {node}, [node]
    while queue:
        for parent in history.parents.get(queue.pop(), ()):
            if parent not in seen:
                seen.add(parent)
                queue.append(parent)
    return seen


def _modules(history: History, nodes: set[str]) -> set[str]:
    """Every module, and every module around it, that ran one of these nodes."""
    paths = [node.partition("@")[0].split(".") for node in nodes if history.nodes[node][0] == "module"]
    return {".".join(path[:n]) for path in paths for n in range(1, len(path) + 1)}


def _common_module(history: History, nodes: Sequence[str]) -> str:
    """The innermost module that holds all these module calls."""
    paths = [node.partition("@")[0].split(".") for node in nodes if history.nodes[node][0] == "module"]
    if not paths:
        return ""
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)
