"""Replaces an attribute of somebody else's class for a while."""

from collections.abc import Callable
from typing import Any

_APPLIED: "list[Patch]" = []


class Patch:
    """Puts a wrapper in the place of a class's own attribute until ``remove``.

    Several patches of one attribute may lie over each other and be removed in any order: one that another covers passes
    calls on until that one goes, too.

    Args:
        owner: The class.
        name: The attribute, in the class's own ``__dict__``.
        wrap: Makes the wrapper of the original.
    """

    def __init__(self, owner: type, name: str, wrap: Callable[[Any], Any]) -> None:
        self._owner, self._name = owner, name
        self._original = owner.__dict__[name]
        self._wrapper = wrap(self._original)
        self._is_over = False
        setattr(owner, name, self._wrapper)
        _APPLIED.append(self)

    def remove(self) -> None:
        """Put the original back. Safe to call twice."""
        self._is_over = True
        for patch in reversed([patch for patch in _APPLIED if patch._place == self._place]):
            if not patch._is_over or self._owner.__dict__.get(self._name) is not patch._wrapper:
                return
            setattr(self._owner, self._name, patch._original)
            _APPLIED.remove(patch)

    @property
    def _place(self) -> tuple[type, str]:
        return self._owner, self._name
