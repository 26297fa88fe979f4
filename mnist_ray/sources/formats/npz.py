"""NumPy archives and arrays (.npz, .npy), mapped from disk where they are not compressed."""

from __future__ import annotations

import math
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError, UserError
from mnist_ray.sources import pixels
from mnist_ray.sources.base import Reading
from mnist_ray.sources.formats.arrays import ArraySource, ArraySplits, numeric_split, open_arrays, refuse_bomb
from mnist_ray.sources.formats.idx import BLOCK
from mnist_ray.storage.location import Location


def open_npz(file: Location, reading: Reading) -> ArraySource:
    """An archive of x_train, y_train, x_test and y_test, as Keras stores its datasets; or of x or images alone, and
    y or labels."""
    return open_arrays(str(file), partial(load_npz, file), reading)


def open_npy(file: Location, reading: Reading) -> ArraySource:
    """Images without labels."""
    return open_arrays(str(file), partial(_load_npy, file), reading)


def load_npz(file: Location) -> ArraySplits:
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
    return {split: numeric_split(x, y, split, unit_range, str(file)) for split, (x, y) in arrays.items()}


def _load_npy(file: Location) -> ArraySplits:
    with file.open_file() as opened:
        images = _array(opened, opened.size(), f"{file}", file if file.is_local else None, 0)
    unit_range = pixels.in_unit_range(images[: pixels.SAMPLE_ROWS])
    return {"all": numeric_split(images, None, "all", unit_range, str(file))}


def _member(archive: zipfile.ZipFile, key: str, file: Location) -> NDArray[Any]:
    """Mapped where it is stored as it is in a local file; else in memory."""
    info = archive.getinfo(f"{key}.npy" if f"{key}.npy" in archive.namelist() else key)
    refuse_bomb(info.file_size, info.compress_size, f"{file}: {key}")
    with archive.open(info) as stream:
        if info.compress_type != zipfile.ZIP_STORED or not file.is_local:
            return _array(stream, info.file_size, f"{file}: {key}", None, 0)
        with Path(file.path).open("rb") as raw:  # behind the local header, whose name and extra field vary in length
            raw.seek(info.header_offset)
            header = raw.read(30)
            begin = info.header_offset + 30 + int.from_bytes(header[26:28], "little")
            begin += int.from_bytes(header[28:30], "little")
        array = _array(stream, info.file_size, f"{file}: {key}", file, begin)
        while stream.read(BLOCK):  # to the end, where it compares the checksum
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
