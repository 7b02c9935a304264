"""Which trainable parameters do not train: no gradient reaches them, or no optimizer has them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

FIRST_LOOK = 24
LAST_LOOK = 48
"""Steps with gradients after which parameters without any are noted, and told if they are still the same."""


class IdleWatch:
    """Notes which parameters get gradients, and after ``LAST_LOOK`` steps says which have not trained.

    A parameter is idle if an optimizer has it and it never gets a gradient, or if it gets gradients and no optimizer
    has it. One without either is left alone on purpose, as is one that does not require gradients. Copies that are
    moving averages change, and are not idle. Optimizers are known where a Lightning trainer has them.

    Args:
        root: The model.
        names: Of its parameters.
        parameters: The parameters.
    """

    def __init__(self, root: nn.Module, names: Sequence[str], parameters: Sequence[Tensor]) -> None:
        self._root = root
        self._named = list(zip(names, parameters, strict=True))
        self._with_gradient: set[str] = set()
        self._sums: dict[str, float] = {}
        self._n_steps = 0

    def note(self, gradient_norms: Mapping[str, float]) -> dict[str, str]:
        """Take in a step.

        Args:
            gradient_norms: Parameter -> norm of its gradient, of those that an optimizer was about to change.

        Returns:
            Once, if there are any: module -> why it is idle: ``detached`` from the loss or ``left out`` of optimizers.
        """
        if self._n_steps >= LAST_LOOK or not gradient_norms:
            return {}
        self._with_gradient.update(gradient_norms)
        self._n_steps += 1
        if self._n_steps == FIRST_LOOK:
            self._sums = {name: _sum(p) for name, p in self._suspects()}
        if self._n_steps < LAST_LOOK:
            return {}
        same = [(name, p) for name, p in self._suspects() if self._sums.get(name) == _sum(p)]
        return self._by_module(same)

    def _suspects(self) -> list[tuple[str, Tensor]]:
        return [(n, p) for n, p in self._named if p.requires_grad and n not in self._with_gradient and p.numel()]

    def _by_module(self, idle: Sequence[tuple[str, Tensor]]) -> dict[str, str]:
        """Modules of which no parameter trains; a parameter of the model itself stands for itself."""
        optimized = _optimized(self._root)
        if optimized is None:
            return {}
        training = {name.rpartition(".")[0] for name in self._with_gradient}
        found: dict[str, str] = {}
        for name, parameter in idle:
            module = name.rpartition(".")[0] or name
            has_gradient = parameter.grad is not None and bool(parameter.grad.detach().any())
            if module in training or (id(parameter) not in optimized and not has_gradient):
                continue
            found[module] = "detached" if id(parameter) in optimized else "left out"
        return found


def _optimized(root: nn.Module) -> set[int] | None:
    """Ids of the parameters that the trainer's optimizers have; None if there is no trainer."""
    trainer: Any = vars(root).get("_trainer")
    optimizers = getattr(trainer, "optimizers", None)
    if not optimizers:
        return None
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


def _sum(parameter: Tensor) -> float:
    with torch.no_grad():
        return float(parameter.detach().double().abs().sum())
