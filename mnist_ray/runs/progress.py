"""The progress record of a run: one truthful JSON file in storage, replaced atomically."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mnist_ray.errors import UserError, outcome
from mnist_ray.runs.history import History, history_of
from mnist_ray.runs.pace import Pace
from mnist_ray.storage.location import Location

LOCAL_SECONDS = 1.0
REMOTE_SECONDS = 5.0
"""How often the record is replaced at most: in object storage, each time is a request that somebody pays for."""


class ProgressRecord:
    """`progress.json`, replaced atomically by a thread while it changes, so that no step waits for storage."""

    def __init__(self, location: Location, owner: dict[str, Any], *, interval: float | None = None) -> None:
        """owner: the driver, which the record names. interval: seconds between two writes."""
        self._location, self._owner = location, owner
        self._interval = interval or (LOCAL_SECONDS if location.is_local else REMOTE_SECONDS)
        self._fields: dict[str, Any] = {}
        self._phase: str | None = None
        self._show: Callable[[dict[str, Any]], None] = lambda fields: None
        self._begin_phase: Callable[[str], None] = lambda phase: None
        self._forget_work()
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # one write after the other: the newest record is to stay
        self._stop = threading.Event()
        self._begin()

    def _begin(self) -> None:
        self._stop.clear()
        self._history = History(history_of(self.folder))
        self._thread = threading.Thread(target=self._keep_writing, daemon=True, name="progress")
        self._thread.start()

    @property
    def folder(self) -> Location:
        """Of the run or the output."""
        return self._location.parent

    @property
    def phase(self) -> str | None:
        """The phase that was told last, also while another process writes the record."""
        return self._phase

    def update(self, *, work: tuple[int, int] | None = None, **fields: Any) -> dict[str, Any]:
        """Replace some fields of the record: phase, done, total, per_second, loss, … Returns all.

        work: how much of the phase's work is done, and how much there is, from which come `seconds_left` and the
        history; the first time, what was done before. A new phase begins without the fields of the one before.
        """
        with self._lock:
            is_new_phase = fields.get("phase", self._phase) != self._phase
            if is_new_phase:
                self._history.add(self._fields, self._images, time.time())  # how far the phase came that ends here
                self._phase, self._fields = fields["phase"], {}
                self._forget_work()
                self._begin_phase(fields["phase"])
            if work is not None:
                fields["seconds_left"] = self._seconds_left(*work)
            self._fields = {**self._fields, **fields}
            return self._fields

    def _forget_work(self) -> None:
        self._before: int | None = None
        self._images = 0
        self._pace: Pace | None = None

    def _seconds_left(self, done: int, total: int) -> float | None:
        """The pace begins with the first work that is done here, as what comes before it is waiting for a start."""
        if self._before is None:
            self._before = done
            return None
        self._images, self._pace = done - self._before, self._pace or Pace(total)
        return self._pace.update(done)

    def at_each_phase(self, begin: Callable[[str], None]) -> None:
        """Call `begin` with each phase, as it begins."""
        self._begin_phase = begin

    def also(self, show: Callable[[dict[str, Any]], None]) -> None:
        """Give the fields to `show`, too, each time that they are written."""
        self._show = show

    def close(self) -> None:
        """Write the record a last time, and stop."""
        self._stop.set()
        self._thread.join()
        self.write()
        self._history.write()

    def fail(self, error: BaseException) -> None:
        """Write why it ends here, for `status`. The phase stays that in which it happened."""
        code, message = outcome(error)
        with self._lock:
            self._fields = {**self._fields, "phase": "failed", "exit_code": code, "message": message}
        with suppress(UserError):  # the error itself matters more
            self.write()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let another process write the record for the time of the block. It then has no fields of ours."""
        self.close()
        self._fields = {}
        try:
            yield
        finally:
            self._begin()

    def leave(self) -> None:
        """Stop writing: from now on the record belongs to another process."""
        self._stop.set()
        self._thread.join()
        self._history.write()

    def _keep_writing(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self.write()
            except UserError:
                continue  # the next write may succeed, and no result depends on this one

    def write(self) -> None:
        """Write the record now, if it has any fields."""
        with self._writing:
            with self._lock:
                fields, now = self._fields, time.time()
                self._history.add(fields, self._images, now)
            if fields:
                self._show(fields)
                self._history.write_if_due()
                self._location.write_json({**fields, "owner": self._owner, "heartbeat": now})


def owner() -> dict[str, Any]:
    """This process, as progress.json names it; `job` is None outside of a Ray job."""
    return {"host": platform.node(), "pid": os.getpid(), "job": os.environ.get("MNIST_RAY_JOB")}
