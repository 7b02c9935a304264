"""Route ``unusual``: the neurons that stand out in their layer, each with a sentence that says why. See http_api.md."""

from typing import Any, NamedTuple

import numpy as np

from dgm_tb.algorithms import patterns
from dgm_tb.algorithms.patterns import KINDS
from dgm_tb.plugin.cache import CACHE, Arrays
from dgm_tb.plugin.lines import View
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.tracks import Windows
from dgm_tb.plugin.wire import Arguments
from dgm_tb.records import as_json

Array = np.ndarray[Any, np.dtype[Any]]

MAX_LISTED = 500
NEAR = 8
"""Windows before and after a moment from which levels are taken."""
NOTABLE = 0.25
"""What the layer does meanwhile is said where it is at least this share of what the neuron does."""
MEDIAN_NEURONS = 2048
FIELDS = ("neuron", "kind", "score", "step", "first_step", "last_step", "sentence")


def unusual(run: Run, arguments: Arguments) -> Any:
    """Route ``unusual``."""
    view, limit = View.asked(run, arguments, has_columns=False), arguments.number("limit", 50, 1, MAX_LISTED)
    key = (id(run), run.folder, "unusual", view[1:])
    counts, *columns = CACHE.made(key, run.read_revision, lambda: _listed(view))
    rows = zip(*(column[:limit].tolist() for column in columns), strict=True)
    n_neurons, count, n_dead = counts.tolist()
    common = {"dead": n_dead} if n_dead else {}
    listed = [dict(zip(FIELDS, row, strict=True)) for row in rows]
    return as_json({**view.facts, "neurons": n_neurons, "count": count, "common": common, "unusual": listed})


def _listed(view: View) -> Arrays:
    """Neurons of the layer, neurons found, dead ones that are no exception; and ``FIELDS`` of the first found."""
    windows = view.windows()
    recorded = windows.is_recorded
    windows = Windows(windows.bounds[recorded], windows.values[recorded], windows.aggregates)
    by_name = {name: windows.values[:, :, number].T for number, name in enumerate(windows.aggregates)}
    found, common = patterns.unusual(by_name["main"], by_name.get("min"), by_name.get("max"))
    counts = np.array([windows.values.shape[1], len(found.neurons), common.get("dead", 0)])
    rows = []
    for neuron, kind, score, first, last, ratio, is_own in list(zip(*found, strict=True))[:MAX_LISTED]:
        told = _TELLERS[KINDS[kind]](_History.of(windows, int(neuron)), int(first), int(last))
        sentence = told.text + _comparison(float(ratio), bool(is_own))
        rows.append((neuron, KINDS[kind], score, told.step, told.first_step, told.last_step, sentence))
    if not rows:
        return counts, *(np.zeros(0) for _ in FIELDS)
    return counts, *(np.array(column) for column in zip(*rows, strict=True))


def _comparison(ratio: float, is_own: bool) -> str:
    if np.isnan(ratio):
        return ""
    measure = "measured by what each neuron does otherwise, " if is_own else ""
    return f": {measure}{ratio:.2g} times what is rare in this layer"


# -- sentences ---------------------------------------------------------------------------------------------------------


class _Told(NamedTuple):
    """What a finding says: a sentence without its subject, the step to look at, and the steps it is about."""

    text: str
    step: int
    first_step: int
    last_step: int


class _History(NamedTuple):
    """One neuron's values in all windows ``[windows]``, float64, and where they come from."""

    main: Array
    low: Array
    high: Array
    windows: Windows

    @classmethod
    def of(cls, windows: Windows, neuron: int) -> "_History":
        row = windows.values[:, neuron].astype(np.float64)
        by_name = {name: row[:, number] for number, name in enumerate(windows.aggregates)}
        return cls(by_name["main"], by_name.get("min", row[:, 0]), by_name.get("max", row[:, 0]), windows)

    def told(self, text: str, first: int, last: int, step: int | None = None) -> _Told:
        """A finding about some windows; by default their last step is the one to look at."""
        bounds = self.windows.bounds
        end = int(bounds[last, 1])
        return _Told(text, end if step is None else step, int(bounds[first, 0]), end)

    def when(self, first: int, last: int) -> str:
        """The steps of some windows, in words."""
        begin, end = int(self.windows.bounds[first, 0]), int(self.windows.bounds[last, 1])
        return f"at step {begin}" if begin == end else f"in steps {begin} to {end}"

    def level(self, first: int, stop: int) -> float:
        """Median of some windows, at least one."""
        return _median(self.main[max(first, 0) : max(stop, first + 1, 1)])

    def layer(self, before: slice, after: slice, change: float) -> str:
        """What the layer's median does meanwhile, if that is worth a word."""
        every = -(-self.windows.values.shape[1] // MEDIAN_NEURONS)
        levels = [_median(self.windows.values[part, ::every, 0].astype(np.float64)) for part in (before, after)]
        if not abs(levels[1] - levels[0]) >= NOTABLE * abs(change):
            return ""
        return f" while the layer's median goes from {_number(levels[0])} to {_number(levels[1])}"


def _nonfinite(history: _History, first: int, last: int) -> _Told:
    main = history.main
    lost = ~np.isfinite(main)
    what = "NaN" if np.isnan(main[first]) else "infinite" if main[first] > 0 else "minus infinite"
    where = history.when(first, first)
    if lost.sum() == 1:
        text = f"is {what} {where}"
    elif lost[first:].all():
        text = f"is not finite any more from step {int(history.windows.bounds[first, 0])} on, first {what}"
    else:
        text = f"is not finite in {int(lost.sum())} of {len(lost)} windows, first {what} {where}"
    return history.told(text, first, last, int(history.windows.bounds[first, 1]))


def _dead(history: _History, first: int, last: int) -> _Told:
    moved = np.flatnonzero((history.low != history.low[-1]) | (history.high != history.low[-1]))
    first = int(moved[-1]) + 1 if len(moved) else 0
    since = f"from step {int(history.windows.bounds[first, 0])} on" if first else "throughout"
    text = f"stays at {_number(history.main[-1])} {since} while others move"
    return history.told(text, first, last, int(history.windows.bounds[first, 0]))


def _step(history: _History, first: int, last: int) -> _Told:
    main = history.main
    splits = range(max(first - NEAR // 2, 1), min(last + NEAR // 2 + 1, len(main)))
    sides = {s: (history.level(s - NEAR, s), history.level(s, min(s + NEAR, len(main)))) for s in splits}
    changes = {s: abs(after - before) for s, (before, after) in sides.items()}
    clear = [s for s in splits if changes[s] >= 0.9 * max(changes.values())]
    at = max(clear, key=lambda s: abs(main[s] - main[s - 1]))  # medians change little from one window to the next
    before, after = sides[at]
    step = int(history.windows.bounds[at, 0])
    text = f"jumps from {_number(before)} to {_number(after)} at step {step}"
    text += history.layer(slice(max(at - NEAR, 0), at), slice(at, at + NEAR), after - before)
    return history.told(text, at - 1, at, step)


def _spike(history: _History, first: int, last: int) -> _Told:
    main, n = history.main, len(history.main)
    around = np.concatenate([main[max(first - 2 * NEAR, 0) : first], main[last + 1 : last + 1 + 2 * NEAR]])
    level = _median(around if len(around) else main)
    above, below = history.high[first : last + 1] - level, level - history.low[first : last + 1]
    is_up = above.max() >= below.max()
    far = history.high - level if is_up else level - history.low
    at = first + int(far[first : last + 1].argmax())
    begin = end = at
    while begin > max(at - NEAR, 0) and far[begin - 1] > far[at] / 2:
        begin -= 1
    while end < min(at + NEAR, n - 1) and far[end + 1] > far[at] / 2:
        end += 1
    peak = level + far[at] if is_up else level - far[at]
    text = f"leaps from {_number(level)} to {_number(peak)} {history.when(begin, end)} and returns"
    return history.told(text, begin, end, int(history.windows.bounds[at, 1]))


def _drift(history: _History, first: int, last: int) -> _Told:
    quarter = max((last + 1 - first) // 4, 1)
    before, after = history.level(first, first + quarter), history.level(last + 1 - quarter, last + 1)
    text = f"goes slowly from {_number(before)} to {_number(after)}"
    text += history.layer(slice(first, first + quarter), slice(last + 1 - quarter, last + 1), after - before)
    return history.told(text, first, last)


def _blow_up(history: _History, first: int, last: int) -> _Told:
    before, after = history.level(first - NEAR // 2, first + NEAR // 2), history.main[last]
    begin = int(history.windows.bounds[first, 1])
    text = f"moves faster and faster, from {_number(before)} at step {begin} to {_number(after)} at the end"
    text += history.layer(slice(max(first - NEAR // 2, 0), first + NEAR // 2), slice(last, last + 1), after - before)
    return history.told(text, first, last)


def _oscillation(history: _History, first: int, last: int) -> _Told:
    low, high = np.quantile(history.main, (0.05, 0.95))
    farthest = int(np.abs(history.main - np.median(history.main)).argmax())
    text = f"swings between {_number(low)} and {_number(high)}"
    return history.told(text, first, last, int(history.windows.bounds[farthest, 1]))


_TELLERS = {
    "nonfinite": _nonfinite,
    "dead": _dead,
    "blow_up": _blow_up,
    "step": _step,
    "spike": _spike,
    "oscillation": _oscillation,
    "drift": _drift,
}


def _median(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def _number(value: float) -> str:
    return f"{value:.3g}"
