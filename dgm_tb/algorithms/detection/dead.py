"""Neurons that never fire."""

import numpy as np

from dgm_tb.algorithms.detection.flow import children
from dgm_tb.algorithms.detection.history import MIN_STEPS, Array, Detection, History, LayerHistory

DEAD_SHARE = 0.05
"""Up to one neuron in twenty dead from the start is not mentioned."""

BURIED = 2.0
"""Neurons that die by an unlucky initial weight stay close below zero and may come back (a fifth of a small healthy
layer can be such); one whose input stays further below than this many times what its neighbours span is broken."""

HALF_DEAD = 0.5
"""A layer that lost half of its neurons from the start is broken whatever their inputs are."""

DIED_SHARE = 0.9
"""A layer that lost nine neurons in ten on the way is beyond the pruning that healthy trainings show (below 60 %)."""

CONSTANT = 0.01
"""Neurons whose deviation over the examples is this small a share of their mean answer nothing but their bias."""

CLIPPING_FUNCTIONS = ("relu", "relu_", "relu6", "threshold")


def dead_units(history: History) -> list[Detection]:
    """Neurons of clipping layers whose output was zero for every example.

    Two patterns: dead from the first window on, in more than ``DEAD_SHARE`` of a layer; or at least ``DIED_SHARE`` of a
    layer dead at the end. A neuron counts only if its smallest and largest activation were exactly zero; where a
    function clips and no module, only if its largest activation before it was not above zero.
    """
    clipped = _clipped_by_functions(history)
    found: dict[str, Detection] = {}
    for layer in history.layers:
        is_clipped = layer.name in clipped
        if not (layer.clips or is_clipped) or len(layer.steps) < 3 or layer.steps[-1] + 1 < MIN_STEPS:
            continue
        dead = layer.high <= 0 if is_clipped else (layer.low == 0) & (layer.high == 0)
        detection = _judge(history, layer, dead, layer if is_clipped else _source(history, layer))
        if detection is not None:
            found.setdefault(layer.module, detection)
    return list(found.values())


def _clipped_by_functions(history: History) -> set[str]:
    """Layers whose output goes into nothing but a clipping function."""
    after = children(history)
    return {
        layer.name
        for layer in history.layers
        if not layer.clips
        and (nodes := after.get(layer.name, []))
        and all(history.ops.get(node) in CLIPPING_FUNCTIONS and history.kind(node) == "op" for node in nodes)
    }


def _judge(history: History, layer: LayerHistory, dead: Array, source: LayerHistory | None) -> Detection | None:
    always = np.flatnonzero(dead.all(1))
    at_end = np.flatnonzero(dead[:, -max(1, dead.shape[1] // 4) :].all(1))
    if len(always) > DEAD_SHARE * len(dead):
        if len(always) < len(dead) and _is_constant(source):
            return None
        buried = _buried(source, always, len(dead))
        is_broken = len(buried) > DEAD_SHARE * len(dead) or len(always) >= HALF_DEAD * len(dead)
        named = buried if len(buried) and len(always) < HALF_DEAD * len(dead) else always
        return _dead(layer, named, 0, "never", len(dead), "warning" if is_broken else "info")
    if len(at_end) >= DIED_SHARE * len(dead):
        alive = ~dead[at_end].all(0)
        last_alive = int(np.flatnonzero(alive)[-1]) if alive.any() else -1
        return _dead(layer, at_end, int(layer.steps[max(last_alive, 0)]), "no longer", len(dead), "warning")
    return None


def _is_constant(source: LayerHistory | None) -> bool:
    """Whether what is clipped is the same for every example: then it is chance whether it is zero."""
    if source is None or not {"mean", "std"} <= source.neurons.keys():
        return False
    mean, std = source.neurons["mean"], source.neurons["std"]
    return bool(np.nanmedian(std) < CONSTANT * np.nanmedian(np.abs(mean)))


def _source(history: History, layer: LayerHistory) -> LayerHistory | None:
    """The layer that a clipping one of as many neurons takes its input from."""
    sources = [before for before in history.layers if before.name in history.parents.get(layer.name, ())]
    return next((before for before in sources if len(before.high) == len(layer.high)), None)


def _buried(source: LayerHistory | None, dead: Array, n_neurons: int) -> Array:
    """Those of the dead neurons whose input stayed far below zero."""
    if source is None or not source.high.size:
        return np.zeros(0, np.int64)
    alive = np.setdiff1d(np.arange(n_neurons), dead)
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
