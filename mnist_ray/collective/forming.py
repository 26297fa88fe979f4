"""Forming a ring: listen, dial the next rank, let the previous one in, and prove to each other who you are."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
import socket
import struct
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from .ring import MAGIC, Address, Neighbour, Ring, RingError

T = TypeVar("T")
_BUFFER = 1 << 19  # bytes asked of the kernel for each socket; with 4 MB, 100 MB took 1.5 times as long
_GREETING_SECONDS = 2.0  # that a stranger may take to prove itself
_DIAL_SECONDS = 5.0  # that one try to reach a neighbour may take
_PAUSE_SECONDS = 0.05  # between two tries
_REFUSALS = 40  # tries in a row; a rank listens until we have reached it, so one that refuses has failed
_GUESTS = 64  # strangers greeted at once
_DATA, _NOTES = 0, 1  # the two connections between neighbours
_HELLO = struct.Struct("<8sIB32s32s")  # magic, rank, connection, nonce, proof


class Listener:
    """Where the previous rank will connect: an ephemeral port on `host`, and on no other address of this machine."""

    def __init__(self, host: str) -> None:
        if host in ("", "0.0.0.0", "::"):  # noqa: S104 - this is what we refuse
            raise ValueError(f"a ring listens on one address of this machine, not on {host!r}")
        self.socket = _new_socket(host)
        self.socket.bind((host, 0))
        self.socket.listen(128)
        self.address: Address = self.socket.getsockname()[:2]

    def close(self) -> None:
        self.socket.close()


def connect(
    listener: Listener | None,
    *,
    rank: int,
    addresses: Sequence[Address],
    secret: bytes,
    timeout: float = 60.0,
    spin: bool | None = None,
) -> Ring:
    """Form the ring; returns when all ranks are in it. The listener is closed then, and when forming has failed.

    `addresses`: every rank's `Listener.address`, in the order of the ranks. `secret`: the same on all ranks, at least
    16 bytes, a new one for each ring. `timeout`: seconds for forming, and for waits later. `spin`: try a few hundred
    times before sleeping; unset: unless this host has more than two ranks a core. A ring of one needs no listener.
    Raises RingError with the ranks that are missing.
    """
    size = len(addresses)
    if not 0 <= rank < size:
        raise ValueError(f"rank must be 0 to {size - 1}, not {rank}")
    if len(secret) < 16:
        raise ValueError(f"the secret needs at least 16 bytes, not {len(secret)}")
    if listener is None or size == 1:
        if size > 1:
            raise ValueError(f"a ring of {size} needs a listener")
        if listener:
            listener.close()
        return Ring(rank, size, [], timeout=timeout, spin=False)
    addresses = [(str(host), int(port)) for host, port in addresses]
    if spin is None:
        spin = sum(host == addresses[rank][0] for host, _ in addresses) <= 2 * _num_cores()  # measured: 4 on 2, not 8
    start = time.monotonic()
    try:
        neighbours = _run(_Forming(listener.socket, rank, addresses, secret).neighbours(timeout))
    finally:
        listener.close()
    ring = Ring(rank, size, neighbours, timeout=timeout, spin=spin)
    ring.timeout = max(timeout - (time.monotonic() - start), 1.0)
    ring.barrier()  # beyond our neighbours, too, all is well
    ring.timeout = timeout
    return ring


class _Forming:
    """Dial the next rank and let the previous one in, twice each (data, notes), among any number of strangers.

    The acceptor sends a nonce; the dialer its claim (rank, connection), a nonce of its own, and an HMAC over both
    ranks, the ring's addresses and all that; the acceptor its own HMAC. Only one who has proved itself sees it.
    """

    def __init__(self, listener: socket.socket, rank: int, addresses: Sequence[Address], secret: bytes) -> None:
        self.listener, self.rank, self.addresses, self.secret = listener, rank, addresses, secret
        self.ring = hashlib.sha256(repr(list(addresses)).encode()).digest()
        self.before, self.after = (rank - 1) % len(addresses), (rank + 1) % len(addresses)
        self.accepted: dict[int, socket.socket] = {}
        self.dialed: dict[int, socket.socket] = {}
        self.trouble, self.num_refused = "no answer", 0

    async def neighbours(self, timeout: float) -> list[Neighbour]:
        """[before, after]. Raises RingError; nothing stays open then."""
        self.complete = asyncio.Event()
        tasks = [asyncio.create_task(work) for work in (self._dial(_DATA), self._dial(_NOTES), self._keep_door())]
        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(*tasks[:2], self.complete.wait())
        except BaseException as error:
            for link in (*self.accepted.values(), *self.dialed.values()):
                link.close()
            if isinstance(error, TimeoutError):
                raise self._incomplete(timeout) from None
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [
            Neighbour(rank, links[_DATA], links[_NOTES])
            for rank, links in ((self.before, self.accepted), (self.after, self.dialed))
        ]

    def _incomplete(self, timeout: float) -> RingError:
        """What to say when the time is up."""
        said, rank = [], self.before
        if len(self.accepted) < 2:
            said.append(f"rank {self.before} has not connected")
        if len(self.dialed) < 2:
            host, port = self.addresses[self.after]
            said.append(f"rank {self.after} at {host}:{port} cannot be reached ({self.trouble})")
            rank = self.after
        if self.num_refused:
            said.append(f"{self.num_refused} connections without the secret were refused")
        return RingError(f"no ring after {timeout:g} s: {', '.join(said)}", rank)

    async def _keep_door(self) -> None:
        """Greet whoever connects, many at once, until cancelled."""
        seats = asyncio.Semaphore(_GUESTS)
        async with asyncio.TaskGroup() as guests:
            while True:
                await seats.acquire()
                try:
                    guest, _ = await asyncio.get_running_loop().sock_accept(self.listener)
                except OSError:  # it has hung up already, or this process has too many files open
                    seats.release()
                    await asyncio.sleep(_PAUSE_SECONDS)
                else:
                    guests.create_task(self._greet(guest)).add_done_callback(lambda _: seats.release())

    async def _greet(self, guest: socket.socket) -> None:
        """Keep the previous rank's connection; close any other's."""
        loop, nonce, channel = asyncio.get_running_loop(), secrets.token_bytes(32), None
        try:
            async with asyncio.timeout(_GREETING_SECONDS):
                await loop.sock_sendall(guest, MAGIC + nonce)
                magic, rank, claimed, theirs, proof = _HELLO.unpack(await _read(guest, _HELLO.size))
                claim = struct.pack("<IIB", rank, self.rank, claimed) + nonce + theirs
                genuine = hmac.compare_digest(proof, self._proof(b"dial", claim))
                if genuine and magic == MAGIC and rank == self.before and claimed in (_DATA, _NOTES):
                    await loop.sock_sendall(guest, self._proof(b"door", claim))
                    channel = claimed
                else:
                    await loop.sock_sendall(guest, bytes(32))  # so that a rank with another secret need not wait
        except OSError:  # TimeoutError is one
            pass
        finally:
            if channel is None:
                self.num_refused += 1
                guest.close()
        if channel is not None:
            if channel in self.accepted:  # it has dialed anew: the old connection is dead
                self.accepted[channel].close()
            self.accepted[channel] = guest
            if len(self.accepted) == 2:
                self.complete.set()

    async def _dial(self, channel: int) -> None:
        """Connect to the next rank, again and again: it may be late, or have lost its patience with us."""
        loop, address = asyncio.get_running_loop(), self.addresses[self.after]
        name, refusals = f"rank {self.after} at {address[0]}:{address[1]}", 0
        while channel not in self.dialed:
            link = _new_socket(address[0])
            try:
                async with asyncio.timeout(_DIAL_SECONDS):
                    await loop.sock_connect(link, address)
                    greeting, nonce = await _read(link, len(MAGIC) + 32), secrets.token_bytes(32)
                    claim = struct.pack("<IIB", self.rank, self.after, channel) + greeting[len(MAGIC) :] + nonce
                    proof = self._proof(b"dial", claim)
                    await loop.sock_sendall(link, _HELLO.pack(MAGIC, self.rank, channel, nonce, proof))
                    answer = await _read(link, 32)
                if not hmac.compare_digest(answer, self._proof(b"door", claim)):
                    raise RingError(f"{name} has another secret or other addresses", self.after)
                self.dialed[channel] = link
            except OSError as error:  # TimeoutError is one
                self.trouble = os.strerror(error.errno) if error.errno else str(error) or "no answer"
                refusals = refusals + 1 if isinstance(error, ConnectionRefusedError) else 0
                if refusals > _REFUSALS:
                    raise RingError(f"{name} is gone: it refuses connections", self.after) from None
                await asyncio.sleep(_PAUSE_SECONDS)
            finally:
                if channel not in self.dialed:
                    link.close()

    def _proof(self, side: bytes, claim: bytes) -> bytes:
        return hmac.digest(self.secret, side + self.ring + claim, "sha256")


async def _read(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await asyncio.get_running_loop().sock_recv(link, count - len(data))
        if not more:
            raise ConnectionResetError("it hung up")
        data += more
    return data


def _run(work: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, also where this thread runs a loop already (notebooks, async actors)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _new_socket(host: str) -> socket.socket:
    """A non-blocking TCP socket of the host's family, without Nagle's delay. Accepted ones inherit what is set here."""
    link = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    link.setblocking(False)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # before connecting, which settles the window's scale
        link.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
    return link


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
