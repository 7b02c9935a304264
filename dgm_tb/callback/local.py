"""Functions that stay where they were put: a copy or a pickle of a model takes none of our doings with it."""

from collections.abc import Callable
from typing import Any


class Local:
    """A hook or shadowed method that works on its own model only.

    A model may be copied (a teacher, an average of weights) or pickled while it is trained. Plain closures would make
    the copy report as if it were the model, and can't be pickled; copies of this one do nothing.

    Args:
        function: What to do.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do it."""
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Local, (_nothing,)


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""
