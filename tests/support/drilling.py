"""What drills start: commands of a user of their own, and clusters."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.cluster import Cluster
from tests.support.command import environment
from tests.support.process import Process


class Drill:
    """A user of its own, and the processes that were started for it."""

    def __init__(self, folder: Path) -> None:
        self._home = folder
        self._processes, self._clusters = list[Process](), list[Cluster]()

    def start(self, *command: str, **env: str) -> Process:
        log = self._home / f"{len(self._processes)}-{Path(command[0]).name}"
        self._processes.append(Process(*command, env=environment(self._home, **env), log=log))
        return self._processes[-1]

    def cluster(self) -> Cluster:
        self._clusters.append(Cluster(self._home))
        return self._clusters[-1]

    def progress(self) -> dict[str, Any]:
        """For the message when something does not come."""
        return {}

    def until(self, driver: Process, what: str, holds: Callable[[], Any], seconds: float = 180) -> float:
        """When something holds; the driver must live until then."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert driver.ended() is None, f"ended with {driver.ended()} before {what}: {driver.said()}"
            assert time.monotonic() < deadline, f"{what}: not in {seconds} s; {self.progress()} {driver.said()}"
            time.sleep(0.02)
        return time.monotonic()

    def remove(self) -> None:
        for each in [*reversed(self._processes), *self._clusters]:
            each.remove()
