"""IDX, the format of MNIST: a directory of four files, gzipped or not. MNIST's own are in this package (`embedded`)."""

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
    BLOCK,
    ArraySource,
    ArraySplit,
    ArraySplits,
    open_arrays,
    refuse_bomb,
    require_as_many,
)
from mnist_ray.storage.location import Location

FILES = {
    "train-images-idx3-ubyte": ("train", "images"),
    "train-labels-idx1-ubyte": ("train", "labels"),
    "t10k-images-idx3-ubyte": ("test", "images"),
    "t10k-labels-idx1-ubyte": ("test", "labels"),
}
"""The split and the content of each file, by its name without `.gz`."""

IDX_IMAGES = bytes((0, 0, 8, 3))
"""How a file of gray images of bytes begins."""

_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}  # of the decompressed bytes
_GZIP = b"\x1f\x8b"  # the first bytes of a gzip file
_LONGEST_HEADER = 16  # bytes: a magic number and three lengths


def open_embedded(reading: Reading) -> ArraySource:
    """The original MNIST. Raises InputError where a file of the package is missing or damaged."""
    return open_arrays("mnist", _load_embedded, reading)


def open_idx(location: Location, reading: Reading) -> ArraySource:
    """A directory with files that are called like MNIST's, though not always all four; or a file of images."""
    return open_arrays(str(location), partial(load_idx if location.is_dir() else _load_file, location), reading)


def is_idx(name: str) -> bool:
    """Whether a file is called like one of MNIST's, also `train-images.idx3-ubyte`, with or without `.gz`."""
    return name.removesuffix(".gz").replace(".idx", "-idx") in FILES


def load_idx(folder: Location) -> ArraySplits:
    """Raises InputError that names the file which is damaged, or the images that are missing beside their labels."""
    arrays: dict[tuple[str, str], NDArray[np.uint8]] = {}
    for name, (split, content) in FILES.items():
        for known_as in (name, f"{name}.gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz"):
            file = folder / known_as
            try:
                data = file.read_bytes()
            except FileNotFoundError:
                continue
            arrays[split, content] = _parse(_decompress(data, str(file)), content, str(file))
            break
    for split, prefix in (("train", "train"), ("test", "t10k")):
        if (split, "labels") in arrays and (split, "images") not in arrays:
            raise InputError(f"{folder / prefix}-images-idx3-ubyte[.gz] is missing beside its labels; copy it there")
    return _to_splits(arrays, str(folder))


def _load_file(file: Location) -> ArraySplits:
    """Images, with the labels of the file beside it that has "labels" in its name for "images"."""
    images = _parse(_decompress(file.read_bytes(), str(file)), "images", str(file))
    beside = file.parent / file.name.replace("images", "labels").replace("idx3", "idx1")
    if beside.name == file.name or not beside.is_file():
        return {"all": ArraySplit(images, np.full(len(images), -1, np.int64))}
    labels = _parse(_decompress(beside.read_bytes(), str(beside)), "labels", str(beside))
    require_as_many(images, labels, "all", str(file))
    return {"all": ArraySplit(images, labels.astype(np.int64))}


def _load_embedded() -> ArraySplits:
    folder = resources.files("mnist_ray") / "data"
    arrays: dict[tuple[str, str], NDArray[np.uint8]] = {}
    for name, (split, content) in FILES.items():
        where = f"{folder / name}.gz"
        try:
            data = _decompress((folder / f"{name}.gz").read_bytes(), where)
        except FileNotFoundError as error:
            raise InputError(f"{where} is missing from the package; install mnist-ray again") from error
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != _MNIST_MD5[name]:
            raise InputError(f"{where} is damaged: its MD5 is not {_MNIST_MD5[name]}; install mnist-ray again")
        arrays[split, content] = _parse(data, content, where)
    return _to_splits(arrays, "mnist")


def _to_splits(arrays: dict[tuple[str, str], NDArray[np.uint8]], where: str) -> ArraySplits:
    splits = {}
    for split in ("train", "test"):
        images, labels = arrays.get((split, "images")), arrays.get((split, "labels"))
        if images is None:
            continue
        if labels is not None:
            require_as_many(images, labels, split, where)
        known = np.full(len(images), -1, np.int64) if labels is None else labels.astype(np.int64)
        splits[split] = ArraySplit(images, known)
    return splits


def _decompress(data: bytes, where: str) -> bytes:
    """The bytes of a file, decompressed if they are gzip's, whatever its name.

    Stops one byte after the length that the IDX header promises, or earlier: a small file must not fill the memory.
    """
    if not data:
        raise InputError(f"{where} is empty; copy it again")
    if not data.startswith(_GZIP):
        return data
    blocks: list[bytes] = []
    size, promised = 0, _LONGEST_HEADER
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            while size <= promised and (block := stream.read(min(promised + 1 - size, BLOCK))):
                blocks.append(block)
                size += len(block)
                if size == len(block) and block[3:4] in (b"\1", b"\3"):  # the first block, with the header
                    promised = 4 + 4 * block[3] + math.prod(_lengths(block, block[3]))
                refuse_bomb(size, len(data), where)
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{where} is truncated or damaged ({error}); copy it again") from error
    return b"".join(blocks)


def _parse(data: bytes, content: str, where: str) -> NDArray[np.uint8]:
    """(n, h, w) images or (n,) labels. An IDX file is 0, 0, type, number of axes, the axes' lengths, data."""
    axes = 3 if content == "images" else 1
    header = 4 + 4 * axes
    if data[:4] != bytes((0, 0, 8, axes)):
        raise InputError(f"{where} is not an IDX file of {content}: it begins with {data[:4].hex()}, not 0000080{axes}")
    if len(data) < header:
        raise InputError(f"{where} is truncated within its header; copy it again")
    shape = _lengths(data, axes)
    if len(data) - header != math.prod(shape):
        state = "truncated" if len(data) - header < math.prod(shape) else "too long"
        raise InputError(
            f"{where} is {state}: its header promises {math.prod(shape):,} bytes of {content}, "
            f"and {len(data) - header:,} follow; copy it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _lengths(data: bytes, axes: int) -> tuple[int, ...]:
    """The lengths of the axes in a header; fewer where it is cut off."""
    return tuple(int.from_bytes(data[at : at + 4]) for at in range(4, min(4 + 4 * axes, len(data)), 4))
