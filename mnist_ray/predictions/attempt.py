"""Attempts at an output: each driver's own, and only while it lasts may the actors of that driver write.

A node that is cut off from its cluster goes on computing, and its actors write when they reach the storage again: after
another actor has done their units, after the next driver has taken over, or after the output is complete. So each
attempt has a file of its own in the output, `.attempt-TOKEN`, which the driver removes before it writes the manifest,
and which the next driver removes before it looks at what is committed. An actor begins no write, nor does it give
a local file its name, unless the file of its attempt is there. The driver itself is kept from writing by its lock or
its lease (runs/driver.py).

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
    """An attempt at an output, as the driver and its actors know it."""

    file: Location

    @classmethod
    @contextmanager
    def begun(cls, output: Location) -> Iterator[Attempt]:
        """An attempt that lasts as long as the context. Call `end_older` before."""
        attempt = cls(output / f"{_PREFIX}{secrets.token_hex(16)}")
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
                f"another mnist-ray has begun to write {self.file.parent}; this one has stopped writing", see="runs.md"
            ) from None


def end_older(output: Location) -> None:
    """End the attempts that other drivers have begun and not ended."""
    for file in output.list():
        if file.name.startswith(_PREFIX):
            file.delete()
