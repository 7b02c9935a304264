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
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dgm_tb import __version__
from dgm_tb.demo import SCENARIOS
from dgm_tb.errors import DgmError, NoRecordingError
from dgm_tb.records import SEVERITIES, STATISTICS, Finding, severity_order

if TYPE_CHECKING:
    from dgm_tb.plugin.recording import Recording
    from dgm_tb.plugin.run import Run
    from dgm_tb.plugin.series import Dynamics

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
        print(f"dgm-tb: {error}", file=sys.stderr)
        return 2


def demo(options: argparse.Namespace) -> int:
    """Train a scenario, say what was found, and serve it in TensorBoard."""
    from dgm_tb.demo.training import record
    from dgm_tb.plugin.run import open_run

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
    runs = _open_runs(options.logdir)
    findings = sorted((finding for run in runs for finding in run.findings), key=severity_order)
    if options.json:
        print(json.dumps([finding.to_json() for finding in findings], indent=1, allow_nan=False))
    else:
        print(describe(findings, n_runs=len(runs)))
    return int(any(finding.severity == "error" for finding in findings))


def inspect(options: argparse.Namespace) -> int:
    """Print what every run holds and how large it is."""
    for run in _open_runs(options.logdir):
        print("\n".join(_inspect_run(run)))
    return 0


def export(options: argparse.Namespace) -> int:
    """Write the dynamics of one layer's neurons to a file, or as CSV to the terminal."""
    from dgm_tb.plugin.run import open_run

    if options.format == "npz" and options.out is None:
        raise DgmError("npz is no text: name a file with --out")
    dynamics = open_run(options.logdir).dynamics(options.layer, options.quantity, options.statistic)
    if options.format == "npz":
        np.savez_compressed(
            options.out,
            first_steps=dynamics.first_steps,
            steps=dynamics.steps,
            neurons=dynamics.neurons,
            values=dynamics.values,
        )
    elif options.out is None:
        sys.stdout.writelines(f"{line}\n" for line in _csv_lines(dynamics))
    else:
        Path(options.out).write_text("".join(f"{line}\n" for line in _csv_lines(dynamics)), encoding="utf-8")
    return 0


def describe(findings: Sequence[Finding], n_runs: int = 1) -> str:
    """Findings as a text for a terminal, in the order given."""
    where = "" if n_runs == 1 else f" in {n_runs} runs"
    if not findings:
        return f"no findings{where}"
    counts = Counter(finding.severity for finding in findings)
    parts = [f"{counts[s]} {s}{'s' if counts[s] != 1 and s != 'info' else ''}" for s in SEVERITIES if counts[s]]
    return "\n\n".join([*map(_describe_one, findings), f"{', '.join(parts)}{where}"])


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


def _list(numbers: Sequence[int], limit: int = 12) -> str:
    more = f", and {len(numbers) - limit} more" if len(numbers) > limit else ""
    return ", ".join(map(str, numbers[:limit])) + more


def _open_runs(logdir: str) -> "list[Run]":
    from dgm_tb.plugin.discovery import find_runs
    from dgm_tb.plugin.run import HOW_TO_RECORD, Run

    folder = Path(logdir)
    runs = find_runs(folder)
    if not runs:
        what = "has no recording of dgm_tb" if folder.is_dir() else "is no folder"
        raise NoRecordingError(f"{folder} {what}; {HOW_TO_RECORD}")
    return [Run(place, name=place.resolve().name if name == "." else name) for name, place in runs.items()]


def _inspect_run(run: "Run") -> list[str]:
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


def _inspect_recording(recording: "Recording") -> list[str]:
    model, found = recording.facts.get("model", "?"), recording.entries("end")
    losses = recording.entries("loss")
    n_steps = losses[-1].last_step - losses[0].first_step + 1 if losses else 0
    n_bytes = sum(file.stat().st_size for file in recording.folder.iterdir())
    per_step = f", {n_bytes / n_steps:,.0f} bytes per step" if n_steps else ""
    ended = found[-1].body["reason"] if found else "not ended"
    rows = [
        (kind, str(len(recording.entries(kind))), f"{size:,}")
        for kind, size in sorted(recording.sizes().items(), key=lambda item: -item[1])
    ]
    return [
        f"  recording {recording.name}: {model}, {n_steps} steps from {recording.resume_step}, {ended}",
        f"  {n_bytes:,} bytes on disk{per_step}",
        *_table([("record kind", "records", "bytes"), *rows]),
    ]


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


def _csv_lines(dynamics: "Dynamics") -> list[str]:
    """One line per window (per step where all were kept), one column per neuron."""
    lines = [",".join(["first_step", "last_step", *(f"neuron_{neuron}" for neuron in dynamics.neurons)])]
    columns = zip(dynamics.first_steps, dynamics.steps, dynamics.values.T, strict=True)
    return lines + [",".join([str(first), str(last), *map(str, values)]) for first, last, values in columns]


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

    command = commands.add_parser("export", help="write the dynamics of a layer's neurons as CSV or NumPy arrays")
    command.set_defaults(command=export)
    command.add_argument("logdir", help="a run folder, or a log folder that holds one run")
    command.add_argument("--layer", required=True, help="as listed by inspect")
    command.add_argument("--quantity", choices=list(STATISTICS), default="activation", help="default: %(default)s")
    command.add_argument("--statistic", help="one of the quantity's; its first by default")
    command.add_argument("--format", choices=["csv", "npz"], default="csv", help="default: %(default)s")
    command.add_argument("--out", help="file to write; CSV goes to the terminal without it")
    return parser
