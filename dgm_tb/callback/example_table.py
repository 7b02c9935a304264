"""How strongly each layer answers each example of a step."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dgm_tb.algorithms.outliers import OUTLIER_RATIO, Outliers, outlying_examples
from dgm_tb.callback.examples import largest_per_example, main_input
from dgm_tb.callback.slots import Slot

if TYPE_CHECKING:
    from dgm_tb.callback.investigate import Step

Array = np.ndarray[Any, np.dtype[Any]]


class ExampleTable:
    """Largest ``|value|`` of every example of a step, in the input and in every layer.

    Attributes:
        n_examples: Number of examples; 0 if unknown.
    """

    def __init__(self, step: "Step", slots: Sequence[Slot]) -> None:
        rows: list[tuple[Slot | None, Array]] = []
        source = main_input(step.before.batch) if step.before is not None else None
        if source is not None and source.is_floating_point():
            rows.append((None, largest_per_example(source)))
        self.n_examples = len(rows[0][1]) if rows else _common_length(step.row.examples)
        for number, largest in step.row.examples.items():
            if len(largest) == self.n_examples:
                values = largest.cpu().numpy().astype(np.float64)
                rows.append((slots[number], np.where(np.isfinite(values), values, np.inf)))
        self._rows = rows

    def outliers(self) -> Outliers:
        """Examples out of line, judged by the input and the layers before the first non-finite one."""
        rows = self._rows
        stop = next((n for n, (slot, v) in enumerate(rows) if slot is not None and not np.isfinite(v).all()), len(rows))
        chosen = [values for _, values in rows[:stop]]
        return outlying_examples(np.stack(chosen) if chosen else np.zeros((0, 0)))

    def slot(self, number: int) -> Slot | None:
        """The slot of a row; the first layer if the row is the input."""
        rows = [slot for slot, _ in self._rows[number:] if slot is not None]
        return rows[0] if rows else None

    def name(self, number: int) -> str:
        """Name of a row: ``input`` or the slot's."""
        slot = self._rows[number][0] if number < len(self._rows) else None
        return slot.name if slot is not None else "input"

    def values(self, slot: Slot) -> Array | None:
        """The row of a slot ``[examples]``."""
        return next((values for known, values in self._rows if known is slot), None)

    def by_layer(self, positions: Sequence[int]) -> tuple[list[str], Array]:
        """Names of all layers known here, and the values of some examples ``[examples, layers]``."""
        rows = [(slot.name, values[list(positions)]) for slot, values in self._rows if slot is not None]
        return [name for name, _ in rows], np.stack([v for _, v in rows], 1) if rows else np.zeros((len(positions), 0))

    def ratio(self, slot: Slot, position: int | None) -> float:
        """How far the example at ``position`` (or else the strongest one) stands out in a layer; 0 if unknown."""
        values = self.values(slot)
        if values is None or not len(values):
            return 0.0
        finite = values[np.isfinite(values)]
        center = float(np.median(finite)) if len(finite) else 0.0
        value = float(values.max()) if position is None else float(values[position])
        return value / max(center, 1e-12)

    def is_spoilt_since(self, earlier: "ExampleTable") -> bool:
        """Whether ordinary examples get far stronger answers than then: weights were spoilt (or nothing is known)."""
        pairs = [(values, earlier.values(slot)) for slot, values in self._rows if slot is not None]
        return not pairs or any(
            np.median(now) >= OUTLIER_RATIO * max(float(np.median(then)), 1e-12)
            for now, then in pairs
            if then is not None and len(then) and len(now)
        )


def _common_length(examples: Mapping[int, Tensor]) -> int:
    lengths = [len(largest) for largest in examples.values()]
    return max(set(lengths), key=lengths.count) if lengths else 0
