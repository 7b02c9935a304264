"""Gradients that are lost, or that grow, on their way back through the network."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dgm_tb.algorithms.detection.flow import losses_of, upstream
from dgm_tb.algorithms.detection.history import MIN_STEPS, Detection, History, LayerHistory, Track

VANISHED = 1e-4
"""A layer learns next to nothing if its gradient's norm is this small a share of that of the layers behind it; thirty
residual blocks, ten plain ones and recurrent nets keep more than 1e-2."""

EXPLODED = 1e4
"""And explodes if it is this many times as large, with activations of ordinary size."""

ADVICE = "clip gradients, initialise recurrent or repeated layers with a gain of at most one, add normalisation"

JUMP = 1000.0
"""A gradient this many times its own early median, to the end, has exploded."""


def vanishing_gradient(history: History) -> list[Detection]:
    """Early layers whose gradient is orders of magnitude below that of the layers behind them."""
    chain = _chain(history)
    if len(chain) < 2:
        return []
    norms = np.array([_usual(layer) for layer in chain])
    behind = np.array([norms[n:].max() for n in range(len(norms))])
    lost = [n for n in range(len(chain)) if norms[n] < VANISHED * behind[n]]
    if not lost or lost[0] > len(chain) // 3:  # a single one further back is a branch of little weight
        return []
    names = list(dict.fromkeys(chain[n].module for n in lost))
    first, largest = norms[lost[0]], behind[lost[0]]
    return [
        Detection(
            kind="vanishing_gradient",
            severity="warning",
            step=0,
            first_step=0,
            last_step=history.last_step,
            module=names[0],
            modules=names[1:9],
            summary=f"{names[0]}: its gradient ({first:.2g}) is {first / largest:.1g} of that of the layers behind it, "
            f"so {len(names)} of {len(chain)} layers hardly learn",
            evidence={"gradient_norm": float(first), "largest_behind": float(largest), "layers": len(names)},
            advice="use activations that do not saturate (ReLU, GELU), residual connections or normalisation, and an "
            "initialisation that keeps the scale",
        )
    ]


def exploding_gradient(history: History) -> list[Detection]:
    """Gradients that grow by orders of magnitude from layer to layer, or from what they were."""
    chain = _chain(history)
    norms = np.array([_usual(layer) for layer in chain])
    for n, layer in enumerate(chain[:-1]):
        last = norms[max(n + 1, len(norms) - max(2, len(norms) // 4)) :].max()
        if last > 0 and norms[n] > EXPLODED * last and norms[n] > 1:
            ratio = norms[n] / last
            return [_explosion(history, layer, 0, f"its gradient is {ratio:.2g} times that of the last layer", ratio)]
    for step, module, numbers in history.explosions:
        return [_seen(history, step, module, numbers)]
    for layer in reversed(chain):
        since, ratio = _jumped(layer.gradient_norm().known())
        if since is not None:
            return [_explosion(history, layer, since, f"its gradient grew {ratio:.2g} times", ratio)]
    return []


def _seen(history: History, step: int, module: str, numbers: Mapping[str, Any]) -> Detection:
    norm = numbers.get("norm", float("nan"))
    return Detection(
        kind="exploding_gradient",
        severity="warning",
        step=step,
        first_step=step,
        last_step=history.last_step,
        module=module,
        summary=f"{module or 'the model'}: the gradient of its weights explodes (norm {norm:.2g})",
        evidence=dict(numbers),
        advice=ADVICE,
    )


def _chain(history: History) -> list[LayerHistory]:
    """The layers with weights on the way to the last loss, in data-flow order, that get a gradient."""
    nodes = losses_of(history)
    if not nodes:
        return []
    before = upstream(history, nodes[-1])
    layers = [layer for layer in history.layers if layer.name in before and layer.has_weights]
    return [layer for layer in layers if len(layer.gradient_norm().known()) >= MIN_STEPS // 2]


def _usual(layer: LayerHistory) -> float:
    return layer.gradient_norm().median()


def _jumped(norm: Track) -> tuple[int | None, float]:
    if len(norm) < MIN_STEPS:
        return None, 0.0
    usual = float(np.median(norm.values[: MIN_STEPS // 3]))
    late = float(np.median(norm.values[-8:]))
    if usual <= 0 or late < JUMP * usual or late < 1:
        return None, 0.0
    return int(norm.steps[int(np.argmax(norm.values > np.sqrt(JUMP) * usual))]), late / usual


def _explosion(history: History, layer: LayerHistory, step: int, what: str, ratio: float) -> Detection:
    return Detection(
        kind="exploding_gradient",
        severity="warning",
        step=step,
        first_step=step,
        last_step=history.last_step,
        module=layer.module,
        summary=f"{layer.module}: {what}",
        evidence={"ratio": float(ratio)},
        advice=ADVICE,
    )
