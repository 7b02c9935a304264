"""The end of a process that records a loop of plain PyTorch: on SIGTERM, Ctrl-C or without a word, nothing is lost.

Lightning has handlers of its own. A handler that somebody else has set is never replaced.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_open: list[Callable[[], None]] = []
_ended_by: list[BaseException] = []
_pid = 0


def watch(close: Callable[[], None]) -> None:
    """Have ``close`` called when the process exits; from now on SIGTERM raises ``SystemExit(143)`` in the main thread.

    By default it would kill the process on the spot.
    """
    global _pid
    _pid = os.getpid()
    atexit.register(close)
    _open.append(close)
    if _is_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


def unwatch(close: Callable[[], None]) -> None:
    """Undo ``watch``, the handler with the last one. Safe to call twice."""
    atexit.unregister(close)
    if close in _open:
        _open.remove(close)
    if not _open and _is_main_thread() and signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def ended_by() -> BaseException | None:
    """What ended the script, when it exits; None if it came to its end."""
    if _ended_by:
        return _ended_by[-1]
    is_interactive = hasattr(sys, "ps1")  # there the last error may be an old one
    return None if is_interactive else getattr(sys, "last_value", None)


@contextmanager
def postponed() -> Iterator[None]:
    """Have Ctrl-C, and SIGTERM where it is ours, wait for the end of the block; a second one does not wait."""
    waiting: list[int] = []

    def later(number: int, frame: FrameType | None) -> None:
        if number in waiting:
            ours[number](number, frame)
        waiting.append(number)

    handlers: dict[int, Callable[..., Any]] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _on_sigterm}
    ours = {n: handler for n, handler in handlers.items() if _is_main_thread() and signal.getsignal(n) is handler}
    try:
        for number in ours:
            signal.signal(number, later)
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
    for number in waiting:
        ours[number](number, None)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _pid or not _open:  # a forked process, or closed in another thread
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    _ended_by.append(SystemExit(128 + number))
    raise _ended_by[-1]


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
