"""What folders and archives share: many image files, found through a listing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError, require
from mnist_ray.sources import decoding, pixels
from mnist_ray.sources.base import Bad, Batch, Source
from mnist_ray.sources.labels import row_of_text
from mnist_ray.sources.layout import is_split_folder
from mnist_ray.sources.listing import Listing

MAX_BYTES = 64 << 20  # of an encoded image; a larger file is refused before it fills the memory
TOO_LARGE = f"is larger than {MAX_BYTES >> 20} MiB"
_ROWS_AT_ONCE = 1024
_SAMPLES = 8  # places of an input where an image is decoded, to learn the images' shapes
_TRIES = 100  # rows to look for a readable image in, at each place


class Entry(NamedTuple):
    """One file and its bytes."""

    id: str
    source: str
    """Its path."""
    label: str
    """"" where it has none."""
    data: bytes
    reason: str | None = None
    """Why it cannot be read, where that is known before it is decoded."""


@dataclass(frozen=True, kw_only=True)
class EncodedSource(Source):
    """A source whose images are files, with their paths as ids."""

    listing: Listing

    @property
    def id_kind(self) -> str:
        return "text"

    @property
    def is_encoded(self) -> bool:
        return True

    @abstractmethod
    def _entries(self, split: str, start: int, stop: int) -> Iterator[Entry]:
        """The files of rows start..stop, in order."""

    def _pixels(self, data: bytes, shape: tuple[int, ...] | None) -> NDArray[np.uint8]:
        """One image, converted. Raises ValueError with a reason where it cannot be, or has another shape."""
        return decoding.decode(data, shape, self.convert)

    def identity(self) -> str:
        return self._as_converted(self.listing.digest)

    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        require(0 <= start <= stop <= self.splits[split], f"{self.name} has no rows {start}..{stop}")
        return self._batch(split, range(start, stop), self._entries(split, start, stop), strict)

    def stream(self, split: str, start: int, stop: int, *, strict: bool = True) -> Iterator[Batch]:
        """Opens each archive once, as what is compressed is read from its beginning."""
        step = pixels.rows_at_once(self.image_shape, _ROWS_AT_ONCE)
        entries = self._entries(split, start, stop)
        for first in range(start, stop, step):
            rows = range(first, min(first + step, stop))
            yield self._batch(split, rows, islice(entries, len(rows)), strict)

    def _batch(self, split: str, rows: range, entries: Iterator[Entry], strict: bool) -> Batch:
        ids, images, labels, sources, bad = [], [], [], [], []
        for row, entry in zip(rows, entries, strict=True):
            try:
                if entry.reason is not None:
                    raise ValueError(entry.reason)
                image, label = self._pixels(entry.data, self.image_shape), self._label(entry.label)
            except ValueError as error:
                bad.append(Bad(row, entry.source, str(error)))
                continue
            ids.append(entry.id)
            images.append(image)
            labels.append(label)
            sources.append(entry.source)
        batch = Batch(
            np.array(ids, dtype=object),
            np.stack(images) if images else np.empty((0, *self.image_shape), np.uint8),
            self._to_labels(labels),
            sources,
            tuple(bad),
        )
        return self._checked(split, batch, strict)

    def _label(self, text: str) -> int | NDArray[np.int8]:
        """The class, -1 where there is none; or the row of several. Raises ValueError with a reason where it is bad."""
        return row_of_text(text, self._numbers, self.several) if self.several else self._numbers.get(text, -1)

    def _first(self, split: str, start: int, stop: int, failed: list[str]) -> tuple[Entry, tuple[int, ...]] | None:
        """The first readable image in a range, and its shape. Why those before it are not goes into `failed`."""
        try:
            for entry in self._entries(split, start, stop):
                try:
                    if entry.reason is not None:
                        raise ValueError(entry.reason)
                    return entry, self._pixels(entry.data, None).shape
                except ValueError as error:
                    failed.append(f"{entry.source} {error}")
        except InputError as error:  # an archive was removed
            failed.append(str(error))
        return None


E = TypeVar("E", bound=EncodedSource)


def with_shapes(source: E) -> E:
    """The source with the shapes of readable images from a few places, and whether these have more frames than one.

    Raises InputError where none is readable.
    """
    shapes: list[tuple[int, ...]] = []
    animated: list[str] = []
    failed: list[str] = []
    for split, rows in source.splits.items():
        for start in range(0, rows, max(-(-rows // _SAMPLES), 1)):
            for first, last in ((start, start + 1), (start + 1, start + _TRIES)):  # the first image usually suffices
                if found := source._first(split, min(first, rows), min(last, rows), failed):
                    shapes.append(found[1])
                    if decoding.is_encoded(found[0].data) and decoding.has_more_frames(found[0].data):
                        animated.append(found[0].source)
                    break
    if not shapes:
        raise InputError(f"{source.name} holds no image that can be read: {failed[0]}")
    remarks = (f"{animated[0]} has several frames; the first of each such image is read",) if animated else ()
    return replace(
        source, image_shape=shapes[0], sampled=tuple(dict.fromkeys(shapes)), remarks=(*source.remarks, *remarks)
    )


def class_of(path: str) -> str:
    """The class folder of a path: "7" for train/7/1.png and 7/a/1.png, "" for a path without one."""
    parts = path.removeprefix("./").split("/")
    if is_split_folder(parts[0]):
        parts = parts[1:]
    return parts[0] if len(parts) > 1 else ""
