"""IDX files: the four files of MNIST or of a dataset in its layout, gzipped or not; the original is in the package."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from functools import partial
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.sources.base import Reading
from mnist_ray.sources.formats.arrays import (
    ArraySource,
    ArraySplit,
    ArraySplits,
    check_paired,
    open_arrays,
    refuse_bomb,
)
from mnist_ray.storage.location import Location

# name: (split, what, MD5 of the original uncompressed)
_MNIST = {
    "train-images-idx3-ubyte": ("train", "images", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("train", "labels", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("test", "images", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("test", "labels", "27ae3e4e09519cfbb04c329615203637"),
}
IDX_NAMES = tuple(_MNIST)
BLOCK = 1 << 20


def open_idx(folder: Location, reading: Reading) -> ArraySource:
    """A directory that holds the four files of MNIST or of anything else in its layout, gzipped or not."""
    return open_arrays(str(folder), partial(load_idx, folder), reading)


def load_embedded() -> ArraySplits:
    folder = resources.files("mnist_ray") / "data"
    parts: dict[tuple[str, str], NDArray[np.uint8]] = {}
    for name, (split, what, md5) in _MNIST.items():
        where = f"{folder / name}.gz"
        try:
            data = _unzipped((folder / f"{name}.gz").read_bytes(), where)
        except FileNotFoundError as error:
            raise InputError(f"{where} is missing from the package; install mnist-ray again") from error
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
            raise InputError(f"{where} is damaged: its MD5 is not {md5}; install mnist-ray again")
        parts[split, what] = _idx(data, what, where)
    return _idx_splits(parts, "mnist")


def load_idx(folder: Location) -> ArraySplits:
    parts: dict[tuple[str, str], NDArray[np.uint8]] = {}
    for name, (split, what, _) in _MNIST.items():
        for file in (folder / name, folder / f"{name}.gz"):
            try:
                data = file.read_bytes()
            except FileNotFoundError:
                continue
            parts[split, what] = _idx(_unzipped(data, str(file)), what, str(file))
            break
        else:
            raise InputError(f"{folder / name}[.gz] is missing; an IDX directory has {', '.join(IDX_NAMES)}")
    return _idx_splits(parts, str(folder))


def _unzipped(data: bytes, where: str) -> bytes:
    """As it is, or what gzip made of it: its first bytes tell, not its name. No more than its IDX header promises."""
    if not data:
        raise InputError(f"{where} is empty; copy it again")
    if not data.startswith(b"\x1f\x8b"):
        return data
    blocks: list[bytes] = []
    held, promised = 0, 16
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            while held <= promised and (block := stream.read(min(promised + 1 - held, BLOCK))):
                blocks.append(block)
                held += len(block)
                if held == len(block) and block[3:4] in (b"\1", b"\3"):
                    promised = 4 + 4 * block[3] + math.prod(_lengths(block, block[3]))
                refuse_bomb(held, len(data), where)
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{where} is truncated or damaged ({error}); copy it again") from error
    return b"".join(blocks)


def _lengths(data: bytes, axes: int) -> tuple[int, ...]:
    """Of an IDX header's axes; fewer where it is cut off."""
    return tuple(int.from_bytes(data[at : at + 4]) for at in range(4, min(4 + 4 * axes, len(data)), 4))


def _idx(data: bytes, what: str, where: str) -> NDArray[np.uint8]:
    """(n, h, w) images or (n,) labels of the IDX format: zero, zero, type, number of axes, their lengths, data."""
    axes = 3 if what == "images" else 1
    header = 4 + 4 * axes
    if data[:4] != bytes((0, 0, 8, axes)):
        raise InputError(f"{where} is no IDX file of {what}: it begins with {data[:4].hex()}, not 0000080{axes}")
    if len(data) < header:
        raise InputError(f"{where} is truncated within its header; copy it again")
    shape = _lengths(data, axes)
    if len(data) - header != math.prod(shape):
        state = "truncated" if len(data) - header < math.prod(shape) else "too long"
        raise InputError(
            f"{where} is {state}: its header promises {math.prod(shape):,} bytes of {what}, "
            f"and {len(data) - header:,} follow; copy it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _idx_splits(parts: dict[tuple[str, str], NDArray[np.uint8]], where: str) -> ArraySplits:
    return {
        split: ArraySplit(*check_paired(parts[split, "images"], parts[split, "labels"].astype(np.int64), split, where))
        for split in ("train", "test")
    }
