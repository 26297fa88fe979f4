"""What the formats share that are decoded whole: embedded MNIST, IDX directories, `.npz`, `.npy` and `keras:NAME`.

Each process decodes an input once. Equal images and labels have an equal digest in all of these formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError, require
from mnist_ray.sources import pixels
from mnist_ray.sources.base import Bad, Batch, Reading, Source, absent_classes

BLOCK = 1 << 20  # bytes that are decompressed at once
_BOMB_BYTES = 256 << 20  # decompressed
_BOMB_RATIO = 100  # of decompressed to compressed bytes


@dataclass(frozen=True)
class ArraySplit:
    images: NDArray[np.uint8]
    """(n, h, w) or (n, h, w, 3)."""
    labels: NDArray[np.int64]
    """(n,), -1 where unknown."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why a row is bad, by its number."""
    mislabelled: frozenset[int] = frozenset()
    """Rows that are bad only because of their labels."""

    def without_labels(self) -> ArraySplit:
        reasons = {row: reason for row, reason in self.reasons.items() if row not in self.mislabelled}
        return ArraySplit(self.images, np.full(len(self.images), -1, np.int64), reasons)


ArraySplits = Mapping[str, ArraySplit]
_decoded: dict[str, ArraySplits] = {}  # the input that this process has decoded last, by its digest


@dataclass(frozen=True, kw_only=True)
class ArraySource(Source):
    """An input that is decoded when it is opened, and once more in every other process that reads it."""

    load: Callable[[], ArraySplits]
    content: str
    """sha256 of shapes, labels and pixels."""

    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        part = self._splits()[split]
        require(0 <= start <= stop <= len(part.images), f"{self.name} has no rows {start}..{stop}")
        ids, images, labels = np.arange(start, stop), part.images[start:stop], part.labels[start:stop]
        bad = tuple(Bad(row, None, part.reasons[row]) for row in sorted(part.reasons) if start <= row < stop)
        if bad:
            good = np.ones(stop - start, bool)
            good[[each.row - start for each in bad]] = False
            ids, images, labels = ids[good], images[good], labels[good]
        return self._checked(split, Batch(ids, self.convert.arrays(images), labels, bad=bad), strict)

    def digest(self) -> str:
        return self.content

    def _splits(self) -> ArraySplits:
        if self.content not in _decoded:
            splits = _load_checked(self.name, self.load)
            if _digest(splits) != self.content:
                raise InputError(f"{self.name} has changed since it was opened, or differs between hosts; start again")
            _remember(self.content, splits)
        return _decoded[self.content]


def open_arrays(name: str, load: Callable[[], ArraySplits], reading: Reading) -> ArraySource:
    """A source of what `load` returns. `load` must be picklable: it is called again in other processes."""
    if not reading.takes("column"):
        load = partial(_without_labels, load)
    splits = _load_checked(name, load)
    content = _digest(splits)
    _remember(content, splits)
    first = next(iter(splits.values()))
    classes = pixels.class_names(max(int(part.labels.max(initial=-1)) for part in splits.values()))
    found = {split: set(map(str, np.unique(part.labels))) for split, part in splits.items()}
    return ArraySource(
        name=name,
        classes=classes,
        image_shape=reading.convert.shape(first.images.shape[1:]),
        splits={split: len(part.images) for split, part in splits.items()},
        labels="column" if reading.takes("column") else "none",
        absent=absent_classes(found, classes),
        convert=reading.convert,
        load=load,
        content=content,
    )


def _without_labels(load: Callable[[], ArraySplits]) -> ArraySplits:
    return {split: part.without_labels() for split, part in load().items()}


def _load_checked(name: str, load: Callable[[], ArraySplits]) -> ArraySplits:
    """All splits. Raises InputError where their images differ in shape, or have a shape that no image has."""
    splits = load()
    shapes = [part.images.shape[1:] for part in splits.values()]
    try:
        if len(set(shapes)) > 1:
            raise ValueError(f"images must have one size, but {' and '.join(splits)} have {shapes[0]} and {shapes[1]}")
        shape = pixels.image_shape(shapes[0])
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    return {split: replace(part, images=part.images.reshape(-1, *shape)) for split, part in splits.items()}


def _remember(content: str, splits: ArraySplits) -> None:
    _decoded.clear()
    _decoded[content] = splits


def _digest(splits: ArraySplits) -> str:
    total = hashlib.sha256()
    for split, part in splits.items():
        total.update(repr((split, part.images.shape, part.reasons)).encode())
        total.update(np.ascontiguousarray(part.labels).data)
        total.update(np.ascontiguousarray(part.images).data)
    return total.hexdigest()


def split_of(
    images: NDArray[Any], labels: NDArray[Any] | None, split: str, where: str, *, unit_range: bool = False
) -> ArraySplit:
    """A split of images (n, h, w[, channels]) and labels (n,) or (n, 1), of any numbers.

    `unit_range`: whether float pixels are 0..1. Raises InputError that names `where` for other shapes.
    """
    if images.ndim not in (3, 4):
        array = "the images have" if labels is None else f"x_{split} has"
        raise InputError(f"{where}: {array} the shape {images.shape}, not (n, h, w) or (n, h, w, 3)")
    if labels is None:
        as_bytes, reasons = pixels.to_uint8(images, unit_range)
        return ArraySplit(as_bytes, np.full(len(images), -1, np.int64), reasons)
    if labels.ndim == 2 and labels.shape[1] == 1:  # as keras.datasets stores some
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(f"{where}: y_{split} has the shape {labels.shape}; labels must be one class number an image")
    require_as_many(images, labels, split, where)
    as_bytes, bad_pixels = pixels.to_uint8(images, unit_range)
    if len(labels) and (labels == -1).all():  # as Hugging Face marks a split whose labels are not public
        return ArraySplit(as_bytes, np.full(len(images), -1, np.int64), bad_pixels)
    numbers, bad_labels = pixels.to_labels(labels)
    return ArraySplit(as_bytes, numbers, bad_labels | bad_pixels, frozenset(bad_labels.keys() - bad_pixels.keys()))


def require_as_many(images: NDArray[Any], labels: NDArray[Any], split: str, where: str) -> None:
    """Raises InputError unless there are as many labels as images."""
    if len(images) != len(labels):
        raise InputError(
            f"{where}: {len(images)} {split} images but {len(labels)} labels; there must be a label for each image"
        )


def refuse_bomb(decompressed: int, compressed: int, where: str) -> None:
    """Raises InputError for sizes that no images compress to: a small file must not fill the memory."""
    if decompressed > _BOMB_BYTES and decompressed > _BOMB_RATIO * compressed:
        raise InputError(f"{where} decompresses to more than {_BOMB_RATIO} times its size; store it uncompressed")
