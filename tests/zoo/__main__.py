"""Run cases and print the table: ``python -m tests.zoo [CASE ...] [--held-out | --seen | --quick] [--jobs N]``."""

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from .running import CASES, Result, run


def main() -> int:
    """Run the chosen cases; exit code 1 if a truth does not hold or a healthy training gives an alarm."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--held-out", action="store_true", help="only cases that no threshold was chosen on")
    group.add_argument("--seen", action="store_true", help="only the others")
    group.add_argument("--quick", action="store_true", help="only those that CI runs")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where the recordings are kept")
    options = parser.parse_args()
    names = options.cases or [
        name
        for name, case in CASES.items()
        if not (options.held_out and not case.held_out)
        and not (options.seen and case.held_out)
        and not (options.quick and not case.quick)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        work = partial(run, folder=options.keep or Path(scratch))
        if options.jobs == 1:
            results = [work(name) for name in names]
        else:
            with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
                results = list(pool.map(work, names))
    print(table(results))
    return int(any(not result.is_true or result.score.alarms for result in results))


def table(results: Sequence[Result]) -> str:
    """One line per case, and the shares over all."""
    head = f"{'kind':5}{'first':6}{'top1':5}{'top3':5}{'step':8}{'samp':5}{'neur':5} found"
    lines = [f"{'case':34}{'kind':20}{'truth':6}{head}"]
    for r in results:
        s = r.score
        cells = f"{_mark(s.kind):5}{_mark(s.first):6}{_mark(s.top1):5}{_mark(s.top3):5}"
        step = "-" if s.step is None else "miss" if s.step > 10**5 else str(s.step)
        neurons = "-" if s.neurons is None else f"{s.neurons:.2f}"
        found = ", ".join(f"{f.kind}[{f.severity[0]}] {f.module}@{f.step}" for f in r.findings[:4])
        kind = r.case.kind or "(healthy)"
        lines.append(
            f"{r.case.name:34}{kind:20}{_mark(r.is_true):6}{cells}{step:8}{_mark(s.sample):5}{neurons:5} {found}"
        )
    for label, chosen in (("seen", False), ("held out", True)):
        part = [r for r in results if r.case.held_out == chosen]
        if part:
            lines.append(f"{label}: {summary(part)}")
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """The shares of what was right."""
    sick = [r.score for r in results if r.case.kind]
    fine = [r.score for r in results if not r.case.kind]
    steps = [s.step <= 2 for s in sick if s.step is not None]
    parts = {
        "detected": _share(s.kind for s in sick),
        "first": _share(s.first for s in sick),
        "module top-1": _share(s.top1 for s in sick),
        "top-3": _share(s.top3 for s in sick),
        "step within 2": _share(steps),
        "example": _share(s.sample for s in sick),
        "neurons": _share(s.neurons for s in sick),
    }
    shares = ", ".join(f"{name} {share}" for name, share in parts.items())
    alarms = sum(s.alarms > 0 for s in fine)
    seconds = max((r.seconds for r in results), default=0.0)
    cost = f"diagnosis {seconds:.2f} CPU s at most"
    return f"{len(sick)} failing: {shares}; {len(fine)} healthy: {alarms} with an alarm; {cost}"


def _share(values: Iterable[bool | float | None]) -> str:
    known = [float(value) for value in values if value is not None]
    return f"{100 * sum(known) / len(known):.0f} % of {len(known)}" if known else "-"


def _mark(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "NO"


if __name__ == "__main__":
    raise SystemExit(main())
