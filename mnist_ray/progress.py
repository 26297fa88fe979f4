"""Progress: the one truthful record in storage, and how a person sees it."""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from mnist_ray.errors import RetryableError
from mnist_ray.storage import Location

HEARTBEAT_SECONDS = 1.0
"""How often the record is replaced at the most, and at the least while its owner lives."""


class ProgressRecord:
    """`progress.json`, replaced atomically about every second by a thread, so that no step waits for storage.

    It carries its owner and a heartbeat: a second driver of the same run can tell a living one from a dead one.
    """

    def __init__(self, location: Location, owner: dict[str, Any], *, interval: float = HEARTBEAT_SECONDS) -> None:
        self._location, self._owner, self._interval = location, owner, interval
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
        self._stop.set()
        self._thread.join()
        self._write()

    def _keep_writing(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self._write()
            except RetryableError:
                continue  # the next heartbeat may pass; what matters is committed elsewhere

    def _write(self) -> None:
        with self._lock:
            fields = dict(self._fields)
        if fields:
            self._location.write_json({**fields, "owner": self._owner, "heartbeat": time.time()})


def owner() -> dict[str, Any]:
    """Who writes: enough to tell whether that process still lives."""
    return {"host": platform.node(), "pid": os.getpid()}


class Narrator:
    """Tells the story: bars on a terminal, one plain line every few seconds elsewhere."""

    def __init__(self, stream: IO[str] | None = None, *, every: float = 5.0) -> None:
        self._stream = stream or sys.stdout
        self._every = every

    def say(self, text: str = "") -> None:
        print(text, file=self._stream, flush=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Bar]:
        """A bar that ends as one line, whatever the stream."""
        bar = (TerminalBar if self._stream.isatty() else PlainBar)(self, label, total)
        try:
            yield bar
        finally:
            bar.stop()


class Bar:
    """What `Narrator.bar` gives: `update` as often as there is news, `finish` once with the line that stays."""

    def __init__(self, narrator: Narrator, label: str, total: int) -> None:
        self.narrator, self.label, self.total = narrator, label, total

    def update(self, done: int, text: str = "") -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """Take the moving part away."""

    def finish(self, text: str) -> None:
        self.stop()
        self.narrator.say(f"{self.label}  {text}")


class PlainBar(Bar):
    def __init__(self, narrator: Narrator, label: str, total: int) -> None:
        super().__init__(narrator, label, total)
        self._last = time.monotonic()

    def update(self, done: int, text: str = "") -> None:
        now = time.monotonic()
        if now - self._last >= self.narrator._every:
            self._last = now
            self.narrator.say(f"{self.label}  {done:,}/{self.total:,}  {text}".rstrip())


class TerminalBar(Bar):
    def __init__(self, narrator: Narrator, label: str, total: int) -> None:
        super().__init__(narrator, label, total)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(file=narrator._stream),
            transient=True,
        )
        self._task = self._progress.add_task(label, total=total, text="")
        self._progress.start()

    def update(self, done: int, text: str = "") -> None:
        self._progress.update(self._task, completed=done, text=text)

    def stop(self) -> None:
        self._progress.stop()
