"""Losses that stay, or run away."""

import math

import numpy as np

from dgm_tb.algorithms.detection.flow import nearest_layers
from dgm_tb.algorithms.detection.history import MIN_STEPS, Array, Detection, History
from dgm_tb.algorithms.detection.trend import is_warming_up, trend

STALL_STEPS = 96
"""A plateau shorter than this is no plateau."""

AT_CHANCE = 0.03
"""A cross entropy within this share of ln(classes) to the end knows nothing."""

EXPLAINED = 0.02
"""A regression whose output varies by less than this share of its loss gives the same answer to everything."""

RUNAWAY = 15.0
"""A loss ran away if its magnitude is this many times the largest of its first fifth; adversarial losses of working
GANs grow less than tenfold."""

FAR = 50.0
"""And at least this large."""

_CLASSIFYING = ("cross_entropy", "nll_loss", "CrossEntropyLoss", "NLLLoss")
_REGRESSING = ("mse_loss", "MSELoss", "l1_loss", "smooth_l1_loss", "huber_loss")


def loss_stalled(history: History) -> list[Detection]:
    """A supervised loss that is where knowing nothing leaves it, from the first step to the last."""
    went = trend(history)
    if went is None or len(history.losses[went.name][0]) < STALL_STEPS or history.nonfinite_at is not None:
        return []
    if is_warming_up(history) or went.gain > 0.1 or went.best < went.early - 0.15 * abs(went.early):
        return []
    for node, (kind, _) in history.nodes.items():
        if kind not in ("loss", "module") or node == "loss":
            continue
        found = _at_chance(history, node, went.late) or _constant(history, node, went.late)
        if found:
            why, evidence, module = found
            return [
                Detection(
                    kind="loss_stalled",
                    severity="warning",
                    step=0,
                    first_step=0,
                    last_step=history.last_step,
                    module="",
                    modules=[module],
                    summary=f"{went.name} stays at {went.late:.4g}: {why}",
                    evidence={"loss": went.name, "early": went.early, "late": went.late, **evidence},
                    advice="look at inputs and labels (shuffled apart? blank?), at the learning rate, and whether "
                    "gradients reach the first layers; try to overfit one batch",
                )
            ]
    return []


def _at_chance(history: History, node: str, late: float) -> tuple[str, dict[str, float], str] | None:
    if history.ops.get(node) not in _CLASSIFYING:
        return None
    for layer in nearest_layers(history, node):
        classes = len(layer.low)
        if classes > 1 and abs(late - math.log(classes)) < AT_CHANCE * math.log(classes):
            why = f"that is chance for {classes} classes (ln {classes} = {math.log(classes):.4g})"
            return why, {"chance": math.log(classes)}, layer.module
    return None


def _constant(history: History, node: str, late: float) -> tuple[str, dict[str, float], str] | None:
    if history.ops.get(node) not in _REGRESSING:
        return None
    for layer in nearest_layers(history, node):
        std = layer.neurons.get("std")
        if std is not None and std.size and late > 0:
            variance = float(np.mean(std[:, -1] ** 2))
            if variance < EXPLAINED * late:
                why = f"{layer.module} gives (nearly) the same answer to every example"
                return why, {"variance_of_output": variance}, layer.module
    return None


def loss_divergence(history: History) -> list[Detection]:
    """A loss whose magnitude grows without end, as it does when a term of it has no bound."""
    for name, (steps, values) in _minimised(history):
        keep = np.isfinite(values)
        steps, values = steps[keep], values[keep]
        since = _runaway_since(steps, values)
        if since is None:
            continue
        late = float(np.median(values[-8:]))
        return [
            Detection(
                kind="loss_divergence",
                severity="error",
                step=since,
                first_step=since,
                last_step=int(steps[-1]),
                module=_module_of(history, name),
                summary=f"{name} runs away: from {float(np.median(values[:8])):.3g} to {late:.3g}, and on",
                evidence={"loss": name, "late": late, "largest_early": _early(values)},
                advice="a term without a lower bound is minimised for ever: check its sign, bound it, weigh it less, "
                "clip or penalise the critic",
            )
        ]
    return []


def _minimised(history: History) -> list[tuple[str, tuple[Array, Array]]]:
    """What is minimised; the logged numbers where that is not known.

    Terms of a loss may well grow while it falls, such as the KL term of an autoencoder that learns to use its latents.
    """
    items = history.losses.items()
    own = [item for item in items if item[0] == "loss" or item[0].startswith("backward.")]
    return own or list(items)


def _early(values: Array) -> float:
    return float(np.abs(values[: max(8, len(values) // 5)]).max())


def _runaway_since(steps: Array, values: Array) -> int | None:
    if len(values) < MIN_STEPS:
        return None
    early, size = _early(values), np.abs(values)
    late = float(np.median(size[-8:]))
    middle = float(np.median(size[len(size) // 2 : len(size) // 2 + 8]))
    if late < RUNAWAY * early or late < FAR or late < 1.2 * middle:
        return None
    return int(steps[int(np.argmax(size > 2 * early))])


def _module_of(history: History, name: str) -> str:
    """The last layer before the loss of a backward pass; "" if it is not known."""
    if not name.startswith("backward."):
        return ""
    number = int(name.partition(".")[2])
    node = f"loss@{number}" if number else "loss"
    layers = nearest_layers(history, node) if node in history.nodes else []
    return layers[0].module if layers else ""
