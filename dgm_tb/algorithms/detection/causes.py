"""From all that was detected to what is to be reported: causes, with their consequences folded into them."""

from collections.abc import Sequence
from dataclasses import replace

from dgm_tb.algorithms.detection.history import Detection, History

CONSEQUENCES: dict[str, frozenset[str]] = {
    kind: frozenset(others.split())
    for kind, others in {
        "bad_init": (
            "exploding_activation exploding_gradient vanishing_gradient saturated dead_units loss_stalled lr_too_low "
            "lr_too_high loss_divergence norm_degenerate not_training corrupt_weight"
        ),
        "not_training": (
            "vanishing_gradient loss_stalled lr_too_low gan_imbalance mode_collapse posterior_collapse saturated"
        ),
        "lr_too_high": (
            "exploding_activation exploding_gradient saturated dead_units loss_divergence loss_stalled "
            "vanishing_gradient mode_collapse gan_imbalance posterior_collapse corrupt_weight norm_degenerate"
        ),
        "corrupt_weight": (
            "exploding_activation exploding_gradient saturated dead_units loss_divergence loss_stalled "
            "vanishing_gradient lr_too_high"
        ),
        "norm_degenerate": "dead_units vanishing_gradient loss_stalled exploding_gradient lr_too_low",
        "dead_units": "vanishing_gradient loss_stalled lr_too_low norm_degenerate not_training",
        "exploding_activation": "exploding_gradient loss_divergence saturated lr_too_low vanishing_gradient",
        "saturated": "vanishing_gradient loss_stalled lr_too_low",
        "mode_collapse": "gan_imbalance vanishing_gradient dead_units",
        "gan_imbalance": "vanishing_gradient saturated loss_divergence mode_collapse",
        "loss_divergence": (
            "exploding_activation exploding_gradient saturated gan_imbalance vanishing_gradient dead_units "
            "mode_collapse"
        ),
        "posterior_collapse": "vanishing_gradient loss_stalled",
        "vanishing_gradient": "loss_stalled lr_too_low",
        "exploding_gradient": "loss_stalled lr_too_low",
        "lr_too_low": "loss_stalled posterior_collapse",
    }.items()
}
"""Kind -> what it leads to; earlier kinds of the table explain later ones."""

BLAMED_ON_EXAMPLES = frozenset(
    "exploding_activation exploding_gradient loss_divergence dead_units corrupt_weight lr_too_high".split()
)
"""What an example or batch that was found guilty before it explains."""

CLOSE = 8
"""Steps that are closer than this are not told apart: weights are measured this seldom."""

TOLERANCE = 24
"""A cause may be dated this much later than its consequence: windows are coarse."""


def causes(detections: Sequence[Detection], history: History) -> list[Detection]:
    """The detections that no other one explains, each with the modules of what it explains."""
    left = [detection for detection in detections if not _is_blamed(detection, history)]
    explained = [next((n for n, cause in enumerate(left) if _explains(cause, other)), None) for other in left]
    kept = {n: detection for n, detection in enumerate(left) if explained[n] is None}
    for number in range(len(left)):
        root, seen = number, {number}
        while (cause := explained[root]) is not None and cause not in seen:
            root = cause
            seen.add(cause)
        if root != number and root in kept:
            kept[root] = _with_consequence(kept[root], left[number])
    return list(kept.values())


def _explains(cause: Detection, other: Detection) -> bool:
    """Whether one leads to the other; of two that may lead to each other, the earlier one, or else as in the table."""
    if cause.severity == "info" and other.severity != "info":
        return False
    order = list(CONSEQUENCES)
    leads = other.kind in CONSEQUENCES.get(cause.kind, frozenset())
    is_mutual = leads and cause.kind in CONSEQUENCES.get(other.kind, frozenset())
    if is_mutual and abs(cause.step - other.step) > CLOSE:
        return cause.step < other.step
    if is_mutual and order.index(cause.kind) > order.index(other.kind):
        return False
    return leads and cause.step <= other.step + TOLERANCE


def _is_blamed(detection: Detection, history: History) -> bool:
    """Whether an example or batch was found guilty just before it, while training."""
    explained = (
        "exploding_activation",
        "exploding_gradient",
        "loss_divergence",
        "dead_units",
        "corrupt_weight",
        "lr_too_high",
    )
    margin = 0 if detection.kind == "lr_too_high" else 2  # windows date other things too early, never a huge step
    is_after = any(first - margin <= detection.step for first, _ in history.blamed)
    return detection.kind in explained and detection.step > 0 and is_after


def _with_consequence(cause: Detection, other: Detection) -> Detection:
    names = [name for name in (other.module, *other.modules) if name and name != cause.module]
    led_to = [*cause.evidence.get("led_to", []), f"{other.kind} in {other.module or 'the model'}"]
    modules = list(dict.fromkeys([*cause.modules, *names]))[:16]
    return replace(cause, modules=modules, evidence={**cause.evidence, "led_to": led_to})
