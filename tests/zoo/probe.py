"""An independent look at a training, with plain hooks: the oracle behind every truth."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor


@dataclass(frozen=True)
class Output:
    """One call of a module.

    Attributes:
        step: The training batch.
        low: Smallest value of each channel.
        high: Largest one.
        std: Standard deviation of each channel over examples and positions.
        largest: Largest magnitude of all.
        diversity: Standard deviation over the examples, averaged over units and positions, over the mean magnitude.
        is_finite: Whether every value is.
    """

    step: int
    low: Tensor
    high: Tensor
    std: Tensor
    mean: Tensor
    largest: float
    diversity: float
    is_finite: bool

    @property
    def second_moment(self) -> float:
        """Mean square of all values."""
        return float((self.std**2 + self.mean**2).mean())


class Probe(L.Callback):
    """Sees losses, outputs of all modules, gradients and changes of all parameters.

    Attributes:
        losses: What ``training_step`` returned, or the first logged loss.
        outputs: Module -> its calls.
        gradients: Parameter -> norm of its gradient in each optimizer step.
        changes: Parameter -> norm of its change over its norm, in each batch.
        weights: Parameter -> largest magnitude after each batch.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.logged: dict[str, list[float]] = defaultdict(list)
        self.outputs: dict[str, list[Output]] = defaultdict(list)
        self.gradients: dict[str, list[float]] = defaultdict(list)
        self.changes: dict[str, list[float]] = defaultdict(list)
        self.weights: dict[str, list[float]] = defaultdict(list)
        self._step = 0
        self._before: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, module in pl_module.named_modules():
            if name:
                module.register_forward_hook(lambda m, i, o, name=name: self._see(name, o))

    def _see(self, name: str, output: Any) -> None:
        if not isinstance(output, Tensor):
            output = next((part for part in output if isinstance(part, Tensor)), None) if output is not None else None
        if output is None or output.dim() < 2 or not output.is_floating_point():
            return
        x = output.detach().float()
        channels = (
            (x if x.dim() == 4 else x.movedim(-1, 1)).transpose(0, 1).reshape(x.shape[1 if x.dim() == 4 else -1], -1)
        )
        scale = x.abs().mean().clamp_min(1e-30)
        self.outputs[name].append(
            Output(
                self._step,
                channels.amin(1),
                channels.amax(1),
                channels.std(1, correction=0),
                channels.mean(1),
                float(x.abs().max()),
                float(x.std(0, correction=0).mean() / scale),
                bool(torch.isfinite(x).all()),
            )
        )

    def on_train_batch_start(self, trainer: Any, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_before_optimizer_step(self, trainer: Any, pl_module: L.LightningModule, optimizer: Any) -> None:
        for name, p in pl_module.named_parameters():
            if p.grad is not None:
                g = p.grad.coalesce().values() if p.grad.is_sparse else p.grad
                self.gradients[name].append(float(g.detach().norm()))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for name, value in logged.items():
            self.logged[name].append(value)
        self.losses.append(float(loss) if isinstance(loss, Tensor) else next(iter(logged.values()), float("nan")))
        for name, p in pl_module.named_parameters():
            old = self._before[name]
            self.changes[name].append(float((p.detach() - old).norm() / old.norm().clamp_min(1e-30)))
            self.weights[name].append(float(p.detach().abs().max()) if p.numel() else 0.0)
        self._step += 1

    # -- arithmetic on it ----------------------------------------------------------------------------------------------

    @property
    def n_steps(self) -> int:
        """Batches that ended."""
        return self._step

    def early(self, name: str = "", n: int = 8) -> float:
        """Median of the first losses."""
        return _median((self.logged[name] if name else self.losses)[:n])

    def late(self, name: str = "", n: int = 16) -> float:
        """Median of the last losses."""
        return _median((self.logged[name] if name else self.losses)[-n:])

    def first_nonfinite(self, name: str = "") -> int:
        """First step with a non-finite output of a module (of any), or a non-finite loss; -1 if there is none."""
        calls = self.outputs[name] if name else [call for found in self.outputs.values() for call in found]
        steps = [call.step for call in calls if not call.is_finite]
        if not name:
            steps += [n for n, loss in enumerate(self.losses) if loss != loss or abs(loss) == float("inf")]
        return min(steps, default=-1)

    def largest(self, name: str) -> list[float]:
        """Largest magnitude of a module's output, call by call."""
        return [call.largest for call in self.outputs[name]]

    def dead(self, name: str) -> list[int]:
        """Channels that never came above zero."""
        high = torch.stack([call.high for call in self.outputs[name]]).amax(0)
        return [int(n) for n in torch.nonzero(high <= 0)]

    def gradient(self, name: str) -> float:
        """Median norm of a parameter's gradient."""
        return _median(self.gradients[name])

    def is_unchanged(self, name: str) -> bool:
        """Whether a parameter kept its value from the first step to the last."""
        return max(self.changes[name]) == 0


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).median()) if values else float("nan")
