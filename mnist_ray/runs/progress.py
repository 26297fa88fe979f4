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
"""How often the record is replaced at the most, and at the least while its owner lives."""

STALE_SECONDS = 10 * HEARTBEAT_SECONDS
"""A heartbeat older than this belongs to a driver that has ended."""


class ProgressRecord:
    """`progress.json`, replaced atomically about every second by a thread, so that no step waits for storage.

    It carries its owner and a heartbeat: a second driver of the same run can tell a living one from a dead one.
    `until`: the phase that another process tells of; once the record does, this one leaves it alone.
    """

    def __init__(
        self,
        location: Location,
        owner: dict[str, Any],
        *,
        interval: float = HEARTBEAT_SECONDS,
        until: str | None = None,
    ) -> None:
        self._location, self._owner, self._interval, self._until = location, owner, interval, until
        self._fields: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, daemon=True)
        self._thread.start()

    def update(self, **fields: Any) -> None:
        """Replace some of what the record says: phase, done, total, per_second, epoch, loss, accuracy, …"""
        with self._lock:
            self._fields = {**self._fields, **fields}

    def close(self) -> None:
        """Write the last word."""
        self.leave()
        self.write()

    def leave(self) -> None:
        """Stop writing: from here on the record is another's."""
        self._stop.set()
        self._thread.join()

    def _keep_writing(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                if self._until and self._location.read_json().get("phase") == self._until:
                    return
                self.write()
            except (UserError, FileNotFoundError):
                continue  # the next heartbeat may pass; what matters is committed elsewhere

    def write(self) -> None:
        """Write what there is to say, now."""
        with self._lock:
            fields = dict(self._fields)
        if fields:
            self._location.write_json({**fields, "owner": self._owner, "heartbeat": time.time()})


def owner() -> dict[str, Any]:
    """Who writes: enough to tell whether that process still lives."""
    return {"host": platform.node(), "pid": os.getpid()}
