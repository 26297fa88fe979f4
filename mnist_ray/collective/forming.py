"""Forming a ring: listen, connect to the next rank, accept the previous one, and verify both with the shared secret."""

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
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from .neighbour import MAGIC, Address, Neighbour, RingError
from .ring import Ring

T = TypeVar("T")
_BUFFER_BYTES = 1 << 19  # of each socket, in the kernel; with 4 MB, 100 MB took 1.5 times as long
_HANDSHAKE_SECONDS = 2.0  # that a process which has connected may take to prove itself
_DIAL_SECONDS = 5.0  # that one try to reach a neighbour may take
_PAUSE_SECONDS = 0.05  # between two tries
_MAX_REFUSALS = 40  # tries in a row; a rank listens until we have reached it, so one that refuses has failed
_MAX_HANDSHAKES = 64  # at once
_DATA, _NOTES = 0, 1  # the two connections (channels) between neighbours
_NONCE_BYTES = _PROOF_BYTES = 32
_HELLO = struct.Struct("<8sIB32s32s")  # magic, rank, channel, nonce, proof


class Listener:
    """Where the previous rank will connect: an ephemeral port on `host`, and on no other address of this machine.

    Raises ValueError where `host` means every address.
    """

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

    addresses: every rank's `Listener.address`, in rank order. secret: the same on all ranks, at least 16 bytes, a new
    one for each ring. timeout: seconds, for forming and for later waits. spin: whether to try a few hundred times
    before sleeping; None means yes, unless this host has more than two ranks a core. A ring of one needs no listener.
    Raises RingError with the ranks that are missing, and ValueError for wrong arguments.
    """
    size = len(addresses)
    _check_arguments(listener, rank, size, secret)
    if listener is None or size == 1:
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
    ring.barrier()  # the ranks beyond our neighbours are connected, too
    ring.timeout = timeout
    return ring


def _check_arguments(listener: Listener | None, rank: int, size: int, secret: bytes) -> None:
    if not 0 <= rank < size:
        raise ValueError(f"rank must be 0 to {size - 1}, not {rank}")
    if len(secret) < 16:
        raise ValueError(f"the secret needs at least 16 bytes, not {len(secret)}")
    if listener is None and size > 1:
        raise ValueError(f"a ring of {size} needs a listener")


class _Forming:
    """Connect to the next rank and accept the previous one, twice each (data, notes). Other processes may connect, too:
    they are refused.

    The handshake: the acceptor sends a nonce; the dialer sends what it claims to be (its rank, the channel), a nonce of
    its own, and an HMAC over both ranks, the ring's addresses, the channel and both nonces; the acceptor answers with
    an HMAC of its own, which only a dialer that has proved itself gets to see.
    """

    def __init__(self, listener: socket.socket, rank: int, addresses: Sequence[Address], secret: bytes) -> None:
        self.listener, self.rank, self.addresses, self.secret = listener, rank, addresses, secret
        self.ring = hashlib.sha256(repr(list(addresses)).encode()).digest()
        self.before, self.after = (rank - 1) % len(addresses), (rank + 1) % len(addresses)
        self.accepted: dict[int, socket.socket] = {}
        self.dialed: dict[int, socket.socket] = {}
        self.dial_problem, self.num_refused = "no answer", 0

    async def neighbours(self, timeout: float) -> list[Neighbour]:
        """[before, after]. Raises RingError; nothing stays open then."""
        self.complete = asyncio.Event()
        tasks = [asyncio.create_task(work) for work in (self._dial(_DATA), self._dial(_NOTES), self._accept())]
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
        """The error when the time is up."""
        problems, rank = [], self.before
        if len(self.accepted) < 2:
            problems.append(f"rank {self.before} has not connected")
        if len(self.dialed) < 2:
            problems.append(f"{self._next_rank()} cannot be reached ({self.dial_problem})")
            rank = self.after
        if self.num_refused:
            problems.append(f"{self.num_refused} connections without the secret were refused")
        return RingError(f"no ring after {timeout:g} s: {', '.join(problems)}", rank)

    async def _accept(self) -> None:
        """Shake hands with whatever connects, many at once, until cancelled."""
        slots = asyncio.Semaphore(_MAX_HANDSHAKES)
        async with asyncio.TaskGroup() as handshakes:
            while True:
                await slots.acquire()
                try:
                    link, _ = await asyncio.get_running_loop().sock_accept(self.listener)
                except OSError:  # it has closed the connection already, or this process has too many files open
                    slots.release()
                    await asyncio.sleep(_PAUSE_SECONDS)
                else:
                    handshakes.create_task(self._admit(link)).add_done_callback(lambda _: slots.release())

    async def _admit(self, link: socket.socket) -> None:
        """Keep the previous rank's connection; close any other."""
        channel = None
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                channel = await self._verify_dialer(link)
        except OSError:  # TimeoutError is one
            pass
        finally:
            if channel is None:
                self.num_refused += 1
                link.close()
        if channel is not None:
            if channel in self.accepted:  # it has dialed anew: the old connection is dead
                self.accepted[channel].close()
            self.accepted[channel] = link
            if len(self.accepted) == 2:
                self.complete.set()

    async def _verify_dialer(self, link: socket.socket) -> int | None:
        """The acceptor's side of the handshake: the channel that the previous rank opens; None for any other process.

        Raises OSError where the connection fails.
        """
        loop, nonce = asyncio.get_running_loop(), secrets.token_bytes(_NONCE_BYTES)
        await loop.sock_sendall(link, MAGIC + nonce)
        magic, rank, channel, their_nonce, proof = _HELLO.unpack(await _read(link, _HELLO.size))
        claim = struct.pack("<IIB", rank, self.rank, channel) + nonce + their_nonce
        is_genuine = hmac.compare_digest(proof, self._proof(b"dial", claim))
        if is_genuine and magic == MAGIC and rank == self.before and channel in (_DATA, _NOTES):
            await loop.sock_sendall(link, self._proof(b"door", claim))
            return int(channel)
        await loop.sock_sendall(link, bytes(_PROOF_BYTES))  # so that a rank with another secret need not wait
        return None

    async def _dial(self, channel: int) -> None:
        """Connect to the next rank, again and again: it may be late, or may have timed out on us.

        Raises RingError where it has failed, or has another secret.
        """
        refusals = 0
        while channel not in self.dialed:
            link = _new_socket(self.addresses[self.after][0])
            try:
                async with asyncio.timeout(_DIAL_SECONDS):
                    is_genuine = await self._verify_acceptor(link, channel)
                if not is_genuine:
                    raise RingError(f"{self._next_rank()} has another secret or other addresses", self.after)
                self.dialed[channel] = link
            except OSError as error:  # TimeoutError is one
                self.dial_problem = os.strerror(error.errno) if error.errno else str(error) or "no answer"
                refusals = refusals + 1 if isinstance(error, ConnectionRefusedError) else 0
                if refusals > _MAX_REFUSALS:
                    raise RingError(f"{self._next_rank()} is gone: it refuses connections", self.after) from None
                await asyncio.sleep(_PAUSE_SECONDS)
            finally:
                if channel not in self.dialed:
                    link.close()

    async def _verify_acceptor(self, link: socket.socket, channel: int) -> bool:
        """The dialer's side of the handshake: whether the next rank has answered. Raises OSError where it fails."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(link, self.addresses[self.after])
        greeting, nonce = await _read(link, len(MAGIC) + _NONCE_BYTES), secrets.token_bytes(_NONCE_BYTES)
        claim = struct.pack("<IIB", self.rank, self.after, channel) + greeting[len(MAGIC) :] + nonce
        await loop.sock_sendall(link, _HELLO.pack(MAGIC, self.rank, channel, nonce, self._proof(b"dial", claim)))
        return hmac.compare_digest(await _read(link, _PROOF_BYTES), self._proof(b"door", claim))

    def _next_rank(self) -> str:
        host, port = self.addresses[self.after]
        return f"rank {self.after} at {host}:{port}"

    def _proof(self, side: bytes, claim: bytes) -> bytes:
        return hmac.digest(self.secret, side + self.ring + claim, "sha256")


async def _read(link: socket.socket, count: int) -> bytes:
    """Exactly so many bytes. Raises OSError where the connection ends before."""
    data = b""
    while len(data) < count:
        more = await asyncio.get_running_loop().sock_recv(link, count - len(data))
        if not more:
            raise ConnectionResetError("it closed the connection")
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
    """A non-blocking TCP socket of the host's family, without Nagle's delay. Accepted sockets inherit its options."""
    link = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    link.setblocking(False)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # before connecting, which settles the window's scale
        link.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    return link


def _num_cores(mount: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that this process may run on at once: those of its affinity, or fewer where its container has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroup v2, v1
        with suppress(OSError, ValueError):  # no such file, or no quota
            quota, period = map(int, " ".join((mount / name).read_text() for name in names).split())
            cores = min(cores, max(1, quota // period)) if quota > 0 else cores
    return cores
