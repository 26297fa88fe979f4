"""A peer at fault: dead, stopped, late, lying, in another call. All ranks hear the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.collective import ring as ring_module
from mnist_ray.collective.forming import Listener, connect
from mnist_ray.collective.ring import Ring, RingError
from tests.support.rings import HOST, SECRET, close, form, on_all, together

# --- a peer at fault -------------------------------------------------------------------------------------------------

VICTIM = """
import os, signal, sys, time, types
import numpy as np
ring_only = types.ModuleType("ring_only")  # the package's own __init__ imports Ray, which takes longer than the test
ring_only.__path__ = [sys.argv[1]]
sys.modules["ring_only"] = ring_only
from ring_only import ring as ring_module
from ring_only.forming import Listener, connect
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
        [sys.executable, "-c", VICTIM, str(Path(ring_module.__file__).parent)],
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
    assert ("is gone" if number == signal.SIGKILL else "did not answer for 1 s") in str(errors[0])
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


def test_a_rank_that_is_stuck_in_a_call_is_named() -> None:
    """Rank 2 waits for rank 0, which waits for rank 1: the one that is stuck is named, not the one that is near."""
    rings = form(4)
    for ring in rings:
        ring.timeout = 0.8
    with_trip(rings[1], lambda i: time.sleep(0 if i else 2))
    errors = on_all(rings, lambda ring: ring.all_reduce(np.ones(3)))
    check_broken([ring for ring in rings if ring.rank != 1], [errors[rank] for rank in (0, 2, 3)], 1)
    assert str(errors[3]) == "rank 1 did not answer for 0.8 s: stopped or cut off"


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_rank_that_is_busy_between_calls_is_waited_for(size: int) -> None:
    """A slow checkpoint or callback takes four times the timeout. No neighbour of rank 3 of 5 is a neighbour of 1."""
    rings = form(size)
    for ring in rings:
        ring.timeout = 0.5

    def work(ring: Ring) -> Any:
        ring.barrier()
        time.sleep(2.0 if ring.rank == 1 else 0)
        ring.all_reduce(np.ones(3))
        time.sleep(1.0 if ring.rank == 0 else 0)
        return ring.all_reduce(np.ones(COUNT, np.float32))[0]

    assert on_all(rings, work) == [size] * size
    close(rings)


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_that_is_busy_for_too_long_is_named(size: int) -> None:
    rings = form(size)
    for ring in rings:
        ring.timeout, ring.patience = 0.4, 1.0
    start = time.monotonic()
    errors = on_all([ring for ring in rings if ring.rank != 1], lambda ring: ring.all_reduce(np.ones(3)))
    assert time.monotonic() - start < 3
    check_broken([ring for ring in rings if ring.rank != 1], errors, 1)
    assert str(errors[0]) == "rank 1 has been busy outside the ring for 1 s"
    close(rings)


def test_a_stopped_rank_is_named_although_another_is_busy() -> None:
    """Rank 0 waits for both: what it hears of rank 1 must not hide that rank 2 does not answer."""
    rings = form(3)
    for ring in rings:
        ring.timeout = 0.8
    with_trip(rings[2], lambda i: time.sleep(0 if i else 3))

    def work(ring: Ring) -> Any:
        time.sleep(3 if ring.rank == 1 else 0)
        return ring.all_reduce(np.ones(COUNT, np.float32))

    errors = on_all(rings, work)
    assert [errors[rank].rank for rank in (0, 1)] == [2, 2], errors


def test_a_rank_that_is_busy_hears_why_the_ring_has_failed() -> None:
    rings = form(3)

    def interrupt(i: int) -> None:
        raise KeyboardInterrupt

    def work(ring: Ring) -> Any:
        time.sleep(1 if ring.rank == 2 else 0)
        return ring.barrier()

    with_trip(rings[1], interrupt)
    errors = on_all(rings, work)
    assert str(errors[2]) == "rank 1 stopped in the middle of barrier: KeyboardInterrupt()"


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
