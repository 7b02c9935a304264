"""What a run hands out: named arrays along the steps, and contribution matrices; as data frames, if pandas is there."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dgm_tb.errors import UnknownNameError
from dgm_tb.plugin.optional import optional

if TYPE_CHECKING:
    import pandas

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Series:
    """One number per step.

    Attributes:
        steps: The callback's batch counter ``[T]``, ascending, int64.
        values: ``[T]``, floating point.
        global_steps: Lightning's ``global_step`` of the same steps ``[T]``; empty where it was not recorded.
    """

    steps: Array
    values: Array
    global_steps: Array

    def to_pandas(self) -> "pandas.Series[Any]":
        """The values, indexed by ``step``; several series of a dictionary make a ``pandas.DataFrame`` of it.

        Raises:
            MissingPackageError: Without pandas.
        """
        pandas = optional("pandas", "to_pandas")
        return pandas.Series(self.values, pandas.Index(self.steps, name="step"), copy=True)


@dataclass(frozen=True)
class Dynamics:
    """The history of many neurons.

    Attributes:
        steps: ``[T]``; with windows, the last step of each.
        values: ``[neurons, T]``; with windows, each one's main aggregate. NaN where nothing was recorded.
        neurons: Number of each within its layer ``[neurons]``.
        first_steps: First step of each window ``[T]``; equal to ``steps`` at full resolution.
        low: Smallest value in each window ``[neurons, T]``, or None where it is not kept.
        high: Largest value in each window ``[neurons, T]``, or None where it is not kept.
        outliers: Whether each neuron is an outlier of its layer ``[neurons]``.
    """

    steps: Array
    values: Array
    neurons: Array
    first_steps: Array
    low: Array | None = None
    high: Array | None = None
    outliers: Array | None = None

    def to_pandas(self, of: str = "values") -> "pandas.DataFrame":
        """A table with one row per ``step`` and one column per ``neuron``, each named by its number within the layer.

        Args:
            of: ``values``, or ``low`` or ``high`` for the smallest or largest value in each window.

        Returns:
            float32; with windows, the index is the last step of each.

        Raises:
            MissingPackageError: Without pandas.
            UnknownNameError: If ``of`` names something else, or what is not kept.
        """
        pandas = optional("pandas", "to_pandas")
        kept = {"values": self.values, "low": self.low, "high": self.high}
        values = kept.get(of)
        if values is None:
            known = ", ".join(name for name, array in kept.items() if array is not None)
            raise UnknownNameError(f"no {of!r} of these neurons; there are {known}")
        index, columns = pandas.Index(self.steps, name="step"), pandas.Index(self.neurons, name="neuron")
        return pandas.DataFrame(values.T, index, columns, copy=True)


class ContributionMatrix(np.ndarray[Any, np.dtype[np.float32]]):
    """Contributions ``[target neurons, source neurons]``, float32, raw.

    Attributes:
        step: The attributed snapshot.
        kind: What lies between the layers: ``channels``, ``flatten``, ``unflatten`` or ``exact``.
        relevance: What each target neuron had to hand on ``[target neurons]``, to all its sources; None: not recorded.
        ended: Of an exact matrix, where the relevance of the whole target went, as far as the nearest layers: its
            ``total``, what ``arrived`` at each source, ``leaked`` and ``stopped`` by function, and ``noise``.
    """

    step: int
    kind: str
    relevance: Array | None
    ended: dict[str, Any]

    def __new__(cls, values: Array, step: int, kind: str) -> "ContributionMatrix":
        """Wrap an array."""
        matrix = np.asarray(values, np.float32).view(cls)
        matrix.step, matrix.kind, matrix.relevance, matrix.ended = step, kind, None, {}
        return matrix

    def __array_finalize__(self, other: Any) -> None:
        self.step = getattr(other, "step", -1)
        self.kind = getattr(other, "kind", "")
        self.relevance = getattr(other, "relevance", None)
        self.ended = getattr(other, "ended", {})

    @property
    def largest(self) -> Array:
        """The largest finite ``|contribution|`` into each target neuron ``[target neurons]``."""
        magnitude = np.abs(np.asarray(self))
        return np.asarray(np.where(np.isfinite(magnitude), magnitude, 0.0).max(-1, initial=0.0))

    @property
    def scaled(self) -> Array:
        """The contributions over ``largest``, in ``[-1, 1]``; 0 for a target without any, NaN kept."""
        largest = self.largest[..., None]
        scaled = np.asarray(self) / np.where(largest > 0, largest, 1.0)
        return np.clip(scaled, -1.0, 1.0)

    def to_pandas(self) -> "pandas.DataFrame":
        """A table with one row per ``target`` neuron and one column per ``source`` neuron, numbered from 0; float32.

        Raises:
            MissingPackageError: Without pandas.
            ValueError: If this is a part of a matrix that has no two axes.
        """
        pandas = optional("pandas", "to_pandas")
        if self.ndim != 2:
            raise ValueError(f"a table has the axes [target neurons, source neurons]; got shape {self.shape}")
        frame = pandas.DataFrame(np.asarray(self), copy=True)
        return frame.rename_axis(index="target", columns="source")
