"""Images in a report, encoded small. Those of an output are kept in it, so that the report can be made again without
the input."""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import closing

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mnist_ray.errors import UserError
from mnist_ray.report.sample import Shown
from mnist_ray.sources.base import Source
from mnist_ray.storage.location import Location
from mnist_ray.storage.parallel import in_parallel

KEPT = "_images.arrow"
"""In an output: the number of each row that the report shows, and its image as a PNG or JPEG."""

LARGE_SIDE = 64  # pixels: larger images are scaled down smoothly, smaller ones up with sharp pixels

_MOST_PNG_BYTES = 6_000  # so that a hundred images leave the page below a megabyte
_THUMBNAIL_SIDE = 128
_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff\xe0": "jpeg"}
_MOST_KEPT_BYTES = 8 << 20

_SECONDS = 1.5  # for reading images of the input, whatever they cost
_READS_AT_ONCE = 4
_MOST_TOGETHER = 8  # rows; the time is looked at before each read
_MOST_PIXELS = 1 << 20  # of neighbours that are read together


def encode(image: NDArray[np.uint8]) -> bytes:
    """A PNG with exactly these pixels, or a small JPEG where that would be large. image: (h, w[, channels])."""
    from PIL import Image

    picture, buffer = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image), io.BytesIO()
    if max(picture.size) <= 4 * _THUMBNAIL_SIDE:
        picture.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= _MOST_PNG_BYTES:
            return buffer.getvalue()
    picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def data_uri(encoded: bytes) -> str | None:
    """What an image's `src` holds; None for anything but a PNG or JPEG."""
    kind = _KINDS.get(encoded[:4])
    return kind and f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def read_images(source: Source, split: str, shown: Iterable[Shown]) -> dict[int, bytes]:
    """The images of an input by row, encoded; as many of them as can be read in a second or two, in the order given."""
    deadline = time.monotonic() + _SECONDS

    def read(rows: list[int]) -> dict[int, bytes]:
        if time.monotonic() > deadline:
            return {}
        batch = source.read(split, rows[0], rows[-1] + 1, strict=False)
        there = np.setdiff1d(np.arange(rows[0], rows[-1] + 1), [bad.row for bad in batch.bad])
        return {row: encode(batch.images[place]) for place, row in enumerate(there.tolist()) if row in rows}

    rows = dict.fromkeys(each.row for each in shown if each.row is not None)
    most = max(1, _MOST_PIXELS // math.prod(source.image_shape))
    with closing(in_parallel(read, _stretches(list(rows), most), at_once=_READS_AT_ONCE)) as stretches:
        return {row: encoded for images in stretches for row, encoded in images.items()}


def _stretches(rows: list[int], most: int) -> list[list[int]]:
    """Distinct rows, neighbours together, as what lies before a row may have to be unpacked each time: at most so many
    rows from the first to the last. Each stretch ascends; the first holds the first row, and so on."""
    found: list[list[int]] = []
    for row in sorted(rows):
        if found and row - found[-1][0] < min(most, _MOST_TOGETHER):
            found[-1].append(row)
        else:
            found.append([row])
    places = {row: place for place, row in enumerate(rows)}
    return sorted(found, key=lambda stretch: min(places[row] for row in stretch))


def keep(output: Location, images: Mapping[int, bytes]) -> None:
    """Write the images of an output beside it."""
    table = pa.table({"row": pa.array(images, pa.int64()), "image": pa.array(images.values(), pa.binary())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (output / KEPT).write_bytes(memoryview(sink.getvalue()))


def kept(output: Location) -> dict[int, bytes]:
    """The images that were kept of an output, by row; none where the file is missing or damaged."""
    file = output / KEPT
    try:
        if not file.is_file() or file.size() > _MOST_KEPT_BYTES:
            return {}
        table = pa.ipc.open_file(pa.BufferReader(file.read_bytes())).read_all()
        return dict(zip(table["row"].to_pylist(), table["image"].to_pylist(), strict=True))
    except (UserError, OSError, ValueError, KeyError):  # Arrow's errors are among the last three
        return {}
