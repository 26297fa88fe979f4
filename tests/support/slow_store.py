"""A store that is slow for a moment."""

from __future__ import annotations

import threading

import pytest

from mnist_ray.storage.location import Location


def slow_first_write(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """(set once the first write of a file has begun, to be set for it to go on): a store that is slow for a moment."""
    began, may_go_on, write_bytes = threading.Event(), threading.Event(), Location.write_bytes

    def write(file: Location, data: bytes) -> None:
        if not began.is_set():
            began.set()
            may_go_on.wait(5)
        write_bytes(file, data)

    monkeypatch.setattr(Location, "write_bytes", write)
    return began, may_go_on
