"""Forks processes that record a plain loop and end in some way; see ``processes.py``."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from processes import MAX_STEPS, Progress, serve
from torch import nn

import dgm_tb
from dgm_tb.callback.plain import LoopRecorder

N_STEPS = 20


def record_loop(
    folder: Path, ends: str, progress: Progress, *, first: int = 0, at: int = 7, window_steps: int = 4
) -> None:
    """Record a loop that ends in the given way.

    - ``finished``, ``forgotten``: at its end; in the second case nobody closes the recorder.
    - ``SIGTERM``, ``SIGINT``, ``error``: in the middle of step ``at``; ``... bare``: without a ``with`` block.
    - ``SIGTERM between``: after that step. ``SIGTERM closing``, ``SIGINT closing``: in the middle of ``close``.
    - ``SIGTERM handled``: the user has a handler. ``SIGTERM child``: a forked process gets the signal.
    - ``killed``: it does not end.
    """
    torch.manual_seed(first)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    what, _, how = ends.partition(" ")

    def end_at(step: int, is_inside: bool) -> None:
        if step != at or is_inside == (how == "between") or how in ("closing", "child"):
            return
        if what in ("SIGTERM", "SIGINT"):
            os.kill(os.getpid(), getattr(signal, what))
        elif what == "error":
            raise ValueError("the loop raised")

    def note(step: int, is_inside: bool) -> None:
        if not is_inside:
            progress.note(step - first)
            time.sleep(0.005)

    if how == "handled":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    steps = range(first, first + (MAX_STEPS if what == "killed" else N_STEPS))
    options: dict[str, Any] = {"max_overhead": None, "on_finding": "ignore", "window_steps": window_steps}
    loop = dgm_tb.record(model, folder, resume_step=first, **options)
    if how == "closing":
        _signal_while_closing(loop, getattr(signal, what))
    if how == "child" and os.fork() == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(9)
    if how == "bare" or what == "forgotten":
        _train(loop, model, steps, end_at)
    else:
        with loop:
            _train(loop, model, steps, note if what == "killed" else end_at)
    if how == "child":
        sys.exit(os.waitstatus_to_exitcode(os.wait()[1]) + 100)


def _train(loop: LoopRecorder, model: nn.Module, steps: range, at: Callable[[int, bool], None]) -> None:
    """Train; ``at(step, is_inside)`` is called in the middle of each step and after it."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in steps:
        loss = model(torch.rand(4, 8)).square().mean()
        optimizer.zero_grad()
        at(step, True)
        loss.backward()
        optimizer.step()
        loop.step({"loss": loss, "number": step})
        at(step, False)


def _signal_while_closing(loop: Any, number: int) -> None:
    write_ring = loop._recorder.write_ring

    def write(*args: Any) -> None:
        os.kill(os.getpid(), number)
        write_ring(*args)

    loop._recorder.write_ring = write


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        record_loop(Path(place), "finished", Progress())
    work = serve()
    if work is not None:
        task, noted = work
        record_loop(Path(task.pop("folder")), progress=noted, **task)
