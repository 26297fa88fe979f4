"""Inputs that are small enough to be decoded whole: embedded MNIST, IDX directories, `.npz`, `keras:NAME`.

Each process decodes an input once. Equal images and labels have an equal digest, whichever of these formats has them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError, RetryableError, UserError
from mnist_ray.readers import pixels
from mnist_ray.sources import Bad, Batch, Reading, Source
from mnist_ray.storage import Location

# name: (split, what, MD5 of the original uncompressed)
_MNIST = {
    "train-images-idx3-ubyte": ("train", "images", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("train", "labels", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("test", "images", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("test", "labels", "27ae3e4e09519cfbb04c329615203637"),
}
IDX_NAMES = tuple(_MNIST)
_KERAS = {"mnist": "mnist.npz", "fashion_mnist": "fashion-mnist"}  # name: where keras.datasets caches it
_DOWNLOAD_SECONDS = 20.0  # without an answer
_BLOCK = 1 << 20
_LARGE = 256 << 20  # bytes, from which on what unpacks to
_MOST_SHRUNK = 100  # times its size is taken for a bomb


@dataclass(frozen=True)
class _Split:
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    reasons: dict[int, str] = field(default_factory=dict)  # of the rows that are bad


_Splits = Mapping[str, _Split]
_decoded: dict[str, _Splits] = {}  # this process's, by digest: the last one only


@dataclass(frozen=True, kw_only=True)
class ArraySource(Source):
    """Decoded when it is opened, and again once in every process that reads it."""

    load: Callable[[], _Splits]
    content: str
    """sha256 of shapes, labels and pixels."""

    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        part = self._splits()[split]
        assert 0 <= start <= stop <= len(part.images), (start, stop)
        ids, images, labels = np.arange(start, stop), part.images[start:stop], part.labels[start:stop]
        bad = tuple(Bad(row, None, part.reasons[row]) for row in sorted(part.reasons) if start <= row < stop)
        if bad:
            good = np.ones(stop - start, bool)
            good[[each.row - start for each in bad]] = False
            ids, images, labels = ids[good], images[good], labels[good]
        return self._settled(split, Batch(ids, self.convert.arrays(images), labels, bad=bad), strict)

    def digest(self) -> str:
        return self.content

    def _splits(self) -> _Splits:
        if self.content not in _decoded:
            splits = _loaded(self.name, self.load)
            if _digest(splits) != self.content:
                raise InputError(f"{self.name} has changed since it was opened, or differs between hosts; start anew")
            _keep(self.content, splits)
        return _decoded[self.content]


def open_named(spec: str, reading: Reading) -> ArraySource:
    """`embedded`, the original MNIST from the package's own four files, or `keras:NAME`, a dataset of keras.datasets:
    from its cache, else downloaded.

    Raises InputError where one is damaged or unknown, RetryableError where it is neither there nor reachable.
    """
    if spec == "embedded":
        return _opened("mnist", _load_embedded, reading)
    name = spec.removeprefix("keras:")
    if name not in _KERAS:
        raise InputError(f"keras:{name} is not known; there are {', '.join(f'keras:{known}' for known in _KERAS)}")
    return _opened(spec, partial(_load_keras, name), reading)


def open_idx(folder: Location, reading: Reading) -> ArraySource:
    """A directory that holds the four files of MNIST or of anything else in its layout, gzipped or not."""
    return _opened(str(folder), partial(_load_idx, folder), reading)


def open_npz(file: Location, reading: Reading) -> ArraySource:
    """An archive of x_train, y_train, x_test and y_test, as Keras stores its datasets; or of x or images alone, and
    y or labels."""
    return _opened(str(file), partial(_load_npz, file), reading)


def open_npy(file: Location, reading: Reading) -> ArraySource:
    """Images without labels."""
    return _opened(str(file), partial(_load_npy, file), reading)


def _opened(name: str, load: Callable[[], _Splits], reading: Reading) -> ArraySource:
    splits = _loaded(name, load)
    content = _digest(splits)
    _keep(content, splits)
    first = next(iter(splits.values()))
    return ArraySource(
        name=name,
        classes=pixels.class_names(max(int(part.labels.max(initial=-1)) for part in splits.values())),
        image_shape=reading.convert.shape(first.images.shape[1:]),
        splits={split: len(part.images) for split, part in splits.items()},
        convert=reading.convert,
        load=load,
        content=content,
    )


def _loaded(name: str, load: Callable[[], _Splits]) -> _Splits:
    """All splits, of one image shape."""
    splits = load()
    shapes = [part.images.shape[1:] for part in splits.values()]
    try:
        if len(set(shapes)) > 1:
            raise ValueError(f"images must have one size, but {' and '.join(splits)} have {shapes[0]} and {shapes[1]}")
        shape = pixels.image_shape(shapes[0])
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    return {split: replace(part, images=part.images.reshape(-1, *shape)) for split, part in splits.items()}


def _keep(content: str, splits: _Splits) -> None:
    _decoded.clear()
    _decoded[content] = splits


def _digest(splits: _Splits) -> str:
    total = hashlib.sha256()
    for split, part in splits.items():
        total.update(repr((split, part.images.shape, part.reasons)).encode())
        total.update(np.ascontiguousarray(part.labels).data)
        total.update(np.ascontiguousarray(part.images).data)
    return total.hexdigest()


def _load_embedded() -> _Splits:
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


def _load_idx(folder: Location) -> _Splits:
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
            while held <= promised and (block := stream.read(min(promised + 1 - held, _BLOCK))):
                blocks.append(block)
                held += len(block)
                if held == len(block) and block[3:4] in (b"\1", b"\3"):
                    promised = 4 + 4 * block[3] + math.prod(_lengths(block, block[3]))
                _refuse_bomb(held, len(data), where)
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{where} is truncated or damaged ({error}); copy it again") from error
    return b"".join(blocks)


def _lengths(data: bytes, axes: int) -> tuple[int, ...]:
    """Of an IDX header's axes; fewer where it is cut off."""
    return tuple(int.from_bytes(data[at : at + 4]) for at in range(4, min(4 + 4 * axes, len(data)), 4))


def _refuse_bomb(unpacked: int, packed: int, where: str) -> None:
    """Images do not shrink so: a small file must not fill the memory."""
    if unpacked > _LARGE and unpacked > _MOST_SHRUNK * packed:
        raise InputError(f"{where} unpacks to more than {_MOST_SHRUNK} times its size; store it uncompressed")


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


def _idx_splits(parts: dict[tuple[str, str], NDArray[np.uint8]], where: str) -> _Splits:
    return {
        split: _Split(*_paired(parts[split, "images"], parts[split, "labels"].astype(np.int64), split, where))
        for split in ("train", "test")
    }


def _paired(images: NDArray[Any], labels: NDArray[Any], split: str, where: str) -> tuple[NDArray[Any], NDArray[Any]]:
    if len(images) != len(labels):
        raise InputError(f"{where}: {len(images)} {split} images but {len(labels)} labels; they must be as many")
    return images, labels


def _load_npz(file: Location) -> _Splits:
    """Images and labels of the first of these that there are: x_train … y_test; x or images alone, and y or labels."""
    try:
        with file.open_file() as opened, zipfile.ZipFile(opened) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
            pairs = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
            if (alone := next((key for key in ("x", "images") if key in held), None)) and "x_train" not in held:
                pairs = {"all": (alone, next((key for key in ("y", "labels") if key in held), ""))}
            for key in (key for pair in pairs.values() for key in pair if key and key not in held):
                raise InputError(
                    f"{file} has no array {key}, only {', '.join(held) or 'none'}; it needs x_train, y_train, x_test"
                    " and y_test, or x and y"
                )
            arrays = {
                split: (_member(archive, x, file), _member(archive, y, file) if y else None)
                for split, (x, y) in pairs.items()
            }
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist") from error
    except UserError:
        raise
    except Exception as error:  # zipfile raises almost anything on a damaged archive
        raise InputError(f"{file} is truncated or damaged ({error}); copy it again") from error
    unit_range = pixels.in_unit_range(next(iter(arrays.values()))[0][: pixels.SAMPLE_ROWS])
    return {split: _numeric_split(x, y, split, unit_range, str(file)) for split, (x, y) in arrays.items()}


def _load_npy(file: Location) -> _Splits:
    with file.open_file() as opened:
        images = _array(opened, opened.size(), f"{file}", file if file.is_local else None, 0)
    unit_range = pixels.in_unit_range(images[: pixels.SAMPLE_ROWS])
    return {"all": _numeric_split(images, None, "all", unit_range, str(file))}


def _member(archive: zipfile.ZipFile, key: str, file: Location) -> NDArray[Any]:
    """Mapped where it is stored as it is in a local file; else in memory."""
    info = archive.getinfo(f"{key}.npy" if f"{key}.npy" in archive.namelist() else key)
    _refuse_bomb(info.file_size, info.compress_size, f"{file}: {key}")
    with archive.open(info) as stream:
        if info.compress_type != zipfile.ZIP_STORED or not file.is_local:
            return _array(stream, info.file_size, f"{file}: {key}", None, 0)
        with Path(file.path).open("rb") as raw:  # behind the local header, whose name and extra field vary in length
            raw.seek(info.header_offset)
            header = raw.read(30)
            begin = info.header_offset + 30 + int.from_bytes(header[26:28], "little")
            begin += int.from_bytes(header[28:30], "little")
        array = _array(stream, info.file_size, f"{file}: {key}", file, begin)
        while stream.read(_BLOCK):  # to the end, where it compares the checksum
            pass
        return array


def _array(stream: Any, size: int, where: str, file: Location | None, begin: int) -> NDArray[Any]:
    """Of `.npy` format, `size` bytes; mapped where `file` has it, from byte `begin` on."""
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"of version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, kind = read(stream)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError):  # the archive, not the array, is damaged
        raise
    except Exception as error:  # numpy raises almost anything on a damaged header
        text = str(error).split("\n")[0]
        raise InputError(f"{where} is not a plain array ({text}); save it again as numbers") from error
    if kind.hasobject:
        raise InputError(f"{where} is not a plain array (it holds Python objects); save it again as numbers")
    if kind.kind not in "uif":
        raise InputError(f"{where} is of type {kind}; images and labels must be numbers")
    offset, values = stream.tell(), math.prod(int(length) for length in shape)
    if not all(length >= 0 for length in shape) or offset + values * kind.itemsize != size:
        raise InputError(
            f"{where} is truncated or damaged: its header promises {shape} of {kind}, and"
            f" {size - offset:,} bytes follow; copy it again"
        )
    order: Any = "F" if is_fortran else "C"
    if file is not None and values:
        return np.memmap(file.path, kind, "r", begin + offset, shape, order)
    return np.frombuffer(stream.read(), kind).reshape(shape, order=order)


def _numeric_split(
    images: NDArray[Any], labels: NDArray[Any] | None, split: str, unit_range: bool, where: str
) -> _Split:
    if labels is None:
        if images.ndim not in (3, 4):
            raise InputError(f"{where}: the images have the shape {images.shape}, not (n, h, w) or (n, h, w, 3)")
        as_bytes, bad_pixels = pixels.to_uint8(images, unit_range)
        return _Split(as_bytes, np.full(len(images), -1, np.int64), bad_pixels)
    if labels.ndim == 2 and labels.shape[1] == 1:  # as keras.datasets stores some
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(f"{where}: y_{split} has the shape {labels.shape}; labels must be one class number an image")
    if images.ndim not in (3, 4):
        raise InputError(f"{where}: x_{split} has the shape {images.shape}, not (n, h, w) or (n, h, w, 3)")
    _paired(images, labels, split, where)
    as_bytes, bad_pixels = pixels.to_uint8(images, unit_range)
    numbers, bad_labels = pixels.to_labels(labels)
    return _Split(as_bytes, numbers, bad_labels | bad_pixels)


def _load_keras(name: str) -> _Splits:
    """From Keras' cache without importing Keras, which takes seconds; else Keras downloads it."""
    home = os.environ.get("KERAS_HOME")
    cache = Location.parse(Path(home) if home else Path("~/.keras")) / "datasets" / _KERAS[name]
    if cache.is_file():
        return _load_npz(cache)
    if cache.is_dir() and all((cache / f"{file}.gz").is_file() for file in IDX_NAMES):
        return _load_idx(cache)
    return _downloaded(name)


def _downloaded(name: str) -> _Splits:
    import socket

    import keras

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_SECONDS)  # Keras sets none, and a silent firewall would hold us for ever
    try:
        with redirect_stdout(sys.stderr):  # its progress bar
            train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception here
        reason = str(error).split("\n")[0]
        raise RetryableError(
            f"keras:{name} is not in Keras' cache and cannot be downloaded ({reason}); "
            "try again with a network, or use --data embedded"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return {
        split: _numeric_split(images, labels, split, False, f"keras:{name}")
        for split, (images, labels) in (("train", train), ("test", test))
    }
