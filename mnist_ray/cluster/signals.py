"""Ctrl-C, SIGTERM and a lost terminal all end a command in the same, orderly way."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mnist_ray.errors import Interrupted, LeaseLostError

CLEANING_UP_SECONDS = 10.0
"""Further signals are ignored for this long after the first."""

_AGAIN_SECONDS = 0.05


class _Interruption:
    """The signal that has arrived, if any, and the handlers that raise it as KeyboardInterrupt: the one exception that
    Ray's waiting calls let through."""

    def __init__(self) -> None:
        self.kind = 0
        self._at = -math.inf
        self.hook_before = sys.unraisablehook

    @property
    def has_come(self) -> bool:
        return self._at > -math.inf

    def handle(self, kind: int, _: Any) -> None:
        if time.monotonic() - self._at < CLEANING_UP_SECONDS:
            return
        self._at, self.kind = time.monotonic(), kind
        raise KeyboardInterrupt

    def send_again(self, dropped: Any) -> None:
        """Python drops what is raised in some places, such as a finalizer, or while a process is forked."""
        if not isinstance(dropped.exc_value, KeyboardInterrupt) or not self.has_come:
            self.hook_before(dropped)
            return
        self._at = -math.inf
        again = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (threading.main_thread().ident, self.kind))
        again.daemon = True
        again.start()


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Turn SIGTERM, Ctrl-C and a lost terminal into Interrupted, raised once everything in the block is closed.

    Yields a function that installs the handlers again, to be called after others have replaced them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    kinds = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored under nohup
        kinds.append(signal.SIGHUP)
    interruption = _Interruption()

    def handle_signals() -> None:
        for kind in kinds:
            signal.signal(kind, interruption.handle)

    before = {kind: signal.getsignal(kind) for kind in kinds}
    sys.unraisablehook = interruption.send_again
    handle_signals()
    try:
        yield handle_signals
    except BaseException as error:
        # The code that the signal interrupted may have turned it into another error, such as a failed import.
        # An Interrupted comes from a block within this one, which knows better what continues.
        if isinstance(error, (LeaseLostError, Interrupted)):
            raise
        if not interruption.has_come and not isinstance(error, KeyboardInterrupt):
            raise
        interrupted = Interrupted("interrupted; the same command continues from what is committed")
        interrupted.signal = interruption.kind
        raise interrupted from error
    finally:
        sys.unraisablehook = interruption.hook_before
        for kind, handler in before.items():
            if handler is not None:  # one that was not set from Python cannot be set again
                signal.signal(kind, handler)
