"""What gzip and zlib have compressed as a whole, read forward in little memory."""

from __future__ import annotations

import gzip
import io
import random
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from mnist_ray.sources.formats.unpacking import Unpacked, is_packed, unpacked_start

CONTENT = random.Random(0).randbytes(3_000_000) + bytes(2_000_000)
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "gzip with a long name": lambda data: (
        b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 255 + b"\0" + gzip.compress(data)[10:]
    ),
    "two after each other": lambda data: gzip.compress(data[:1_700_000]) + gzip.compress(data[1_700_000:]),
    "zeros behind it": lambda data: gzip.compress(data) + bytes(512),
}


@pytest.mark.parametrize("how", PACKED)
def test_the_content_from_any_place_on(how: str) -> None:
    packed = PACKED[how](CONTENT)
    assert is_packed(packed)
    assert unpacked_start(packed[:512], 12) == CONTENT[:12]
    raw = Unpacked(io.BytesIO(packed))
    stream = io.BufferedReader(raw, 1000)
    for place, size in ((0, 12), (100, 70_000), (1_699_999, 2), (1_048_570, 10), (5, 5), (4_999_990, 100)):
        stream.seek(place)
        assert stream.read(size) == CONTENT[place : place + size]
    assert (stream.read(1), raw.is_whole) == (b"", True)
    assert stream.seek(6_000_000) == len(CONTENT)


def test_what_is_before_the_damage_is_read_and_that_it_is_damaged_is_known() -> None:
    packed = gzip.compress(CONTENT)
    cut, flipped = packed[:2_000_000], packed[:2_500_000] + b"\xff" * 500 + packed[2_500_500:]
    for damaged, at_least in ((cut, 1_990_000), (flipped, 1_000_000), (packed[:-4], len(CONTENT)), (b"\x1f\x8bno", 0)):
        raw = Unpacked(io.BytesIO(damaged))
        found = io.BufferedReader(raw).read()
        assert len(found) >= at_least
        assert CONTENT.startswith(found) or damaged is flipped
        assert not raw.is_whole
        assert raw.read(1) == b""


def test_a_bomb_of_200_megabytes_takes_few_megabytes() -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(200)), packer.flush()])
    tracemalloc.start()
    stream = io.BufferedReader(Unpacked(io.BytesIO(bomb)))
    stream.seek(190 << 20)
    assert stream.read(5) == bytes(5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
