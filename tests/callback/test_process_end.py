"""SIGTERM, Ctrl-C, errors and ends without a word, in a loop of plain PyTorch: all that was recorded is on the disk."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Processes
from torch import nn
from training import Recording

import dgm_tb
from dgm_tb.callback import signals

LOOP = 20


@pytest.mark.parametrize(
    ("ends", "status", "n_steps", "reason", "exception"),
    [
        ("finished", 0, LOOP, "finished", ""),
        ("forgotten", 0, LOOP, "finished", ""),
        ("SIGTERM", 143, 7, "interrupted", "SystemExit"),
        ("SIGTERM between", 143, 8, "interrupted", "SystemExit"),
        ("SIGTERM bare", 143, 7, "interrupted", "SystemExit"),
        ("SIGTERM inside", 143, 8, "interrupted", "SystemExit"),
        ("SIGTERM unheard bare", 143, 8, "interrupted", "SystemExit"),
        ("SIGTERM weak", 143, 7, "interrupted", "SystemExit"),
        ("SIGTERM handled", 7, 7, "interrupted", "SystemExit"),
        ("SIGTERM closing", 143, LOOP, "finished", ""),
        ("SIGTERM child", 100 - signal.SIGTERM, LOOP, "finished", ""),
        ("SIGINT", -signal.SIGINT, 7, "interrupted", "KeyboardInterrupt"),
        ("SIGINT bare", -signal.SIGINT, 7, "interrupted", "KeyboardInterrupt"),
        ("SIGINT inside", -signal.SIGINT, 8, "interrupted", "KeyboardInterrupt"),
        ("SIGINT weak", -signal.SIGINT, 7, "interrupted", "KeyboardInterrupt"),
        ("SIGINT closing", -signal.SIGINT, LOOP, "finished", ""),
        ("error", 1, 7, "exception", "ValueError: the loop raised"),
        ("error bare", 1, 7, "exception", "ValueError: the loop raised"),
    ],
)
def test_nothing_is_lost(
    ends: str, status: int, n_steps: int, reason: str, exception: str, loops: Processes, tmp_path: Path
) -> None:
    ended = loops.run(tmp_path / "run", ends)
    assert ended.status == status, ended.log
    recording = Recording.of(tmp_path / "run")
    assert list(recording.losses()["number"]) == list(range(n_steps))
    assert recording.windows()[-1][1] == n_steps - 1
    assert list(recording.kind("ring")[-1].arrays["steps"])[-1] >= n_steps - 1
    assert recording.end["reason"] == reason
    assert recording.end["exception"].startswith(exception)
    assert recording.end["last_step"] == n_steps - 1
    assert "dgm_tb:" not in ended.log, "there is nothing to warn of"


def test_the_handlers_are_ours_only_while_something_is_recorded(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    before = [signal.SIG_DFL, signal.default_int_handler]
    assert _handlers() == before
    first = dgm_tb.record(model, tmp_path / "first")
    second = dgm_tb.record(model, tmp_path / "second")
    for recorder in (first, second, second):
        assert _handlers() == ([signals._on_signal] * 2 if signals._open else before)
        recorder.close()
    assert _handlers() == before


def _handlers() -> list[Any]:
    return [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_handler_of_the_users_is_left_alone(number: int, tmp_path: Path) -> None:
    got: list[int] = []
    own = lambda number, frame: got.append(number)  # noqa: E731
    before = signal.signal(number, own)
    try:
        with dgm_tb.record(nn.Linear(2, 1), tmp_path):
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is own
    finally:
        signal.signal(number, before)
    assert got == [number]


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    reached = []

    def end(recorder: Any) -> None:
        with signals.held:
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(2)

    recorder = dgm_tb.record(nn.Linear(2, 1), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        end(recorder)
    recorder.close()
    assert reached == [1]


def test_a_loop_that_was_stopped_by_ctrl_c_may_go_on_with_something_else(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with dgm_tb.record(model, tmp_path) as recorder:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        for _ in range(3):
            recorder.step(model(torch.ones(4, 2)).mean())
    assert list(Recording.of(tmp_path).losses()["loss"]) == [0, 1, 2]
