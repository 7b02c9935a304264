"""Which training examples are in a batch, and what they look like."""

import ctypes
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dgm_tb.callback.nested import tensors_in
from dgm_tb.callback.patch import Patch

Array = np.ndarray[Any, np.dtype[Any]]

MAX_PIXELS = 128 * 128
"""Inputs with more values per channel are thinned out before they are recorded."""


class SamplerObserver:
    """Notes the dataset indices that each data loader draws, without drawing anything itself.

    While installed, a ``DataLoader`` iterates over a wrapper of its (batch) sampler that passes everything on and
    keeps the indices. Lightning makes the first iterator before any of a callback's hooks could reach the loader,
    so this is installed on the class, in ``setup``, and removed in ``teardown``.
    """

    def __init__(self) -> None:
        self._patch: Patch | None = None
        self._drawn: dict[int, deque[list[int] | None]] = {}

    @property
    def is_installed(self) -> bool:
        """Whether it observes now."""
        return self._patch is not None

    def install(self) -> None:
        """Start to observe. Safe to call twice."""
        if self._patch is None and isinstance(DataLoader.__dict__.get("_index_sampler"), property):
            self._patch = Patch(DataLoader, "_index_sampler", self._observed)

    def _observed(self, original: Any) -> property:
        get, drawn = original.fget, self._drawn

        def observed(loader: DataLoader[Any]) -> Any:
            return ObservedSampler(get(loader), lambda indices: drawn.__setitem__(id(loader), indices))

        return property(observed)

    def remove(self) -> None:
        """Stop to observe. Safe to call twice."""
        if self._patch is not None:
            self._patch.remove()
            self._patch = None
        self._drawn.clear()

    def next_batch(self, loaders: Sequence[Any], size: int | None) -> list[int] | None:
        """Dataset indices of the next batch of the first of ``loaders`` that was observed.

        Args:
            loaders: The training data loaders, the main one first.
            size: Number of examples in the batch, as a check.

        Returns:
            One index per example, or None where they can't be known (iterable data sets, own batching).
        """
        found: list[int] | None = None
        for number, loader in enumerate(loaders):
            drawn = self._drawn.get(id(loader))
            indices = drawn.popleft() if drawn else None
            if number == 0:
                found = indices
        return found if found is not None and (size is None or len(found) == size) else None


class ObservedSampler:
    """A sampler that tells which indices it hands out; otherwise the sampler it wraps.

    Args:
        sampler: The sampler.
        start: Gets, at the start of each iteration, the queue of what it will have handed out.
    """

    def __init__(self, sampler: Any, start: Callable[[deque[list[int] | None]], None]) -> None:
        self.wrapped = sampler
        self._start = start

    def __iter__(self) -> Iterator[Any]:
        drawn: deque[list[int] | None] = deque(maxlen=100_000)
        self._start(drawn)
        for indices in self.wrapped:
            drawn.append(_as_indices(indices))
            yield indices

    def __len__(self) -> int:
        return len(self.wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


def _as_indices(drawn: Any) -> list[int] | None:
    try:
        return [int(index) for index in drawn] if isinstance(drawn, (list, tuple)) else [int(drawn)]
    except (TypeError, ValueError):
        return None


def batch_size(batch: Any) -> int | None:
    """Number of examples: the length of the first tensor that has axes, or None."""
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.dim()), None)


def main_input(batch: Any) -> Tensor | None:
    """The tensor that is shown as the example: the first floating-point one with an axis besides the examples'."""
    size = batch_size(batch)
    candidates = [t for t in tensors_in(batch) if t.dim() > 1 and len(t) == size]
    return next((t for t in candidates if t.is_floating_point()), candidates[0] if candidates else None)


def labels(batch: Any) -> Tensor | None:
    """The first tensor with one whole number per example, or None."""
    size = batch_size(batch)
    return next((t for t in tensors_in(batch) if t.dim() == 1 and len(t) == size and not t.is_floating_point()), None)


def largest_per_example(tensor: Tensor) -> Array:
    """Largest ``|value|`` of each example ``[examples]``; Inf where an example holds NaN or Inf."""
    flat = tensor.detach().reshape(len(tensor), -1).abs().float()
    largest = flat.amax(1).cpu().numpy().astype(np.float64)
    return np.where(np.isfinite(largest), largest, np.inf)


def thinned(inputs: Tensor) -> Tensor:
    """``[examples, ...]`` with every n-th row and column of large images, so that they stay small on disk."""
    while inputs.dim() >= 3 and inputs.shape[-1] * inputs.shape[-2] > MAX_PIXELS:
        inputs = inputs[..., ::2, ::2]
    if inputs.dim() == 2 and inputs.shape[1] > 3 * MAX_PIXELS:
        inputs = inputs[:, : 3 * MAX_PIXELS]
    return inputs


def axes_of(inputs: Tensor) -> str:
    """Names of the axes of the recorded inputs: ``NCHW``, ``NHW``, ``NF`` or ``N`` with as many ``x`` as needed."""
    if inputs.dim() == 4:
        return "NCHW" if inputs.shape[1] <= 4 or inputs.shape[-1] > 4 else "NHWC"
    return {2: "NF", 3: "NHW"}.get(inputs.dim(), "N" + "x" * (inputs.dim() - 1))


class RandomState:
    """The state of the random generators that a training step may draw from."""

    def __init__(self) -> None:
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        self._python = _PYTHON.state()
        self._numpy = _NUMPY.state()

    def restore(self) -> None:
        """Set all generators back to this state."""
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002


class _GlobalState:
    """The state of a global Mersenne Twister, at little cost while nothing is drawn from it.

    To ask for it takes 10 to 70 microseconds, so the generator's own memory is compared with what it was last.

    Args:
        get: Asks for the state.
        memory: Key and position in it, as bytes; empty if they can't be read.
        has_spare: Whether a state holds a normal number drawn in advance: that is kept in another place.
    """

    def __init__(self, get: Callable[[], Any], memory: Callable[[], bytes], has_spare: Callable[[Any], bool]) -> None:
        self._get, self._memory, self._has_spare = get, memory, has_spare
        self._seen = b""
        self._state: Any = None

    def state(self) -> Any:
        """What the generator can be set to later."""
        seen = self._memory()
        if self._state is None or not seen or seen != self._seen or self._has_spare(self._state):
            self._seen, self._state = seen, self._get()
        return self._state


_MT19937_BYTES = 4 * (624 + 1)


def _numpy_memory() -> bytes:
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if not isinstance(generator, np.random.MT19937):
        return b""
    return ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)


def _python_memory() -> bytes:
    return ctypes.string_at(id(_PYTHON_GENERATOR) + object.__basicsize__, _MT19937_BYTES) if _CAN_READ_PYTHON else b""


def _can_read_python() -> bool:
    """Whether CPython's generator keeps its position and key right after the object's head, as it has always done."""
    if sys.implementation.name != "cpython" or type(_PYTHON_GENERATOR).__basicsize__ < _MT19937_BYTES:
        return False
    held = np.frombuffer(ctypes.string_at(id(_PYTHON_GENERATOR) + object.__basicsize__, _MT19937_BYTES), np.uint32)
    *key, position = random.getstate()[1]
    return bool(held.tolist() == [position, *key])


_PYTHON_GENERATOR: Any = getattr(random, "_inst", None)
_CAN_READ_PYTHON = _can_read_python()
_PYTHON = _GlobalState(random.getstate, _python_memory, lambda state: state[2] is not None)
_NUMPY = _GlobalState(np.random.get_state, _numpy_memory, lambda state: bool(state[3]))
