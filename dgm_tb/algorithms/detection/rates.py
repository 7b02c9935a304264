"""Step sizes that are too large or too small."""

import numpy as np

from dgm_tb.algorithms.detection.history import MIN_STEPS, Detection, History, LayerHistory, Track
from dgm_tb.algorithms.detection.trend import is_warming_up, trend

HUGE = 0.2
"""A step that changes a layer's weights by a fifth of their norm throws away what it held. Usual ones change them by
1e-4 to 1e-2; healthy ones of large learning rates by 0.1 in the first steps."""

TINY = 1e-5
"""Steps below this change weights by less than 1 % in a thousand."""


def lr_too_high(history: History) -> list[Detection]:
    """Most layers change by far too much in a step, and the loss does not fall."""
    layers = [layer for layer in history.weighted if len(_ratio(layer))]
    went = trend(history)
    if len(layers) < 1 or went is None or len(history.losses[went.name][0]) < MIN_STEPS // 2:
        return []
    onsets = [onset for layer in layers if (onset := _onset(layer)) is not None]
    is_failing = went.late > min(went.first, went.early) - 0.1 * abs(went.first) or history.nonfinite_at is not None
    if 2 * len(onsets) < len(layers) or not is_failing:
        return []
    step = int(np.median(onsets))
    ratio = float(np.median([_ratio(layer).largest() for layer in layers]))
    worst = max(layers, key=lambda layer: _ratio(layer).largest())
    return [
        Detection(
            kind="lr_too_high",
            severity="error" if history.nonfinite_at is None else "warning",
            step=step,
            first_step=step,
            last_step=history.last_step,
            module="",
            modules=[worst.module],
            summary=f"the learning rate is too high: single steps change weights by up to {ratio:.0%} of their norm, "
            f"and {went.name} went from {went.first:.3g} to {went.late:.3g}",
            evidence={"update_ratio": ratio, "loss": went.name, "first_loss": went.first, "late_loss": went.late},
            advice="divide the learning rate by ten or more, warm it up, and clip gradients",
        )
    ]


def _ratio(layer: LayerHistory) -> Track:
    """Updates of a layer whose weights are not only growing out of zero."""
    update, weight = layer.track("update").known(), layer.track("weight").known()
    if len(weight) and len(update) == len(weight):
        keep = weight.values > 0.05 * weight.values.max()
        return Track(update.steps[keep], update.values[keep])
    return update


def _onset(layer: LayerHistory) -> int | None:
    """The first measured step whose change was huge; a single one counts only if it replaced the weights.

    Adam's first step changes each weight by the learning rate: 0.28 of the norm with 1e-2 and 256 inputs.
    """
    ratio = _ratio(layer)
    huge = np.flatnonzero(ratio.values > HUGE)
    is_enough = len(huge) > 1 or (len(huge) == 1 and ratio.values[huge[0]] > 1)
    return int(ratio.steps[huge[0]]) if is_enough else None


def lr_too_low(history: History) -> list[Detection]:
    """No layer ever changes by more than next to nothing, and the loss stays where it was."""
    layers = [layer for layer in history.weighted if len(layer.track("update").known()) >= 4]
    went = trend(history)
    if not layers or went is None or history.last_step + 1 < MIN_STEPS or history.nonfinite_at is not None:
        return []
    ratios = [layer.track("update").known().largest() for layer in layers]
    gradients = [layer.track("gradient").known().largest() for layer in layers]
    has_gradient = any(gradient > 0 for gradient in gradients)
    if max(ratios) > TINY or not has_gradient or went.gain > 0.05 or is_warming_up(history):
        return []
    return [
        Detection(
            kind="lr_too_low",
            severity="warning",
            step=0,
            first_step=0,
            last_step=history.last_step,
            module="",
            modules=[layer.module for layer in layers[:4]],
            summary=f"the learning rate is too low: no step changes the weights of any layer by more than "
            f"{max(ratios):.1g} of their norm, and {went.name} stays at {went.late:.3g}",
            evidence={"largest_update_ratio": max(ratios), "loss": went.name, "late_loss": went.late},
            advice="raise the learning rate until updates are about 1e-3 of the weights; look at the schedule's start",
        )
    ]
