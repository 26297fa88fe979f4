"""Rings of threads in this process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mnist_ray.collective.forming import Listener, connect
from mnist_ray.collective.ring import Ring

SECRET = b"a secret of at least 16 bytes"

HOST = "127.0.0.1"


def together(works: list[Callable[[], Any]]) -> list[Any]:
    """Run each in a thread of its own; their results, or what they raised."""

    def caught(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(caught, works))


def form(size: int, timeout: float = 5.0) -> list[Ring]:
    """A ring of threads."""
    listeners = [Listener(HOST) for _ in range(size)]
    addresses = [listener.address for listener in listeners]

    def join(rank: int) -> Callable[[], Ring]:
        return lambda: connect(listeners[rank], rank=rank, addresses=addresses, secret=SECRET, timeout=timeout)

    rings = together([join(rank) for rank in range(size)])
    assert all(isinstance(ring, Ring) for ring in rings), rings
    return rings


def on_all(rings: list[Ring], work: Callable[[Ring], Any]) -> list[Any]:
    return together([lambda ring=ring: work(ring) for ring in rings])  # type: ignore[misc]


def close(rings: list[Ring]) -> None:
    for ring in rings:
        ring.close()
