"""Follows a run in the background: whatever a tracker does, the run neither fails by it nor waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from mnist_ray.errors import RetryableError, UserError, first_line, one_line
from mnist_ray.report.formatting import without_secrets
from mnist_ray.tracking.scalars import Snapshot


class Tracker(Protocol):
    """Where a run is shown."""

    @property
    def label(self) -> str:
        """As messages name it."""

    @property
    def place(self) -> tuple[str, str] | None:
        """What it is and where to look, for the lines that end a run; None where nothing is there."""

    def sync(self, snapshot: Snapshot) -> None:
        """Add what is not there yet. May raise anything; is then called again, with the same or a later snapshot."""

    def end(self, status: str) -> None:
        """Note how the attempt has ended: FINISHED, FAILED or KILLED. May raise anything."""

    def lacking(self, snapshot: Snapshot) -> str:
        """What of a snapshot is not there yet, in words."""


class Follower:
    """A tracker in a thread of its own. Each snapshot has all that the one before had, so it may miss some."""

    def __init__(self, tracker: Tracker, snapshot: Snapshot, warn: Callable[[str], None]) -> None:
        """warn: is called once, from the thread, when the tracker fails first."""
        self._tracker, self._warn = tracker, warn
        self._snapshot, self._status, self._is_new = snapshot, "", True
        self._changed, self._problem, self._has_warned = threading.Condition(), "", False
        self._thread = threading.Thread(target=self._run, daemon=True, name="tracker")
        self._thread.start()

    def show(self, snapshot: Snapshot) -> None:
        """Let the tracker know, and return at once."""
        with self._changed:
            if len(snapshot.epochs) != len(self._snapshot.epochs) or snapshot.metrics:
                self._snapshot, self._is_new = snapshot, True
                self._changed.notify()

    def end(self, status: str, seconds: float) -> str | None:
        """Wait until the tracker has all, or has failed once more. Returns a warning where it has not.

        status: how the attempt ended: FINISHED, FAILED or KILLED. seconds: how long to wait at most.
        """
        with self._changed:
            self._status, self._is_new = status, True
            self._changed.notify()
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.2)  # so that signals are handled
        if self._thread.is_alive():
            self._problem = f"no answer within {seconds:.0f} s"
        if not self._problem:
            return None
        return (
            f"{self._tracker.label}: {self._tracker.lacking(self._snapshot)} ({self._problem}); the same command adds"
            " what is missing"
        )

    def _run(self) -> None:
        status = ""
        while not status:
            with self._changed:
                self._changed.wait_for(lambda: self._is_new)
                snapshot, status, self._is_new = self._snapshot, self._status, False
            try:
                self._tracker.sync(snapshot)
                if status:
                    self._tracker.end(status)
                self._problem = ""
            except Exception as error:
                self._problem = without_secrets(_reason(error))
                if not (self._has_warned or status or snapshot.metrics):
                    self._has_warned = True
                    with suppress(RetryableError):  # the next line of the run's own fails as well
                        self._warn(f"{self._tracker.label}: {self._problem}; the run goes on and will try again")


def _reason(error: BaseException) -> str:
    """Why something failed. Clients of servers wrap a refused connection in three errors and 300 characters."""
    if isinstance(error, UserError):
        return str(error)
    reason, cause = one_line(error), error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, OSError):
            reason = first_line(cause)
        cause = cause.__cause__ or cause.__context__
    return reason
