"""Files on a local disk or a network filesystem: written whole, in one step, so that they survive a power cut."""

from __future__ import annotations

import functools
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mnist_ray.errors import RetryableError
from mnist_ray.storage import fence

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


class ChangedMeanwhileError(Exception):
    """Another process has replaced what was to be replaced."""


def is_temporary(name: str) -> bool:
    """Whether a killed writer may have left a file of this name."""
    return _TEMPORARY.fullmatch(name) is not None


def write(path: Path, data: bytes | memoryview, put: Callable[[Path, Path], Any] = Path.replace) -> None:
    """Write a temporary file and give it its name by `put`. The folder must be there. Raises OSError."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with temporary.open("wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())  # or a power cut could leave the name without the data
        fence.check()  # again: the write may have taken long
        put(temporary, path)
        _sync(path.parent)
    except FileNotFoundError as error:  # not of the path that was asked for, whose folder has just been made
        raise RetryableError(
            f"cannot write {path}: another process removed its folder or its temporary file"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_over(path: Path, data: bytes | memoryview, old: bytes | None) -> None:
    """The same, if the file still is `old`; None: if there is no such file.

    Raises ChangedMeanwhileError. Of several writers one succeeds, where the filesystem has hard links and locks.
    """
    write(path, data, _put_new if old is None else functools.partial(_put_over, old))


def _put_new(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise ChangedMeanwhileError from None
    except OSError:  # a filesystem without hard links
        if path.exists():
            raise ChangedMeanwhileError from None
        temporary.replace(path)
    temporary.unlink(missing_ok=True)


def _put_over(old: bytes, temporary: Path, path: Path) -> None:
    with _locked(path) as opened:
        if opened is None or opened.read() != old:
            raise ChangedMeanwhileError
        fence.check()  # again: the lock may have been waited for
        temporary.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes] | None]:
    """Hold a file's lock, if the filesystem has locks. Yields the open file; None where there is none."""
    import fcntl

    while True:
        try:
            opened = path.open("r+b")  # NFS locks only what may be written
        except FileNotFoundError:
            yield None
            return
        with opened:
            with suppress(OSError):
                fcntl.flock(opened, fcntl.LOCK_EX)
            try:
                is_the_same = os.path.samestat(os.fstat(opened.fileno()), path.stat())
            except FileNotFoundError:
                is_the_same = False
            if is_the_same:  # else it was replaced while this process waited
                yield opened
                return


def _sync(folder: Path) -> None:
    """Make a rename in the folder durable. Some network filesystems cannot, and do not need to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
