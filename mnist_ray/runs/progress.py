"""The progress record of a run: one truthful JSON file in storage, replaced atomically."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mnist_ray.errors import UserError
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
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._begin()

    def _begin(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._keep_writing, daemon=True, name="progress")
        self._thread.start()

    @property
    def phase(self) -> str | None:
        """The phase that was told last, also while another process writes the record."""
        return self._phase

    def update(self, **fields: Any) -> dict[str, Any]:
        """Replace some fields of the record: phase, done, total, per_second, seconds_left, loss, … Returns all.

        A new phase begins without the fields of the one before.
        """
        with self._lock:
            is_new_phase = fields.get("phase", self._phase) != self._phase
            self._fields = fields if is_new_phase else {**self._fields, **fields}
            self._phase = fields.get("phase", self._phase)
            if is_new_phase:
                self._begin_phase(fields["phase"])
            return self._fields

    def at_each_phase(self, begin: Callable[[str], None]) -> None:
        """Call `begin` with each phase, as it begins."""
        self._begin_phase = begin

    def also(self, show: Callable[[dict[str, Any]], None]) -> None:
        """Give the fields to `show`, too, each time that they are written."""
        self._show = show

    def close(self) -> None:
        """Stop the thread and write the record a last time."""
        self.leave()
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

    def _keep_writing(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self.write()
            except UserError:
                continue  # the next write may succeed, and no result depends on this one

    def write(self) -> None:
        """Write the record now, if it has any fields."""
        with self._lock:
            fields = self._fields
        if fields:
            self._show(fields)
            self._location.write_json({**fields, "owner": self._owner, "heartbeat": time.time()})


def owner() -> dict[str, Any]:
    """This process, as progress.json names it; `job` is None outside of a Ray job."""
    return {"host": platform.node(), "pid": os.getpid(), "job": os.environ.get("MNIST_RAY_JOB")}
