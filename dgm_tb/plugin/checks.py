"""What a record must look like to enter the index: a view need not doubt it any more, whoever wrote the file.

``records.KINDS`` says which keys and axes a record has. Here stands what their values may be: types of a body's
entries, arrays that must not be missing, axes of one name that must be equally long.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from dgm_tb.errors import RecordError
from dgm_tb.plugin.layout import ArrayPlace, check_axes
from dgm_tb.records import KINDS, MAX_EXPONENT

MAX_STEP = 1 << 53
MAX_DEPTH = 24
MAX_NEURONS = 1 << 24
MAX_NESTED = 100
MAX_EMPTY_AXIS = 1 << 20
MAX_TEXT = 1 << 16
MAX_LOSSES, MAX_COLUMNS = 1 << 12, 64
"""Names of losses; statistics or aggregates: a short record must not widen the arrays of all others without end."""

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """Whether it is a text that somebody may read."""
    return isinstance(value, str) and len(value) <= MAX_TEXT


def is_path(value: Any) -> bool:
    """Whether it is the name of a module, or one made of it, that a tree can be made of."""
    return is_text(value) and value.count(".") <= MAX_NESTED


def is_label(value: Any) -> bool:
    """Whether it is what an example may be called: a text, a number, nothing."""
    return value is None or is_text(value) or type(value) in (int, float, bool)


def is_step(value: Any) -> bool:
    """Whether it is a whole number that JavaScript can count to."""
    return type(value) is int and 0 <= value <= MAX_STEP


def is_count(value: Any) -> bool:
    """Whether it is a number of neurons, or of the first of some, that memory allows."""
    return type(value) is int and 0 <= value <= MAX_NEURONS


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def is_exponent(value: Any) -> bool:
    """Whether it is a power of two by which float16 values may be scaled."""
    return type(value) is int and abs(value) <= MAX_EXPONENT


def is_mapping(value: Any) -> bool:
    """Whether it is a JSON object."""
    return isinstance(value, dict)


def list_of(check: Check) -> Check:
    """Whether it is a list of such values."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def at_most(n: int, check: Check) -> Check:
    """Whether it passes and is no longer."""
    return lambda value: check(value) and len(value) <= n


def mapping_of(check: Check) -> Check:
    """Whether it is a JSON object of such values."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def optional(check: Check) -> Check:
    """Whether it is null or such a value."""
    return lambda value: value is None or check(value)


def with_keys(**checks: Check) -> Check:
    """Whether it is a JSON object whose entries of these names, where present, pass."""
    return lambda value: (
        isinstance(value, dict) and all(check(value[key]) for key, check in checks.items() if key in value)
    )


def needs(check: Check, *keys: str) -> Check:
    """Whether it passes and has these keys."""
    return lambda value: check(value) and all(key in value for key in keys)


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and is_text(value[0]) and all(map(is_count, value[1:]))


_texts, _steps, _exponents = list_of(is_text), list_of(is_step), mapping_of(is_exponent)
_columns = at_most(MAX_COLUMNS, _texts)
_rows = with_keys(
    name=is_path, module=is_path, type=is_text, parameter=is_text, neurons=is_count, offset=is_count, shape=_steps
)
_finding = with_keys(
    kind=is_text, severity=is_text, step=is_step, first_step=is_step, last_step=is_step, module=is_text,
    summary=is_text, modules=_texts, neurons=_steps, samples=_steps, advice=is_text, run=is_text,
    evidence=with_keys(first_nonfinite_step=is_step),
)  # fmt: skip
_node = with_keys(id=is_path, kind=is_text, op=is_text, module=is_path, shape=_steps, layer=is_path, repeats=is_step)
_edge = with_keys(source=is_text, target=is_text)
_example = with_keys(index=is_label, position=is_step, role=is_text, label=is_label)
_link = with_keys(source=is_text, target=is_text, kind=is_text, start=is_count, group=is_count)

BODIES: dict[str, dict[str, Check]] = {
    "recording": {
        "schema": is_step, "recording": is_text, "options": is_mapping, "versions": is_mapping, "model": is_text,
        "resume_step": is_step, "started": is_number, "window_steps": is_step,
    },
    "graph": {
        "nodes": list_of(needs(_node, "id", "kind", "op")),
        "edges": list_of(needs(_edge, "source", "target")),
        "modules": mapping_of(is_text),
        "layers": list_of(needs(_rows, "name", "module", "type", "neurons", "offset")),
        "weights": list_of(needs(_rows, "module", "parameter", "neurons", "offset")),
        "links": list_of(needs(_link, "source", "target", "kind", "start", "group")),
        "unrecorded": mapping_of(is_text),
        "no_contribution": mapping_of(is_text),
    },
    "loss": {"names": at_most(MAX_LOSSES, _texts)},
    "layer_statistics": {"quantity": is_text, "statistics": _columns},
    "dynamics": {"quantity": is_text, "aggregates": _columns, "exponents": _exponents},
    "polylines": {"quantity": is_text, "statistic": is_text, "exponents": _exponents},
    "samples": {
        "step": is_step, "layers": _texts, "axes": is_text, "finding": optional(is_text),
        "examples": list_of(needs(_example, "index", "position", "role", "label")),
    },
    "contribution": {
        "step": is_step, "target": is_text, "direction": is_text, "samples": is_text, "columns": is_text,
        "finding": optional(is_text), "exponents": _exponents, "source": optional(is_text), "reason": optional(is_text),
        "total": is_number, "noise": is_number,
        "arrived": mapping_of(is_number), "leaked": mapping_of(is_number), "stopped": mapping_of(is_number),
    },
    "relevance": {
        "step": is_step, "target": is_text, "neuron": is_step, "sample": is_step, "layers": list_of(_is_part),
        "leak": is_mapping, "finding": optional(is_text),
    },
    "finding": {
        "id": is_text,
        "finding": needs(_finding, "kind", "severity", "step", "first_step", "last_step", "module", "summary"),
    },
    "ring": {"reason": is_text, "exponents": _exponents},
    "note": {"text": is_text},
    "end": {"reason": is_text, "last_step": is_step},
}  # fmt: skip
"""Kind of record -> entry of its body -> check of its value, where it is there."""

WHOLE_NUMBERS = {"steps", "global_steps", "windows", "neurons", "outliers", "present", "skipped", "indices"}
"""Arrays of integers, in every kind."""

NAMED_AXES = {
    ("loss", "losses"): "names",
    ("layer_statistics", "statistics"): "statistics",
    ("dynamics", "aggregates"): "aggregates",
    ("samples", "examples"): "examples",
    ("samples", "layers"): "layers",
}
"""Kind and axis -> list in the body that names the places along it."""


def check_steps(kind: str, first_step: Any, last_step: int) -> None:
    """Check the range of steps that a record tells of.

    Raises:
        RecordError: If it is none.
    """
    if not is_step(first_step) or not is_step(last_step):
        raise RecordError(f"a {kind} record of steps {str(first_step)[:40]!r} to {last_step}")


def check_body(kind: str, body: Mapping[str, Any]) -> None:
    """Check a body: its keys, the types of its values, its depth.

    Raises:
        RecordError: If it is not as the schema says.
    """
    _check_depth(body, MAX_DEPTH)
    missing = [key for key in KINDS[kind].body if key not in body]
    if missing:
        raise RecordError(f"a {kind} record without {', '.join(missing)}")
    for key, check in BODIES[kind].items():
        if key in body and not check(body[key]):
            raise RecordError(f"a {kind} record whose {key} is of another form: {repr(body[key])[:60]}")


def check_arrays(kind: str, body: Mapping[str, Any], arrays: Mapping[str, ArrayPlace]) -> None:
    """Check that the arrays are there, have the axes of their kind, and fit each other and the body.

    Raises:
        RecordError: If not.
    """
    check_axes(kind, tuple(arrays.values()))
    lengths = {axis: len(body[key]) for (of, axis), key in NAMED_AXES.items() if of == kind} | {"ends": 2}
    for name, axes in KINDS[kind].arrays.items():
        place = arrays.get(name)
        if place is None:
            if name in KINDS[kind].optional:
                continue
            raise RecordError(f"a {kind} record without its array {name}")
        if name in WHOLE_NUMBERS and place.dtype.kind not in "iu":
            raise RecordError(f"{kind}.{name} holds whole numbers; got {place.dtype}")
        if not place.nbytes and max(place.shape, default=0) > MAX_EMPTY_AXIS:
            raise RecordError(f"{kind}.{name} is empty and claims the shape {place.shape}")
        for axis, length in zip(axes, place.shape, strict=False):
            if axis != "*" and lengths.setdefault(axis, length) != length:
                raise RecordError(f"{kind}.{name} has {length} {axis}; {lengths[axis]} were expected")


def _check_depth(value: Any, left: int) -> None:
    if isinstance(value, (dict, list)):
        if not left:
            raise RecordError(f"a body nested more than {MAX_DEPTH} deep")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)
