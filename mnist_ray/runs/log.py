"""`logs/driver.log` in a run's folder: what its drivers printed, for the time when the cluster is gone."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress

from mnist_ray.errors import UserError
from mnist_ray.storage.location import Location

MOST_BYTES = 1_000_000
"""Of the log. The oldest lines go first."""

LOCAL_SECONDS, REMOTE_SECONDS = 2.0, 30.0
"""How often it is written at most, whole: in object storage, each time is an upload that somebody pays for."""


def driver_log(folder: Location) -> Location:
    """The log of a run's drivers."""
    return folder / "logs" / "driver.log"


class DriverLog:
    """The log of one attempt, after those of the attempts before. Nothing depends on it: what fails is left out."""

    LEFT_OUT = b"... earlier lines are left out\n"
    """The first line of a log that has lost some."""

    def __init__(self, file: Location, *, most: int = MOST_BYTES, interval: float | None = None) -> None:
        """most: bytes that are kept. interval: seconds between two writes."""
        self._file, self._most = file, most
        self._interval = interval or (LOCAL_SECONDS if file.is_local else REMOTE_SECONDS)
        self._lines, self._bytes, self._is_cut = deque[bytes](), 0, False
        self._changed, self._stop, self._lock = False, threading.Event(), threading.Lock()
        self._writing = threading.Lock()  # one write after the other: the newest text is to stay
        with suppress(UserError, FileNotFoundError):
            for line in file.read_bytes().splitlines(keepends=True):
                self._append(line)
        self._thread = threading.Thread(target=self._keep_writing, daemon=True, name="driver-log")
        self._thread.start()

    def add(self, text: str) -> None:
        """Add a line, or several."""
        with self._lock:
            for line in text.split("\n"):
                self._append(line.encode(errors="backslashreplace")[-self._most // 2 :] + b"\n")
            self._changed = True

    def close(self) -> None:
        """Stop the thread, and write the rest."""
        self._stop.set()
        self._thread.join()
        self.flush()

    def _append(self, line: bytes) -> None:
        if line == self.LEFT_OUT:
            self._is_cut = True
            return
        self._lines.append(line)
        self._bytes += len(line)
        while self._bytes > self._most - len(self.LEFT_OUT):
            self._bytes -= len(self._lines.popleft())
            self._is_cut = True

    def _keep_writing(self) -> None:
        while not self._stop.wait(self._interval):
            self.flush()

    def flush(self) -> None:
        """Write what is new."""
        with self._writing:
            with self._lock:
                if not self._changed:
                    return
                content = (self.LEFT_OUT if self._is_cut else b"") + b"".join(self._lines)
                self._changed = False
            with suppress(UserError):  # a lost lease among them: the log belongs to the next driver then
                self._file.write_bytes(content)


def heading(command: str, owner: dict[str, object]) -> str:
    """The first line of an attempt."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    job = f", job {owner['job']}" if owner.get("job") else ""
    return f"--- {now} {command} on {owner['host']}, process {owner['pid']}{job}"
