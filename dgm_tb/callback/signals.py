"""The end of a process that records a loop of plain PyTorch: on SIGTERM, Ctrl-C or without a word, nothing is lost.

A handler that somebody has set is never replaced.
"""

import atexit
import os
import signal
import sys
from collections.abc import Callable
from threading import get_ident, main_thread
from types import FrameType
from typing import Any

_DEFAULTS: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}

_WEAK_FILES = ("weak.py", "weakref.py", "_weakrefset.py")

_open: list[Callable[[], None]] = []
_waiting: list[int] = []
_ended_by: list[SystemExit] = []
_unheard: list[SystemExit] = []
_pid = 0
_main_thread = main_thread().ident


def watch(close: Callable[[], None]) -> None:
    """Have ``close`` called when the process exits, and ``held`` heeded, until ``unwatch``.

    Where SIGTERM would kill the process on the spot, it raises ``SystemExit(143)`` in the main thread instead.
    """
    global _pid, _main_thread
    _pid, _main_thread = os.getpid(), main_thread().ident
    if not _open:
        _ended_by.clear()
        _unheard.clear()
    atexit.register(close)
    _open.append(close)
    if get_ident() == _main_thread:
        for number, default in _DEFAULTS.items():
            if signal.getsignal(number) is default:
                signal.signal(number, _on_signal)


def unwatch(close: Callable[[], None]) -> None:
    """Undo ``watch``, the handlers with the last one. Safe to call twice."""
    atexit.unregister(close)
    if close in _open:
        _open.remove(close)
    if not _open and get_ident() == _main_thread:
        for number, default in _DEFAULTS.items():
            if signal.getsignal(number) is _on_signal:
                signal.signal(number, default)


class _Held:
    """``with held:`` has the first SIGTERM or Ctrl-C wait for the end of the block, which is not left half done."""

    depth = 0

    def __enter__(self) -> None:
        if get_ident() == _main_thread:
            self.depth += 1

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if get_ident() != _main_thread:
            return
        self.depth -= 1
        if _waiting and not self.depth:
            number = _waiting[0]
            _waiting.clear()
            if kind is None:
                raise _ending(number)


held = _Held()


def raise_unheard() -> None:
    """Raise for a SIGTERM again if it was raised in vain: in a weak reference's callback Python ignores exceptions."""
    if _unheard and get_ident() == _main_thread:
        raise _unheard.pop()


def ended_by() -> BaseException | None:
    """What ended the script, when it exits; None if it came to its end."""
    if _ended_by:
        return _ended_by[-1]
    is_interactive = hasattr(sys, "ps1")  # there the last error may be an old one
    return None if is_interactive else getattr(sys, "last_value", None)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _pid or not _open:  # a forked process, or closed in another thread
        signal.signal(number, _DEFAULTS[number])
        os.kill(os.getpid(), number)
    elif (held.depth or _is_deaf(frame)) and number not in _waiting:
        _waiting.append(number)
    else:
        raise _ending(number)


def _is_deaf(frame: FrameType | None) -> bool:
    """Whether Python may ignore an exception here: tensors that we know by weak reference go after every long call."""
    for _ in range(3):
        if frame is not None and os.path.basename(frame.f_code.co_filename) in _WEAK_FILES:
            return True
        frame = frame.f_back if frame is not None else None
    return False


def _ending(number: int) -> BaseException:
    if number == signal.SIGINT:
        return KeyboardInterrupt()
    error = SystemExit(128 + number)
    _ended_by.append(error)
    _unheard.append(error)
    return error
