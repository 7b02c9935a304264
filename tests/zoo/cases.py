"""What a case of the zoo is, and the table of all cases."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from .probe import Probe

Built = tuple[L.LightningModule, DataLoader, dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One training and what is true of it.

    Attributes:
        name: Its name.
        build: Makes model, data and further arguments of the Trainer; seeds everything.
        kind: What is wrong, "" for a healthy training.
        also: Further kinds that describe it rightly.
        modules: Patterns of the modules that a user would look at; () if none is at fault.
        step: First and last step at which it may be dated; None if it has no date.
        samples: Dataset indices to blame.
        neurons: Neurons to blame.
        check: Whether the fault (or the health) is there, by plain arithmetic on what the probe saw.
        held_out: Not looked at while thresholds are chosen.
        quick: Part of the subset that always runs.
    """

    name: str
    build: Callable[[], Built]
    kind: str = ""
    also: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    step: tuple[int, int] | None = None
    samples: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    check: Callable[[Probe], bool] = field(default=lambda probe: True)
    held_out: bool = False
    quick: bool = False


CASES: dict[str, Case] = {}


def case(**truth: Any) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Enter a function into ``CASES`` under its own name."""

    def enter(build: Callable[[], Built]) -> Callable[[], Built]:
        CASES[build.__name__] = Case(build.__name__, build, **truth)
        return build

    return enter


def healthy(**truth: Any) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Enter a healthy training: its loss must have fallen, unless another check is given."""
    truth.setdefault("check", lambda probe: probe.late() < 0.9 * probe.early())
    return case(**truth)


class Task(L.LightningModule):
    """A network, a loss on its output, and an optimizer.

    Args:
        net: The network.
        loss: Of its output and the target.
        optimizer: Makes the optimizer of its parameters.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[..., torch.Tensor],
        optimizer: Callable[[Any], torch.optim.Optimizer] = lambda parameters: torch.optim.Adam(parameters, 1e-3),
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.optimizer = optimizer

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


def adam(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    """Makes Adam with this learning rate."""
    return lambda parameters: torch.optim.Adam(parameters, lr)


def sgd(lr: float, momentum: float = 0.0) -> Callable[[Any], torch.optim.Optimizer]:
    """Makes SGD with this learning rate."""
    return lambda parameters: torch.optim.SGD(parameters, lr, momentum)


def loader(*tensors: torch.Tensor, batch_size: int = 16, shuffle: bool = False) -> DataLoader:
    """Batches of these tensors."""
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size, shuffle=shuffle, drop_last=True)


def loader_of(dataset: Dataset[Any], batch_size: int = 16, shuffle: bool = False) -> DataLoader:
    """Batches of a data set."""
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=True)
