"""Inputs that are small enough to be decoded whole: embedded MNIST, IDX directories, `.npz`, `keras:NAME`.

Each process decodes an input once. Equal images and labels have an equal digest, whichever of these formats has them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.sources import pixels
from mnist_ray.sources.base import Bad, Batch, Reading, Source

_LARGE = 256 << 20  # bytes, from which on what unpacks to
_MOST_SHRUNK = 100  # times its size is taken for a bomb


@dataclass(frozen=True)
class ArraySplit:
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    reasons: dict[int, str] = field(default_factory=dict)  # of the rows that are bad


ArraySplits = Mapping[str, ArraySplit]
_decoded: dict[str, ArraySplits] = {}  # this process's, by digest: the last one only


@dataclass(frozen=True, kw_only=True)
class ArraySource(Source):
    """Decoded when it is opened, and again once in every process that reads it."""

    load: Callable[[], ArraySplits]
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

    def _splits(self) -> ArraySplits:
        if self.content not in _decoded:
            splits = _loaded(self.name, self.load)
            if _digest(splits) != self.content:
                raise InputError(f"{self.name} has changed since it was opened, or differs between hosts; start anew")
            _keep(self.content, splits)
        return _decoded[self.content]


def open_arrays(name: str, load: Callable[[], ArraySplits], reading: Reading) -> ArraySource:
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


def _loaded(name: str, load: Callable[[], ArraySplits]) -> ArraySplits:
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


def _keep(content: str, splits: ArraySplits) -> None:
    _decoded.clear()
    _decoded[content] = splits


def _digest(splits: ArraySplits) -> str:
    total = hashlib.sha256()
    for split, part in splits.items():
        total.update(repr((split, part.images.shape, part.reasons)).encode())
        total.update(np.ascontiguousarray(part.labels).data)
        total.update(np.ascontiguousarray(part.images).data)
    return total.hexdigest()


def refuse_bomb(unpacked: int, packed: int, where: str) -> None:
    """Images do not shrink so: a small file must not fill the memory."""
    if unpacked > _LARGE and unpacked > _MOST_SHRUNK * packed:
        raise InputError(f"{where} unpacks to more than {_MOST_SHRUNK} times its size; store it uncompressed")


def check_paired(
    images: NDArray[Any], labels: NDArray[Any], split: str, where: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    if len(images) != len(labels):
        raise InputError(f"{where}: {len(images)} {split} images but {len(labels)} labels; they must be as many")
    return images, labels


def numeric_split(
    images: NDArray[Any], labels: NDArray[Any] | None, split: str, unit_range: bool, where: str
) -> ArraySplit:
    if labels is None:
        if images.ndim not in (3, 4):
            raise InputError(f"{where}: the images have the shape {images.shape}, not (n, h, w) or (n, h, w, 3)")
        as_bytes, bad_pixels = pixels.to_uint8(images, unit_range)
        return ArraySplit(as_bytes, np.full(len(images), -1, np.int64), bad_pixels)
    if labels.ndim == 2 and labels.shape[1] == 1:  # as keras.datasets stores some
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(f"{where}: y_{split} has the shape {labels.shape}; labels must be one class number an image")
    if images.ndim not in (3, 4):
        raise InputError(f"{where}: x_{split} has the shape {images.shape}, not (n, h, w) or (n, h, w, 3)")
    check_paired(images, labels, split, where)
    as_bytes, bad_pixels = pixels.to_uint8(images, unit_range)
    numbers, bad_labels = pixels.to_labels(labels)
    return ArraySplit(as_bytes, numbers, bad_labels | bad_pixels)
