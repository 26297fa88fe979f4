"""A ring of processes that adds numpy arrays up over TCP. Python's standard library and numpy, nothing else.

Every process makes a `Listener`, tells the others its address by whatever means there are (here Ray does that), and
calls `connect` with all addresses, its rank, and a secret that all share:

    listener = Listener("10.0.0.5")                      # this host; an ephemeral port
    ...                                                  # exchange addresses; agree on secrets.token_bytes(32)
    with connect(listener, rank=0, addresses=addresses, secret=secret) as ring:
        ring.broadcast(weights)                          # in place: what rank 0 holds
        ring.all_reduce(gradient)                        # in place: the sum over all ranks, the same bits on each

All ranks make the same calls in the same order, each from one thread at a time. What goes wrong ends on every rank in
a `RingError` that names the rank at fault, at once or within `Ring.timeout` seconds; the ring is then of no more use.

How it works: rank r sends to rank r + 1 only. What comes in is added (or stored) piece by piece and goes out again at
once. So sending and receiving overlap, no step waits for another to end, and no size can deadlock. A second connection
between neighbours carries short notes: who has failed and, when nothing moves, who is still there.

Who may join: both ends of a connection prove that they hold the secret, for this ring, these ranks and this connection,
before a byte of payload. The payload itself is neither encrypted nor signed: use a network that alters no packets.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

Address = tuple[str, int]
Array = np.ndarray[Any, Any]
Rooms = Generator[memoryview, None, None]  # yields memory to be filled from the previous rank; full when resumed

_PIECE = 1 << 19  # bytes added at a time: small enough to stay in a core's cache
_GATHER = 1 << 19  # up to so many bytes latency outweighs bandwidth: every rank gets all vectors and adds them itself
_TRIES = 300  # idle tries before sleeping: waking up costs more than waiting for a neighbour that is nearly there
_PROBE_SECONDS = 1.0  # that a neighbour may take to say that it is there

MAGIC = b"npring1\n"
_HEADER = struct.Struct("<8s16s8sIQQ")  # magic, operation, dtype, root, call, elements: before each call's payload
_NOTE = struct.Struct("<ciQ242s")  # kind, rank at fault, call, text
_ASK, _HERE, _FAILED = b"?", b"!", b"x"
_DTYPES = {np.dtype(kind): np.dtype(kind).name.encode() for kind in (np.float32, np.float64, np.int64)}


class RingError(RuntimeError):
    """The ring is broken. The message says what happened; `rank` is the rank at fault, where there is one."""

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message, rank)  # both are args, so that the error survives pickling
        self.message, self.rank = message, rank

    def __str__(self) -> str:
        return self.message


@dataclass(eq=False)
class Neighbour:
    """The rank before or after this one (in a ring of two, both are the same rank) and the connections to it."""

    rank: int
    data: socket.socket
    notes: socket.socket


class Ring:
    """What `connect` returns. `timeout`: seconds that any wait may last without a byte moving; may be changed.

    `error`: the first RingError; every later call raises it again.
    """

    def __init__(self, rank: int, size: int, neighbours: list[Neighbour], *, timeout: float, spin: bool) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self.error: RingError | None = None
        self._neighbours = neighbours  # [before, after]; none in a ring of one
        self._tries = _TRIES if spin else 0
        self._calls = 0
        self._closed = False
        self._poll = select.poll()
        self._header, self._their_header = bytearray(_HEADER.size), bytearray(_HEADER.size)
        self._queue: list[memoryview] = []  # to be sent to the next rank
        self._scratch = np.empty(max(_PIECE, _GATHER), np.uint8)

    def all_reduce(self, array: Array) -> Array:
        """Replace `array` on every rank by the sum over all ranks, the same bits on each, and return it.

        `array`: (n,) float32, float64 or int64, contiguous and writable, the same n and dtype on every rank. Its
        contents are undefined after an error. Raises RingError; ValueError before anything is sent.
        """
        flat = _as_bytes(array)
        # Infinities are the caller's to judge; a warning that is made an error would cut the streams in mid-call.
        with np.errstate(all="ignore"):
            if flat.nbytes * (self.size - 1) <= _GATHER:
                self._gather("all_reduce", array, flat)
            else:
                low, high = (bound * array.itemsize for bound in self._segment(self.rank, len(array)))
                self._call("all_reduce", array, 0, flat[low:high], self._reduce_and_spread(array, flat))
        return array

    def broadcast(self, array: Array, root: int = 0) -> Array:
        """Replace `array` (as for `all_reduce`) on every rank by what rank `root` holds, and return it."""
        if not 0 <= root < self.size:
            raise ValueError(f"root must be a rank below {self.size}, not {root}")
        flat = _as_bytes(array)
        mine, theirs = (flat, flat[:0]) if self.rank == root else (flat[:0], flat)
        self._call("broadcast", array, root, mine, self._pass_on(theirs, (self.rank + 1) % self.size != root))
        return array

    def barrier(self) -> None:
        """Return when every rank has called it."""
        token = np.zeros(1, np.int64)
        self._gather("barrier", token, _as_bytes(token))

    def close(self) -> None:
        """Leave the ring: whatever the other ranks still need of this one fails."""
        self._closed = True
        for neighbour in self._neighbours:
            neighbour.data.close()
            neighbour.notes.close()

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _gather(self, operation: str, array: Array, flat: memoryview) -> None:
        """Each vector goes once round; every rank adds all of them in the order of the ranks, hence the same bits."""
        vectors = [array] * self.size
        self._call(operation, array, 0, flat, self._pass_vectors_on(vectors))
        total = vectors[0]
        for rank in range(1, self.size):
            np.add(total, vectors[rank], out=array if rank == self.size - 1 else total)

    def _pass_vectors_on(self, vectors: list[Array]) -> Rooms:
        """Put the other ranks' vectors (scratch memory) into the list."""
        nbytes, dtype = vectors[0].nbytes, vectors[0].dtype
        for step in range(1, self.size):
            row = self._scratch[(step - 1) * nbytes : step * nbytes]
            vectors[(self.rank - step) % self.size] = row.view(dtype)
            if nbytes:
                yield row.data
                if step < self.size - 1:
                    self._queue.append(row.data)

    def _pass_on(self, flat: memoryview, forward: bool) -> Rooms:
        for start in range(0, len(flat), _PIECE):
            piece = flat[start : start + _PIECE]
            yield piece
            if forward:
                self._queue.append(piece)

    def _segment(self, index: int, count: int) -> tuple[int, int]:
        return index * count // self.size, (index + 1) * count // self.size

    def _reduce_and_spread(self, array: Array, flat: memoryview) -> Rooms:
        """Reduce-scatter, then all-gather: segment by segment what comes from the previous rank.

        A piece of the result can overwrite this rank's own part of it: it contains that part, so that has been sent.
        """
        scratch, addend = self._scratch.data, self._scratch[:_PIECE].view(array.dtype)
        item, steps = array.itemsize, 2 * (self.size - 1)
        for step in range(steps):
            low, high = self._segment((self.rank - step - 1) % self.size, len(array))
            for start in range(low, high, _PIECE // item):
                stop = min(start + _PIECE // item, high)
                piece = flat[start * item : stop * item]
                if step < self.size - 1:
                    yield scratch[: piece.nbytes]
                    np.add(array[start:stop], addend[: stop - start], out=array[start:stop])
                else:
                    yield piece
                if step < steps - 1:
                    self._queue.append(piece)

    def _call(self, operation: str, array: Array, root: int, first: memoryview, rooms: Rooms) -> None:
        """One operation: a header and `first` to the next rank; what comes from the previous one into `rooms`."""
        if self.error is not None:
            raise self.error
        if self._closed:
            raise RingError("the ring is closed")
        if self.size == 1:
            return
        self._calls += 1
        name = operation.encode()
        _HEADER.pack_into(self._header, 0, MAGIC, name, _DTYPES[array.dtype], root, self._calls, len(array))
        self._queue = [memoryview(self._header), first]
        try:
            self._flow(self._checked(rooms))
        except RingError:
            raise
        except BaseException as error:  # a KeyboardInterrupt, say: both streams are now cut at an unknown place
            self._break(f"rank {self.rank} stopped in the middle of {operation}: {error!r}", self.rank)
            raise

    def _checked(self, rooms: Rooms) -> Rooms:
        """The previous rank's header, which must equal ours, then its payload."""
        yield memoryview(self._their_header)
        if self._their_header != self._header:
            rank = self._neighbours[0].rank
            if self._their_header[: len(MAGIC)] != MAGIC:
                raise self._break(f"rank {rank} sent something that is no header", rank)
            theirs, ours = _describe(self._their_header), _describe(self._header)
            raise self._break(f"the ranks disagree: rank {rank} is at {theirs}, rank {self.rank} at {ours}", None)
        yield from rooms

    def _flow(self, rooms: Rooms) -> None:
        """Send the queue and fill the rooms, both at once, until nothing is left of either."""
        before, after = self._neighbours
        queue, idle = self._queue, 0
        room = next(rooms, None)
        while queue or room is not None:
            moved = 0
            if queue:
                try:
                    moved = sent = after.data.sendmsg(queue[:8])
                except BlockingIOError:
                    pass
                except OSError as error:
                    raise self._lost(after, error) from None
                else:
                    while queue and sent >= len(queue[0]):
                        sent -= len(queue.pop(0))
                    if sent:
                        queue[0] = queue[0][sent:]
            if room is not None:
                try:
                    got = before.data.recv_into(room)
                except BlockingIOError:
                    pass
                except OSError as error:
                    raise self._lost(before, error) from None
                else:
                    if not got:
                        raise self._lost(before, None)
                    moved += got
                    room = room[got:] if got < len(room) else next(rooms, None)
            if moved:
                idle = 0
            elif idle < self._tries:
                idle += 1
                os.sched_yield()  # else a neighbour that shares this core would wait for our whole time slice
            else:
                self._wait(before if room is not None else None, after if queue else None)

    def _wait(self, reading: Neighbour | None, writing: Neighbour | None) -> None:
        """Sleep until a byte can move. When none does, find out who is missing, in time for the deadline.

        Whoever is waited for must be in this call too (or behind), asleep here, and so answers at once. A rank that is
        asked asks in turn those that it waits for: the one that keeps all others waiting is found by its neighbours.
        """
        before, after = self._neighbours
        self._poll.register(before.data, select.POLLIN if reading else 0)
        self._poll.register(after.data, select.POLLOUT if writing else 0)
        for neighbour in self._neighbours:
            self._poll.register(neighbour.notes, select.POLLIN)
        silent = {neighbour for neighbour in (reading, writing) if neighbour}
        patience = min(_PROBE_SECONDS, self.timeout / 4)
        stage, deadline = 0, time.monotonic() + self.timeout - patience
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            ready = {descriptor for descriptor, _ in self._poll.poll(left * 1000)}
            for neighbour in self._neighbours:
                if neighbour.notes.fileno() not in ready:
                    continue
                kind, call = self._read_note(neighbour)
                if kind is None:  # it has left, in order perhaps: what it sent before may be all that we need
                    self._poll.unregister(neighbour.notes)
                elif kind == _ASK:
                    self._write_note(neighbour, _HERE, call)
                    if not stage and call >= self._calls:  # not a stale one; a rank may be one call ahead of us
                        left = 0.0
                elif kind == _HERE and call == self._calls:
                    silent.discard(neighbour)
            if before.data.fileno() in ready or (writing and after.data.fileno() in ready):
                return
            if after.data.fileno() in ready:  # nothing is to be sent, so this can only mean that it is gone
                raise self._lost(after, None)
            if left:
                continue
            stage += 1
            if stage == 1:
                for neighbour in silent:
                    self._write_note(neighbour, _ASK, self._calls)
                deadline = time.monotonic() + patience
            elif stage == 2 and silent:
                ranks = sorted({neighbour.rank for neighbour in silent})
                names = " and ".join(f"rank {rank}" for rank in ranks)
                raise self._break(f"{names} did nothing for {self.timeout:g} s: stopped, cut off or busy", ranks[0])
            elif stage == 2:  # they have asked on, all at once, and whoever finds the missing rank will tell
                deadline = time.monotonic() + 2 * _PROBE_SECONDS
            else:
                raise self._break(f"nothing moved for {self.timeout:g} s, although the neighbours answer", None)

    def _write_note(self, to: Neighbour, kind: bytes, call: int, rank: int = -1, text: str = "") -> None:
        with contextlib.suppress(OSError):  # a neighbour that is gone is noticed where its bytes are missing
            to.notes.send(_NOTE.pack(kind, rank, call, text.encode()))

    def _read_note(self, neighbour: Neighbour) -> tuple[bytes | None, int]:
        """(kind, call) of the next note. Kind is empty where no whole one is there, None where the connection ended.

        Raises RingError where the note says that the ring is broken.
        """
        try:
            if 0 < len(neighbour.notes.recv(_NOTE.size, socket.MSG_PEEK)) < _NOTE.size:
                return b"", 0
            data = neighbour.notes.recv(_NOTE.size)
        except BlockingIOError:
            return b"", 0
        except OSError:
            return None, 0
        if not data:
            return None, 0
        kind, rank, call, text = _NOTE.unpack(data)
        if kind == _FAILED:
            raise self._break(text.rstrip(b"\0").decode(errors="replace"), rank if rank >= 0 else None)
        return kind, call

    def _lost(self, neighbour: Neighbour, error: OSError | None) -> RingError:
        """The connection to a neighbour ended in the middle of a call. Perhaps it left a note that says why."""
        deadline = time.monotonic() + min(_PROBE_SECONDS, self.timeout / 4)
        self._poll = select.poll()
        self._poll.register(neighbour.notes, select.POLLIN)
        try:
            while (left := deadline - time.monotonic()) > 0:
                if self._poll.poll(left * 1000) and self._read_note(neighbour)[0] is None:
                    break
        except RingError as told:
            return told
        why = error.strerror if error else "it closed its connection"
        return self._break(f"rank {neighbour.rank} is gone: {why}", neighbour.rank)

    def _break(self, message: str, rank: int | None) -> RingError:
        """Remember the error, tell the neighbours, close everything. Returns the error, to be raised."""
        if self.error is None:
            self.error = RingError(message, rank)
            for neighbour in self._neighbours:
                self._write_note(neighbour, _FAILED, self._calls, -1 if rank is None else rank, message)
            self.close()
        return self.error


def _as_bytes(array: Array) -> memoryview:
    """The array's memory. Raises ValueError where the ring cannot add it up in place."""
    if array.dtype not in _DTYPES or array.ndim != 1 or not array.flags.c_contiguous or not array.flags.writeable:
        found = f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"a ring takes (n,) float32, float64 or int64, contiguous and writable, not {found}")
    return array.view(np.uint8).data


def _describe(header: bytearray) -> str:
    _, operation, dtype, root, call, count = _HEADER.unpack(header)
    name, kind = (text.rstrip(b"\0").decode(errors="replace") for text in (operation, dtype))
    return f"call {call}, {name} of {count} {kind} from root {root}"
