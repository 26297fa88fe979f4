"""The ring against numpy: W = 1 to 8 at awkward sizes, among strangers, and with a peer that dies, stops or lies."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ray.collective import ring as ring_module
from mnist_ray.collective.forming import Listener, connect
from mnist_ray.collective.ring import Ring, RingError
from tests.support.rings import HOST, SECRET, close, form, on_all

DTYPES = [np.float32, np.float64, np.int64]


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
    check_sum(rings, [np.arange(1_999_993, dtype=np.int64) * (rank + 1) for rank in range(size)])
    check_sum(rings, [np.full(1_999_993, 0.1 * (rank + 1), np.float32) for rank in range(size)])
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


def test_another_thread_may_take_over() -> None:
    rings = form(2)
    threads = threading.active_count()
    for _ in range(3):
        assert [list(result) for result in on_all(rings, lambda ring: ring.all_reduce(np.ones(1)))] == [[2.0], [2.0]]
    assert threading.active_count() <= threads
    close(rings)
