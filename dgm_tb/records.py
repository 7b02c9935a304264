"""The schema: every kind of record, its arrays with axes and units, and how it becomes bytes and comes back.

A *record* is one ``tensorboard`` ``Event``: a JSON body and named arrays. The body travels as the plugin data of the
first summary value, each array as the tensor of one value with the tag ``dgmtracker/<kind>/<array>``. Whatever the
callback writes and the plugin reads passes through ``encode`` and ``parse``; nothing else knows the format.

Neurons are numbered by the *layout* of the ``graph`` record: an append-only list of layers, each with its offset. An
array of the first 500 neurons therefore stays readable after the layout has grown to 600.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2, types_pb2

from dgm_tb.errors import RecordError

PLUGIN_NAME = "dgmtracker"
SCHEMA_VERSION = 1
MARKER_TAG = "dgmtracker/recording"

HALF_MAX, HALF_TINY = 65504.0, 2.0**-14
"""Largest and smallest normal number of float16."""
HALF_LOST = 0.05
"""Part of an array's values that may be smaller than that."""
MAX_EXPONENT = 120
"""Of a scale that keeps float16 values within float32."""

Array = np.ndarray[Any, np.dtype[Any]]

_DTYPES = {
    "f2": types_pb2.DT_HALF,
    "f4": types_pb2.DT_FLOAT,
    "f8": types_pb2.DT_DOUBLE,
    "i4": types_pb2.DT_INT32,
    "i8": types_pb2.DT_INT64,
    "u1": types_pb2.DT_UINT8,
}
_NUMPY_DTYPES = {number: np.dtype(f"<{name}") for name, number in _DTYPES.items()}


@dataclass(frozen=True)
class Statistic:
    """One number per neuron and step.

    Attributes:
        name: As in ``run.dynamics(layer, quantity, statistic)``.
        windows: How the steps of one window are summed up, the main aggregate first.
        doc: Definition.
    """

    name: str
    windows: tuple[str, ...]
    doc: str


STATISTICS: dict[str, tuple[Statistic, ...]] = {
    "activation": (
        Statistic("mean", ("mean", "min", "max"), "mean over the step's examples and positions"),
        Statistic("std", ("mean",), "standard deviation (of the population) over examples and positions"),
        Statistic("min", ("min",), "smallest value over examples and positions"),
        Statistic("max", ("max",), "largest value over examples and positions"),
        Statistic("zero_fraction", ("mean",), "share of exact zeros (layers that never clip: 1 if all zero, else 0)"),
    ),
    "gradient": (
        Statistic("rms", ("mean", "max"), "root mean square of dLoss/dActivation over examples and positions"),
    ),
    "weight": (Statistic("norm", ("mean",), "L2 norm of the neuron's incoming weights after the step"),),
    "update": (
        Statistic("ratio", ("mean", "max"), "L2 norm of the step's change of these weights over their norm before it"),
    ),
}
"""Quantity -> its statistics, the one that is drawn by default first."""


@dataclass(frozen=True)
class Kind:
    """One kind of record.

    Attributes:
        arrays: Array name -> its axes in order.
        body: Keys that the JSON body always has.
        when: When the callback writes it.
        optional: Arrays that a record may lack; all others it needs.
    """

    arrays: Mapping[str, tuple[str, ...]]
    body: tuple[str, ...]
    when: str
    optional: frozenset[str] = frozenset()


KINDS: dict[str, Kind] = {
    "recording": Kind({}, ("schema", "recording", "options", "versions", "model", "resume_step"), "at start"),
    "graph": Kind({}, ("nodes", "edges", "modules", "layers", "weights", "links"), "first batch; when a slot appears"),
    "loss": Kind(
        {
            "steps": ("steps",),
            "global_steps": ("steps",),
            "values": ("steps", "losses"),
            "present": ("steps", "losses"),
            "skipped": ("steps",),
        },
        ("names",),
        "every step; skipped: where a gradient scaler left an optimizer step out",
        frozenset({"skipped"}),
    ),
    "layer_statistics": Kind(
        {"steps": ("steps",), "values": ("steps", "layers", "statistics")},
        ("quantity", "statistics"),
        "every observed step; weight and update: four steps of a window",
    ),
    "dynamics": Kind(
        {"windows": ("windows", "ends"), "values": ("neurons", "windows", "aggregates")},
        ("quantity", "aggregates"),
        "every window; all neurons",
    ),
    "polylines": Kind(
        {"steps": ("steps",), "neurons": ("sampled",), "outliers": ("sampled",), "values": ("steps", "sampled")},
        ("quantity", "statistic"),
        "every window; the blue-noise sample and every outlier at full step resolution",
    ),
    "samples": Kind(
        {"inputs": ("examples", "*"), "statistics": ("examples", "layers")},
        ("step", "examples", "layers", "axes"),
        "at findings; inputs of the abnormal and the normal examples, largest |activation| of each per layer",
    ),
    "contribution": Kind(
        {"values": ("targets", "columns"), "relevance": ("targets",)},
        ("step", "target", "direction", "samples", "columns"),
        "at snapshots and at findings; relevance: what each target neuron has to hand on",
        frozenset({"relevance"}),
    ),
    "relevance": Kind(
        {"values": ("neurons",), "input": ("*",)},
        ("step", "target", "neuron", "sample", "layers", "leak"),
        "at findings; one exact pass from a suspect neuron down to the input",
        frozenset({"input"}),
    ),
    "finding": Kind({}, ("id", "finding"), "as detected"),
    "ring": Kind(
        {
            "steps": ("steps",),
            "activation": ("steps", "statistics", "neurons"),
            "gradient": ("steps", "neurons"),
            "examples": ("steps", "layers", "examples"),
            "indices": ("steps", "examples"),
        },
        ("reason", "losses"),
        "at findings, exceptions and the end; all neurons of the last steps",
        frozenset({"steps", "activation", "gradient", "examples", "indices"}),
    ),
    "note": Kind({}, ("text",), "whenever something could not be recorded"),
    "end": Kind({}, ("reason", "last_step"), "once, when training ended or raised"),
}
"""Record kind -> what it holds. ``*`` stands for any number of further axes."""

SEVERITIES = ("error", "warning", "info")
FINDING_KINDS = (
    "nonfinite outlier_sample loss_spike exploding_activation exploding_gradient vanishing_gradient dead_units "
    "saturated not_training corrupt_weight bad_init norm_degenerate lr_too_high lr_too_low loss_stalled "
    "loss_divergence posterior_collapse mode_collapse gan_imbalance"
).split()


@dataclass(frozen=True)
class Finding:
    """What is wrong, where, since when, and because of which example.

    Attributes:
        kind: One of ``FINDING_KINDS``.
        severity: One of ``SEVERITIES``.
        step: The snapshot to look at: where the cause acted. ``first_step`` and ``last_step`` span the evidence.
        module: The best suspect, a fully-qualified module name ("" is the LightningModule itself).
        modules: Further suspects, in order.
        neurons: Neurons of ``module``, the worst first.
        samples: Dataset indices where they can be known, else positions in the batch; ``evidence["sample_index"]``
            says which (``"dataset"`` or ``"batch"``).
        summary: One sentence.
        evidence: The numbers that triggered it.
        advice: What to do about it.
        run: Name of the run, filled in by the reader.
    """

    kind: str
    severity: str
    step: int
    first_step: int
    last_step: int
    module: str
    summary: str
    modules: list[str] = field(default_factory=list)
    neurons: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)
    advice: str = ""
    run: str = ""

    def to_json(self) -> dict[str, Any]:
        """The finding as ``dgm-tb diagnose --json`` prints it; non-finite numbers become strings."""
        return {name: as_json(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Finding":
        """The finding that ``to_json`` gave; unknown keys of newer versions are dropped.

        Raises:
            RecordError: If a key is missing.
        """
        known = {f.name for f in fields(cls)}
        try:
            return cls(**{key: value for key, value in body.items() if key in known})
        except TypeError as error:
            raise RecordError(
                f"a finding needs kind, severity, steps, module and summary; got {sorted(body)}"
            ) from error


def severity_order(finding: Finding) -> tuple[int, int]:
    """Sort key: worst first, then earliest first."""
    return SEVERITIES.index(finding.severity) if finding.severity in SEVERITIES else len(SEVERITIES), finding.step


@dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
        kind: A key of ``KINDS``.
        first_step: First step that it tells of.
        last_step: Last step that it tells of.
        body: JSON-able facts.
        arrays: Array name -> values.
        wall_time: Seconds since 1970.
    """

    kind: str
    first_step: int
    last_step: int
    body: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)
    wall_time: float = 0.0


def check(record: Record) -> None:
    """Check a record against ``KINDS``.

    Raises:
        RecordError: If a key or array is missing, unknown, or has the wrong number of axes.
    """
    kind = KINDS.get(record.kind)
    if kind is None:
        raise RecordError(f"unknown record kind {record.kind!r}; this version knows {', '.join(KINDS)}")
    missing = [key for key in kind.body if key not in record.body]
    if missing:
        raise RecordError(f"a {record.kind} record needs {', '.join(missing)} in its body; got {sorted(record.body)}")
    for name, array in record.arrays.items():
        axes = kind.arrays.get(name)
        if axes is None:
            raise RecordError(
                f"a {record.kind} record has no array {name!r}; it has {', '.join(kind.arrays) or 'none'}"
            )
        fits = array.ndim >= len(axes) - 1 if "*" in axes else array.ndim == len(axes)
        if not fits:
            raise RecordError(f"{record.kind}.{name} has the axes [{', '.join(axes)}]; got shape {array.shape}")


def encode(record: Record) -> bytes:
    """A record as the bytes of a serialized ``Event``.

    Raises:
        RecordError: If the record does not fit the schema.
    """
    check(record)
    body = {"version": SCHEMA_VERSION, "first_step": record.first_step, **record.body}
    content = json.dumps(as_json(body), separators=(",", ":"), allow_nan=False).encode()
    event = event_pb2.Event(wall_time=record.wall_time, step=record.last_step)
    head = event.summary.value.add(tag=f"{PLUGIN_NAME}/{record.kind}")
    head.metadata.plugin_data.plugin_name = PLUGIN_NAME
    head.metadata.plugin_data.content = content
    head.metadata.data_class = summary_pb2.DATA_CLASS_TENSOR
    for name, array in record.arrays.items():  # filled in where they stay: a message that is put into another is copied
        _encode_array(event.summary.value.add(tag=f"{PLUGIN_NAME}/{record.kind}/{name}"), array)
    return bytes(event.SerializeToString())


def parse(payload: bytes) -> Record:
    """The record in the bytes of an ``Event``.

    Arrays are read-only views of the payload where the byte order allows.

    Raises:
        RecordError: If the bytes are not a record, claim more than they bring, or break the schema.
    """
    try:
        event = event_pb2.Event.FromString(payload)
        values = event.summary.value
        content = values[0].metadata.plugin_data.content if values else b""
        kind = values[0].tag.removeprefix(f"{PLUGIN_NAME}/") if values else ""
        body = json.loads(content)
    except Exception as error:
        raise RecordError(f"not a record of dgm_tb: {error}") from error
    if not isinstance(body, dict):
        raise RecordError(f"not a record of dgm_tb: the body of {kind!r} is no JSON object")
    prefix = f"{PLUGIN_NAME}/{kind}/"
    arrays = {
        value.tag.removeprefix(prefix): _parse_array(value) for value in values[1:] if value.tag.startswith(prefix)
    }
    first_step = body.pop("first_step", event.step)
    if not isinstance(first_step, int):
        raise RecordError(f"first_step of a {kind} record is a whole number; got {first_step!r}")
    record = Record(kind, first_step, int(event.step), body, arrays, float(event.wall_time))
    check(record)
    return record


def compact(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Halve arrays of floats where nothing is lost by it.

    Returns:
        The arrays as float16 where every finite value fits, scaled by a power of two if need be (at most one non-zero
        value in twenty below its normal range), else as float32; NaN and Inf are kept either way. And what the body
        of their record must say: ``{"exponents": {name: e}}``, where the values are to be multiplied by ``2**e``.
    """
    halved = {name: _compact(array) for name, array in arrays.items()}
    exponents = {name: exponent for name, (_, exponent) in halved.items() if exponent}
    return {name: array for name, (array, _) in halved.items()}, {"exponents": exponents} if exponents else {}


def _compact(array: Array) -> tuple[Array, int]:
    magnitude = np.abs(array[np.isfinite(array)])
    magnitude = magnitude[magnitude > 0]
    if not magnitude.size or (magnitude.max() <= HALF_MAX and np.mean(magnitude < HALF_TINY) <= HALF_LOST):
        return array.astype(np.float16), 0
    exponent = math.frexp(float(magnitude.max()))[1] - math.frexp(HALF_MAX)[1] + 1
    if np.mean(magnitude < math.ldexp(HALF_TINY, exponent)) > HALF_LOST or abs(exponent) > MAX_EXPONENT:
        return array.astype(np.float32), 0
    return np.ldexp(array.astype(np.float32), -exponent).astype(np.float16), exponent


def expand(name: str, values: Array, body: Mapping[str, Any]) -> Array:
    """What ``compact`` made smaller, of a record with this body, as it was; float32 if it was scaled."""
    exponent = body.get("exponents", {}).get(name, 0)
    return np.ldexp(values.astype(np.float32), exponent) if exponent else values


def _encode_array(value: summary_pb2.Summary.Value, array: Array) -> None:
    array = np.asarray(array)
    code = f"{array.dtype.kind}{array.dtype.itemsize}"
    if code not in _DTYPES:
        raise RecordError(f"{value.tag} has dtype {array.dtype}; use one of float16/32/64, int32/64, uint8")
    value.tensor.dtype = _DTYPES[code]
    value.tensor.tensor_content = np.ascontiguousarray(array, dtype=f"<{code}").tobytes()
    for size in array.shape:
        value.tensor.tensor_shape.dim.add(size=size)


def _parse_array(value: summary_pb2.Summary.Value) -> Array:
    dtype = _NUMPY_DTYPES.get(value.tensor.dtype)
    shape = tuple(dim.size for dim in value.tensor.tensor_shape.dim)
    if dtype is None or any(size < 0 for size in shape) or len(shape) > 16:
        raise RecordError(f"{value.tag}: dtype {value.tensor.dtype} with shape {shape} is none of ours")
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(value.tensor.tensor_content):
        raise RecordError(f"{value.tag}: shape {shape} needs {expected} bytes, {len(value.tensor.tensor_content)} came")
    return np.frombuffer(value.tensor.tensor_content, dtype).reshape(shape)


def as_json(value: Any) -> Any:
    """``value`` with NumPy scalars as Python's, and NaN and Inf as the strings "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
