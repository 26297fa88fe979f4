"""One driver per folder: a file lock where the filesystem has locks, elsewhere a lease that the driver renews."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mnist_ray.errors import RetryableError
from mnist_ray.storage import lease
from mnist_ray.storage.lease import Guard
from mnist_ray.storage.location import Location, io_errors

FOREIGN_DRIVER_SECONDS = 30.0
"""How long a living driver of the same folder is waited for before the folder is refused."""

_LOCK = ".lock"


@contextmanager
def hold(
    folder: Location, remedy: str, *, see: str = "runs.md", is_finished: Callable[[], bool] = lambda: False
) -> Iterator[Guard | None]:
    """Hold the folder for this driver alone. Yields what keeps its workers from writing once it holds it no more.

    That is None where the filesystem has locks: a driver has a lock as long as it lives. Raises RetryableError while
    another driver holds the folder, unless that one finishes meanwhile. `remedy` completes the message: what else the
    user can do.
    """
    if not folder.is_local:
        with _leased(folder, remedy, see, is_finished) as guard:
            yield guard
        return
    folder.make_dir()
    with io_errors(folder, "write"):  # and nothing else: an error of the job is not one of this folder
        opened = (Path(folder.path) / _LOCK).open("w")
    with opened as file:
        is_locked = _lock(file)
        if is_locked is False:
            raise RetryableError(f"another mnist-ray is working on {folder}; wait for it or {remedy}", see=see)
        if is_locked:
            yield None
        else:
            with _leased(folder, remedy, see, is_finished) as guard:
                yield guard


def _lock(file: IO[str]) -> bool | None:
    """Whether this process has the lock now; None on a network filesystem without locks."""
    import fcntl

    for pause in (0.2, 0.2, 0.0):  # `has_driver` in another process may hold the lock for a moment
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(pause)
        except OSError:
            return None
    return False


@contextmanager
def _leased(folder: Location, remedy: str, see: str, is_finished: Callable[[], bool]) -> Iterator[Guard | None]:
    try:
        held = lease.acquire(folder, wait_seconds=FOREIGN_DRIVER_SECONDS, give_up=is_finished)
    except lease.HeldError as error:
        held = None
        if not is_finished():
            raise RetryableError(
                f"another mnist-ray ({error.holder}) is working on {folder}; wait for it or {remedy}", see=see
            ) from None
    if held is None:
        yield None  # only to show the result
        return
    try:
        yield held.guard
    except BaseException as error:
        if held.lost is not None:
            raise held.lost from error  # whatever it led to
        raise
    finally:
        held.release()


def has_driver(folder: Location) -> bool | None:
    """Whether a driver is at work on the folder; None where that cannot be told without waiting."""
    if folder.is_local:
        return _is_locked(Path(folder.path) / _LOCK)
    age = lease.age(folder)
    return None if age is None else age < lease.TAKEOVER_SECONDS


def _is_locked(file: Path) -> bool | None:
    import fcntl

    try:
        with file.open() as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or no locks
        return None
    return False
