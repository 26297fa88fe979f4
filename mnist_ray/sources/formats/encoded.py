"""What folders and archives share: many PNG or JPEG files, of which a listing tells where they are."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np

from mnist_ray.errors import InputError
from mnist_ray.sources import pixels
from mnist_ray.sources.base import Bad, Batch, Source
from mnist_ray.sources.listing import Listing

MAX_BYTES = 64 << 20  # of an encoded image; what is larger is none, and stays out of memory
_ROWS_AT_ONCE = 1024
_PIXELS_AT_ONCE = 64 << 20
_STRETCHES = 8  # of an input, whose first images tell the shape of all
_TRIES = 100  # rows of a stretch


class Entry(NamedTuple):
    """One file. `reason` is why it cannot be read, where that is known before it is decoded."""

    id: str
    source: str
    label: int
    data: bytes
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class EncodedSource(Source):
    """Its ids are text, and each image has a source of its own."""

    listing: Listing

    @property
    def id_kind(self) -> str:
        return "text"

    @property
    def is_encoded(self) -> bool:
        return True

    @abstractmethod
    def _entries(self, split: str, start: int, stop: int) -> Iterator[Entry]:
        """Rows start..stop, in order."""

    def identity(self) -> str:
        return self._as_converted(self.listing.digest)

    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        assert 0 <= start <= stop <= self.splits[split], (start, stop)
        ids, images, labels, sources, bad = [], [], [], [], []
        for row, entry in zip(range(start, stop), self._entries(split, start, stop), strict=True):
            try:
                if entry.reason is not None:
                    raise ValueError(entry.reason)
                images.append(pixels.decode(entry.data, self.image_shape, self.convert))
            except ValueError as error:
                bad.append(Bad(row, entry.source, str(error)))
                continue
            ids.append(entry.id)
            labels.append(entry.label)
            sources.append(entry.source)
        batch = Batch(
            np.array(ids, dtype=object),
            np.stack(images) if images else np.empty((0, *self.image_shape), np.uint8),
            np.array(labels, np.int64),
            sources,
            tuple(bad),
        )
        return self._settled(split, batch, strict)

    def stream(self, split: str, start: int, stop: int, *, strict: bool = True) -> Iterator[Batch]:
        step = max(1, min(_ROWS_AT_ONCE, _PIXELS_AT_ONCE // math.prod(self.image_shape)))
        for first in range(start, stop, step):
            yield self.read(split, first, min(first + step, stop), strict=strict)

    def _first_shape(self, split: str, start: int, stop: int, failed: list[str]) -> tuple[int, ...] | None:
        """Of the first of the rows that can be read; why the others cannot is added to `failed`."""
        try:
            for entry in self._entries(split, start, stop):
                try:
                    if entry.reason is not None:
                        raise ValueError(entry.reason)
                    return pixels.decode(entry.data, None, self.convert).shape
                except ValueError as error:
                    failed.append(f"{entry.source} {error}")
        except InputError as error:  # it is gone
            failed.append(str(error))
        return None


E = TypeVar("E", bound=EncodedSource)


def with_shapes(source: E) -> E:
    """The source with the shapes of the first readable images of some stretches. InputError where none is readable."""
    shapes: list[tuple[int, ...]] = []
    failed: list[str] = []
    for split, rows in source.splits.items():
        for start in range(0, rows, max(-(-rows // _STRETCHES), 1)):
            for first, last in ((start, start + 1), (start + 1, start + _TRIES)):  # mostly the first will do
                if shape := source._first_shape(split, min(first, rows), min(last, rows), failed):
                    shapes.append(shape)
                    break
    if not shapes:
        raise InputError(f"{source.name} holds no image that can be read: {failed[0]}")
    return replace(source, image_shape=shapes[0], sampled=tuple(dict.fromkeys(shapes)))


def class_of(path: str) -> str:
    """`7` of train/7/1.png or 7/a/1.png; nothing for an image that is in no class folder."""
    parts = path.removeprefix("./").split("/")
    if parts[0] in ("train", "test"):
        parts = parts[1:]
    return parts[0] if len(parts) > 1 else ""


def numbered(names: set[str]) -> list[str]:
    """The classes, sorted. InputError where so many folders can be none."""
    if len(names) > pixels.MAX_CLASSES:
        raise InputError(f"{len(names):,} class folders; there can be {pixels.MAX_CLASSES:,} classes")
    return sorted(names)
