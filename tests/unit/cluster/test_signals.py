"""A signal ends a block, wherever it arrives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mnist_ray.cluster.signals import interruptible
from mnist_ray.errors import Interrupted


class Finalized:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0)  # here the handler raises, and Python drops it


def test_a_signal_in_a_finalizer_is_not_lost() -> None:
    with pytest.raises(Interrupted) as raised, interruptible():
        in_a_finalizer()
    assert raised.value.signal == signal.SIGTERM


def test_a_signal_while_a_process_is_forked_is_not_lost() -> None:
    with pytest.raises(Interrupted) as raised, interruptible():
        in_a_fork()
    assert raised.value.signal == signal.SIGINT


def test_what_else_is_dropped_is_shown_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: shown.append(dropped.exc_value))
    hook = sys.unraisablehook

    class Faulty:
        def __del__(self) -> None:
            raise ValueError("of ours")

    with interruptible():
        Faulty()
    assert [str(each) for each in shown] == ["of ours"]
    assert sys.unraisablehook is hook


def in_a_finalizer() -> None:
    Finalized()
    waited()


def in_a_fork() -> None:
    os.register_at_fork(before=once_a_signal)
    subprocess.run([sys.executable, "-c", ""], check=True, preexec_fn=int)  # which forks
    waited()


_left = [signal.SIGINT]


def once_a_signal() -> None:
    if _left:
        signal.raise_signal(_left.pop())
        time.sleep(0)


def waited() -> None:
    """Long enough for a second signal. Python runs handlers in the main thread, between two lines of its code."""
    assert threading.current_thread() is threading.main_thread()
    for _ in range(500):
        time.sleep(0.01)
