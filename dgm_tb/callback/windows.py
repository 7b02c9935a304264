"""From one row per step to records: losses and layer statistics per step, all neurons per window, sampled polylines."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dgm_tb.callback.polylines import PolylineSampler
from dgm_tb.callback.slots import Slot
from dgm_tb.callback.step_row import StepRow, statistics_of
from dgm_tb.callback.weights import weight_statistics
from dgm_tb.records import STATISTICS, Record, compact

Array = np.ndarray[Any, np.dtype[Any]]

_AGGREGATES: dict[str, Callable[[Array, Array], Array]] = {
    "mean": lambda values, is_silent: _mean(values, is_silent),
    "min": lambda values, _: np.fmin.reduce(values, 0),
    "max": lambda values, _: np.fmax.reduce(values, 0),
}
"""Of a window's values ``[steps, neurons]``. A NaN that was measured makes the mean NaN; the smallest and the largest
value are those of the other steps."""


def _mean(values: Array, is_silent: Array) -> Array:
    """Over the steps in which the layer was called, which need not be all."""
    if not is_silent.any():
        return np.asarray(values.mean(0))
    n_steps = (~is_silent).sum(0)
    return np.asarray(np.where(is_silent, 0, values).sum(0) / np.where(n_steps > 0, n_steps, np.nan))


@dataclass
class Row:
    """One step.

    Attributes:
        step: The callback's own batch counter.
        global_step: Lightning's.
        losses: Name -> value.
        raw: Sums of every neuron; None if only the losses were observed, or if ``quantities`` came of several ranks.
        weights: Sums of squares of every neuron's weights ``[3, neurons]``, see ``WeightWatch.end``.
        quantities: Quantity -> ``[statistics, neurons]`` (``update`` has the norm before the step as a further row);
            filled in from ``raw`` and ``weights`` for many steps at once.
        is_skipped: Whether a gradient scaler left an optimizer step out.
    """

    step: int
    global_step: int
    losses: dict[str, float]
    raw: StepRow | None = None
    weights: Array | None = None
    quantities: dict[str, Array] = field(default_factory=dict)
    is_skipped: bool = False

    @property
    def is_observed(self) -> bool:
        """Whether there is more than losses."""
        return self.raw is not None or bool(self.quantities)


class Windows:
    """Collects rows and turns them into records.

    Args:
        window_steps: Observed steps per window; 1 keeps every step of every neuron in float32.
    """

    def __init__(self, window_steps: int) -> None:
        self.window_steps = window_steps
        self.slots: Sequence[Slot] = ()
        self.layers: dict[str, list[tuple[int, int]]] = {}
        self.samplers = {quantity: PolylineSampler(quantity) for quantity in ("activation", "gradient")}
        self._window: list[Row] = []
        self._began = 0.0
        self._fresh: list[Row] = []
        self._done: list[tuple[int, int, dict[str, Array]]] = []
        self._polylines: list[Record] = []

    def add(self, row: Row) -> None:
        """Take in one step."""
        self._fresh.append(row)
        if row.is_observed:
            if not self._window:
                self._began = time.monotonic()
            self._window.append(row)
        if len(self._window) >= self.window_steps:
            self._end_window()

    def take(self, *, is_last: bool = False) -> list[Record]:
        """The records of everything not yet handed out.

        Args:
            is_last: End an incomplete window, too.
        """
        rows, self._fresh = self._fresh, []
        made = [_loss_record(rows)] if rows else []
        observed = [row for row in rows if row.is_observed]
        self._fill_in(observed)
        for quantity in STATISTICS:
            known = [row for row in observed if quantity in row.quantities]
            made += [_layer_record(quantity, known, self.layers[quantity])] if known else []
        if is_last and self._window:
            self._end_window()
        made += self._polylines
        self._polylines = []
        done, self._done = self._done, []
        for quantity in STATISTICS:
            with_it = [window for window in done if quantity in window[2]]
            made += [_dynamics_record(quantity, with_it, self.window_steps)] if with_it else []
        return [record for record in made if all(array.size for array in record.arrays.values())]

    def _fill_in(self, rows: Sequence[Row]) -> None:
        """Compute the quantities of the rows that hold raw sums only."""
        fresh = [row for row in rows if not row.quantities]
        if not fresh:
            return
        activation, gradient = statistics_of([row.raw for row in fresh if row.raw is not None], self.slots)
        for number, row in enumerate(fresh):
            row.quantities = {"activation": activation[number], "gradient": gradient[number][None]}

        squares = [row.weights for row in fresh if row.weights is not None]
        weights = iter(weight_statistics(np.stack(squares)) if squares else ())
        for row in fresh:
            if row.weights is not None:
                of_row: Array = next(weights)
                row.quantities |= {"weight": of_row[:1], "update": of_row[1:]}

    def unfinished(self, older_than: float = math.inf) -> list[Record]:
        """What the window that has not ended yet would say if it ended now; empty if there is none.

        Args:
            older_than: Windows that have begun later, in seconds of ``time.monotonic``, are left to end by themselves.
        """
        rows = self._window
        if not rows or self._began > older_than:
            return []
        self._fill_in(rows)
        window = rows[0].step, rows[-1].step, self._aggregated(rows)
        made = [_dynamics_record(quantity, [window], self.window_steps) for quantity in window[2]]
        lines = [_polyline_record(quantity, rows, sampler) for quantity, sampler in self.samplers.items()]
        return [*made, *filter(None, lines)]

    def _end_window(self) -> None:
        rows, self._window = self._window, []
        self._fill_in(rows)
        aggregated = self._aggregated(rows)
        self._done.append((rows[0].step, rows[-1].step, aggregated))
        if self.window_steps > 1:
            for quantity, sampler in self.samplers.items():
                sampler.update(aggregated[quantity][:, 0], self.layers[quantity])
                record = _polyline_record(quantity, rows, sampler)
                self._polylines += [record] if record is not None else []

    def _aggregated(self, rows: Sequence[Row]) -> dict[str, Array]:
        """Quantity -> its aggregates over some rows ``[neurons, aggregates]``."""
        aggregated: dict[str, Array] = {}
        for quantity, statistics in STATISTICS.items():
            known = [row for row in rows if quantity in row.quantities]
            if not known:
                continue
            values = _stack(known, quantity)
            is_silent = _silent(known, quantity, values[:, 0], self.layers[quantity])
            columns = []
            with np.errstate(invalid="ignore", over="ignore"):
                for number, statistic in enumerate(statistics):
                    kept = statistic.windows if self.window_steps > 1 else statistic.windows[:1]
                    columns += [_AGGREGATES[name](values[:, number], is_silent) for name in kept]
            aggregated[quantity] = np.stack(columns, 1)
        return aggregated


def _stack(rows: Sequence[Row], quantity: str) -> Array:
    """``[steps, statistics, neurons]``; rows from before the layout grew are filled up with NaN."""
    arrays = [row.quantities[quantity] for row in rows]
    size = max(array.shape[1] for array in arrays)
    if all(array.shape[1] == size for array in arrays):
        return np.stack(arrays)
    return np.stack([np.pad(a, ((0, 0), (0, size - a.shape[1])), constant_values=np.nan) for a in arrays])


def _silent(rows: Sequence[Row], quantity: str, main: Array, layers: Sequence[tuple[int, int]]) -> Array:
    """Where a neuron has no value since its layer was not called, or got no gradient ``[steps, neurons]``.

    Rows of several ranks do not tell: there, a layer is silent in which every neuron is NaN.
    """
    is_nan = np.isnan(main)
    if quantity not in ("activation", "gradient") or not is_nan.any():
        return is_nan
    offsets = [offset for offset, neurons in layers if offset + neurons <= main.shape[1]]
    sizes = [neurons for offset, neurons in layers if offset + neurons <= main.shape[1]]
    is_silent = np.zeros_like(is_nan)
    for number, row in enumerate(rows):
        if row.raw is not None:
            counts = row.raw.counts if quantity == "activation" else row.raw.gradient_counts
            silent = [not count for count in counts[: len(sizes)]] + [True] * (len(sizes) - len(counts))
        else:
            silent = np.logical_and.reduceat(is_nan[number], offsets).tolist()
        is_silent[number, : sum(sizes)] = np.repeat(silent, sizes)
    return is_silent


def _loss_record(rows: Sequence[Row]) -> Record:
    names = list(dict.fromkeys(name for row in rows for name in row.losses))
    values = np.array([[row.losses.get(name, np.nan) for name in names] for row in rows], np.float64)
    present = np.array([[name in row.losses for name in names] for row in rows], np.uint8)
    arrays: dict[str, Array] = {
        "steps": np.array([row.step for row in rows], np.int64),
        "global_steps": np.array([row.global_step for row in rows], np.int64),
        "values": values.reshape(len(rows), len(names)),
        "present": present.reshape(len(rows), len(names)),
    }
    if any(row.is_skipped for row in rows):
        arrays["skipped"] = np.array([row.is_skipped for row in rows], np.uint8)
    return Record("loss", rows[0].step, rows[-1].step, {"names": names}, arrays)


def _layer_record(quantity: str, rows: Sequence[Row], layers: Sequence[tuple[int, int]]) -> Record:
    values = _stack(rows, quantity)
    per_layer = np.full((len(rows), len(layers), len(STATISTICS[quantity])), np.nan, np.float32)
    known = [(offset, neurons) for offset, neurons in layers if offset + neurons <= values.shape[2]]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if known:
            per_layer[:, : len(known)] = _LAYER_STATISTICS[quantity](values, _Spans(known))
    body = {"quantity": quantity, "statistics": [statistic.name for statistic in STATISTICS[quantity]]}
    arrays: dict[str, Array] = {"steps": np.array([row.step for row in rows], np.int64), "values": per_layer}
    return Record("layer_statistics", rows[0].step, rows[-1].step, body, arrays)


class _Spans:
    """Reduces ``[steps, neurons]`` to ``[steps, layers]`` for all layers at once.

    Args:
        layers: Offset and number of neurons of each; they lie side by side.
    """

    def __init__(self, layers: Sequence[tuple[int, int]]) -> None:
        self.offsets = np.array([offset for offset, _ in layers])
        self.sizes = np.array([neurons for _, neurons in layers])

    def sum(self, values: Array) -> Array:
        """Sums in float64."""
        return np.asarray(np.add.reduceat(values, self.offsets, 1, dtype=np.float64))

    def mean(self, values: Array) -> Array:
        """Means in float64."""
        return np.asarray(self.sum(values) / self.sizes)

    def spread(self, values: Array) -> Array:
        """To every neuron the value of its layer: ``[steps, layers]`` to ``[steps, neurons]``."""
        return np.repeat(values, self.sizes, 1)


def _activation_of_layers(values: Array, spans: _Spans) -> Array:
    """Statistics over all values of each layer, from those of its neurons ``[steps, statistics, neurons]``."""
    mean, std, low, high, zeros = np.moveaxis(values[:, :, : int(spans.sizes.sum())], 1, 0)
    center = spans.mean(mean)
    spread = np.sqrt(spans.mean(std * std + (mean - spans.spread(center)) ** 2))
    low, high = np.minimum.reduceat(low, spans.offsets, 1), np.maximum.reduceat(high, spans.offsets, 1)
    return np.stack([center, spread, low, high, spans.mean(zeros)], 2)


def _rms_of_layers(values: Array, spans: _Spans) -> Array:
    return np.asarray(np.sqrt(spans.mean(np.square(values[:, 0], dtype=np.float64)))[..., None])


def _norm_of_layers(values: Array, spans: _Spans) -> Array:
    return np.asarray(np.sqrt(spans.sum(np.square(values[:, 0], dtype=np.float64)))[..., None])


def _ratio_of_layers(values: Array, spans: _Spans) -> Array:
    ratio, before = np.moveaxis(values.astype(np.float64), 1, 0)
    change = np.sqrt(spans.sum((ratio * before) ** 2))
    return np.asarray((change / np.maximum(np.sqrt(spans.sum(before * before)), 1e-30))[..., None])


_LAYER_STATISTICS: dict[str, Callable[[Array, _Spans], Array]] = {
    "activation": _activation_of_layers,
    "gradient": _rms_of_layers,
    "weight": _norm_of_layers,
    "update": _ratio_of_layers,
}


def _polyline_record(quantity: str, rows: Sequence[Row], sampler: PolylineSampler) -> Record | None:
    if not rows or not sampler.neurons.size:
        return None
    values = _stack(rows, quantity)[:, 0]
    known = sampler.neurons < values.shape[1]
    halved, scale = compact({"values": values[:, sampler.neurons[known]]})
    arrays = {
        "steps": np.array([row.step for row in rows], np.int64),
        "neurons": sampler.neurons[known].astype(np.int32),
        "outliers": sampler.outliers[known].astype(np.uint8),
        **halved,
    }
    body = {"quantity": quantity, "statistic": STATISTICS[quantity][0].name, **scale}
    return Record("polylines", rows[0].step, rows[-1].step, body, arrays)


def _dynamics_record(quantity: str, windows: Sequence[tuple[int, int, dict[str, Array]]], window_steps: int) -> Record:
    size = max(len(aggregated[quantity]) for _, _, aggregated in windows)
    padded = [
        np.pad(a[quantity], ((0, size - len(a[quantity])), (0, 0)), constant_values=np.nan) for _, _, a in windows
    ]
    values = np.stack(padded, 1)
    aggregates = [
        f"{statistic.name}/{name}"
        for statistic in STATISTICS[quantity]
        for name in (statistic.windows if window_steps > 1 else statistic.windows[:1])
    ]
    whole = {"values": values.astype(np.float32)}
    arrays, scale = compact(whole) if window_steps > 1 else (whole, {})
    arrays["windows"] = np.array([(first, last) for first, last, _ in windows], np.int64)
    body = {"quantity": quantity, "aggregates": aggregates, **scale}
    return Record("dynamics", windows[0][0], windows[-1][1], body, arrays)
