"""The way of a step's numbers from the device to the host, on which nobody waits.

On a GPU nothing of a step is read while it runs: all that is to be known of it is copied at its end, asynchronously and
at once, and looked at one step later. On the CPU it is looked at right away.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dgm_tb.callback.attribution import Attribution
from dgm_tb.callback.replay import Before
from dgm_tb.callback.step_row import StepRow
from dgm_tb.callback.vitals import Measured


class Passage:
    """Tensors on their way to the host: one copy per device and type.

    Args:
        tensors: Any shapes; those on the CPU stay where they are.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._copies: list[tuple[list[int], Tensor, Any]] = []
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for number, tensor in enumerate(self._tensors):
            if not _is_here(tensor):
                groups.setdefault((tensor.device, tensor.dtype), []).append(number)
        for (device, dtype), numbers in groups.items():
            flat = torch.cat([self._tensors[number].reshape(-1) for number in numbers])
            host = torch.empty(len(flat), dtype=dtype, pin_memory=device.type == "cuda")
            host.copy_(flat, non_blocking=device.type == "cuda")  # elsewhere there is no event to wait for
            event = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
            if event is not None:
                event.record(torch.cuda.current_stream(device))
            self._copies.append((numbers, host, event))

    def arrive(self) -> list[Tensor]:
        """The tensors on the host, in their order; waits for copies that are not done yet."""
        arrived = list(self._tensors)
        for numbers, host, event in self._copies:
            if event is not None:
                event.synchronize()
            parts = host.split([self._tensors[number].numel() for number in numbers])  # type: ignore[no-untyped-call]
            for number, part in zip(numbers, parts, strict=True):
                arrived[number] = part.view(self._tensors[number].shape)
        self._tensors, self._copies = arrived, []
        return arrived


@dataclass
class Departure:
    """A step that has ended, not all of whose numbers may be known yet.

    Attributes:
        step: Its number.
        global_step: Lightning's number of optimizer steps so far.
        row: What its neurons left.
        before: What it started from.
        losses: Name -> value.
        norms: Parameter -> norm of its gradient.
        overflows: Whether a gradient scaler found an overflow, per optimizer step (0-dim, 0 or 1).
        weight_norms: Norms of all neurons' weights after it, or None if they were not measured.
        squares: See ``WeightWatch.end``; None if they are measured once the step has been looked into.
        weights: The weights before it, if they had to be kept apart.
        attribution: The contributions of its snapshot.
    """

    step: int
    global_step: int
    row: StepRow
    before: Before | None
    losses: Measured
    norms: Measured
    overflows: list[Tensor]
    weight_norms: Tensor | None = None
    squares: Tensor | None = None
    weights: list[Tensor] | None = None
    attribution: Attribution | None = None

    def __post_init__(self) -> None:
        tensors = self._tensors()
        self._passage = Passage(tensors) if not all(map(_is_here, tensors)) else None

    def arrive(self) -> "Departure":
        """Itself, with all tensors on the host, and losses and norms as numbers."""
        if self._passage is not None:
            tensors, row = iter(self._passage.arrive()), self.row
            self.row = row = replace(row, activation=next(tensors), gradient=next(tensors))
            row.scale = next(tensors) if row.scale is not None else None
            row.examples = {slot: next(tensors) for slot in row.examples}
            row.pivots = {slot: next(tensors) for slot in row.pivots}
            self.overflows = [next(tensors) for _ in self.overflows]
            self.weight_norms = next(tensors) if self.weight_norms is not None else None
            self.squares = next(tensors) if self.squares is not None else None
            self.losses = {n: next(tensors) if isinstance(v, Tensor) else v for n, v in self.losses.items()}
            self.norms = {n: next(tensors) if isinstance(v, Tensor) else v for n, v in self.norms.items()}
        self.losses = {name: float(value) for name, value in self.losses.items()}
        self.norms = {name: float(value) for name, value in self.norms.items()}
        return self

    def _tensors(self) -> list[Tensor]:
        row = self.row
        known: list[Any] = [row.activation, row.gradient, row.scale, *row.examples.values(), *row.pivots.values()]
        known += [*self.overflows, self.weight_norms, self.squares, *self.losses.values(), *self.norms.values()]
        return [tensor for tensor in known if isinstance(tensor, Tensor)]


def _is_here(tensor: Tensor) -> bool:
    return tensor.is_cpu
