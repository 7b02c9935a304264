"""Every route with right arguments and the form of its answer, and how tests ask."""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from conftest import BASE
from werkzeug.test import Client, TestResponse

from dgm_tb.plugin.wire import unpack

RUN = "a/run"
Answer = tuple[dict[str, Any], dict[str, np.ndarray]]
STATISTICS = {
    "activation": ["mean", "std", "min", "max", "zero_fraction"],
    "gradient": ["rms"],
    "weight": ["norm"],
    "update": ["ratio"],
}
SUMMARY = {
    "run": str, "recorded": bool, "indexing": bool, "revision": str, "first_step": int, "last_step": int,
    "last_wall_time": float, "ended": bool, "reason": str, "layers": int, "model": str, "findings": dict,
}  # fmt: skip

VIEW = {"layer": str, "quantity": str, "statistic": str, "first": int, "last": int}
AXIS = {"scale": str, "threshold": float}

JSON_SAMPLES: dict[str, tuple[dict[str, str], dict[str, type]]] = {
    "run": (
        {},
        {**SUMMARY, "layers": list, "losses": list, "statistics": dict, "layer_statistics": dict, "snapshots": list,
         "finding_snapshots": list, "window_steps": int, "options": dict, "versions": dict, "notes": list,
         "gaps": list, "recordings": list},
    ),
    "graph": (
        {},
        {"nodes": list, "edges": list, "modules": dict, "layers": list, "weights": list, "links": list,
         "unrecorded": dict, "no_contribution": dict},
    ),
    "findings": ({}, {}),
    "unusual": (
        {"layer": "fc"},
        {**VIEW, "neurons": int, "count": int, "common": dict, "unusual": list},
    ),
}  # fmt: skip

# Route -> arguments, facts of the header, arrays with dtype and axes (letters stand for lengths that must agree).
ARRAY_SAMPLES: dict[str, tuple[dict[str, str], dict[str, type], dict[str, str]]] = {
    "losses": (
        {},
        {"names": list, "first": int, "last": int, "skipped": int, "points": list, "nonfinite": list},
        {"steps_0": "f8 A", "values_0": "f4 A", "global_steps_0": "f8 A",
         "steps_1": "f8 B", "values_1": "f4 B", "global_steps_1": "f8 B"},
    ),
    "minis": (
        {},
        {"layers": list, "recorded": list, "quantity": str, "statistic": str, "center": int, "first": int,
         "last": int, "low": list, "high": list},
        {"steps": "f8 T", "values": "f4 4 T", "nonfinite": "u1 4 T"},
    ),
    "dynamics": (
        {"layer": "out"},
        {"layer": str, "quantity": str, "statistic": str, "first": int, "last": int, "recorded_first": int,
         "recorded_last": int, "neurons": int, "sampled": int, "outliers": int, "resolution": str,
         "window_steps": int, "spans": list, "low": float, "high": float, "nonfinite_neurons": int},
        {"steps": "f8 T", "values": "f4 N T", "nonfinite": "u1 N T", "neurons": "i4 N", "outlier": "u1 N",
         "every_step": "f4 N", "quantiles": "f4 5 T"},
    ),
    "lines": (
        {"layer": "out", "neurons": "3,0"},
        {**VIEW, "neurons": int, "columns": int, "resolution": str, "window_steps": int, "spans": list, "low": float,
         "high": float},
        {"steps": "f8 T", "values": "f4 2 T", "nonfinite": "u1 2 T", "neurons": "i4 2", "every_step": "f4 2"},
    ),
    "density": (
        {"layer": "out", "width": "30", "height": "20"},
        {**VIEW, **AXIS, "low": float, "high": float, "neurons": int, "largest": int},
        {"density": "u1 20 30"},
    ),
    "nearest": (
        {"layer": "out", "step": "7.5", "value": "3", "limit": "2"},
        {**VIEW, **AXIS, "step": float, "value": float, "neurons": int, "every_step": bool},
        {"neurons": "i4 2", "distance": "f4 2", "values": "f4 2"},
    ),
    "brush": (
        {"layer": "out", "step1": "0", "value1": "-99", "step2": "11", "value2": "99"},
        {**VIEW, **AXIS, "kind": str, "neurons": int, "count": int},
        {"neurons": "i4 5"},
    ),
    "similar": (
        {"layer": "out", "neuron": "1"},
        {**VIEW, "neurons": int, "neuron": int},
        {"neurons": "i4 4", "distance": "f4 4"},
    ),
    "neurons": (
        {"layer": "out"},
        {"layer": str, "neurons": int, "step": int, "window": dict, "names": list, "shape": list},
        {**{f"{q}.{s}": "f4 5" for q, names in STATISTICS.items() for s in names}, "dead": "u1 5"},
    ),
    "contributions": (
        {"layer": "fc", "neuron": "1"},
        {"layer": str, "neuron": int, "step": int, "samples": str, "columns": list},
        {f"{direction}{scaled}_{column}": f"f4 {n}" for column, n in ((0, 3), (2, 5), (3, 2))
         for direction in ("forward", "backward") for scaled in ("", "_scaled")},
    ),
    "matrix": (
        {"source": "fc", "target": "out"},
        {"source": str, "target": str, "step": int, "direction": str, "samples": str, "kind": str, "neurons": list,
         "largest": list, "ended": dict},
        {"values": "f4 5 4", "scaled": "f4 5 4", "targets": "i4 5", "sources": "i4 4", "rest": "f4 5"},
    ),
    "samples": (
        {"finding": "f1"},
        {"finding": str, "step": int, "axes": str, "low": float, "high": float, "examples": list, "layers": list,
         "relevance": list},
        {"inputs": "f4 3 1 2 1", "statistics": "f4 3 4", "relevance_0": "f4 1 2 1", "relevance_layers_0": "f4 3"},
    ),
}  # fmt: skip


def get(client: Client, route: str, **arguments: object) -> TestResponse:
    return client.get(BASE + route, query_string={name: str(value) for name, value in arguments.items()})


def get_json(client: Client, route: str, **arguments: object) -> Any:
    answer = get(client, route, **{"run": RUN, **arguments})
    assert answer.status_code == 200, answer.text
    return json.loads(answer.data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def get_arrays(client: Client, route: str, **arguments: object) -> Answer:
    answer = get(client, route, **{"run": RUN, **arguments})
    assert answer.status_code == 200, answer.text
    return unpack(answer.data)


def assert_has(facts: Mapping[str, Any], expected: Mapping[str, type]) -> None:
    assert set(facts) >= set(expected)
    for name, type_ in expected.items():
        assert isinstance(facts[name], type_), (name, facts[name])


ALL_ROUTES = [*JSON_SAMPLES, *ARRAY_SAMPLES]


def sample_arguments(route: str) -> dict[str, str]:
    return {"run": RUN, **(JSON_SAMPLES.get(route) or ARRAY_SAMPLES[route])[0]}


TRACES = re.compile(r"Traceback|File \"|\.py|Error\b|0x[0-9a-f]{6}|/tmp|site-packages|object at")


def assert_sentence(answer: TestResponse, *codes: int) -> None:
    assert answer.status_code in codes, (answer.status_code, answer.text)
    assert answer.content_type.startswith("text/plain")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert 10 < len(answer.text) < 1000
    assert not TRACES.search(answer.text.replace("/etc/passwd", "")), answer.text
