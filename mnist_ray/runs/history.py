"""`logs/progress.jsonl` beside `progress.json`: what that has said over time, an object a line, of all attempts.

It is bounded: once there are too many lines, the one goes whose neighbours are closest, so that those which stay are
spread evenly over the time. It is written whole, as object storage cannot append: every 30 seconds there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mnist_ray.errors import UserError
from mnist_ray.runs.log import LOCAL_SECONDS, REMOTE_SECONDS
from mnist_ray.storage.location import Location
from mnist_ray.storage.records import Count, Line, Real, parse_lines

MOST_LINES = 1_000
"""About 150 kB."""

_KEPT = ("phase", "done", "total", "epoch", "loss", "accuracy", "quarantined")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A line of the history."""

    time: Real
    """In seconds since 1970, UTC."""
    phase: Line
    images: Count = 0
    """Of this phase, by the process that wrote the line; in sharding, shards."""
    done: Count | None = None
    total: Count | None = None
    epoch: Count | None = None
    quarantined: Count | None = None


def history_of(folder: Location) -> Location:
    """The file in the folder of a run or an output."""
    return folder / "logs" / "progress.jsonl"


class History:
    """The history of one folder, as the process has it that writes its progress record. Nothing depends on it: what
    fails is left out."""

    def __init__(self, file: Location, *, most: int = MOST_LINES) -> None:
        """most: lines that are kept. What an earlier process has written stays."""
        self._file, self._most = file, most
        self._interval = LOCAL_SECONDS if file.is_local else REMOTE_SECONDS
        self._written = time.monotonic()
        self._moments: list[dict[str, Any]] = []
        with suppress(UserError, FileNotFoundError):
            self._moments = parse_lines(file.read_bytes(), Moment)

    def add(self, fields: Mapping[str, Any], images: int, now: float) -> None:
        """Take in a progress record, which may be empty. images: see `Moment`."""
        if fields:
            known = {name: fields[name] for name in _KEPT if fields.get(name) is not None}
            self._moments.append({"time": round(now, 1), **known, "images": images})
        while len(self._moments) > self._most:
            del self._moments[self._least_missed()]

    def write_if_due(self) -> None:
        """Write the file, if it is time."""
        if time.monotonic() - self._written >= self._interval:
            self.write()

    def _least_missed(self) -> int:
        """The moment whose neighbours are closest, within a phase; the first, where there is none."""
        moments = self._moments
        inner = [
            (after["time"] - before["time"], number)
            for number, (before, at, after) in enumerate(zip(moments, moments[1:], moments[2:], strict=False), 1)
            if before["phase"] == at["phase"] == after["phase"]
        ]
        return min(inner, default=(0, 0))[1]

    def write(self) -> None:
        """Write the file now, if there is anything to write."""
        self._written = time.monotonic()
        if moments := tuple(self._moments):  # another thread may add one meanwhile
            with suppress(UserError):
                self._file.write_bytes("".join(f"{json.dumps(each)}\n" for each in moments).encode())
