"""A ring of processes that adds numpy arrays over TCP, with numpy and the standard library alone.

Every process makes a `Listener`, sends its address to the others by any means (here, Ray), and calls `connect` with all
addresses, its rank, and a secret that all ranks share:

    listener = Listener("10.0.0.5")                      # this host; an ephemeral port
    ...                                                  # exchange addresses; agree on secrets.token_bytes(32)
    with connect(listener, rank=0, addresses=addresses, secret=secret) as ring:
        ring.broadcast(weights)                          # in place: rank 0's values
        ring.all_reduce(gradient)                        # in place: the sum over all ranks, the same bits on each

All ranks make the same calls in the same order, each from one thread at a time. A failure raises `RingError` on every
rank, at once or within `Ring.timeout` seconds, and names the rank at fault; the ring cannot be used afterwards. A rank
that is busy between two calls (a slow callback, a checkpoint) is waited for, up to `Ring.patience` seconds.

How it works: rank r sends to rank r + 1 only. What it receives is added (or stored) piece by piece and sent on at once.
So sending and receiving overlap, no step waits for another to end, and no size can deadlock. A second connection
between neighbours carries short notes: who has failed and, when nothing moves, who is still there. Between calls, a
thread reads and answers them.

Who may join: both ends of a connection prove that they hold the secret, for this ring, these ranks and this connection,
before a byte of payload. The payload itself is neither encrypted nor signed: use a network that alters no packets.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Generator
from typing import Any

import numpy as np

from .neighbour import MAGIC, Neighbour, RingError
from .presence import Presence
from .waiting import Wait

Array = np.ndarray[Any, Any]
Buffers = Generator[memoryview, None, None]
"""Yields memory to be filled with what the previous rank sends; it is full when the generator is resumed."""

_PIECE = 1 << 19  # bytes added at a time: small enough to stay in a core's cache
_GATHER = 1 << 19  # up to so many bytes latency outweighs bandwidth: every rank gets all vectors and adds them itself
PATIENCE_SECONDS = 1800.0  # of a new ring
_IDLE_TRIES = 300  # before sleeping: waking up costs more than waiting for a neighbour that is nearly there

_HEADER = struct.Struct("<8s16s8sIQQ")  # magic, operation, dtype, root, call, elements: before each call's payload
_DTYPES = {np.dtype(kind): np.dtype(kind).name.encode() for kind in (np.float32, np.float64, np.int64)}


class Ring:
    """A rank's place in a ring, as `connect` returns it.

    Attributes:
        rank, size: of this process and of the ring.
        timeout: seconds that a wait may last without a byte moving or an answer; may be changed.
        patience: seconds that a rank may be busy outside the ring while another waits for it; may be changed.
        error: the first RingError, or None; every later call raises it again.
    """

    def __init__(self, rank: int, size: int, neighbours: list[Neighbour], *, timeout: float, spin: bool) -> None:
        self.rank, self.size, self.timeout, self.patience = rank, size, timeout, PATIENCE_SECONDS
        self.error: RingError | None = None
        self._neighbours = neighbours  # [before, after]; none in a ring of one
        self._idle_tries = _IDLE_TRIES if spin else 0
        self._calls = 0
        self._closed = False
        self._header, self._their_header = bytearray(_HEADER.size), bytearray(_HEADER.size)
        self._queue: list[memoryview] = []  # to be sent to the next rank
        self._scratch = np.empty(max(_PIECE, _GATHER), np.uint8)
        # A ring that nothing refers to any more ends, as it would without the thread.
        fail = weakref.WeakMethod(self._break)
        self._presence = Presence(rank, neighbours, lambda error: (break_ring := fail()) and break_ring(error))
        weakref.finalize(self, self._presence.stop)

    def all_reduce(self, array: Array) -> Array:
        """Replace `array` on every rank by the sum over all ranks, the same bits on each, and return it.

        `array`: (n,) float32, float64 or int64, contiguous and writable, the same n and dtype on every rank. Its
        contents are undefined after an error. Raises RingError, and ValueError (before anything is sent) for any
        other array.
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
        """Replace `array` (as for `all_reduce`) on every rank by that of rank `root`, and return it."""
        if not 0 <= root < self.size:
            raise ValueError(f"root must be a rank below {self.size}, not {root}")
        flat = _as_bytes(array)
        mine, theirs = (flat, flat[:0]) if self.rank == root else (flat[:0], flat)
        self._call("broadcast", array, root, mine, self._pass_on(theirs, (self.rank + 1) % self.size != root))
        return array

    def barrier(self) -> None:
        """Return when every rank has called it. Raises RingError."""
        token = np.zeros(1, np.int64)
        self._gather("barrier", token, _as_bytes(token))

    def close(self) -> None:
        """Leave the ring: a call of another rank that still needs this one fails."""
        self._closed = True
        self._presence.stop()
        for neighbour in self._neighbours:
            neighbour.close()

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _gather(self, operation: str, array: Array, flat: memoryview) -> None:
        """Send each vector once round the ring; every rank adds all of them in rank order, hence the same bits."""
        vectors = [array] * self.size
        self._call(operation, array, 0, flat, self._pass_vectors_on(vectors))
        total = vectors[0]
        for rank in range(1, self.size):
            np.add(total, vectors[rank], out=array if rank == self.size - 1 else total)

    def _pass_vectors_on(self, vectors: list[Array]) -> Buffers:
        """Put the other ranks' vectors (scratch memory) into the list."""
        nbytes, dtype = vectors[0].nbytes, vectors[0].dtype
        for step in range(1, self.size):
            row = self._scratch[(step - 1) * nbytes : step * nbytes]
            vectors[(self.rank - step) % self.size] = row.view(dtype)
            if nbytes:
                yield row.data
                if step < self.size - 1:
                    self._queue.append(row.data)

    def _pass_on(self, flat: memoryview, forward: bool) -> Buffers:
        """Fill `flat` piece by piece, and send each on if `forward`."""
        for start in range(0, len(flat), _PIECE):
            piece = flat[start : start + _PIECE]
            yield piece
            if forward:
                self._queue.append(piece)

    def _segment(self, index: int, count: int) -> tuple[int, int]:
        """(start, stop) of one of `size` nearly equal parts of `count` elements."""
        return index * count // self.size, (index + 1) * count // self.size

    def _reduce_and_spread(self, array: Array, flat: memoryview) -> Buffers:
        """Reduce-scatter, then all-gather: receive segment by segment from the previous rank.

        A piece of the result may overwrite this rank's own part: the result contains that part, so it has been sent.
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

    def _call(self, operation: str, array: Array, root: int, first: memoryview, buffers: Buffers) -> None:
        """Run one operation: send a header and `first` to the next rank, receive from the previous into `buffers`."""
        if self.error is not None:
            raise self.error
        if self._closed:
            raise RingError("the ring is closed")
        if self.size == 1:
            return
        with self._presence.in_call:
            if self.error is not None:  # the thread has just read why
                raise self.error
            self._exchange(operation, array, root, first, buffers)

    def _exchange(self, operation: str, array: Array, root: int, first: memoryview, buffers: Buffers) -> None:
        self._calls += 1
        name = operation.encode()
        _HEADER.pack_into(self._header, 0, MAGIC, name, _DTYPES[array.dtype], root, self._calls, len(array))
        self._queue = [memoryview(self._header), first]
        try:
            self._flow(self._checked(buffers))
        except RingError as error:
            self._break(error)
            raise
        except BaseException as error:  # a KeyboardInterrupt, say: both streams are now cut at an unknown place
            self._break(RingError(f"rank {self.rank} stopped in the middle of {operation}: {error!r}", self.rank))
            raise

    def _checked(self, buffers: Buffers) -> Buffers:
        """Receive the previous rank's header, which must equal ours, then its payload."""
        yield memoryview(self._their_header)
        if self._their_header != self._header:
            rank = self._neighbours[0].rank
            if self._their_header[: len(MAGIC)] != MAGIC:
                raise RingError(f"rank {rank} sent bytes that are not a header", rank)
            theirs, ours = _describe(self._their_header), _describe(self._header)
            raise RingError(f"the ranks disagree: rank {rank} is at {theirs}, rank {self.rank} at {ours}")
        yield from buffers

    def _flow(self, buffers: Buffers) -> None:
        """Send the queue and fill the buffers, both at once, until nothing is left of either."""
        before, after = self._neighbours
        queue, idle = self._queue, 0
        buffer = next(buffers, None)
        while queue or buffer is not None:
            moved = 0
            if queue:
                try:
                    moved = sent = after.data.sendmsg(queue[:8])
                except BlockingIOError:
                    pass
                except OSError as error:
                    raise after.why_gone(error, self.timeout) from None
                else:
                    while queue and sent >= len(queue[0]):
                        sent -= len(queue.pop(0))
                    if sent:
                        queue[0] = queue[0][sent:]
            if buffer is not None:
                try:
                    got = before.data.recv_into(buffer)
                except BlockingIOError:
                    pass
                except OSError as error:
                    raise before.why_gone(error, self.timeout) from None
                else:
                    if not got:
                        raise before.why_gone(None, self.timeout)
                    moved += got
                    buffer = buffer[got:] if got < len(buffer) else next(buffers, None)
            if moved:
                idle = 0
            elif idle < self._idle_tries:
                idle += 1
                os.sched_yield()  # else a neighbour that shares this core would wait for our whole time slice
            else:
                wait = Wait(
                    self._neighbours, self._calls, receiving=buffer is not None, sending=bool(queue),
                    patience=self.patience,
                )  # fmt: skip
                wait.until_bytes_move(self.timeout)

    def _break(self, error: RingError) -> None:
        """Remember the error, report it to the neighbours, and close everything."""
        self.error = error
        for neighbour in self._neighbours:
            neighbour.report(error, self._calls)
        self.close()


def _as_bytes(array: Array) -> memoryview:
    """The array's memory. Raises ValueError where the ring cannot add in place."""
    if array.dtype not in _DTYPES or array.ndim != 1 or not array.flags.c_contiguous or not array.flags.writeable:
        found = f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"a ring takes (n,) float32, float64 or int64, contiguous and writable, not {found}")
    return array.view(np.uint8).data


def _describe(header: bytearray) -> str:
    _, operation, dtype, root, call, count = _HEADER.unpack(header)
    name, kind = (text.rstrip(b"\0").decode(errors="replace") for text in (operation, dtype))
    return f"call {call}, {name} of {count} {kind} from root {root}"
