"""Write ``docs/records.md`` from the schema's tables; ``make docs`` runs it, and a test compares.

python docs/write_records.py
"""

from dataclasses import fields
from pathlib import Path

from dgm_tb import graph, records
from dgm_tb.segment_names import LIVE_NAME, segment_name

PAGE = Path(__file__).with_name("records.md")

HEAD = f"""# Records

Written by `docs/write_records.py` from `dgm_tb/records.py` and `dgm_tb/graph.py`; change those, then run `make docs`.

A recording is a folder `<run>/plugins/{records.PLUGIN_NAME}/<recording>/` of segments `{segment_name(0)}`,
`{segment_name(1)}`, ... in TFRecord framing (`dgm_tb/framing.py`). Each record is a `tensorboard` `Event`:
its JSON body is the plugin data of the first summary value, each array the tensor of one further value. Non-finite
numbers in a body are the strings "NaN", "Infinity" and "-Infinity". Where a body has `exponents` with the name of an
array, that array's values are to be multiplied by two to the power of the number given there.

Further files of that folder (`dgm_tb/segment_names.py`): `{segment_name(4, 7)}` replaces the segments 4 to 7 by fewer
bytes; `{LIVE_NAME}` holds the windows that have not ended yet, and is replaced as a whole while the training runs.

Schema version: {records.SCHEMA_VERSION}. Every version ever released stays readable.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, kinds(), statistics(), findings(), graphs()])


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


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
