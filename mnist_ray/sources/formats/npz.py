"""NumPy arrays: `.npz` archives and single `.npy` files, mapped from a local disk where they are not compressed."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError, UserError
from mnist_ray.sources.base import Reading
from mnist_ray.sources.formats.arrays import BLOCK, ArraySource, ArraySplits, open_arrays, refuse_bomb, to_splits
from mnist_ray.sources.formats.containers import ArrowFile
from mnist_ray.storage.location import Location

_LOCAL_HEADER = 30  # bytes of a zip member's header, before its name and extra field


def open_npz(file: Location, reading: Reading) -> ArraySource:
    """An archive with the arrays that `load_npz` looks for."""
    options = {"takes_labels": reading.takes("column"), "takes_several": reading.takes_several}
    return open_arrays(str(file), partial(load_npz, file, signed=reading.signed, **options), reading)


def open_npy(file: Location, reading: Reading) -> ArraySource:
    """Images without labels."""
    return open_arrays(str(file), partial(_load_npy, file, signed=reading.signed), reading)


def load_npz(
    file: Location, *, signed: bool = False, takes_labels: bool = True, takes_several: bool = False
) -> ArraySplits:
    """Either x_train, y_train, x_test and y_test, as Keras stores its datasets; or x or images, with or without y or
    labels. The options are those of `Reading`. Raises InputError where arrays are missing or damaged."""
    try:
        with file.open_file() as opened, zipfile.ZipFile(_stream(opened, file)) as archive:
            arrays = {
                split: (_read_member(archive, x, file), _read_member(archive, y, file) if y and takes_labels else None)
                for split, (x, y) in _choose_arrays(archive.namelist(), file).items()
            }
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist") from error
    except UserError:
        raise
    except Exception as error:  # zipfile raises almost anything on a damaged archive
        raise InputError(f"{file} is truncated or damaged ({error}); copy it again") from error
    return to_splits(arrays, str(file), signed=signed, takes_several=takes_several)


def _choose_arrays(members: Sequence[str], file: Location) -> dict[str, tuple[str, str | None]]:
    """The names of each split's images and labels. Raises InputError where one is missing."""
    names = [member.removesuffix(".npy") for member in members]
    if {"train_images", "train_labels", "test_images", "test_labels"} <= set(names):  # as MedMNIST has them
        return {split: (f"{split}_images", f"{split}_labels") for split in ("train", "test")}
    images = next((name for name in ("x", "images") if name in names), None)
    if images and "x_train" not in names:
        return {"all": (images, next((name for name in ("y", "labels") if name in names), None))}
    for name in ("x_train", "y_train", "x_test", "y_test"):
        if name not in names:
            if members and not any(member.endswith(".npy") for member in members):
                raise InputError(f"{file} is a ZIP archive of {len(members):,} files; unpack it, and give the folder")
            others = f", only {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" if names else ""
            raise InputError(
                f"{file} has no array {name}{others}; it needs x_train, y_train, x_test and y_test, or x and y"
            )
    return {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}


def _load_npy(file: Location, *, signed: bool) -> ArraySplits:
    with file.open_file() as opened:
        stream = _stream(opened, file)
        images = _read_array(stream, opened.size(), str(file), file if file.is_local else None, 0)
    return to_splits({"all": (images, None)}, str(file), signed=signed)


def _stream(opened: Any, file: Location) -> io.BufferedReader:
    """An open file whose errors are those of the storage, and no damage."""
    return io.BufferedReader(ArrowFile(opened, file), BLOCK)


def _read_member(archive: zipfile.ZipFile, name: str, file: Location) -> NDArray[Any]:
    """One array: mapped if it is stored uncompressed in a local file, else in memory."""
    info = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
    where = f"{file}: {name}"
    refuse_bomb(info.file_size, info.compress_size, where)
    with archive.open(info) as stream:
        if info.compress_type != zipfile.ZIP_STORED or not file.is_local:
            return _read_array(stream, info.file_size, where, None, 0)
        array = _read_array(stream, info.file_size, where, file, _begin_of(info, file))
        while stream.read(BLOCK):  # zipfile compares the checksum at the end
            pass
        return array


def _begin_of(info: zipfile.ZipInfo, file: Location) -> int:
    """The position of a member's first byte: behind a header, a name and an extra field, all in front of it."""
    with Path(file.path).open("rb") as opened:
        opened.seek(info.header_offset)
        header = opened.read(_LOCAL_HEADER)
    lengths = header[26:28], header[28:30]
    return info.header_offset + _LOCAL_HEADER + sum(int.from_bytes(length, "little") for length in lengths)


def _read_array(stream: IO[bytes], size: int, where: str, mapped: Location | None, begin: int) -> NDArray[Any]:
    """The array in `size` bytes of the .npy format.

    `mapped` is the local file that has these bytes from position `begin` on; None: the array is read into memory.
    """
    shape, is_fortran, kind = _read_header(stream, where)
    offset, values = stream.tell(), math.prod(int(length) for length in shape)
    if not all(length >= 0 for length in shape) or offset + values * kind.itemsize != size:
        raise InputError(
            f"{where} is truncated or damaged: its header promises {shape} of {kind}, and"
            f" {size - offset:,} bytes follow; copy it again"
        )
    order: Any = "F" if is_fortran else "C"
    if mapped is not None and values:
        return np.memmap(mapped.path, kind, "r", begin + offset, shape, order)
    return np.frombuffer(stream.read(), kind).reshape(shape, order=order)


def _read_header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, whether the order is Fortran's, and the type. Raises InputError unless they are plain numbers."""
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"of version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, kind = read(stream)
    except (zipfile.BadZipFile, zlib.error, EOFError, UserError):  # the archive is damaged, not the array, or away
        raise
    except Exception as error:  # numpy raises almost anything on a damaged header
        text = str(error).split("\n")[0]
        raise InputError(
            f"{where} is not a plain array ({text}); save it as numbers, or text by .astype(str)"
        ) from error
    if kind.hasobject:
        raise InputError(
            f"{where} is not a plain array (it holds Python objects); save it as numbers, or text by .astype(str)"
        )
    if kind.kind not in "uifbUS":
        raise InputError(f"{where} is of type {kind}; images and labels must be numbers")
    return shape, is_fortran, kind
