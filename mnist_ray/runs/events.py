"""`logs/events.jsonl` in the folder of a run or an output: what happened and when, an object a line, over all attempts.

start       an attempt begins: version, host, pid, job; python, platform, and the version of each package
ray         Ray is connected: address, cpus, nodes, seconds (since the command began)
phase       the attempt comes to a phase: phase
workers     train workers are connected, at the start and after each restart: workers
epoch       an epoch is trained, and its checkpoint is in storage: what the epoch's entry in metrics.json has
checkpoint  a checkpoint within an epoch is on its way to storage: epochs (finished ones), step (of the next)
lost        a train worker was lost, or has raised something: message
restart     a worker was lost or joined, and training goes on: restarts, epochs (finished ones)
actors      scoring actors were started, or one was lost for good: actors
end         the attempt ends: exit_code, and message unless it is 0
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mnist_ray.runs.log import DriverLog
from mnist_ray.storage.location import Location
from mnist_ray.storage.records import Count, Line, Real, Seconds


@dataclass(frozen=True, kw_only=True)
class EventRecord:
    """A line of the file."""

    time: Line
    event: Line
    host: Line | None = None
    version: Line | None = None
    address: Line | None = None
    cpus: Real | None = None
    nodes: Count | None = None
    seconds: Seconds | None = None
    phase: Line | None = None
    workers: Count | None = None
    actors: Count | None = None
    epoch: Count | None = None
    loss: Real | None = None
    accuracy: Real | None = None
    epochs: Count | None = None
    step: Count | None = None
    restarts: Count | None = None
    exit_code: Count | None = None
    message: str | None = None


def events_of(folder: Location) -> Location:
    """The file in the folder of a run or an output."""
    return folder / "logs" / "events.jsonl"


class Events(DriverLog):
    """The events of one attempt, after those of the attempts before."""

    LEFT_OUT = b'{"event": "earlier events are left out"}\n'

    def __init__(self, folder: Location) -> None:
        """folder: of the run."""
        super().__init__(events_of(folder))

    def happened(self, event: str, **fields: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self.add(json.dumps({"time": now, "event": event, **fields}))
