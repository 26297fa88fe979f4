"""Small inputs in every format that `--data` takes, written with other means than the readers under test."""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from mnist_ray.sources.open import open_source

IDX = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def images(rows: int, shape: tuple[int, ...] = (4, 4), seed: int = 0) -> NDArray[np.uint8]:
    """Random pixels; the first of each image is its row number, so that rows can be told apart (up to 256)."""
    made = np.random.default_rng(seed).integers(0, 256, (rows, *shape), dtype=np.uint8)
    made[(slice(None), *(0 for _ in shape))] = np.arange(rows) % 256
    return made


def labels(rows: int, classes: int = 3) -> NDArray[np.int64]:
    return np.arange(rows, dtype=np.int64) % classes


def idx_bytes(array: NDArray[Any]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, train: int = 7, test: int = 5, *, gz: bool = True, shape: tuple[int, int] = (4, 4)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for (split, what), name in IDX.items():
        rows = train if split == "train" else test
        data = idx_bytes(images(rows, shape) if what == "images" else labels(rows))
        (folder / (f"{name}.gz" if gz else name)).write_bytes(gzip.compress(data, mtime=0) if gz else data)
    return folder


def write_npz(file: Path, train: int = 7, test: int = 5, **changed: Any) -> Path:
    """`changed` replaces arrays by key; None leaves one out."""
    arrays = {
        "x_train": images(train), "y_train": labels(train), "x_test": images(test), "y_test": labels(test)
    } | changed  # fmt: skip
    np.savez(file, **{key: array for key, array in arrays.items() if array is not None})
    return file


def write_mnist(file: Path, train: int, test: int) -> Path:
    """The first rows of each split of MNIST, as .npz."""
    mnist = open_source("embedded")
    first, of_test = mnist.read("train", 0, train), mnist.read("test", 0, test)
    np.savez(file, x_train=first.images, y_train=first.labels, x_test=of_test.images, y_test=of_test.labels)
    return file


def write_folders(folder: Path, train: int = 7, test: int = 5, *, shape: tuple[int, ...] = (4, 4)) -> Path:
    for split, rows in (("train", train), ("test", test)):
        for row, (image, label) in enumerate(zip(images(rows, shape), labels(rows), strict=True)):
            file = folder / split / f"class-{label}" / f"{row:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return folder


def write_parquet(
    file: Path,
    rows: int = 7,
    *,
    shape: tuple[int, ...] = (4, 4),
    row_group_size: int = 3,
    named_shape: bool = False,
    **changed: Any,
) -> Path:
    """Raw pixels in `image`; `changed` replaces or adds columns (arrow arrays or lists), None leaves one out."""
    raw = images(rows, shape)
    columns = {
        "image": pa.array([image.tobytes() for image in raw], pa.binary(math.prod(shape))),
        "label": pa.array(labels(rows)),
    } | changed
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    if named_shape:
        table = table.replace_schema_metadata({"image_shape": json.dumps(shape)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=row_group_size)
    return file


def png(image: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def write_tar(file: Path, members: dict[str, bytes | str], **options: Any) -> Path:
    """Text is the target of a link."""
    with tarfile.open(file, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file


def write_zip(file: Path, members: dict[str, Any], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def webdataset(rows: int, first: int = 0) -> dict[str, bytes | str]:
    members: dict[str, bytes | str] = {}
    for row in range(first, first + rows):
        members[f"{row:04d}.json"] = b"{}"
        members[f"{row:04d}.png"] = png(images(20)[row])
        members[f"{row:04d}.cls"] = f"{row % 3}\n".encode()
    return members
