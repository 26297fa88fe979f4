"""The ring against numpy: W = 1 to 8 at awkward sizes, among strangers, and with a peer that dies, stops or lies."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ray.collective import forming
from mnist_ray.collective import ring as ring_module
from mnist_ray.collective.forming import Listener, connect
from mnist_ray.collective.ring import Ring, RingError

SECRET = b"a secret of at least 16 bytes"
HOST = "127.0.0.1"
DTYPES = [np.float32, np.float64, np.int64]


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


def check_sum(rings: list[Ring], vectors: list[np.ndarray]) -> None:
    """All ranks hold the same bits, and they are numpy's sum: exactly for integers, else up to the order."""
    results = on_all(rings, lambda ring: ring.all_reduce(vectors[ring.rank].copy()))
    for result in results:
        assert isinstance(result, np.ndarray), result
        assert result.tobytes() == results[0].tobytes()
    with np.errstate(all="ignore"):  # hypothesis likes infinities
        expected, scale = np.sum(vectors, axis=0), np.sum(np.abs(vectors), axis=0)
        difference = np.abs(results[0] - expected)
    if expected.dtype == np.int64:
        np.testing.assert_array_equal(results[0], expected)
    else:  # where the sum of magnitudes overflows, the order decides what is finite
        allowed = 4 * len(vectors) * float(np.finfo(expected.dtype).eps) * scale
        assert (difference <= allowed)[np.isfinite(scale)].all()
        assert not np.isfinite(results[0][~np.isfinite(vectors).all(axis=0)]).any()


def vectors_of(size: int, count: int, dtype: Any, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    if dtype is np.int64:
        return [generator.integers(-(2**62), 2**62, count) for _ in range(size)]
    return [generator.standard_normal(count).astype(dtype) for _ in range(size)]


# Both ways of adding up: everything to everyone, and segment by segment in pieces of 64 bytes.
@pytest.fixture(params=["gather", "around"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "around":
        monkeypatch.setattr(ring_module, "_GATHER", 0)
        monkeypatch.setattr(ring_module, "_PIECE", 64)
    return str(request.param)


@pytest.mark.parametrize("size", range(1, 9))
def test_sums_are_numpys(size: int, way: str) -> None:
    rings = form(size)
    for count in sorted({0, 1, size - 1, size, size + 1, 5 * size + 1, 1009}):
        for dtype in DTYPES:
            check_sum(rings, vectors_of(size, count, dtype))
    close(rings)


@pytest.mark.parametrize("size", range(1, 5))
def test_a_large_prime(size: int) -> None:
    rings = form(size, timeout=30)
    check_sum(rings, [np.arange(9_999_991, dtype=np.int64) * (rank + 1) for rank in range(size)])
    check_sum(rings, [np.full(9_999_991, 0.1 * (rank + 1), np.float32) for rank in range(size)])
    close(rings)


@pytest.fixture(scope="module")
def kept_rings() -> Iterator[dict[int, list[Ring]]]:
    rings = {size: form(size, timeout=30) for size in (1, 2, 3, 4)}
    yield rings
    for some in rings.values():
        close(some)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 4), count=st.integers(0, 50), dtype=st.sampled_from(DTYPES))
def test_any_values(kept_rings: dict[int, list[Ring]], data: st.DataObject, size: int, count: int, dtype: Any) -> None:
    limit = np.iinfo(np.int64)
    width = np.dtype(dtype).itemsize * 8
    value = st.integers(int(limit.min), int(limit.max)) if dtype is np.int64 else st.floats(width=width)  # type: ignore[arg-type]
    lists = data.draw(st.lists(st.lists(value, min_size=count, max_size=count), min_size=size, max_size=size))
    check_sum(kept_rings[size], [np.array(values, dtype) for values in lists])


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_the_bits_of_nan_are_the_same_everywhere(size: int, around: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if around:
        monkeypatch.setattr(ring_module, "_GATHER", 0)
    rings = form(size)
    payloads = [np.full(100, 0x7FF8000000000000 + rank, np.int64).view(np.float64) for rank in range(size)]
    results = on_all(rings, lambda ring: ring.all_reduce(payloads[ring.rank].copy()))
    assert len({result.tobytes() for result in results}) == 1
    close(rings)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_broadcast_from_every_root(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "_PIECE", 64)
    rings = form(size)
    for root in range(size):
        for count in (0, 1, size, 1009):
            vectors = vectors_of(size, count, np.float64, seed=root)
            results = on_all(rings, lambda ring: ring.broadcast(vectors[ring.rank].copy(), root))  # noqa: B023
            assert all(result.tobytes() == vectors[root].tobytes() for result in results)
    close(rings)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_no_one_passes_a_barrier_before_the_last_has_come(size: int) -> None:
    rings = form(size)

    def work(ring: Ring) -> tuple[float, float]:
        time.sleep(0.1 * ring.rank)
        came = time.monotonic()
        ring.barrier()
        return came, time.monotonic()

    times = on_all(rings, work)
    assert max(came for came, _ in times) <= min(left for _, left in times)
    close(rings)


def test_in_place_and_calls_mixed() -> None:
    rings = form(3)

    def work(ring: Ring) -> list[Any]:
        array = np.full(200_000, ring.rank, np.float32)
        assert ring.all_reduce(array) is array
        whole = array.copy()
        assert ring.broadcast(array[: ring.size], root=2).base is array
        ring.barrier()
        counts = ring.all_reduce(np.array([ring.rank, 1]))
        return [whole.sum(), counts.tolist()]

    assert on_all(rings, work) == [[600_000.0, [3, 3]]] * 3
    close(rings)


def test_wrong_arguments_send_nothing() -> None:
    rings = form(2)
    read_only = np.zeros(3)
    read_only.flags.writeable = False
    for array in (np.zeros(3, np.int32), np.zeros((2, 2)), np.zeros(6)[::2], read_only, np.zeros(3, ">f8")):
        with pytest.raises(ValueError, match="contiguous and writable"):
            rings[0].all_reduce(array)
    with pytest.raises(ValueError, match="root must be a rank below 2"):
        rings[0].broadcast(np.zeros(3), root=2)
    assert [result.tolist() for result in on_all(rings, lambda ring: ring.all_reduce(np.ones(2)))] == [[2, 2], [2, 2]]
    close(rings)
    with pytest.raises(RingError, match="the ring is closed"):
        rings[0].barrier()
    with pytest.raises(ValueError, match="at least 16 bytes"):
        connect(None, rank=0, addresses=[(HOST, 1)], secret=b"short")
    with pytest.raises(ValueError, match="rank must be 0 to 0"):
        connect(None, rank=1, addresses=[(HOST, 1)], secret=SECRET)
    with pytest.raises(ValueError, match="needs a listener"):
        connect(None, rank=1, addresses=[(HOST, 1), (HOST, 2)], secret=SECRET)
    with pytest.raises(ValueError, match="one address of this machine"):
        Listener("0.0.0.0")


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(RingError("rank 3 is gone", 3)))
    assert (str(error), error.rank) == ("rank 3 is gone", 3)


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


# --- a peer at fault -------------------------------------------------------------------------------------------------

VICTIM = """
import os, signal, sys, time
import numpy as np
from mnist_ray.collective import ring as ring_module
from mnist_ray.collective import Listener, connect
ring_module._GATHER, ring_module._PIECE = 0, 1 << 16
listener = Listener("127.0.0.1")
print(listener.address[1], flush=True)
rank, number, stage, *ports = map(int, sys.stdin.readline().split())
addresses = [("127.0.0.1", port) for port in ports]
ring = connect(listener, rank=rank, addresses=addresses, secret=%r, timeout=10)
flow = ring._flow
def trip(buffers):
    for i, buffer in enumerate(buffers):
        if i == stage:
            os.kill(os.getpid(), number)
        yield buffer
ring._flow = lambda buffers: flow(trip(buffers))
if stage < 0:
    os.kill(os.getpid(), number)
ring.all_reduce(np.ones(400_000, np.float32))
""" % (SECRET,)  # noqa: UP031 - the program is full of braces

COUNT = 400_000  # float32: 1.6 MB, more than sockets hold, so that no one can be done without the victim


def ring_with_victim(size: int, rank: int, number: int, stage: int) -> tuple[list[Ring], subprocess.Popen[str]]:
    """A ring whose rank `rank` is a process that signals itself at the given stage; and that process."""
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert victim.stdin
    assert victim.stdout
    listeners = {i: Listener(HOST) for i in range(size) if i != rank}
    ports = {i: listener.address[1] for i, listener in listeners.items()} | {rank: int(victim.stdout.readline())}
    addresses = [(HOST, ports[i]) for i in range(size)]
    victim.stdin.write(f"{rank} {number} {stage} {' '.join(str(port) for _, port in addresses)}\n")
    victim.stdin.flush()

    def join(i: int) -> Ring:
        return connect(listeners[i], rank=i, addresses=addresses, secret=SECRET, timeout=10)

    rings = together([lambda i=i: join(i) for i in listeners])  # type: ignore[misc]
    assert all(isinstance(ring, Ring) for ring in rings), rings
    return rings, victim


def until_it_breaks(ring: Ring) -> None:
    """A rank that has all it needs when another fails ends its call well, and then fails in the next."""
    while True:
        result = ring.all_reduce(np.ones(COUNT, np.float32))
        assert (result == ring.size).all()


def check_broken(rings: list[Ring], errors: list[Any], rank: int | None) -> None:
    """All have said the same, and say it again at once."""
    assert all(isinstance(error, RingError) for error in errors), errors
    assert [error.rank for error in errors] == [rank] * len(errors), errors
    for ring, error in zip(rings, errors, strict=True):
        assert ring.error is error
        with pytest.raises(RingError) as again:
            ring.barrier()
        assert again.value is error


# Stages: before the call, before the header, before the payload, while adding, while spreading the result.
@pytest.mark.parametrize(("size", "stage"), [(2, -1), (2, 0), (2, 1), (3, 4), (3, 20), (5, -1), (5, 12)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_stopped_rank_is_named_by_all(
    number: signal.Signals, size: int, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_module, "_GATHER", 0)
    monkeypatch.setattr(ring_module, "_PIECE", 1 << 16)
    rings, victim = ring_with_victim(size, 1, number, stage)
    try:
        for ring in rings:
            ring.timeout = 1.0 if number == signal.SIGSTOP else 10.0
        start = time.monotonic()
        errors = on_all(rings, until_it_breaks)
        seconds = time.monotonic() - start
    finally:
        victim.kill()
        victim.communicate()
    check_broken(rings, errors, 1)
    assert ("is gone" if number == signal.SIGKILL else "did nothing for 1 s") in str(errors[0])
    assert seconds < 3


def with_trip(ring: Ring, act: Callable[[int], None]) -> None:
    """Have `act(i)` called before the i-th piece of a call is waited for."""
    flow = ring._flow

    def trip(buffers: ring_module.Buffers) -> Generator[memoryview, None, None]:
        for i, buffer in enumerate(buffers):
            act(i)
            yield buffer

    ring._flow = lambda buffers: flow(trip(buffers))  # type: ignore[method-assign]


def test_a_slow_peer_is_no_missing_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece comes in time, all together take twice the deadline."""
    monkeypatch.setattr(ring_module, "_GATHER", 0)
    rings = form(3)
    for ring in rings:
        ring.timeout = 0.6
    with_trip(rings[1], lambda _: time.sleep(0.15))
    results = on_all(rings, lambda ring: ring.all_reduce(np.ones(COUNT, np.float32)))
    assert all(np.array_equal(result, np.full(COUNT, 3, np.float32)) for result in results), results
    close(rings)


def test_a_late_peer_is_waited_for_and_then_named() -> None:
    """Rank 2 waits for rank 0, which waits for rank 1: the one that is late is named, not the one that is near."""
    rings = form(4)
    for ring in rings:
        ring.timeout = 0.8

    def work(ring: Ring) -> Any:
        time.sleep(0.5 if ring.rank == 1 else 0)
        ring.all_reduce(np.ones(3))
        time.sleep(2.0 if ring.rank == 1 else 0)
        return ring.all_reduce(np.ones(3))

    errors = on_all(rings, work)
    check_broken(rings, errors, 1)
    assert str(errors[3]) == "rank 1 did nothing for 0.8 s: stopped, cut off or busy"


def test_a_rank_that_is_a_call_ahead_finds_the_one_that_is_stuck() -> None:
    """Rank 1 sticks when rank 0 has all that it needs; rank 0, in its next call, asks rank 2, still in the first."""
    rings = form(3)
    for ring, timeout in zip(rings, (0.8, 4.0, 4.0), strict=True):
        ring.timeout = timeout
    with_trip(rings[1], lambda i: time.sleep(2.5) if i == 2 else None)
    done = []

    def work(ring: Ring) -> None:
        ring.all_reduce(np.ones(3))
        done.append(ring.rank)
        ring.all_reduce(np.ones(3))

    errors = on_all(rings, work)
    assert done[0] == 0
    assert 2 not in done
    check_broken(rings, errors, 1)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("stage", ["header", "part of a header", "part of the payload", "after the payload"])
def test_garbage_from_a_peer_breaks_the_ring(stage: str, size: int) -> None:
    rings = form(size)
    for ring in rings:
        ring.timeout = 1.0

    def lie(ring: Ring) -> Any:
        link = ring._neighbours[1].data
        header = ring_module._HEADER.pack(ring_module.MAGIC, b"all_reduce", b"float64", 0, 2, 4)
        if stage == "header":
            link.sendall(os.urandom(4096))
        elif stage == "part of a header":
            link.sendall(header[:20])
            ring.close()
        elif stage == "part of the payload":
            link.sendall(header + b"12345")
            ring.close()
        else:
            ring.all_reduce(np.ones(4))
            link.sendall(b"12345")
        return ring.all_reduce(np.ones(4))

    def work(ring: Ring) -> Any:
        if ring.rank == 1:
            return lie(ring)
        ring.all_reduce(np.ones(4))
        return ring.all_reduce(np.ones(4))

    errors = on_all(rings, work)
    said = "rank 1 is gone: " if "part" in stage else "rank 1 sent bytes that are not a header"
    others = [error for ring, error in zip(rings, errors, strict=True) if ring.rank != 1]
    assert all(isinstance(error, RingError) and str(error).startswith(said) for error in others), errors
    assert [error.rank for error in others] == [1] * (size - 1)


def test_noise_on_the_notes_does_no_harm() -> None:
    rings = form(2)
    rings[1]._neighbours[1].notes.send(b"\0" * 1000)
    assert [result.tolist() for result in on_all(rings, lambda ring: ring.all_reduce(np.ones(2)))] == [[2, 2], [2, 2]]
    close(rings)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda ring: ring.all_reduce(np.ones(9)), "all_reduce of 9 float64"),
        (lambda ring: ring.all_reduce(np.ones(300_000)), "all_reduce of 300000 float64"),
        (lambda ring: ring.all_reduce(np.ones(0)), "all_reduce of 0 float64"),
        (lambda ring: ring.all_reduce(np.ones(8, np.int64)), "all_reduce of 8 int64"),
        (lambda ring: ring.broadcast(np.ones(8)), "broadcast of 8 float64"),
        (lambda ring: ring.barrier(), "barrier of 1 int64"),
    ],
)
def test_ranks_in_different_calls_are_told(size: int, other: Callable[[Ring], Any], said: str) -> None:
    rings = form(size)
    start = time.monotonic()
    errors = on_all(rings, lambda ring: other(ring) if ring.rank == 1 else ring.all_reduce(np.ones(8)))
    assert time.monotonic() - start < 1
    check_broken(rings, errors, None)
    for error in errors:
        assert said in str(error)
        assert "all_reduce of 8 float64" in str(error)


def test_an_interrupted_rank_tells_the_others() -> None:
    rings = form(3)

    def interrupt(i: int) -> None:
        if i == 1:
            raise KeyboardInterrupt

    with_trip(rings[1], interrupt)
    errors = on_all(rings, until_it_breaks)
    assert isinstance(errors[1], KeyboardInterrupt)
    for rank in (0, 2):
        assert str(errors[rank]) == "rank 1 stopped in the middle of all_reduce: KeyboardInterrupt()"
        assert errors[rank].rank == 1


def test_a_rank_may_leave_once_its_part_is_done() -> None:
    """Closing right after the last call harms no one who is still in it; the next call names who has left."""
    rings = form(4)

    def work(ring: Ring) -> Any:
        result = ring.all_reduce(np.full(50_000, ring.rank))
        if ring.rank == 2:
            ring.close()
            return result[0]
        assert result[0] == 6
        return ring.all_reduce(np.ones(3))

    results = on_all(rings, work)
    assert results[2] == 6
    assert [results[rank].rank for rank in (0, 1, 3)] == [2, 2, 2]


def test_another_thread_may_take_over() -> None:
    rings = form(2)
    for _ in range(3):
        assert [list(result) for result in on_all(rings, lambda ring: ring.all_reduce(np.ones(1)))] == [[2.0], [2.0]]
    assert threading.active_count() < 10
    close(rings)
