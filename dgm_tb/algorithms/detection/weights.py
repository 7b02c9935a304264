"""Weights that began wrong, change by themselves, or never change."""

import numpy as np

from dgm_tb.algorithms.detection.flow import common_path
from dgm_tb.algorithms.detection.history import MIN_STEPS, Array, Detection, History, LayerHistory

ALIKE = 1e-3
"""Neurons whose statistics differ by less than this share of their size, in every window, are one and the same."""

WIDE = 6.0
"""Norm of a neuron's incoming weights above which an initialisation is called too large: usual ones give 0.1 to 2
(PyTorch's own 0.58, He's 1.4), whatever the number of inputs."""

AMPLIFIES = 5.0
"""And it must show: its output is this many times as large as its input."""

NARROW = 0.02
"""Norm below which weights within the network are called too small."""

LEAP = 4.0
"""A neuron's weights grew this many times from one window to the next, while its neighbours' did not (1.5)."""

OUTSTANDING = 15.0
"""A neuron's norm is this many times the median of its layer from the start; the largest in healthy nets is 3 times."""

OVERWRITTEN = 3.0
"""Norm of a whole layer over that of eight steps before; updates of ordinary size change it by a few per cent."""

_TABLES = ("Embedding", "EmbeddingBag")


def bad_init(history: History) -> list[Detection]:
    """Layers whose neurons are all alike and stay so, or whose first weights are far off the usual scale."""
    layers = [layer for layer in history.weighted if layer.type not in _TABLES]
    if history.last_step + 1 < MIN_STEPS and history.nonfinite_at is None:
        return []
    alike = [layer for layer in layers if _are_alike(layer)]
    if alike:
        return [_init(history, alike, "all neurons are alike, and get the same gradient", {})]
    wide = [layer for layer in layers if _is_wide(history, layer)]
    if wide:
        norm = _first_norm(wide[0])
        return [
            _init(history, wide, f"its first weights are far too large (norm {norm:.3g} per neuron)", {"norm": norm})
        ]
    narrow = [layer for layer in layers[:-1] if 0 < _first_norm(layer) < NARROW]
    if len(narrow) >= max(2, len(layers) // 2):
        norm = _first_norm(narrow[0])
        return [
            _init(history, narrow, f"its first weights are far too small (norm {norm:.2g} per neuron)", {"norm": norm})
        ]
    return []


def _are_alike(layer: LayerHistory) -> bool:
    """Whether at least four neurons are the same in every window, weights and activations."""
    weight, std = layer.neurons.get("weight"), layer.neurons.get("std")
    if weight is None or std is None or len(weight) < 4 or weight.shape[1] < 2:
        return False
    lines = [weight, std, layer.low, layer.high]
    return all(_spread(line) < ALIKE for line in lines)


def _spread(lines: Array) -> float:
    """The largest difference between neurons of a window, over their largest magnitude in all windows."""
    if not np.isfinite(lines).all():
        return np.inf
    return float((lines.max(0) - lines.min(0)).max() / max(float(np.abs(lines).max()), 1e-12))


def _first_norm(layer: LayerHistory) -> float:
    """Root mean square over neurons of the norm of their incoming weights, when first measured."""
    track = layer.track("weight").known()
    return (
        float(track.values[0] / np.sqrt(max(len(layer.neurons.get("weight", layer.low)), 1))) if len(track) else np.nan
    )


def _is_wide(history: History, layer: LayerHistory) -> bool:
    if not _first_norm(layer) > WIDE:
        return False
    sources = [other for other in history.layers if other.name in history.parents.get(layer.name, ())]
    before = [float(source.size().values[0]) for source in sources if len(source.size())]
    size = layer.size()
    return len(size) > 0 and float(size.values[0]) > AMPLIFIES * max([*before, 0.2])


def _init(history: History, layers: list[LayerHistory], what: str, evidence: dict[str, float]) -> Detection:
    names = list(dict.fromkeys(layer.module for layer in layers))
    return Detection(
        kind="bad_init",
        severity="warning",
        step=0,
        first_step=0,
        last_step=history.last_step,
        module=names[0],
        modules=names[1:9],
        summary=f"{names[0]}: {what}" + (f"; likewise {len(names) - 1} further layers" if len(names) > 1 else ""),
        evidence={"layers": len(names), **evidence},
        advice="initialise with random weights of the usual scale (torch.nn.init.kaiming_uniform_, xavier_uniform_)",
    )


def corrupt_weight(history: History) -> list[Detection]:
    """Neurons whose weights leap away from their layer's, or stand far out of them from the start."""
    found = [detection for layer in history.weighted if (detection := _corrupted(history, layer)) is not None]
    return sorted(found, key=lambda detection: detection.step)[:1]


def _corrupted(history: History, layer: LayerHistory) -> Detection | None:
    """Single neurons first: they carry the norm of their layer with them."""
    norm = layer.neurons.get("weight")
    if norm is not None and len(norm) >= 3 and np.isfinite(norm).all() and layer.type not in _TABLES:
        leap = _leap(norm)
        if leap is not None:
            window, neurons = leap
            step = _onset(layer, window)
            return _corrupt(history, layer, neurons, step, norm, f"leap at step {step}")
        center = float(np.median(norm[:, 0]))
        standing = np.flatnonzero(norm[:, 0] > OUTSTANDING * max(center, 1e-3))
        if 0 < len(standing) <= max(1, len(norm) // 10):
            return _corrupt(history, layer, standing, 0, norm, "were far too large from the start")
    whole = _overwritten(history, layer)
    return _whole(history, layer, *whole) if whole is not None else None


def _overwritten(history: History, layer: LayerHistory) -> tuple[int, float, float] | None:
    """The step at which a whole layer's norm leapt while no other layer's did, and the norm before and after.

    Written between two steps it is farther than the updates reach; written within a step it is an update that no other
    layer has.
    """
    weight, update = layer.track("weight").known(), layer.track("update").known()
    if len(weight) < 4 or len(weight) != len(update):
        return None
    before, after = weight.values[1:-1], weight.values[2:]
    reach = np.maximum(update.values[1:-1], np.median(update.values)) * np.diff(weight.steps)[1:]
    leaps = np.maximum(after, 1e-12) / np.maximum(before, 1e-12)
    changed = np.maximum(leaps, 1 / leaps)
    is_silent = (changed > 1 + 10 * reach) & (update.values[2:] < 0.3)
    has_begun = before > 0.1 * np.sqrt(len(layer.low))  # weights that begin at zero grow by any ratio
    far = np.flatnonzero(has_begun & (changed > OVERWRITTEN) & (is_silent | (_of_others(history, layer)[2:] < 0.1)))
    if not len(far):
        return None
    first = far[0] + 1
    step = _leap_between(layer, int(weight.steps[first]) + 1, int(weight.steps[first + 1]))
    return step, float(weight.values[first]), float(weight.values[first + 1])


def _of_others(history: History, layer: LayerHistory) -> Array:
    """The median update of the other layers at the steps at which this one's was measured; Inf if there are none."""
    steps = layer.track("update").known().steps
    others = [other.track("update") for other in history.weighted if other.module != layer.module]
    values = [np.interp(steps, track.steps, track.values) for other in others if len(track := other.known())]
    return np.median(values, 0) if values else np.full(len(steps), np.inf)


def _leap_between(layer: LayerHistory, first: int, last: int) -> int:
    """The step at which the layer's own output changed most, by ratio."""
    size = layer.size()
    inside = np.flatnonzero((size.steps >= first - 1) & (size.steps <= last))
    if len(inside) < 2:
        return last
    values = np.maximum(size.values[inside], 1e-12)
    return int(size.steps[inside[int(np.argmax(np.abs(np.diff(np.log(values))))) + 1]])


def _whole(history: History, layer: LayerHistory, step: int, before: float, after: float) -> Detection:
    return Detection(
        kind="corrupt_weight",
        severity="error",
        step=step,
        first_step=step,
        last_step=history.last_step,
        module=layer.module,
        summary=f"{layer.module}: all its weights changed at step {step} (norm {before:.3g} to {after:.3g}), and no "
        "update explains that",
        evidence={"norm_before": before, "norm_after": after},
        advice="look for code that writes to weights (initialisation, loading, scaling) while training goes on",
    )


def _leap(norm: Array) -> tuple[int, Array] | None:
    """First window in which few neurons' weights grew at once while the others' did not, and these neurons."""
    growth = norm[:, 1:] / np.maximum(norm[:, :-1], 1e-3)
    for window in range(growth.shape[1]):
        if np.median(growth[:, window]) > 1.5:
            continue
        far = norm[:, window + 1] > max(3 * np.median(norm[:, window + 1]), 2 * norm[:, : window + 1].max(), 1.0)
        neurons = np.flatnonzero((growth[:, window] > LEAP) & far)
        if 0 < len(neurons) <= max(1, len(norm) // 10):
            return window + 1, neurons[np.argsort(-growth[neurons, window])]
    return None


def _onset(layer: LayerHistory, window: int) -> int:
    """The step at which the layer's own output leapt, within the window before and the window of the leap."""
    first = int(layer.steps[window - 2]) + 1 if window >= 2 else 0
    extreme = layer.extreme()
    inside = np.flatnonzero((extreme.steps >= first) & (extreme.steps <= layer.steps[window]))
    if len(inside) < 2:
        return int(layer.steps[window - 1]) + 1
    values = np.maximum(extreme.values[inside], 1e-6)
    leaps = values[1:] / values[:-1]
    return int(extreme.steps[inside[int(np.argmax(leaps)) + 1]])


def _corrupt(history: History, layer: LayerHistory, neurons: Array, step: int, norm: Array, what: str) -> Detection:
    largest, median = float(norm[neurons].max()), float(np.median(norm))
    return Detection(
        kind="corrupt_weight",
        severity="error",
        step=step,
        first_step=step,
        last_step=history.last_step,
        module=layer.module,
        neurons=[int(n) for n in neurons[:16]],
        summary=f"{layer.module}: the weights of neuron {int(neurons[0])} {what}: norm {largest:.3g}, median of the "
        f"layer {median:.3g}",
        evidence={"norm": largest, "median_norm": median},
        advice="no optimizer explains this: look for code that writes to weights, for a damaged checkpoint or memory; "
        "restore the layer from an earlier checkpoint",
    )


def not_training(history: History) -> list[Detection]:
    """Trainable parameters that never get a gradient, or are never updated, as the callback saw it.

    What it saw after some steps counts only if the weights, where they were recorded, were the same to the end.
    """
    changed = {layer.module for layer in history.weighted if layer.track("update").largest() > 0}
    idle = {module: why for module, why in history.idle.items() if module not in changed}
    found = []
    for why in dict.fromkeys(idle.values()):
        names = [module for module, other in idle.items() if other == why]
        found.append(_idle(history, names, why))
    return found


_WHY = {
    "detached": (
        "never gets a gradient",
        "look whether it is used at all, and for detach(), torch.no_grad() or .data between it and the loss",
    ),
    "left out": ("gets gradients but is never updated", "pass its parameters to an optimizer, or freeze them"),
}


def _idle(history: History, names: list[str], why: str) -> Detection:
    what, advice = _WHY.get(why, _WHY["detached"])
    common = common_path(names) if len(names) > 1 else names[0]
    module = common or names[0]
    return Detection(
        kind="not_training",
        severity="warning",
        step=0,
        first_step=0,
        last_step=history.last_step,
        module=module,
        modules=[name for name in names if name != module][:16],
        summary=f"{module}: {len(names)} module{'s' * (len(names) > 1)} of it {what}",
        evidence={"modules": len(names), "why": why},
        advice=f"{advice}; if it is meant to stay as it is, requires_grad_(False) says so",
    )
