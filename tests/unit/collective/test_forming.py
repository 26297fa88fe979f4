"""Forming a ring: among strangers, with ranks that never come, disagree or have another secret."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any

import numpy as np
import pytest

from mnist_ray.collective import forming
from mnist_ray.collective import ring as ring_module
from mnist_ray.collective.forming import Listener, connect
from mnist_ray.collective.ring import Ring, RingError
from tests.support.rings import HOST, SECRET, close, together

# --- forming ---------------------------------------------------------------------------------------------------------


def test_a_ring_of_one_needs_no_socket() -> None:
    with connect(None, rank=0, addresses=[(HOST, 0)], secret=SECRET) as ring:
        assert ring.all_reduce(np.array([1.5])).tolist() == [1.5]
        ring.barrier()


def test_it_listens_on_one_address_and_only_until_it_stands() -> None:
    listeners = [Listener(HOST) for _ in range(2)]
    addresses = [listener.address for listener in listeners]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", addresses[0][1]))

    def join(rank: int) -> Ring:
        return connect(listeners[rank], rank=rank, addresses=addresses, secret=SECRET)

    rings = together([lambda: join(0), lambda: join(1)])
    for address in addresses:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    close(rings)


def test_it_forms_inside_a_running_event_loop() -> None:
    listeners = [Listener(HOST) for _ in range(2)]
    addresses = [listener.address for listener in listeners]

    async def join(rank: int) -> list[float]:
        with connect(listeners[rank], rank=rank, addresses=addresses, secret=SECRET) as ring:
            return list(ring.all_reduce(np.ones(1)))

    assert together([lambda: asyncio.run(join(0)), lambda: asyncio.run(join(1))]) == [[2.0], [2.0]]


@pytest.mark.parametrize(("size", "timeout"), [(2, 30), (3, 1.5)])
def test_a_wrong_secret_is_refused(size: int, timeout: float) -> None:
    """The neighbours of the rank with another secret know at once; whoever is further waits for them in vain."""
    listeners = [Listener(HOST) for _ in range(size)]
    addresses = [listener.address for listener in listeners]

    def join(rank: int) -> Any:
        secret = SECRET if rank else b"another secret, long enough"
        return connect(listeners[rank], rank=rank, addresses=addresses, secret=secret, timeout=timeout)

    start = time.monotonic()
    errors = together([lambda rank=rank: join(rank) for rank in range(size)])  # type: ignore[misc]
    assert time.monotonic() - start < 4
    assert all(isinstance(error, RingError) for error in errors), errors
    assert any("has another secret or other addresses" in str(error) for error in errors)


def test_a_rank_that_has_failed_is_not_waited_for() -> None:
    listeners = [Listener(HOST) for _ in range(2)]
    addresses = [listener.address for listener in listeners]
    listeners[1].close()
    start = time.monotonic()
    with pytest.raises(RingError, match=r"rank 1 at 127\.0\.0\.1:\d+ is gone: it refuses connections") as error:
        connect(listeners[0], rank=0, addresses=addresses, secret=SECRET, timeout=30)
    assert error.value.rank == 1
    assert time.monotonic() - start < 4


def test_ranks_that_disagree_on_the_ring_do_not_join() -> None:
    listeners = [Listener(HOST) for _ in range(2)]
    addresses = [listener.address for listener in listeners]
    other = [addresses[0], addresses[1], (HOST, 9)]
    works = [
        lambda: connect(listeners[0], rank=0, addresses=addresses, secret=SECRET, timeout=1),
        lambda: connect(listeners[1], rank=1, addresses=other, secret=SECRET, timeout=1),
    ]
    errors = together(works)
    assert all(isinstance(error, RingError) for error in errors)


def test_a_rank_that_never_comes_is_named() -> None:
    listeners = [Listener(HOST) for _ in range(3)]
    addresses = [listener.address for listener in listeners]

    def join(rank: int) -> Any:
        return connect(listeners[rank], rank=rank, addresses=addresses, secret=SECRET, timeout=1)

    start = time.monotonic()
    errors = together([lambda: join(0), lambda: join(2)])
    assert time.monotonic() - start < 2
    assert [error.rank for error in errors] == [1, 1]
    assert "rank 1 at 127.0.0.1:" in str(errors[0])
    assert "rank 1 has not connected" in str(errors[1])
    listeners[1].close()


def test_strangers_are_dropped_without_harm() -> None:
    """Silent ones (more than are greeted at once), garbage, half-open ones, a port scan, a false rank."""
    listeners = [Listener(HOST) for _ in range(2)]
    addresses = [listener.address for listener in listeners]
    strangers = []

    def call(address: tuple[str, int]) -> socket.socket:
        stranger = socket.create_connection(address, timeout=5)
        strangers.append(stranger)
        return stranger

    for address in addresses:
        for _ in range(5):
            call(address).close()
        for _ in range(70):
            call(address)
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(1 << 16), ring_module.MAGIC):
            call(address).sendall(garbage)
        call(address).shutdown(socket.SHUT_WR)
        scan = call(address)
        scan.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing resets the connection
        scan.close()
        call(address).sendall(forming._HELLO.pack(ring_module.MAGIC, 1, 0, bytes(32), bytes(32)))

    def join(rank: int) -> Any:
        with connect(listeners[rank], rank=rank, addresses=addresses, secret=SECRET, timeout=20) as ring:
            return ring.all_reduce(np.array([rank + 1])).tolist()

    start = time.monotonic()
    assert together([lambda: join(0), lambda: join(1)]) == [[3], [3]]
    assert time.monotonic() - start < 6  # 2 s for those who are silent, twice as many as are greeted at once
    for stranger in strangers:
        stranger.close()


def test_a_stranger_sees_a_nonce_and_nothing_else() -> None:
    listeners = [Listener(HOST) for _ in range(2)]
    addresses = [listener.address for listener in listeners]
    seen = {}

    def stranger() -> None:
        with socket.create_connection(addresses[0], timeout=5) as link:
            hello = forming._HELLO.pack(ring_module.MAGIC, 1, 0, bytes(32), os.urandom(32))
            link.sendall(hello)
            seen["acceptor"] = b"".join(iter(lambda: link.recv(1 << 16), b""))

    def impostor() -> None:
        link, _ = listeners[1].socket.accept()
        with link:
            link.settimeout(5)
            link.sendall(ring_module.MAGIC + bytes(32))
            time.sleep(0.1)
            link.sendall(os.urandom(32))
            seen["dialer"] = b"".join(iter(lambda: link.recv(1 << 16), b""))

    def join() -> Ring:
        return connect(listeners[0], rank=0, addresses=addresses, secret=SECRET, timeout=2)

    listeners[1].socket.setblocking(True)
    _, _, error = together([stranger, impostor, join])
    assert isinstance(error, RingError)
    assert error.rank == 1
    assert len(seen["acceptor"]) == len(ring_module.MAGIC) + 32 + 32
    assert seen["acceptor"].endswith(bytes(32))
    assert len(seen["dialer"]) == forming._HELLO.size
    listeners[1].close()
