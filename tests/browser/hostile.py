"""A recording in which every name and every sentence is markup, a script, or text that runs the other way."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import synthetic

from dgm_tb.records import Record

EVIL = [
    "<img src=x onerror=broken=1>", "<script>broken=2</script>", '"><svg onload=broken=3>', "' onfocus=broken=4 '",
    "javascript:broken=5", "\u202egnirts", "${broken=6}", "&lt;b&gt;", "</style><style>*{display:none}</style>",
    "__proto__",
]  # fmt: skip
"""None has a dot: module names are split there."""
ALL_EVIL = " ".join(EVIL)
RUN = "<img src=x onerror=broken=7>"
RECORDING = '"><svg onload=broken=8>'
SENTENCES = {"summary", "advice", "text", "model", "op", "type", "parameter"}


def renamed(name: str) -> str:
    """A module's or layer's name with something evil in every part, the same every time."""
    parts = name.split(".")
    return ".".join(f"{part}{EVIL[sum(map(ord, part)) % len(EVIL)]}" for part in parts)


def spoilt(value: Any, names: set[str], key: str = "") -> Any:
    """A body with every name in it renamed and every sentence spoilt."""
    if isinstance(value, dict):
        return {renamed(k) if k in names else k: spoilt(item, names, k) for k, item in value.items()}
    if isinstance(value, list):
        return [spoilt(item, names, key) for item in value]
    if not isinstance(value, str):
        return value
    if value in names:
        return renamed(value)
    return f"{value} {ALL_EVIL}" if key in SENTENCES else value


def records() -> Iterator[Record]:
    """The VAE that goes NaN, with names and sentences that are evil, and a few records of nothing else."""
    graph = synthetic.vae_graph()
    names = {node.id for node in graph.nodes} | set(graph.modules) | {layer.name for layer in graph.layers}
    names |= {"train_loss", "reconstruction", "kl"}
    for record in synthetic.vae_records():
        body = spoilt(record.body, names - {""})
        if record.kind == "recording":
            body |= {"options": {ALL_EVIL: ALL_EVIL}, "versions": {ALL_EVIL: ALL_EVIL}}
        if record.kind == "samples":
            body["examples"] = [{**example, "label": EVIL[0]} for example in body["examples"]]
        if record.kind == "finding":
            body["finding"]["evidence"] |= {evil: [evil, {evil: evil}] for evil in EVIL}
        yield replace(record, body=body)
    for step in range(3):
        yield Record("note", step, step, {"text": ALL_EVIL})
    finding = replace(
        synthetic._findings()[0][1], kind=EVIL[0], severity=EVIL[2], module=EVIL[1], modules=EVIL
    ).to_json()
    yield Record("finding", 300, 300, {"id": EVIL[0], "finding": finding})


def write(logdir: Path) -> str:
    """Write the run, with a damaged part, beside a run that is named like a key of every object.

    Returns:
        Its name.
    """
    segment = synthetic.write_run(logdir / RUN, records(), RECORDING)
    content = bytearray(segment.read_bytes())
    content[content.rindex(b'"text"')] ^= 1  # the checksum of the last note is wrong now
    segment.write_bytes(bytes(content))
    synthetic.write_run(logdir / "__proto__", synthetic.vae_records(60, fails=False))
    return RUN
