"""Attempts at an output, or at shards: each driver's own, and only while it lasts may that driver's actors write.

A node that is cut off from its cluster goes on computing, and its actors write when they reach the storage again: after
another actor has done their units, after the next driver has taken over, or after the output is complete. So each
attempt has a file of its own in the folder, `.attempt-TOKEN`, which the driver removes before it writes the manifest,
and which the next driver removes before it looks at what is committed. An actor begins no write, nor does it give
a local file its name, unless the file of its attempt is there. The driver itself is kept from writing by its lock or
its lease (runs/driver.py). What is said of actors holds for tasks that write shards.

The names are never used again: a network filesystem that remembers which names do not exist is not asked about an old
one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from mnist_ray.errors import LeaseLostError, UserError
from mnist_ray.storage import fence
from mnist_ray.storage.location import Location

_PREFIX = ".attempt-"


@dataclass(frozen=True)
class Attempt:
    """An attempt at what a folder is to hold, as the driver and its actors or tasks know it."""

    file: Location

    @property
    def folder(self) -> Location:
        return self.file.parent

    @classmethod
    @contextmanager
    def begun(cls, folder: Location) -> Iterator[Attempt]:
        """An attempt that lasts as long as the context. Call `end_older` before."""
        attempt = cls(folder / f"{_PREFIX}{secrets.token_hex(16)}")
        attempt.file.write_bytes(b"")
        try:
            yield attempt
        except BaseException:
            with suppress(UserError):  # the next attempt removes it
                attempt.file.delete()
            raise
        attempt.file.delete()

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """Let this process write while the attempt lasts, and no longer."""
        with fence.checked_by(self.check):
            yield

    def check(self) -> None:
        """Raises LeaseLostError where the attempt is over, another UserError where that cannot be found out."""
        try:
            self.file.read_bytes()
        except FileNotFoundError:
            raise LeaseLostError(
                f"another mnist-ray has begun to write {self.folder}; this one has stopped writing", see="runs.md"
            ) from None


def end_older(folder: Location) -> None:
    """End the attempts that other drivers have begun and not ended."""
    for file in folder.list():
        if file.name.startswith(_PREFIX):
            file.delete()
