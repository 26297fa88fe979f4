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

from mnist_ray.errors import RetryableError, UserError
from mnist_ray.storage import Location

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


class Narrator:
    """Tells the story: bars on a terminal, one plain line every few seconds elsewhere."""

    def __init__(self, stream: IO[str] | None = None, *, every: float = 5.0) -> None:
        self._stream = stream or sys.stdout
        self._every = every

    def say(self, text: str = "") -> None:
        """Raises RetryableError where nobody reads any more (a closed pipe, a full disk)."""
        try:
            print(text, file=self._stream, flush=True)
        except OSError as error:
            if self._stream is sys.stdout:  # Python would try to write it once more, at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise RetryableError(
                f"cannot write the output: {error.strerror}; the same command goes on from what is committed"
            ) from error

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
