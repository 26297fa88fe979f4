"""The progress record of a run: one truthful JSON file in storage, replaced atomically."""

from __future__ import annotations

import os
import platform
import threading
import time
from typing import Any

from mnist_ray.errors import UserError
from mnist_ray.storage.location import Location

HEARTBEAT_SECONDS = 1.0
"""The record is replaced this often while its owner lives, and not more often."""

STALE_SECONDS = 10 * HEARTBEAT_SECONDS
"""A heartbeat that is older belongs to a driver that has ended."""


class ProgressRecord:
    """`progress.json`, replaced atomically about every second by a thread, so that no step waits for storage.

    The record names its owner and carries a heartbeat, by which a second driver of the same run distinguishes a living
    driver from a dead one.
    """

    def __init__(
        self,
        location: Location,
        owner: dict[str, Any],
        *,
        interval: float = HEARTBEAT_SECONDS,
        until: str | None = None,
    ) -> None:
        """interval: seconds between two writes. until: a phase that another process records; once the file shows that
        phase, this object stops writing."""
        self._location, self._owner, self._interval, self._until = location, owner, interval, until
        self._fields: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, daemon=True)
        self._thread.start()

    def update(self, **fields: Any) -> None:
        """Replace some fields of the record: phase, done, total, per_second, epoch, loss, accuracy, …"""
        with self._lock:
            self._fields = {**self._fields, **fields}

    def close(self) -> None:
        """Stop the thread and write the record a last time."""
        self.leave()
        self.write()

    def leave(self) -> None:
        """Stop writing: from now on the record belongs to another process."""
        self._stop.set()
        self._thread.join()

    def _keep_writing(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                if self._until and self._location.read_json().get("phase") == self._until:
                    return
                self.write()
            except (UserError, FileNotFoundError):
                continue  # the next write may succeed, and no result depends on this one

    def write(self) -> None:
        """Write the record now, if it has any fields."""
        with self._lock:
            fields = dict(self._fields)
        if fields:
            self._location.write_json({**fields, "owner": self._owner, "heartbeat": time.time()})


def owner() -> dict[str, Any]:
    """This process: enough for others to find out whether it is still alive."""
    return {"host": platform.node(), "pid": os.getpid()}
