"""Arrays that were read lately, up to a number of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = tuple[Array, ...]


class Cache:
    """Keeps the most recently used arrays; safe to use from several threads.

    Args:
        max_bytes: What is kept at most. Arrays larger than a quarter of it are handed out but not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Hashable, Arrays]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[Hashable, Arrays] | None:
        """The state and the arrays last put under a key, or None."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, state: Hashable, arrays: Arrays) -> None:
        """Keep arrays, and with them the state of the files that they were read in."""
        size = _size(arrays)
        with self._lock:
            self._drop(key)
            if size > self.max_bytes // 4:
                return
            self._kept[key] = state, arrays
            self.n_bytes += size
            while self.n_bytes > self.max_bytes:
                self._drop(next(iter(self._kept)))

    def made(self, key: Hashable, state: Hashable, make: Callable[[], Arrays]) -> Arrays:
        """The arrays under a key if they are of this state; else those that ``make`` gives, which are kept."""
        known = self.get(key)
        if known is not None and known[0] == state:
            return known[1]
        arrays = make()
        self.put(key, state, arrays)
        return arrays

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._kept.clear()
            self.n_bytes = 0

    def _drop(self, key: Hashable) -> None:
        _, arrays = self._kept.pop(key, (None, ()))
        self.n_bytes -= _size(arrays)


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays) + 200


CACHE = Cache(96 << 20)
"""Shared by all runs of a process."""
