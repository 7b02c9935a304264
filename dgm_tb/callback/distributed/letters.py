"""What the ranks write to rank 0: rows of numbers, and cases."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dgm_tb import records
from dgm_tb.callback.distributed.docket import Case
from dgm_tb.callback.distributed.mailbox import pack
from dgm_tb.callback.distributed.merging import Share, columns_in, moved, shares_of
from dgm_tb.callback.slots import Slot
from dgm_tb.callback.windows import Row
from dgm_tb.records import Finding, Record

Array = np.ndarray[Any, np.dtype[Any]]
Layout = list[tuple[str, int]]
"""Name and number of neurons of every slot, in the order of one rank."""


def rows_letter(rows: Sequence[Row], slots: Sequence[Slot], n_known: int, *, with_weights: bool) -> bytes:
    """Several steps.

    Args:
        rows: The steps.
        slots: All slots of this rank.
        n_known: Number of slots that earlier letters told of.
        with_weights: Whether the rank holds a part of the weights that no other rank has.
    """
    shares = shares_of(rows, slots)
    observed = [share for share in shares if share.activation is not None]
    body = {
        "is": "rows",
        "slots": _facts(slots, n_known),
        "steps": [row.step for row in rows],
        "losses": [row.losses for row in rows],
        "observed": [share.activation is not None for share in shares],
        "weighed": [with_weights and row.weights is not None for row in rows],
    }
    arrays = {}
    if any(body["weighed"]):
        arrays["weights"] = np.stack([row.weights for row in rows if row.weights is not None])
    if not observed:
        return pack(body, arrays)
    first = [slot.offset for slot in slots]
    activation = np.stack([share.activation for share in observed if share.activation is not None])
    arrays |= {
        "activation": activation.astype(np.float32),
        "counts": np.stack([share.counts[first] for share in observed]),
        "gradient": np.stack([share.gradient for share in observed]).astype(np.float32),
        "gradient_counts": np.stack([share.gradient_counts[first] for share in observed]),
    }
    return pack(body, arrays)


def shares_in(body: Mapping[str, Any], arrays: Mapping[str, Array], layout: Layout) -> dict[int, Share]:
    """Step -> share, of a letter of ``rows_letter``; over the neurons of the sender's layout."""
    sizes = [neurons for _, neurons in layout]
    shares: dict[int, Share] = {}
    names = ("activation", "counts", "gradient", "gradient_counts")
    observed = zip(*(arrays[name] for name in names if name in arrays), strict=True)
    weighed = iter(arrays.get("weights", ()))
    columns = zip(body["steps"], body["losses"], body["observed"], body["weighed"], strict=True)
    for step, losses, is_observed, is_weighed in columns:
        share = shares[step] = Share({name: float(value) for name, value in losses.items()})
        share.weights = next(weighed) if is_weighed else None
        if is_observed:
            share.activation, counts, share.gradient, gradient_counts = next(observed)
            share.counts, share.gradient_counts = np.repeat(counts, sizes), np.repeat(gradient_counts, sizes)
    return shares


def case_letter(case: Case, slots: Sequence[Slot], n_known: int) -> bytes:
    """A case; arguments as of ``rows_letter``."""
    body = {"is": "case", "slots": _facts(slots, n_known), "step": case.step, "claim": list(case.claim)}
    encoded = [np.frombuffer(records.encode(record), np.uint8) for record in case.records]
    return pack(body, {str(number): array for number, array in enumerate(encoded)})


def case_in(rank: int, body: Mapping[str, Any], arrays: Mapping[str, Array]) -> Case:
    """The case of a letter of ``case_letter``."""
    found = [records.parse(array.tobytes()) for array in arrays.values()]
    findings = [Finding.from_json(record.body["finding"]) for record in found if record.kind == "finding"]
    return Case(rank, body["step"], tuple(map(float, body["claim"])), findings, found)


def _facts(slots: Sequence[Slot], n_known: int) -> Layout:
    return [(slot.name, slot.neurons) for slot in slots[n_known:]]


def placed_share(share: Share, layout: Layout, slots: Sequence[Slot]) -> Share:
    """Another rank's share over the neurons of the layout here."""
    known = layout_until(layout, len(share.counts))
    if share.activation is None or known == [(slot.name, slot.neurons) for slot in slots]:
        return share
    size = slots[-1].offset + slots[-1].neurons if slots else 0
    columns = columns_in(slots, known)
    return Share(
        share.losses,
        moved(share.activation, columns, size),
        moved(share.counts, columns, size, 0.0),
        moved(share.gradient, columns, size),
        moved(share.gradient_counts, columns, size, 0.0),
        share.weights,
    )


def placed_record(record: Record, rank: int, layout: Layout, slots: Sequence[Slot]) -> Record:
    """Another rank's record over the layout here, with the rank in its body."""
    if record.kind in ("finding", "note"):
        return record
    arrays = dict(record.arrays)
    if record.kind == "ring":
        known = layout_until(layout, arrays["gradient"].shape[-1])
        columns = columns_in(slots, known)
        size = slots[-1].offset + slots[-1].neurons if slots else 0
        arrays |= {name: moved(arrays[name], columns, size) for name in ("activation", "gradient")}
        numbers = {slot.name: number for number, slot in enumerate(slots)}
        layers = np.array([numbers.get(name, -1) for name, _ in known], np.int64)
        examples = moved(np.moveaxis(arrays["examples"], 1, -1), layers, len(slots))
        arrays["examples"] = np.ascontiguousarray(np.moveaxis(examples, -1, 1))
    return Record(
        record.kind, record.first_step, record.last_step, {**record.body, "rank": rank}, arrays, record.wall_time
    )


def layout_until(layout: Layout, neurons: int) -> Layout:
    """The first slots of a layout, up to so many neurons: the others came later."""
    known, total = [], 0
    for name, size in layout:
        if total >= neurons:
            break
        known.append((name, size))
        total += size
    return known
