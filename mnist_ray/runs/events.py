"""`logs/events.jsonl` in a run's folder: what happened and when, an object a line, over all attempts.

start     an attempt begins: version, host, pid, job
phase     it comes to a phase: phase
epoch     an epoch is trained, and its checkpoint is in storage: what the epoch's entry in metrics.json has
restart   a worker was lost, and training goes on: restarts, epochs
end       the attempt ends: exit_code, and message unless it is 0
"""

from __future__ import annotations

import json
import time
from typing import Any

from mnist_ray.runs.log import DriverLog
from mnist_ray.storage.location import Location


class Events(DriverLog):
    """The events of one attempt, after those of the attempts before."""

    LEFT_OUT = b'{"event": "earlier events are left out"}\n'

    def __init__(self, folder: Location) -> None:
        """folder: of the run."""
        super().__init__(folder / "logs" / "events.jsonl")

    def happened(self, event: str, **fields: Any) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.add(json.dumps({"time": now, "event": event, **fields}))
