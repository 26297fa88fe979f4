"""One driver per folder: a file lock where the filesystem has locks, elsewhere a heartbeat that other drivers watch."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnist_ray.errors import RetryableError
from mnist_ray.runs.progress import HEARTBEAT_SECONDS, STALE_SECONDS, owner
from mnist_ray.storage.location import Location, io_errors

FOREIGN_DRIVER_SECONDS = 30.0
"""How long the heartbeat of another driver is watched before its folder is refused."""


@contextmanager
def sole_driver(
    folder: Location, remedy: str, *, see: str = "runs.md", is_finished: Callable[[], bool] = lambda: False
) -> Iterator[bool]:
    """Hold the folder for this driver alone. Yields whether only the heartbeat in its progress.json protects it.

    Raises RetryableError while another driver holds it. `remedy` completes the message: what else the user can do.
    """
    if not folder.is_local:
        _wait_for_foreign_heartbeat(folder, remedy, see, is_finished)
        yield True
        return
    import fcntl

    folder.make_dir()
    with io_errors(folder, "write"), (Path(folder.path) / ".lock").open("w") as file:
        by_heartbeat = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RetryableError(
                f"another mnist-ray is working on {folder}; wait for it or {remedy}", see=see
            ) from error
        except OSError:  # a network filesystem without locks
            by_heartbeat = True
            _wait_for_foreign_heartbeat(folder, remedy, see, is_finished)
        yield by_heartbeat


def _wait_for_foreign_heartbeat(folder: Location, remedy: str, see: str, is_finished: Callable[[], bool]) -> None:
    """Return once no other driver is alive. Object storage has no locks, but a living driver renews its heartbeat."""
    deadline = time.monotonic() + FOREIGN_DRIVER_SECONDS
    while not is_finished():
        try:
            record = (folder / "progress.json").read_json()
        except FileNotFoundError:
            return
        other, age = record.get("owner", {}), time.time() - record.get("heartbeat", 0)
        if record.get("phase") == "done" or age > STALE_SECONDS or is_dead(other):
            return
        if time.monotonic() > deadline:
            raise RetryableError(
                f"another mnist-ray (process {other.get('pid')} on {other.get('host')}) is working on {folder};"
                f" wait for it or {remedy}",
                see=see,
            )
        time.sleep(HEARTBEAT_SECONDS)


def is_dead(other: dict[str, Any]) -> bool:
    """Whether the owner was a process on this host that no longer exists."""
    if other.get("host") != platform.node():
        return False
    return other == owner() or not Path(f"/proc/{other.get('pid')}").exists()
