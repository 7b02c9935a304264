"""Forks processes that record a plain loop and end in some way; see ``processes.py``."""

import contextlib
import itertools
import os
import signal
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from processes import MAX_STEPS, Progress, serve
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

import dgm_tb
from dgm_tb.callback.plain import LoopRecorder

N_STEPS = 20


def record_loop(
    folder: Path, ends: str, progress: Progress, *, first: int = 0, at: int = 7, window_steps: int = 4
) -> None:
    """Record a loop that ends in the given way.

    - ``finished``, ``forgotten``: at its end; in the second case nobody closes the recorder.
    - ``SIGTERM``, ``SIGINT``, ``error``: in the middle of step ``at``; ``... bare``: without a ``with`` block.
    - ``SIGTERM between``: after that step. ``... inside``, ``... closing``: in our own code, at the end of that step or
      of the loop. ``... weak``, ``... unheard``: in a weak reference's callback, torch's or the user's.
    - ``SIGTERM handled``: the user has a handler. ``SIGTERM child``: a forked process gets the signal.
    - ``killed``: it does not end.
    """
    torch.manual_seed(first)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    what, *how = ends.split()

    def end_at(step: int, is_inside: bool) -> None:
        if step != at or is_inside == ("between" in how) or {"inside", "closing", "child"} & set(how):
            return
        if "weak" in how:
            weak: Any = WeakIdKeyDictionary()
            weak[nn.Module()] = _Last(getattr(signal, what))
        elif "unheard" in how:
            weakref.ref(nn.Module(), lambda _: os.kill(os.getpid(), getattr(signal, what)))
        elif what in ("SIGTERM", "SIGINT"):
            os.kill(os.getpid(), getattr(signal, what))
        elif what == "error":
            raise ValueError("the loop raised")

    def note(step: int, is_inside: bool) -> None:
        if not is_inside:
            progress.note(step - first)
            time.sleep(0.005)

    if "handled" in how:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    steps = range(first, first + (MAX_STEPS if what == "killed" else N_STEPS))
    options: dict[str, Any] = {"max_overhead": None, "on_finding": "ignore", "window_steps": window_steps}
    loop = dgm_tb.record(model, folder, resume_step=first, **options)
    if "inside" in how or "closing" in how:
        method, n_calls = ("write_ring", 1) if "closing" in how else ("_take_in", at + 1)
        _signal_within(loop._recorder, method, n_calls, getattr(signal, what))
    if "child" in how and os.fork() == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(9)
    with contextlib.nullcontext() if "bare" in how or what == "forgotten" else loop:
        _train(loop, model, steps, note if what == "killed" else end_at)
    if "child" in how:
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


class _Last:
    """Sends a signal when it goes."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


def _signal_within(recorder: Any, method: str, n_calls: int, number: int) -> None:
    """Have this process get a signal at the beginning of the ``n_calls``-th call of a method."""
    original, calls = getattr(recorder, method), itertools.count(1)

    def called(*args: Any) -> None:
        if next(calls) == n_calls:
            os.kill(os.getpid(), number)
        original(*args)

    setattr(recorder, method, called)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        record_loop(Path(place), "finished", Progress())
    work = serve()
    if work is not None:
        task, noted = work
        record_loop(Path(task.pop("folder")), progress=noted, **task)
