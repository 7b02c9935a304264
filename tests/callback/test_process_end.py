"""SIGTERM, Ctrl-C, errors and ends without a word, in a loop of plain PyTorch: all that was recorded is on the disk."""

import os
import signal
from pathlib import Path

import pytest
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
        ("SIGTERM handled", 7, 7, "interrupted", "SystemExit"),
        ("SIGTERM closing", 143, LOOP, "finished", ""),
        ("SIGTERM child", 100 - signal.SIGTERM, LOOP, "finished", ""),
        ("SIGINT", -signal.SIGINT, 7, "interrupted", "KeyboardInterrupt"),
        ("SIGINT bare", -signal.SIGINT, 7, "interrupted", "KeyboardInterrupt"),
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


def test_the_handler_is_ours_only_while_something_is_recorded(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    before = signal.getsignal(signal.SIGTERM)
    assert before is signal.SIG_DFL
    first = dgm_tb.record(model, tmp_path / "first")
    second = dgm_tb.record(model, tmp_path / "second")
    assert signal.getsignal(signal.SIGTERM) is signals._on_sigterm
    first.close()
    assert signal.getsignal(signal.SIGTERM) is signals._on_sigterm
    second.close()
    second.close()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_users_is_left_alone(tmp_path: Path) -> None:
    got: list[int] = []
    own = lambda number, frame: got.append(number)  # noqa: E731
    signal.signal(signal.SIGTERM, own)
    try:
        with dgm_tb.record(nn.Linear(2, 1), tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert got == [signal.SIGTERM]


def test_a_second_ctrl_c_does_not_wait() -> None:
    reached = []

    def close() -> None:
        with signals.postponed():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(2)

    with pytest.raises(KeyboardInterrupt):
        close()
    assert reached == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
