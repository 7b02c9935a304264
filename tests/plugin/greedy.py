"""Small files that claim to be wide, long or many: records that the schema allows, and that together want gigabytes."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import sample_recording as sample

from dgm_tb.records import Record

Records = Iterator[Record]
MEAN = {"quantity": "activation", "aggregates": ["mean/mean"]}
STATISTIC = {"quantity": "activation", "statistics": ["mean"]}


def _start(**layers: Any) -> Records:
    yield sample.recording_record()
    yield Record("graph", 0, 0, {**sample.graph().to_json(), **layers})


def _layers(n: int, **changed: Any) -> list[dict[str, Any]]:
    """So many layers like the sample's first one."""
    first = {**sample.graph().to_json()["layers"][0], **changed}
    return [{**first, "name": f"layer{number}", "module": f"module{number}"} for number in range(n)]


def _out(neurons: int) -> list[dict[str, Any]]:
    first, *others = sample.graph().to_json()["layers"]
    return [{**first, "neurons": neurons}, *others]


def _windows(n: int, neurons: int, value: float = 0.0) -> Record:
    bounds = np.repeat(np.arange(n)[:, None], 2, 1)
    return Record("dynamics", 0, n, MEAN, {"windows": bounds, "values": np.full((neurons, n, 1), value, np.float16)})


def _observed(steps: int, layers: int) -> Record:
    values = np.zeros((steps, layers, 1), np.float32)
    return Record("layer_statistics", 0, steps, STATISTIC, {"steps": np.arange(steps), "values": values})


def _a_wide_record_of_nothing() -> Records:
    yield from _start(layers=_out(1 << 20))
    yield _windows(0, 1 << 20)
    yield _windows(20_000, 3)
    yield _observed(20_000, 4)


def _a_wide_record_among_narrow_ones() -> Records:
    yield from _start(layers=_out(200_000))
    yield _windows(1, 200_000)
    yield _windows(50_000, 3)


def _many_layers_over_many_steps() -> Records:
    yield from _start(layers=_layers(4000))
    yield _observed(50_000, 0)
    yield _observed(50_000, 1)


def _many_steps_in_one_window() -> Records:
    yield from _start(layers=_out(4000))
    yield _observed(100_000, 0)
    values = np.random.default_rng(0).normal(size=(4000, 1, 1)).astype(np.float16)
    yield Record("dynamics", 0, 100_000, MEAN, {"windows": np.array([[0, 100_000]]), "values": values})
    arrays = {
        "neurons": np.arange(4000),
        "outliers": np.ones(4000, np.uint8),
        "values": np.zeros((1, 4000), np.float32),
    }
    yield Record("polylines", 0, 0, {"quantity": "activation", "statistic": "mean"}, {"steps": np.arange(1), **arrays})


def _many_statistics_of_no_step() -> Records:
    yield from _start()
    yield _observed(50_000, 4)
    body = {"quantity": "activation", "statistics": [f"statistic{number}" for number in range(4096)]}
    arrays = {"steps": np.arange(0), "values": np.zeros((0, 4, 4096), np.float16)}
    yield Record("layer_statistics", 0, 0, body, arrays)


def _many_losses() -> Records:
    yield from _start()
    names = [f"loss{number}" for number in range(4096)]
    arrays = {"values": np.zeros((1, 4096)), "present": np.ones((1, 4096), np.uint8)}
    yield Record("loss", 0, 0, {"names": names}, {"steps": np.arange(1), "global_steps": np.arange(1), **arrays})


def _a_matrix_of_no_targets() -> Records:
    graph = sample.graph().to_json()
    neurons = {"conv": 1 << 20, "fc": 0}
    layers = [{**layer, "neurons": neurons.get(layer["name"], 2)} for layer in graph["layers"]]
    yield from _start(layers=layers, links=[{**graph["links"][0], "group": 1}])
    body = {"step": 0, "target": "fc", "direction": "forward", "samples": "batch", "columns": "channel"}
    yield Record("contribution", 0, 0, body, {"values": np.zeros((0, 1 << 20), np.float16)})


def _a_neuron_far_away() -> Records:
    yield from _start(layers=_out(1 << 24))
    yield from list(sample.all_records())[2:]
    arrays = {"neurons": np.array([(1 << 24) - 1]), "outliers": np.ones(1, np.uint8), "values": np.zeros((1, 1))}
    yield Record("polylines", 0, 0, {"quantity": "activation", "statistic": "mean"}, {"steps": np.arange(1), **arrays})


def _windows_of_nan() -> Records:
    yield from _start()
    yield _windows(50_000, 14, np.nan)


def _many_findings_in_many_layers() -> Records:
    yield from _start(layers=_layers(1500))
    for number in range(1500):
        finding = {**sample.FINDINGS["f1"].to_json(), "module": f"elsewhere{number}"}
        yield Record("finding", number, number, {"id": str(number), "finding": finding})


def _many_ways_through_the_graph() -> Records:
    nodes = [{"id": f"n{number}", "kind": "op", "op": "x"} for number in range(3000)]
    edges = [{"source": "fc", "target": node["id"]} for node in nodes]
    edges += [{"source": node["id"], "target": "n1"} for node in nodes] + [{"source": "n1", "target": "n0"}] * 3000
    graph = sample.graph().to_json()
    yield from _start(nodes=graph["nodes"] + nodes, edges=edges, links=[])


def _long_names() -> Records:
    yield from _start(layers=[{**layer, "name": layer["name"] + "x" * 60_000} for layer in _layers(50)])


def _long_options() -> Records:
    head, *others = sample.all_records()
    yield Record("recording", 0, 0, {**head.body, "options": {"x": [0] * 400_000}})
    yield from others


SCENARIOS: dict[str, Callable[[], Records]] = {
    "a wide record of nothing": _a_wide_record_of_nothing,
    "a wide record among narrow ones": _a_wide_record_among_narrow_ones,
    "many layers over many steps": _many_layers_over_many_steps,
    "many steps in one window": _many_steps_in_one_window,
    "many statistics of no step": _many_statistics_of_no_step,
    "many losses": _many_losses,
    "a matrix of no targets": _a_matrix_of_no_targets,
    "a neuron far away": _a_neuron_far_away,
    "windows of NaN": _windows_of_nan,
    "many findings in many layers": _many_findings_in_many_layers,
    "many ways through the graph": _many_ways_through_the_graph,
    "long options": _long_options,
    "long names": _long_names,
}
