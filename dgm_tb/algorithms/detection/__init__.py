"""Detectors: each looks at a whole recording for one kind of trouble. Pure functions of recorded numbers.

``DETECTORS`` names them all. A false alarm costs more trust than a miss: every threshold says why healthy trainings
stay on the other side of it. ``causes`` then folds what follows from something else into its cause.
"""

from collections.abc import Callable

from dgm_tb.algorithms.detection.activations import exploding_activation, norm_degenerate, saturated
from dgm_tb.algorithms.detection.adversarial import gan_imbalance, mode_collapse
from dgm_tb.algorithms.detection.causes import causes
from dgm_tb.algorithms.detection.dead import dead_units
from dgm_tb.algorithms.detection.gradients import exploding_gradient, vanishing_gradient
from dgm_tb.algorithms.detection.history import Detection, History, LayerHistory, Track
from dgm_tb.algorithms.detection.latent import posterior_collapse
from dgm_tb.algorithms.detection.losses import loss_divergence, loss_stalled
from dgm_tb.algorithms.detection.rates import lr_too_high, lr_too_low
from dgm_tb.algorithms.detection.weights import bad_init, corrupt_weight, not_training

__all__ = ["DETECTORS", "Detection", "History", "LayerHistory", "Track", "detect"]

DETECTORS: dict[str, Callable[[History], list[Detection]]] = {
    "exploding_activation": exploding_activation,
    "exploding_gradient": exploding_gradient,
    "vanishing_gradient": vanishing_gradient,
    "dead_units": dead_units,
    "saturated": saturated,
    "not_training": not_training,
    "corrupt_weight": corrupt_weight,
    "bad_init": bad_init,
    "norm_degenerate": norm_degenerate,
    "lr_too_high": lr_too_high,
    "lr_too_low": lr_too_low,
    "loss_stalled": loss_stalled,
    "loss_divergence": loss_divergence,
    "posterior_collapse": posterior_collapse,
    "mode_collapse": mode_collapse,
    "gan_imbalance": gan_imbalance,
}
"""Kind of finding -> its detector. ``nonfinite``, ``outlier_sample`` and ``loss_spike`` need the step itself: the
callback finds them while training (``dgm_tb/callback/inquiry.py``)."""


def detect(history: History) -> list[Detection]:
    """Run every detector, and keep the causes of what they find."""
    return causes([detection for detector in DETECTORS.values() for detection in detector(history)], history)
