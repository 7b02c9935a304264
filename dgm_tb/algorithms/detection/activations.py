"""Layers whose output grows without bound, is pinned to its limits, or is normalised by nothing."""

import math

import numpy as np

from dgm_tb.algorithms.detection.flow import children, nearest_layers, upstream
from dgm_tb.algorithms.detection.history import MIN_STEPS, Array, Detection, History, LayerHistory
from dgm_tb.algorithms.detection.trend import trend

GROWTH = 100.0
"""Activations that are so many times what they were in the first steps; healthy layers stay below 30 in the zoo."""

LARGE = 100.0
"""Whatever stays below this is no explosion, however small it began."""

FORWARD_GAIN = 1000.0
"""The output of a network that is this many times as large as its first layer's, from the first step on. Initialised as
usual, networks keep their scale within a factor of ten."""

STAND_OUT = 30.0
"""The layer to name is the first whose output is this many times that of the layers before it."""

PINNED = 0.97
"""Second moment of an output in [-1, 1], averaged over neurons, from which on it counts as pinned to the limits."""

LINEAR = 3.0
"""Beyond this magnitude tanh and sigmoid have lost 99 % and 95 % of their slope."""

SOFT_PINNED = 0.9
"""Mean of a softmax's output, weighted with itself: 1 if it always picks one."""

FLAT = 0.3
"""A batch normalisation gives a standard deviation of 1 before its gain, unless the variance it divides by is nothing
beside its epsilon. Gains start at 1 and do not fall below this within the first window."""

_SATURATING = {"Tanh": "tanh", "Sigmoid": "sigmoid", "Softmax": "softmax", "Hardtanh": "tanh", "Softsign": "tanh"}


def exploding_activation(history: History) -> list[Detection]:
    """Layers whose finite output grows by orders of magnitude, or is so large from the first step on."""
    found = _large_from_start(history) or _grown(history)
    return [found] if found is not None else []


def _large_from_start(history: History) -> Detection | None:
    """A network whose scale multiplies from layer to layer before anything was learnt."""
    layers = [layer for layer in history.layers if len(layer.size()) and layer.type not in _SATURATING]
    sizes = [(layer, float(layer.size().values[0])) for layer in layers]
    sizes = [(layer, size) for layer, size in sizes if math.isfinite(size) and size > 0]
    if len(sizes) < 3:
        return None
    base = float(np.median([size for _, size in sizes[: max(2, len(sizes) // 4)]]))
    largest = max(size for _, size in sizes)
    if largest < FORWARD_GAIN * max(base, 0.01) or largest < LARGE:
        return None
    first = next(layer for layer, size in sizes if size > STAND_OUT * max(base, 0.01))
    later = [layer.module for layer, size in sizes if size > STAND_OUT * base and layer.module != first.module]
    evidence = {"rms": largest, "rms_of_first_layers": base}
    return _explosion(first, 0, history, evidence, later, f"the output reaches {largest:.3g} in the first step")


def _grown(history: History) -> Detection | None:
    """The layer whose activations left their own past first."""
    found = []
    for layer in history.layers:
        extreme, size = layer.extreme().known(), layer.size().known()
        if len(size) < MIN_STEPS // 2 or layer.type in _SATURATING:
            continue
        usual = max(float(np.median(size.values[:5])), 0.1)
        is_large = (size.values > GROWTH * usual) & (size.values > LARGE)
        if is_large[-8:].mean() > 0.5:
            since = int(size.steps[int(np.argmax(size.values > max(10 * usual, LARGE / 10)))])
            found.append((since, layer, float(np.median(size.values[-8:])), usual, float(extreme.values.max())))
    went = trend(history)
    if not found or (went is not None and went.gain > 0.5 and history.nonfinite_at is None):
        return None
    since, layer, late, usual, extreme_value = min(found, key=lambda item: item[0])
    evidence = {"rms": late, "rms_at_first": usual, "largest": extreme_value}
    later = [other.module for _, other, *_ in found if other.module != layer.module]
    return _explosion(layer, since, history, evidence, later, f"its output grew from {usual:.3g} to {late:.3g}")


def _explosion(
    layer: LayerHistory, step: int, history: History, evidence: dict[str, float], later: list[str], what: str
) -> Detection:
    return Detection(
        kind="exploding_activation",
        severity="warning",
        step=step,
        first_step=step,
        last_step=history.last_step,
        module=layer.module,
        modules=list(dict.fromkeys(later))[:8],
        neurons=_largest_neurons(layer),
        summary=f"{layer.module}: {what}" + (f", and with it {len(set(later))} layers after it" if later else ""),
        evidence=dict(evidence),
        advice="bound what it computes (normalisation, tanh or clamp on scales), initialise it smaller, clip gradients",
    )


def _largest_neurons(layer: LayerHistory) -> list[int]:
    extremes = np.maximum(np.abs(layer.low), np.abs(layer.high))
    largest = np.nan_to_num(extremes, posinf=0.0).max(1, initial=0.0)
    bar = max(5 * float(np.median(largest)), 0.1 * float(largest.max(initial=0.0))) if len(largest) else 0.0
    return [int(n) for n in np.argsort(-largest)[:8] if largest[n] >= bar > 0]


# -- saturation --------------------------------------------------------------------------------------------------------


def saturated(history: History) -> list[Detection]:
    """Outputs of tanh, sigmoid or softmax that are at their limits for nearly all examples, from early on.

    An output layer may end there by right (a classifier that is sure, an image of black and white), so it is judged by
    the beginning of the training; layers within the network by all of it.
    """
    found: dict[str, Detection] = {}
    for layer, squash in _squashed(history):
        share, neurons = _pinned_share(layer, squash)
        if not len(share) or layer.steps[-1] + 1 < MIN_STEPS:
            continue
        is_output = not any(after.has_weights for after in _after(history, layer))
        judged = share[: max(1, len(share) // 2)] if is_output or squash == "softmax" else share[len(share) // 4 :]
        if judged.mean() < 0.8:
            continue
        found.setdefault(layer.module, _saturation(history, layer, squash, float(share[-1]), neurons))
    return list(found.values())[:1]


def _squashed(history: History) -> list[tuple[LayerHistory, str]]:
    """Layers that squash, and layers whose output is squashed by a function."""
    after = children(history)
    found = []
    for layer in history.layers:
        if layer.type in _SATURATING:
            found.append((layer, _SATURATING[layer.type]))
            continue
        ops = {history.ops.get(node, "") for node in after.get(layer.name, ()) if history.kind(node) == "op"}
        squash = next((op for op in ("tanh", "sigmoid") if op in ops), "")
        if squash and len(after[layer.name]) == 1:
            found.append((layer, f"before {squash}"))
    return found


def _pinned_share(layer: LayerHistory, squash: str) -> tuple[Array, list[int]]:
    """Share of a layer at its limits along the training ``[T]``, and the neurons that are there at its end."""
    mean, std = layer.neurons.get("mean"), layer.neurons.get("std")
    if mean is None or std is None or not mean.size:
        return np.zeros(0), []
    if squash.startswith("before"):
        pinned = (np.abs(mean) - 2 * std > LINEAR) | (np.hypot(mean, std) > 20 * LINEAR)
        return np.asarray(pinned.mean(0)), [int(n) for n in np.flatnonzero(pinned[:, -1])]
    center, spread = layer.track("mean").known().values, layer.track("std").known().values
    if len(center) != len(spread) or not len(center):
        return np.zeros(0), []
    if squash == "softmax":
        return np.asarray(((center**2 + spread**2) / np.maximum(center, 1e-30) >= SOFT_PINNED).astype(float)), []
    if squash == "sigmoid":
        center, spread, mean, std = 2 * center - 1, 2 * spread, 2 * mean - 1, 2 * std
    pinned = mean[:, -1] ** 2 + std[:, -1] ** 2 >= PINNED
    return np.asarray((center**2 + spread**2 >= PINNED).astype(float)), [int(n) for n in np.flatnonzero(pinned)]


def _after(history: History, layer: LayerHistory) -> list[LayerHistory]:
    return [other for other in history.layers if other is not layer and layer.name in upstream(history, other.name)]


def _saturation(history: History, layer: LayerHistory, squash: str, share: float, neurons: list[int]) -> Detection:
    sources = [before.module for before in nearest_layers(history, layer.name)]
    limit = "one choice gets nearly all the weight" if squash == "softmax" else "its output is at the limits"
    is_all = len(neurons) == len(layer.low)
    return Detection(
        kind="saturated",
        severity="warning",
        step=0,
        first_step=0,
        last_step=history.last_step,
        module=layer.module,
        modules=list(dict.fromkeys(sources)),
        neurons=[] if is_all else neurons[:64],
        summary=f"{layer.module}: {limit} of {squash.removeprefix('before ')} for nearly every example, so hardly any "
        "gradient comes through",
        evidence={"share_pinned": share, "threshold": SOFT_PINNED if squash == "softmax" else PINNED},
        advice="scale its inputs down: normalise the data, initialise the layer before it smaller, divide attention "
        "scores by the root of their size",
    )


# -- normalisation -----------------------------------------------------------------------------------------------------


def norm_degenerate(history: History) -> list[Detection]:
    """Normalisation layers that divide by (nearly) no variance."""
    found: dict[str, Detection] = {}
    for layer in history.layers:
        std = layer.neurons.get("std")
        if "Norm" not in layer.type or std is None or len(layer.steps) < 2 or layer.steps[-1] + 1 < MIN_STEPS:
            continue
        flat = _flat_neurons(history, layer, std)
        if len(flat):
            found.setdefault(layer.module, _degenerate(history, layer, flat, std))
    return list(found.values())


def _flat_neurons(history: History, layer: LayerHistory, std: Array) -> Array:
    """Neurons whose normalised output does not vary although it should."""
    sources = nearest_layers(history, layer.name)
    source = next((before for before in sources if len(before.low) == len(layer.low)), None)
    before = source.neurons.get("std") if source is not None else None
    if not layer.type.startswith("BatchNorm") and layer.type != "SyncBatchNorm":
        # one element, or all alike: the whole output is a constant, whatever came in
        is_flat = bool(std.max() < 1e-3) and (before is None or before.shape != std.shape or bool(before.max() > 1e-6))
        return np.arange(len(std)) if is_flat else np.zeros(0, np.int64)
    flat = (std < FLAT).all(1)
    if before is not None and before.shape == std.shape:
        return np.flatnonzero(flat & (before < 0.01).all(1))  # else its gain is small, and that is no fault
    flat &= (std > 1e-6).any(1)  # an input that never changes gives plain zeros, and harms nobody
    return np.flatnonzero(flat) if flat.mean() <= 0.5 else np.zeros(0, np.int64)


def _degenerate(history: History, layer: LayerHistory, flat: Array, std: Array) -> Detection:
    sources = [before.module for before in nearest_layers(history, layer.name)]
    return Detection(
        kind="norm_degenerate",
        severity="warning",
        step=0,
        first_step=0,
        last_step=history.last_step,
        module=layer.module,
        modules=list(dict.fromkeys(sources)),
        neurons=[int(n) for n in flat[:64]],
        summary=f"{layer.module}: {len(flat)} of {len(std)} neurons are normalised by (nearly) no variance: what comes "
        "in is constant",
        evidence={"largest_std": float(std[flat].max()), "neurons": len(std)},
        advice="look at what feeds these neurons: a constant feature, zero weights, a group of one element; leave it "
        "out, or normalise over more",
    )
