"""Gradients of the weights that are orders of magnitude above what they were, or above any use."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EARLY_STEPS = 16
"""The largest gradient of so many first steps is what later ones are measured by, too."""

EARLY_RATIO = 20.0
"""A leap of the gradient counts if it ends this many times above that: after a perfect fit, ordinary ones are leaps."""

LARGE = 1e4
"""Below this nobody looks further."""

USELESS = 1e5
"""A gradient this many times the weights' own norm, in ``PATIENCE`` steps in a row, needs learning rates below 1e-8.
Sums over pixels and targets in the hundreds give up to 1e4."""

PATIENCE = 5


@dataclass(frozen=True)
class Explosion:
    """Gradients that exploded.

    Attributes:
        parameter: The worst parameter.
        norm: Norm of all gradients.
        ratio: To the largest recent norm for a leap; else of the parameter's gradient to the parameter.
        is_leap: Whether it came at once.
    """

    parameter: str
    norm: float
    ratio: float
    is_leap: bool


class GradientWatch:
    """Says once when gradients have exploded.

    Args:
        names: Of the parameters.
        parameters: The parameters.
    """

    def __init__(self, names: Sequence[str], parameters: Sequence[Tensor]) -> None:
        self._parameters = dict(zip(names, parameters, strict=True))
        self._n_steps = self._n_large = 0
        self._early = 0.0
        self._is_told = False

    def note(self, norms: Mapping[str, float], jump: float) -> Explosion | None:
        """Take in a step.

        Args:
            norms: Parameter -> norm of its gradient.
            jump: Ratio of their norm to the largest of the recent steps, if it leapt; else 0.
        """
        if not norms or self._is_told:
            return None
        norm = math.hypot(*norms.values())
        if not math.isfinite(norm):
            return None
        self._n_steps += 1
        if self._n_steps <= EARLY_STEPS:
            self._early = max(self._early, norm)
        self._n_large = self._n_large + 1 if norm > LARGE else 0
        found = None
        if jump and self._n_steps > EARLY_STEPS and norm > EARLY_RATIO * self._early:
            found = Explosion(max(norms, key=lambda name: norms[name]), norm, jump, True)
        elif self._n_large >= PATIENCE:
            found = self._useless(norms, norm)
        self._is_told = found is not None
        return found

    def _useless(self, norms: Mapping[str, float], norm: float) -> Explosion | None:
        with torch.no_grad():
            sizes = {name: float(p.detach().norm()) for name in norms if (p := self._parameters.get(name)) is not None}
        ratios = {name: norms[name] / size for name, size in sizes.items() if size > 0}
        worst = max(ratios, key=lambda name: ratios[name], default="")
        return Explosion(worst, norm, ratios[worst], False) if worst and ratios[worst] > USELESS else None
