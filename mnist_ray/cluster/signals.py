"""Ctrl-C, SIGTERM and a lost terminal: one way to end a command, whichever it is."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mnist_ray.errors import Interrupted

CLEANING_UP_SECONDS = 10.0
"""For so long after a signal others are ignored."""


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """SIGTERM, Ctrl-C and a lost terminal raise Interrupted out of the block, once everything in it is closed.

    What comes back sees to it again, where another has put a handler of its own in place.
    """

    signalled = -math.inf

    def interrupt(*_: Any) -> None:
        nonlocal signalled
        if time.monotonic() - signalled < CLEANING_UP_SECONDS:
            return
        signalled = time.monotonic()
        raise KeyboardInterrupt  # the one exception that Ray's waiting calls let through

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    kinds = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        kinds.append(signal.SIGHUP)

    def handle_signals() -> None:
        for kind in kinds:
            signal.signal(kind, interrupt)

    before = {kind: signal.getsignal(kind) for kind in kinds}
    handle_signals()
    try:
        yield handle_signals
    except BaseException as error:
        # Where it struck, it may have become another error, such as that a module cannot be imported.
        if signalled == -math.inf and not isinstance(error, KeyboardInterrupt):
            raise
        raise Interrupted("interrupted; the same command goes on from what is committed") from error
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
