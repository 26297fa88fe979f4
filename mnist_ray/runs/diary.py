"""What an attempt at a run or an output leaves for a post-mortem, in the folder's `logs/`: what its driver printed, and
what happened."""

from __future__ import annotations

import platform
from typing import Any

from mnist_ray import __version__
from mnist_ray.errors import outcome
from mnist_ray.runs.events import Events
from mnist_ray.runs.folder import versions
from mnist_ray.runs.log import DriverLog, driver_log, heading
from mnist_ray.runs.progress import owner
from mnist_ray.storage.location import Location


class Diary:
    """The driver's log and the events of one attempt, after those of the attempts before."""

    def __init__(self, folder: Location) -> None:
        self._log, self._events = DriverLog(driver_log(folder)), Events(folder)

    def begin(self) -> None:
        """Note the start, and what it starts with."""
        self.line(heading(f"mnist-ray {__version__}", owner()))
        packages = {package.replace("-", "_"): version for package, version in versions().items()}
        where = {"python": platform.python_version(), "platform": platform.platform()}
        self.event("start", version=__version__, **owner(), **where, **packages)

    def line(self, text: str) -> None:
        """What was printed."""
        self._log.add(text)

    def event(self, event: str, **fields: Any) -> None:
        """What happened: one of those that `runs/events.py` lists."""
        self._events.happened(event, **fields)

    def save(self) -> None:
        """Have all of it in storage now."""
        self._log.flush()
        self._events.flush()

    def end(self, error: BaseException | None = None) -> None:
        """Note the end, and why, and close the files."""
        if error is None:
            self.event("end", exit_code=0)
        else:
            code, message = outcome(error)
            self.line(f"mnist-ray: {message}")
            self.event("end", exit_code=code, message=message)
        self._log.close()
        self._events.close()
