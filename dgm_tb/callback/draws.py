"""The batches that data loaders hand out to a plain loop, and which of them a model is called with."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from dgm_tb.callback.examples import ObservedSampler, batch_size
from dgm_tb.callback.nested import tensors_in
from dgm_tb.callback.patch import Patch
from dgm_tb.callback.say import warn

MAX_AHEAD = 4
"""Batches remembered of each loader: a loop may prefetch some."""

MAX_LOADERS = 16
"""Loaders whose batches are remembered: a loop may make a new loader in every epoch."""


@dataclass(eq=False)
class Draw:
    """One batch.

    Attributes:
        batch: The batch, as the loader gave it.
        indices: Dataset index of every example, or None where they can't be known.
        loader: Which loader gave it.
    """

    batch: Any
    indices: list[int] | None
    loader: int


class Draws:
    """Watches every ``DataLoader`` between ``install`` and ``remove``."""

    def __init__(self) -> None:
        self._patches: list[Patch] = []
        self._of_loader: dict[int, deque[Draw]] = {}
        self._fresh: deque[Draw] = deque(maxlen=MAX_AHEAD)
        self._place: tuple[int, int] | None = None
        self._n_without = 0

    def install(self) -> None:
        """Start to watch."""
        self._patches = [
            Patch(DataLoader, "_index_sampler", self._watched_sampler),
            Patch(_BaseDataLoaderIter, "__next__", self._watched_next),
        ]

    def remove(self) -> None:
        """Stop to watch. Safe to call twice."""
        for patch in self._patches:
            patch.remove()
        self._of_loader.clear()
        self._fresh.clear()

    def take(self, inputs: Any) -> Draw | None:
        """The batch that a model is called with; what was drawn before it is done with.

        A batch is known by its memory. Where its tensors have been copied to a device, or changed, it is the newest
        one, unless the first step shows by its values that the loop draws ahead.

        Args:
            inputs: What the model gets (any nesting of tensors).
        """
        tensors = list(tensors_in(inputs))
        newest_first = sorted(self._all(), key=lambda draw: draw not in self._fresh)
        found = next((found for draw in newest_first if (found := _same_memory(draw, tensors))), None)
        self._n_without = 0 if self._fresh else self._n_without + 1
        if found is None:
            found = self._by_order(tensors)
        self._fresh.clear()
        return found

    def skip(self) -> None:
        """The newest batch is for something else, such as validation; so are all others of its loader."""
        if self._fresh:
            others = [draw for draw in self._fresh if draw.loader != self._fresh[-1].loader]
            self._fresh = deque(others, maxlen=MAX_AHEAD)

    def of(self, batch: Any) -> Draw | None:
        """The draw of a batch that the user names."""
        return next((found for draw in self._all() if (found := _same_memory(draw, list(tensors_in(batch))))), None)

    def _all(self) -> Iterator[Draw]:
        """Every batch remembered, each loader's newest first."""
        return (draw for draws in self._of_loader.values() for draw in reversed(draws))

    def _by_order(self, tensors: list[Tensor]) -> Draw | None:
        if self._place is None:
            if not self._fresh:
                return None
            self._place = self._place_by_values(tensors) or (self._fresh[-1].loader, 0)
        loader, ahead = self._place
        if self._fresh and all(draw.loader != loader for draw in self._fresh):
            loader, ahead = self._fresh[-1].loader, 0
        ahead -= self._n_without  # the last batches that were drawn ahead are used without another draw
        draws = self._of_loader.get(loader, ())
        draw = draws[-1 - ahead] if 0 <= ahead < len(draws) else None
        return draw if draw is not None and batch_size(draw.batch) == batch_size(tensors) else None

    def _place_by_values(self, tensors: list[Tensor]) -> tuple[int, int] | None:
        """Loader, and by how many batches the loop draws ahead of the step that uses them; None if no values agree."""
        for loader, draws in self._of_loader.items():
            for ahead, draw in enumerate(reversed(draws)):
                if any(_same_values(drawn, tensor) for drawn in tensors_in(draw.batch) for tensor in tensors):
                    return loader, ahead
        return None

    # -- watching ------------------------------------------------------------------------------------------------------

    def _watched_sampler(self, original: Any) -> property:
        return property(lambda loader: _WatchedSampler(original.fget(loader), self, id(loader)))

    def _watched_next(self, original: Any) -> Any:
        def __next__(iterator: Any) -> Any:
            batch = original(iterator)
            try:
                self._note(iterator, batch)
            except Exception as error:
                self.remove()
                warn(f"can't tell which examples are in a batch, training goes on: {type(error).__name__}: {error}")
            return batch

        return __next__

    def _note(self, iterator: Any, batch: Any) -> None:
        sampler = getattr(iterator, "_index_sampler", None)
        while isinstance(sampler, ObservedSampler) and getattr(sampler, "owner", None) is not self:
            sampler = sampler.wrapped
        loader, indices = id(iterator), None
        if isinstance(sampler, _WatchedSampler):
            loader = sampler.loader
            indices = sampler.drawn.popleft() if sampler.drawn else None
        if not getattr(iterator, "_in_order", True) or (indices is not None and len(indices) != batch_size(batch)):
            indices = None
        draw = Draw(batch, indices, loader)
        self._of_loader[loader] = self._of_loader.pop(loader, deque(maxlen=MAX_AHEAD))  # the newest is the last one
        self._of_loader[loader].append(draw)
        if len(self._of_loader) > MAX_LOADERS:
            del self._of_loader[next(iter(self._of_loader))]
        self._fresh.append(draw)


class _WatchedSampler(ObservedSampler):
    """Keeps what it has handed out, for the iterator that it belongs to."""

    def __init__(self, sampler: Any, owner: Draws, loader: int) -> None:
        super().__init__(sampler, self._begin)
        self.owner = owner
        self.loader = loader
        self.drawn: deque[list[int] | None] = deque()

    def _begin(self, drawn: deque[list[int] | None]) -> None:
        self.drawn = drawn


def _same_memory(draw: Draw, tensors: list[Tensor]) -> Draw | None:
    """The draw, or the part of it, whose examples ``tensors`` hold; None if they are other ones."""
    drawn = [tensor for tensor in tensors_in(draw.batch) if tensor.dim()]
    size = batch_size(draw.batch)
    for tensor in tensors:
        for whole in drawn:
            if not tensor.dim() or len(whole) != size or not _shares_memory(whole, tensor):
                continue
            offset = int(tensor.storage_offset()) - int(whole.storage_offset())
            first, rest = divmod(offset, max(int(whole.stride(0)), 1))
            if len(tensor) == size and not offset:
                return draw
            if not rest and 0 <= first <= size - len(tensor) and tensor.stride(0) == whole.stride(0):
                return _part(draw, slice(first, first + len(tensor)), size)
    return None


def _part(draw: Draw, rows: slice, size: int) -> Draw:
    """Some examples of a batch, as where gradients are accumulated over pieces of it."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[rows] if tensor.dim() and len(tensor) == size else tensor

    indices = None if draw.indices is None else draw.indices[rows]
    return Draw(tree_map_only(Tensor, cut, draw.batch), indices, draw.loader)


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    try:
        place = one.untyped_storage().data_ptr()
        return place != 0 and place == other.untyped_storage().data_ptr()
    except Exception:  # fake or sparse tensors have no memory of their own
        return False


def _same_values(drawn: Tensor, tensor: Tensor) -> bool:
    """Whether two tensors agree in their first example; waits for the device."""
    if (
        not drawn.dim()
        or not tensor.dim()
        or not len(drawn)
        or not len(tensor)
        or drawn[0].numel() != tensor[0].numel()
    ):
        return False
    one, other = drawn[0].detach().flatten(), tensor[0].detach().flatten().to(drawn.device, drawn.dtype)
    return bool(torch.equal(one, other)) and len(drawn) == len(tensor)
