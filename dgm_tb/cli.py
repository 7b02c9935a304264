"""The command ``dgm-tb``: train a demo, and diagnose, inspect or export what was recorded.

Only ``demo`` loads torch. Exit codes: 0 fine, 1 ``diagnose`` has a finding of severity error, 2 wrong use.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dgm_tb import __version__
from dgm_tb.demo import SCENARIOS
from dgm_tb.errors import DgmError
from dgm_tb.plugin.export import WRITERS, Table, choose_format, csv_lines, layer_table, loss_table, neuron_table, write
from dgm_tb.plugin.opening import open_run, open_runs
from dgm_tb.plugin.recording import Recording
from dgm_tb.plugin.run import Run
from dgm_tb.plugin.sizes import Sizes, sizes_of
from dgm_tb.records import SEVERITIES, STATISTICS, Finding, severity_order

DEMO_LOGDIR = "dgm_tb_demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What stands behind ``dgm-tb``; by default the process's own.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as in "dgm-tb export ... | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DgmError, OSError) as error:
        print(_plain(f"dgm-tb: {error}"), file=sys.stderr)
        return 2


def demo(options: argparse.Namespace) -> int:
    """Train a scenario, say what was found, and serve it in TensorBoard."""
    from dgm_tb.demo.training import record

    scenario, logdir = SCENARIOS[options.scenario], Path(options.logdir)
    print(f"{options.scenario}: {scenario.story}", flush=True)
    run = open_run(record(options.scenario, logdir))
    print(f"\n{describe(run.findings)}\n{scenario.look_at}\n")
    serve = ["--logdir", str(logdir), *(["--port", str(options.port)] if options.port is not None else [])]
    print(f"  {shlex.join(['tensorboard', *serve])}", flush=True)
    if options.no_serve:
        return 0
    print("\nServing it now, in the tab DGMTracker; Ctrl-C ends it.", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *serve])  # and torch's memory is free again


def diagnose(options: argparse.Namespace) -> int:
    """Print the findings of every run, worst first."""
    runs = open_runs(options.logdir)
    findings = sorted((finding for run in runs for finding in run.findings), key=severity_order)
    if options.json:
        print(json.dumps([finding.to_json() for finding in findings], indent=1, allow_nan=False))
    else:
        print(describe(findings, n_runs=len(runs)))
    return int(any(finding.severity == "error" for finding in findings))


def inspect(options: argparse.Namespace) -> int:
    """Print what every run holds and how large it is."""
    for run in open_runs(options.logdir):
        lines = run.settled(partial(_inspect_run, run))
        print("\n".join(map(_plain, lines)))
    return 0


def export(options: argparse.Namespace) -> int:
    """Write numbers of a run to a file, or as CSV to the terminal."""
    chosen = choose_format(options.format, options.out)
    table = _table_to_export(options)
    if options.out is None:
        sys.stdout.writelines(csv_lines(table))
    else:
        write(table, Path(options.out), chosen)
    return 0


def _table_to_export(options: argparse.Namespace) -> Table:
    if options.losses:
        given = {"--quantity": options.quantity, "--statistic": options.statistic}
        unused = [name for name, value in given.items() if value] + ["--layer-statistics"] * options.layer_statistics
        if unused:
            raise DgmError(f"--losses takes no {unused[0]}: a loss is of the whole model; name a --layer instead")
        return loss_table(open_run(options.logdir))
    quantity = options.quantity or next(iter(STATISTICS))
    if not options.layer_statistics:
        return neuron_table(open_run(options.logdir), options.layer, quantity, options.statistic)
    if options.statistic:
        raise DgmError("--layer-statistics writes all statistics, one per column; leave --statistic out")
    return layer_table(open_run(options.logdir), options.layer, quantity)


def describe(findings: Sequence[Finding], n_runs: int = 1) -> str:
    """Findings as a text for a terminal, in the order given."""
    where = "" if n_runs == 1 else f" in {n_runs} runs"
    if not findings:
        return f"no findings{where}"
    counts = Counter(finding.severity for finding in findings)
    parts = [f"{counts[s]} {s}{'s' if counts[s] != 1 and s != 'info' else ''}" for s in SEVERITIES if counts[s]]
    return _plain("\n\n".join([*map(_describe_one, findings), f"{', '.join(parts)}{where}"]))


def _describe_one(finding: Finding) -> str:
    run = f"  run {finding.run}" if finding.run else ""
    head = f"{finding.severity.upper()} {finding.kind}  step {finding.step}  {finding.module or '(model)'}{run}"
    what = "dataset index" if finding.evidence.get("sample_index") == "dataset" else "position in the batch"
    lines = [
        finding.summary,
        f"neurons: {_list(finding.neurons)}" if finding.neurons else "",
        f"examples ({what}): {_list(finding.samples)}" if finding.samples else "",
        f"further suspects: {', '.join(map(repr, finding.modules))}" if finding.modules else "",
        f"advice: {finding.advice}" if finding.advice else "",
    ]
    width = max(40, min(shutil.get_terminal_size().columns, 110))
    wrapped = [textwrap.fill(line, width, initial_indent="  ", subsequent_indent="    ") for line in lines if line]
    return "\n".join([head, *wrapped])


def _plain(text: str) -> str:
    """A text without what a terminal would act on, or could not show: names in a recording may be anything."""
    hidden = {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")}
    return text.translate(dict.fromkeys(map(ord, hidden), "\N{REPLACEMENT CHARACTER}"))


def _list(numbers: Sequence[int], limit: int = 12) -> str:
    more = f", and {len(numbers) - limit} more" if len(numbers) > limit else ""
    return ", ".join(map(str, numbers[:limit])) + more


def _inspect_run(run: Run) -> list[str]:
    first, last = run.steps or (0, -1)
    graph = run.graph
    lines = [
        f"run {run.name}: steps {first} to {last}" if run.steps else f"run {run.name}: no steps yet",
        f"  {len(run.findings)} findings, {len(run.snapshots)} snapshots with contributions, "
        f"losses: {', '.join(run.losses) or 'none'}",
    ]
    if n_skipped := len(run.skipped_steps):
        lines.append(f"  {n_skipped} step{'s' if n_skipped > 1 else ''} skipped: gradient overflow")
    for recording in run.recordings:
        lines += _inspect_recording(recording)
    lines.append(f"  {len(graph.layers)} layers, {sum(layer.neurons for layer in graph.layers)} neurons")
    rows = [
        (layer.name, layer.type, str(layer.neurons), "x".join(map(str, layer.shape))) for layer in graph.flow_order()
    ]
    lines += _table([("layer", "type", "neurons", "output"), *rows]) if rows else []
    lines += [f"  not recorded: {module}: {reason}" for module, reason in graph.unrecorded.items()]
    lines += [f"  note: {note}" for note in run.notes]
    lines += [
        f"  damage: {gap['bytes']} bytes in {gap['recording']}/{gap['segment']}: {gap['reason']}" for gap in run.gaps
    ]
    return lines


def _inspect_recording(recording: Recording) -> list[str]:
    model, found, sizes = recording.facts.get("model", "?"), recording.entries("end"), sizes_of(recording)
    ended = found[-1].body["reason"] if found else "not ended"
    rows = [
        (kind, str(len(recording.entries(kind))), f"{size:,}")
        for kind, size in sorted(recording.sizes().items(), key=lambda item: -item[1])
    ]
    return [
        f"  recording {recording.name}: {model}, {sizes.n_steps} steps from {recording.resume_step}, {ended}",
        *(f"  {line}" for line in _describe_sizes(sizes)),
        *_table([("record kind", "records", "bytes"), *rows]),
    ]


def _describe_sizes(sizes: Sizes) -> list[str]:
    lines = [f"{sizes.n_bytes:,} bytes on disk"]
    if sizes.n_steps and sizes.n_growing_bytes:
        lines[0] += f", of which {sizes.n_growing_bytes:,} grow with the steps:"
        lines[0] += f" {_bytes(sizes.n_growing_bytes / sizes.n_steps)} per step"
    if sizes.n_observed and sizes.n_growing_bytes:
        step = "step" if sizes.n_observed == sizes.n_steps else "observed step"
        raw = {"every neuron at full resolution": sizes.row_bytes, "the activations": sizes.activation_bytes}
        ratios = [
            f"{_ratio(sizes.n_growing_bytes, size * sizes.n_observed)} of {name} ({_bytes(size)} per {step})"
            for name, size in raw.items()
            if size
        ]
        lines += [f"these are {', '.join(ratios)}"] if ratios else []
    if sizes.n_thinned:
        lines.append(f"{sizes.n_thinned:,} of the steps are kept at reduced detail, to stay below max_disk_mb")
    return lines


def _ratio(part: float, whole: float) -> str:
    if part > whole:
        return f"{part / whole:,.1f} times the size"
    return f"1/{whole / part:,.0f}" if whole >= 10 * part else f"1/{whole / part:.1f}"


def _bytes(size: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as aligned lines; columns of numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_number = [all(cell.replace(",", "").isdigit() for cell in column[1:]) for column in zip(*rows, strict=True)]
    return [
        "    "
        + "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in rows
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dgm-tb", description="From a failing training of a deep generative model to its cause."
    )
    parser.add_argument("--version", action="version", version=f"dgm-tb {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("demo", help="train a small model that fails, and open its recording in TensorBoard")
    command.set_defaults(command=demo)
    command.add_argument(
        "--scenario", choices=list(SCENARIOS), default=next(iter(SCENARIOS)), help="default: %(default)s"
    )
    command.add_argument("--logdir", default=DEMO_LOGDIR, help="default: %(default)s")
    command.add_argument("--no-serve", action="store_true", help="do not start TensorBoard afterwards")
    command.add_argument("--port", type=int, help="TensorBoard's port; by default it looks for a free one from 6006 on")

    command = commands.add_parser("diagnose", help="print the findings; exit code 1 if one is an error")
    command.set_defaults(command=diagnose)
    command.add_argument("logdir", help="a log folder or a run folder")
    command.add_argument("--json", action="store_true", help="print a JSON list")

    command = commands.add_parser("inspect", help="list runs, recordings, layers, steps and sizes")
    command.set_defaults(command=inspect)
    command.add_argument("logdir", help="a log folder or a run folder")

    command = commands.add_parser("export", help="write the numbers of a layer's neurons, or losses, to a file")
    command.set_defaults(command=export)
    command.add_argument("logdir", help="a run folder, or a log folder that holds one run")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--layer", help="the dynamics of its neurons; as listed by inspect")
    what.add_argument("--losses", action="store_true", help="all losses, at every step")
    command.add_argument("--quantity", choices=list(STATISTICS), help=f"default: {next(iter(STATISTICS))}")
    command.add_argument("--statistic", help="one of the quantity's; its first by default")
    command.add_argument(
        "--layer-statistics", action="store_true", help="statistics of the layer as a whole, at every observed step"
    )
    command.add_argument("--format", choices=list(WRITERS), help="default: that of the file's suffix, else csv")
    command.add_argument("--out", help="file to write; CSV goes to the terminal without it")
    return parser
