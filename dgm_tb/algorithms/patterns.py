"""Why the history of a neuron is unusual in its layer.

Everything is judged against the other neurons: what many of them do is usual, whatever it is. Each of the movements
that ``movements`` measures is compared with the layer twice: as it is, and as a multiple of what the same neuron does
otherwise (a calm neuron's spike, not a loud one's noise). Both times it is put on a logarithmic scale with 0 for what
one neuron in twenty exceeds and 1 for what not one in a thousand should (nor one in the layer): extrapolated from the
layer's own quantiles, so that heavy tails and many loud neurons widen the scale instead of raising alarms. A movement
is unusual if both add up to ``LIMIT`` or more, and neither is below 0.

A history with several unusual movements is named after the one whose shape explains most of it, by least squares: a
step, a pulse (spike), a ramp (drift), exponential growth towards the end (blow-up), or swings around the running mean
(oscillation). Two kinds need no shape: a value that is not finite, and standing still for good while the others go on
(dead).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dgm_tb.algorithms.movements import SAMPLE, Columns, Layer, Movement, gap, reach

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

KINDS = ("nonfinite", "dead", "blow_up", "step", "spike", "oscillation", "drift")
KIND_OF = {"jump": "step", "excursion": "spike", "drift": "drift", "swing": "oscillation", "growth": "blow_up"}
"""Movement -> kind."""
MOVEMENTS = tuple(KIND_OF)

LIMIT = 1.7
"""Of what a movement sums up to: 2 would be once in a thousand by each of two independent measures."""
MARGIN = 1.1
"""Movements are at least so many times what one in twenty exceeds, also where all neurons do the same."""
FEW = 9.0
"""Of n neurons deciles are known only so well: the scale is made longer by this over n."""
MANY = 100
"""Of so many neurons the rarest hundredth is known."""
LEAST_NEURONS = 8
LEAST_COLUMNS = 8
"""Fewer neurons that move, or fewer snapshots, are not compared."""
ABRUPT = 0.75
"""A drift of which so much happens at once is a step,"""
SLOW = 0.25
"""and a step that is less than so much of a drift is a drift."""
MAX_SHARE = 0.1
"""What more neurons than this share of the layer do for good is not unusual there."""
STILL_SHARE = 0.1
"""A dead neuron stands still for at least this share of the range."""
SPACINGS = 4
"""What moves by less than so many steps of the number format is rounded, not moved."""
STILL_SPACINGS = 16
"""A neuron is dead only if the others move by so many of these steps while it stands still."""
MAX_NAMED = 1024


class Unusual(NamedTuple):
    """Unusual histories, the strongest first.

    Attributes:
        neurons: ``[found]``.
        kinds: Index into ``KINDS`` ``[found]``.
        scores: Sum over its limit: 1 at the least; Inf for what needs no comparison ``[found]``.
        first: First snapshot of what is unusual ``[found]``.
        last: Last one ``[found]``.
        ratios: Times what one neuron in twenty exceeds ``[found]``; NaN where nothing is compared.
        is_own: Whether that is as a multiple of what the neuron does otherwise ``[found]``.
    """

    neurons: Ints
    kinds: Ints
    scores: Floats
    first: Ints
    last: Ints
    ratios: Floats
    is_own: Bools


def unusual(main: Array, low: Array | None = None, high: Array | None = None) -> tuple[Unusual, dict[str, int]]:
    """Find the neurons whose histories are unusual in their layer, and why.

    Args:
        main: Value of each neuron at each snapshot ``[neurons, snapshots]``; a snapshot may be a window.
        low: Smallest value within each snapshot; ``main`` by default.
        high: Largest one.

    Returns:
        At most one finding per neuron, ``nonfinite`` first, ``dead`` next; and how many neurons show a kind that is no
        exception in this layer.
    """
    n_neurons, n_snapshots = main.shape
    if not n_neurons or not n_snapshots:
        return _found("nonfinite", np.zeros(0, np.int64)), {}
    is_finite = np.asarray(np.isfinite(main).all(1))
    columns = Columns.of(main, main if low is None else low, main if high is None else high)
    found = [_nonfinite(main, np.flatnonzero(~is_finite))]
    common: dict[str, int] = {}
    spacing = float(np.finfo(np.float16 if main.dtype == np.float16 else np.float32).eps)
    dead, since = _dead(columns, is_finite, spacing)
    if len(dead) > MAX_SHARE * n_neurons:
        common["dead"] = len(dead)
    else:
        found.append(_found("dead", dead, columns.starts[since], np.full(len(dead), n_snapshots - 1)))
    is_alive = is_finite & columns.moves
    is_alive[dead] = False
    if len(columns.starts) >= LEAST_COLUMNS and is_alive.sum() >= LEAST_NEURONS:
        found.append(_moved(columns, np.flatnonzero(is_alive), spacing))
    return _strongest_first(found), common


# -- what needs no shape -----------------------------------------------------------------------------------------------


def _nonfinite(main: Array, neurons: Ints) -> Unusual:
    """Neurons with values that are not finite, from the first such snapshot to the last one."""
    lost = ~np.isfinite(main[neurons])
    return _found("nonfinite", neurons, lost.argmax(1), lost.shape[1] - 1 - lost[:, ::-1].argmax(1))


def _dead(columns: Columns, is_finite: Bools, spacing: float) -> tuple[Ints, Ints]:
    """Neurons that stand still to the end while others move, and the column since when.

    What is so small that it may be rounded away is no movement, neither that of the others nor what stopped.
    """
    low, high, n_columns = columns.low, columns.high, len(columns.low)
    has_moved = ~((low == high) & (low == low[-1]))
    since = np.where(has_moved.any(0), n_columns - has_moved[::-1].argmax(0), 0)
    is_still = is_finite & (n_columns - since >= max(STILL_SHARE * n_columns, 3))
    moving = np.flatnonzero(is_finite & columns.moves)
    moving = moving[:: max(-(-len(moving) // SAMPLE), 1)]
    still = np.flatnonzero(is_still)
    if not len(moving) or not len(still):
        return still[:0], still[:0]
    lowest, highest = np.minimum.accumulate(low[::-1, moving], 0), np.maximum.accumulate(high[::-1, moving], 0)
    to_the_end = np.median(highest - lowest, axis=1)[::-1]  # how far the others move from each column on
    least = STILL_SPACINGS * spacing * np.abs(low[-1, still])
    # how far it moved before, for as long as it has been still
    spans = [columns.mean[max(2 * at - n_columns, 0) : at, i] for at, i in zip(since[still], still, strict=True)]
    before = np.array([span.max() - span.min() if len(span) else np.inf for span in spans])
    is_dead = (to_the_end[since[still]] > least) & (before >= least)
    return still[is_dead], since[still][is_dead]


# -- what stands out ---------------------------------------------------------------------------------------------------


class _Standing(NamedTuple):
    """How far a movement of each neuron stands out; all ``[neurons]``."""

    score: Floats
    ratio: Floats
    is_own: Bools


def _moved(columns: Columns, neurons: Ints, spacing: float) -> Unusual:
    """Neurons with an unusual movement, named after the shape that explains most of their history."""
    layer = Layer(columns, neurons)
    movements = layer.movements(neurons)
    standings = [_standing(movements[name]) for name in MOVEMENTS]
    scores = np.array([standing.score for standing in standings])
    rounded = SPACINGS * spacing * np.maximum(-columns.low.min(0), columns.high.max(0))[neurons]
    scores[np.array([movements[name].amount for name in MOVEMENTS]) < rounded] = 0
    chosen = np.argsort(-scores.max(0), kind="stable")[:MAX_NAMED]
    chosen = chosen[scores[:, chosen].max(0) >= 1]
    explained = _explained(layer.centred(neurons[chosen])[0], movements["swing"].amount[chosen])
    explained[scores[:, chosen] < 1] = -np.inf
    strongest = explained.argmax(0)
    own = {name: movement.take(chosen) for name, movement in movements.items()}
    shapes = _shapes(strongest, own, len(columns.starts))
    ratios = np.array([standing.ratio for standing in standings])[strongest, chosen]
    is_own = np.array([standing.is_own for standing in standings])[strongest, chosen]
    places = np.array([own[name].at for name in MOVEMENTS])[shapes, np.arange(len(chosen))]
    first, last = _extent(shapes, places, len(columns.starts))
    kinds = np.array([KINDS.index(KIND_OF[name]) for name in MOVEMENTS])[shapes]
    score = scores[strongest, chosen]
    return Unusual(neurons[chosen], kinds, score, columns.starts[first], columns.ends[last], ratios, is_own)


def _standing(movement: Movement) -> _Standing:
    in_layer, ratio = _scale(movement.size)
    if movement.otherwise is None:
        return _Standing(np.where(in_layer >= 0, 2 * in_layer / LIMIT, 0), ratio, np.zeros(len(ratio), np.bool_))
    least = 0.1 * float(np.median(movement.size)) or 1.0
    in_history, own_ratio = _scale(movement.size / np.maximum(movement.otherwise, least))
    score = np.where(np.minimum(in_layer, in_history) >= 0, (in_layer + in_history) / LIMIT, 0)
    is_own = in_history > in_layer
    return _Standing(score, np.where(is_own, own_ratio, ratio), is_own)


def _scale(sizes: Floats) -> tuple[Floats, Floats]:
    """Sizes on the scale from 0, what one in twenty exceeds, to 1, what none should; and as multiples of the former."""
    least = 1e-9 * float(sizes.max(initial=0)) or 1.0
    often, rare, rarer = np.maximum(np.quantile(sizes, (0.8, 0.95, 0.99), method="lower"), least)
    growth = np.log(rare / often) / np.log(0.2 / 0.05)  # of sizes with their rarity, if the tail is that of a power law
    if len(sizes) >= MANY:  # unless the tail ends sooner, as far as so many neurons tell
        ending = np.log(rarer / rare) / np.log(0.05 / 0.01)
        growth = min(growth, ending * (1 + 2 / np.sqrt(0.01 * len(sizes))))
    unit = growth * np.log(0.05 / min(0.001, 1 / len(sizes))) + np.log(MARGIN) + FEW / len(sizes)
    return np.log(np.maximum(sizes, least) / rare) / unit, sizes / rare


# -- names -------------------------------------------------------------------------------------------------------------


def _explained(mean: Floats, swing: Floats) -> Floats:
    """Sum of squares of each history that the best shape of each movement explains ``[movements, neurons]``."""
    n_columns = len(mean)
    time = np.arange(n_columns)[:, None]
    widths = range(1, 2 * gap(n_columns))
    pulses = [(time >= at) & (time < at + width) for width in widths for at in range(n_columns - width + 1)]
    knots = np.arange(9) * (n_columns - 1) / 8
    ramps = [np.clip((time - a) / (b - a), 0, 1) for a in knots for b in knots if b - a >= n_columns / 4]
    growths = [np.exp((time - n_columns) * part / n_columns) for part in (8, 12, 16, 24, 48)]
    shapes = {"jump": [time >= np.arange(2, n_columns - 1)], "excursion": pulses, "drift": ramps, "growth": growths}
    explained = {name: _projected(mean, np.concatenate(found, 1)) for name, found in shapes.items()}
    explained["swing"] = n_columns * swing**2
    return np.array([explained[name] for name in MOVEMENTS])


def _shapes(strongest: Ints, movements: dict[str, Movement], n_columns: int) -> Ints:
    """What histories are named after: steps, spikes and drifts are told apart by how much happens at once."""
    jump, excursion, drift = (MOVEMENTS.index(name) for name in ("jump", "excursion", "drift"))
    at_once, for_good = movements["jump"].amount, movements["drift"].amount
    shapes = np.where((strongest == drift) & (at_once >= ABRUPT * for_good), jump, strongest)
    shapes = np.where((shapes == jump) & (at_once < SLOW * for_good), drift, shapes)
    is_near = np.abs(movements["jump"].at - movements["excursion"].at) <= reach(n_columns)
    is_pulse = is_near & (movements["excursion"].amount >= at_once)  # both of its sides look like steps
    return np.where((shapes == jump) & is_pulse, excursion, shapes)


def _projected(mean: Floats, shapes: Array) -> Floats:
    """Sum of squares that the best of some shapes ``[columns, shapes]`` explains, at any level ``[neurons]``."""
    centred = shapes - shapes.mean(0)
    centred /= np.sqrt((centred**2).sum(0))
    return np.asarray(((centred.T @ mean) ** 2).max(0))


def _extent(shapes: Ints, at: Ints, n_columns: int) -> tuple[Ints, Ints]:
    """First and last column of what is unusual ``[found]``."""
    jump, excursion, growth = (MOVEMENTS.index(name) for name in ("jump", "excursion", "growth"))
    before_growth = n_columns - 1 - n_columns // 4
    first = np.select([shapes == jump, shapes == excursion, shapes == growth], [at - 1, at, before_growth], 0)
    return first, np.where((shapes == jump) | (shapes == excursion), at, n_columns - 1)


# -- findings ----------------------------------------------------------------------------------------------------------


def _found(kind: str, neurons: Ints, first: Ints | None = None, last: Ints | None = None) -> Unusual:
    """Findings of a kind that needs no comparison."""
    n = len(neurons)
    first, last = (np.zeros(n, np.int64) if at is None else at for at in (first, last))
    kinds = np.full(n, KINDS.index(kind))
    return Unusual(neurons, kinds, np.full(n, np.inf), first, last, np.full(n, np.nan), np.zeros(n, np.bool_))


def _strongest_first(parts: list[Unusual]) -> Unusual:
    arrays: list[Array] = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    found = Unusual(*arrays)
    sort = np.minimum(found.kinds, 2)  # those that are compared with each other come last
    order = np.lexsort((found.neurons, found.first, -found.scores, sort))
    return Unusual(*(array[order] for array in arrays))
