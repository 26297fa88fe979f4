"""What keeps this process from writing when it may no longer write: `Location` asks here before it changes a file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_checks: list[Callable[[], None]] = []
_this_thread = threading.local()


def add(check: Callable[[], None]) -> None:
    """Have `check` called before each write of this process; it raises where there must be none."""
    _checks.append(check)


def remove(check: Callable[[], None]) -> None:
    _checks.remove(check)


@contextmanager
def checked_by(check: Callable[[], None]) -> Iterator[None]:
    """The same for the time of the block."""
    add(check)
    try:
        yield
    finally:
        remove(check)


def check() -> None:
    """Raises what a check raises."""
    if not getattr(_this_thread, "is_exempt", False):
        for each in tuple(_checks):  # another thread may add one meanwhile
            each()


@contextmanager
def exempt() -> Iterator[None]:
    """Let this thread write without being asked: what it writes decides who may write."""
    before = getattr(_this_thread, "is_exempt", False)
    _this_thread.is_exempt = True
    try:
        yield
    finally:
        _this_thread.is_exempt = before
