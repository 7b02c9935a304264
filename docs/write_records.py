"""Write ``docs/records.md`` from the schema's tables; ``make docs`` runs it, and a test compares.

python docs/write_records.py
"""

from dataclasses import fields
from pathlib import Path

from dgm_tb import graph, records
from dgm_tb.segment_names import LIVE_NAME, segment_name

PAGE = Path(__file__).with_name("records.md")
EXAMPLE = Path(__file__).with_name("read_records.py")

HEAD = f"""# Records

Written by `docs/write_records.py` from `dgm_tb/records.py` and `dgm_tb/graph.py`; change those, then run `make docs`.

A recording is a folder `<run>/plugins/{records.PLUGIN_NAME}/<recording>/` of segments `{segment_name(0)}`,
`{segment_name(1)}`, ... in TFRecord framing (`dgm_tb/framing.py`). Each record is a `tensorboard` `Event`:
its JSON body is the plugin data of the first summary value, each array the tensor of one further value. Non-finite
numbers in a body are the strings "NaN", "Infinity" and "-Infinity". Where a body has `exponents` with the name of an
array, that array's values are to be multiplied by two to the power of the number given there.

Further files of that folder (`dgm_tb/segment_names.py`): `{segment_name(4, 7)}` replaces the segments 4 to 7 by fewer
bytes: a quarter of their windows and rows, the extremes among them; `{segment_name(0, 15)}` is what that left of four
such files, and so on. `{LIVE_NAME}` holds the windows that have not ended yet, and is replaced as a whole while the
training runs.

Schema version: {records.SCHEMA_VERSION}. Every version ever released stays readable.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, kinds(), statistics(), findings(), graphs(), without_dgm_tb(), exports()])


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def kinds() -> str:
    """The record kinds: ``records.KINDS``."""
    rows = [
        (
            f"`{name}`",
            ", ".join(f"`{key}`" for key in kind.body) or "-",
            "<br>".join(
                f"`{array}` [{', '.join(axes)}]{', optional' * (array in kind.optional)}"
                for array, axes in kind.arrays.items()
            )
            or "-",
            kind.when,
        )
        for name, kind in records.KINDS.items()
    ]
    text = "\n`*` stands for any number of further axes. A body may have further keys.\n"
    return "## Kinds\n" + text + "\n" + table(("kind", "keys of the body", "arrays", "written"), *rows)


def statistics() -> str:
    """The statistics of every quantity: ``records.STATISTICS``."""
    rows = [
        (quantity, f"`{statistic.name}`", ", ".join(statistic.windows), statistic.doc)
        for quantity, found in records.STATISTICS.items()
        for statistic in found
    ]
    text = "\nOne number per neuron and step; a window sums up its steps as named, the main aggregate first.\n"
    return "## Statistics\n" + text + "\n" + table(("quantity", "statistic", "of a window", "definition"), *rows)


def findings() -> str:
    """The fields of a finding, and its kinds."""
    names = ", ".join(f"`{field.name}`" for field in fields(records.Finding))
    kinds = ", ".join(f"`{kind}`" for kind in records.FINDING_KINDS)
    severities = ", ".join(f"`{severity}`" for severity in records.SEVERITIES)
    ranks = "Of several processes, `evidence` names the `rank`, as do the bodies of the records of the evidence."
    return f"## Findings\n\nFields: {names}.\n\nSeverities, worst first: {severities}.\n\nKinds: {kinds}.\n\n{ranks}\n"


def graphs() -> str:
    """The fields of everything in a graph."""
    classes = (graph.Graph, graph.Node, graph.Edge, graph.Layer, graph.Weight, graph.Link)
    rows = [
        (f"`{cls.__name__}`", ", ".join(f"`{field.name}`" for field in fields(cls)), (cls.__doc__ or "").split("\n")[0])
        for cls in classes
    ]
    return "## The graph\n\n" + table(("object", "fields", "what it is"), *rows)


def without_dgm_tb() -> str:
    """How others read the files: the example."""
    return f"""## Reading without dgm_tb

Any reader of TFRecord files will do, with any library for protocol buffers. A TFRecord is the length of its payload (8
bytes, little-endian), a checksum of these bytes (4), the payload, and a checksum of it (4). This is
`docs/{EXAMPLE.name}`; it leaves `{LIVE_NAME}` out:

```python
{EXAMPLE.read_text(encoding="utf-8").strip()}
```

A `loss` record has one row per step, and one column of `values` for each of the `names` in its body; where `present` is
0, there was no such loss. Neurons are numbered by the newest `graph` record: a layer's are `offset` to
`offset + neurons - 1`, of the quantities `weight` and `update` those of the entry of its module in `weights`.
"""


def exports() -> str:
    """The tables that ``dgm-tb export`` writes."""
    windows = "`first_steps`, `steps` [windows]<br>`neurons` [neurons]<br>`values` [neurons, windows]"
    extremes = "`low`, `high` [neurons, windows], where the extremes of the windows are kept"
    rows = [
        ("`--layer`", "`first_step`, `last_step`", "neuron: `neuron_0`, ...", f"{windows}<br>{extremes}"),
        (
            "`--layer`, `--layer-statistics`",
            "`step`",
            "statistic of the quantity",
            "`steps` [steps]<br>`names` [statistics]<br>`values`, `present` [statistics, steps]",
        ),
        (
            "`--losses`",
            "`step`, `global_step`",
            "loss",
            "`steps`, `global_steps` [steps]<br>`names` [losses]<br>`values`, `present` [losses, steps]",
        ),
    ]
    head = "## Exported files\n\nWhat `dgm-tb export` writes. CSV and Parquet have a row for each window or step.\n"
    tail = """Steps are int64, losses float64, all else float32. Where nothing was recorded, a cell is empty in CSV,
null in Parquet, and `present` is False in npz; NaN and infinities were recorded. Run, layer, quantity, statistic and
version of dgm_tb are in the metadata of a Parquet file's schema, and texts among the arrays of an npz file.
"""
    return "\n".join([head, table(("of", "first columns", "then one column for each", "arrays of npz"), *rows), tail])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
