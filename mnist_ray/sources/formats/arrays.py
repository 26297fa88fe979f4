"""What the formats share that are decoded whole: embedded MNIST, IDX directories, `.npz`, `.npy` and `keras:NAME`.

Each process decodes an input once. Equal images and labels have an equal digest in all of these formats.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError, require
from mnist_ray.sources import meter, pixels
from mnist_ray.sources.base import Bad, Batch, Reading, Source, absent_classes
from mnist_ray.sources.labels import HOT, as_rows, is_known, several_labels, text_classes

BLOCK = 1 << 20  # bytes that are decompressed at once
_BOMB_BYTES = 256 << 20  # decompressed
_BOMB_RATIO = 100  # of decompressed to compressed bytes


@dataclass(frozen=True)
class ArraySplit:
    images: NDArray[np.uint8]
    """(n, h, w) or (n, h, w, 3)."""
    labels: NDArray[Any]
    """As in a `Batch`: of several labels, a 0 or 1 for each class."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why a row is bad, by its number."""
    mislabelled: frozenset[int] = frozenset()
    """Rows that are bad only because of their labels."""
    classes: tuple[str, ...] = ()
    """Names of the classes of all splits, where labels are text."""
    remarks: tuple[str, ...] = ()
    """What users should know of how it is read."""

    def without_labels(self) -> ArraySplit:
        reasons = {row: reason for row, reason in self.reasons.items() if row not in self.mislabelled}
        unlabelled = np.full(len(self.images), -1, np.int64)
        return replace(self, labels=unlabelled, reasons=reasons, mislabelled=frozenset(), classes=())


ArraySplits = Mapping[str, ArraySplit]
_decoded: dict[str, ArraySplits] = {}  # the inputs that this process has read last, by their digests
_MOST_DECODED = 2  # as many as an actor reads at a time, each in a thread
_lock = threading.Lock()


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
        meter.count(images.nbytes)
        bad = tuple(Bad(row, None, part.reasons[row]) for row in sorted(part.reasons) if start <= row < stop)
        if bad:
            good = np.ones(stop - start, bool)
            good[[each.row - start for each in bad]] = False
            ids, images, labels = ids[good], images[good], labels[good]
        return self._checked(split, Batch(ids, self.convert.arrays(images), labels, bad=bad), strict)

    def digest(self) -> str:
        return self.content

    def _splits(self) -> ArraySplits:
        with _lock:  # or the threads of an actor would decode it twice
            splits = _decoded.get(self.content)
            if splits is None:
                splits = _load_checked(self.name, self.load)
                if _digest(splits) != self.content:
                    raise InputError(
                        f"{self.name} has changed since it was opened, or differs between hosts; start again"
                    )
            _remember(self.content, splits, most=_MOST_DECODED)
            return splits


def open_arrays(name: str, load: Callable[[], ArraySplits], reading: Reading) -> ArraySource:
    """A source of what `load` returns. `load` must be picklable: it is called again in other processes."""
    if not reading.takes("column"):
        load = partial(_without_labels, load)
    splits = _load_checked(name, load)
    content = _digest(splits)
    with _lock:
        _remember(content, splits, most=1)
    first = next(iter(splits.values()))
    several = HOT if first.labels.ndim == 2 else ""
    highest = max(int(part.labels.max(initial=-1)) for part in splits.values())
    classes = first.classes or pixels.class_names(first.labels.shape[1] - 1 if several else highest)
    found = {
        split: {classes[label] for label in np.unique(part.labels) if label >= 0} for split, part in splits.items()
    }
    return ArraySource(
        name=name,
        classes=classes,
        image_shape=reading.convert.shape(first.images.shape[1:]),
        splits={split: len(part.images) for split, part in splits.items()},
        labels="column" if reading.takes("column") else "none",
        several=several,
        absent=absent_classes(found, classes, several),
        remarks=tuple(dict.fromkeys(remark for part in splits.values() for remark in part.remarks)),
        convert=reading.convert,
        load=load,
        content=content,
    )


def _without_labels(load: Callable[[], ArraySplits]) -> ArraySplits:
    return {split: part.without_labels() for split, part in load().items()}


def _load_checked(name: str, load: Callable[[], ArraySplits]) -> ArraySplits:
    """All splits. Raises InputError where their images or labels differ in shape, or have a shape that no image has."""
    splits = load()
    shapes = [part.images.shape[1:] for part in splits.values()]
    try:
        if len(set(shapes)) > 1:
            raise ValueError(f"images must have one size, but {' and '.join(splits)} have {shapes[0]} and {shapes[1]}")
        shape = pixels.image_shape(shapes[0])
        widths = {part.labels.shape[1:] for part in splits.values() if is_known(part.labels).any()}
        if len(widths) > 1:
            raise ValueError(f"labels must have one shape, but {' and '.join(splits)} have others; save them alike")
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    splits = {split: replace(part, images=part.images.reshape(-1, *shape)) for split, part in splits.items()}
    if (width := max(widths, default=())) == ():
        return splits
    return {split: replace(part, labels=as_rows(part.labels, *width)) for split, part in splits.items()}


def _remember(content: str, splits: ArraySplits, *, most: int) -> None:
    """Keep what was read now, and of all inputs the last."""
    _decoded.pop(content, None)
    _decoded[content] = splits
    for oldest in list(_decoded)[:-most]:
        del _decoded[oldest]


def _digest(splits: ArraySplits) -> str:
    total = hashlib.sha256()
    for split, part in splits.items():
        total.update(repr((split, part.images.shape, part.reasons, *part.classes)).encode())
        total.update(np.ascontiguousarray(part.labels).data)
        total.update(np.ascontiguousarray(part.images).data)
    return total.hexdigest()


def to_splits(
    arrays: Mapping[str, tuple[NDArray[Any], NDArray[Any] | None]], where: str, *, signed: bool = False,
    takes_several: bool = False,
) -> dict[str, ArraySplit]:  # fmt: skip
    """The splits of images and labels, each of any numbers; labels may be text.

    Images are (n, h, w[, channels]), (n, channels, h, w) or (n, pixels of a square), labels (n,), (n, 1) or one-hot.
    signed: whether floats may be -1..1. takes_several: whether (n, classes) may also have several ones, or none, a row.
    Raises InputError that names `where` for others.
    """
    first = next(iter(arrays.values()))[0]
    try:
        span = pixels.span_of(first[: pixels.SAMPLE_ROWS], signed=signed)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    texts = {split: _texts(y) for split, (_, y) in arrays.items() if y is not None and y.dtype.kind in "US"}
    classes = tuple(text_classes({text for found in texts.values() for text in found} - {""}))
    numbers = {"": -1, **{name: number for number, name in enumerate(classes)}}
    splits = {}
    for split, (x, y) in arrays.items():
        if split in texts:
            known = np.array([numbers[text] for text in texts[split]], np.int64)
            part = split_of(x, known, split, where, span=span, has_unknown=True)
            splits[split] = replace(part, classes=classes)
        else:
            splits[split] = split_of(x, y, split, where, span=span, takes_several=takes_several)
    return splits


def _texts(labels: NDArray[Any]) -> list[str]:
    as_text = np.char.decode(labels, "utf-8", "replace") if labels.dtype.kind == "S" else labels
    return [pixels.by_value(text.strip()) for text in as_text.ravel().tolist()]


def split_of(
    images: NDArray[Any], labels: NDArray[Any] | None, split: str, where: str, *, span: pixels.Span = pixels.BYTES,
    has_unknown: bool = False, takes_several: bool = False,
) -> ArraySplit:  # fmt: skip
    """One split, as `to_splits` has them. span: what numbers stand for pixels. has_unknown: whether a label -1 is
    no label.
    """
    array = "the images have" if labels is None else f"x_{split} has"
    images, remarks = _as_images(images, f"{where}: {array}")
    as_bytes, bad_pixels = pixels.to_uint8(images, span)
    if labels is None:
        return ArraySplit(as_bytes, np.full(len(images), -1, np.int64), bad_pixels, remarks=remarks)
    if takes_several and labels.ndim == 2 and labels.shape[1] > 1:
        require_as_many(images, labels, split, where)
        rows, bad_labels = _as_rows(labels, split, where)
        mislabelled = frozenset(bad_labels.keys() - bad_pixels.keys())
        return ArraySplit(as_bytes, rows, bad_labels | bad_pixels, mislabelled, remarks=remarks)
    labels, not_hot = _as_numbers(labels, split, where)
    require_as_many(images, labels, split, where)
    if not_hot is not None:
        remarks = (*remarks, f"{where}: labels are one-hot; each is the number of its 1")
    if has_unknown or (
        len(labels) and (labels == -1).all()
    ):  # as Hugging Face marks a split whose labels are not public
        return ArraySplit(as_bytes, labels.astype(np.int64), bad_pixels, remarks=remarks)
    numbers, bad_labels = pixels.to_labels(labels)
    bad_labels |= not_hot or {}
    mislabelled = frozenset(bad_labels.keys() - bad_pixels.keys())
    return ArraySplit(as_bytes, numbers, bad_labels | bad_pixels, mislabelled, remarks=remarks)


def _as_images(images: NDArray[Any], what: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Images as (n, h, w[, channels]), and a remark where they were stored otherwise."""
    if images.dtype.kind not in "uifb":
        raise InputError(f"{what} the type {images.dtype}; images must be numbers")
    if images.dtype.kind == "b":
        images = images * np.uint8(255)
    shape = images.shape[1:]
    if len(shape) == 1 and pixels.is_square(*shape):
        images = images.reshape(-1, *pixels.square(*shape))
        return images, (f"{what} {shape[0]} pixels an image; they are read as {images.shape[1:]}",)
    if len(shape) not in (2, 3):
        raise InputError(f"{what} the shape {images.shape}, not (n, h, w) or (n, h, w, 3)")
    if len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
        return images, (f"{what} the shape {(len(images), *shape)}; it is read as {images.shape}",)
    return images, ()


def _as_numbers(labels: NDArray[Any], split: str, where: str) -> tuple[NDArray[Any], dict[int, str] | None]:
    """Labels (n,). Of one-hot ones also the reasons of bad rows, None where they are not."""
    if labels.dtype.kind == "b":
        labels = labels.astype(np.uint8)
    if labels.ndim == 2 and labels.shape[1] == 1:  # as keras.datasets stores some
        labels = labels[:, 0]
    if labels.ndim == 1:
        return labels, None
    is_hot = np.zeros(0, bool)
    if labels.ndim == 2 and labels.size:
        is_hot = (labels.max(axis=1) == 1) & (np.count_nonzero(labels, axis=1) == 1)
    if not is_hot.any() or np.count_nonzero(is_hot) < len(labels) / 2:
        what = f"{where}: y_{split} has the shape {labels.shape}"
        if labels.ndim == 2 and _are_rows(labels) and (np.count_nonzero(labels == 1, axis=1) > 1).any():
            raise several_labels(what)
        raise InputError(f"{what}; labels must be one class number an image")
    reasons = {int(row): "has a label that is not one-hot like the others" for row in np.flatnonzero(~is_hot)}
    return labels.argmax(axis=1), reasons


def _are_rows(labels: NDArray[Any]) -> bool:
    """Whether most are rows of 0 and 1."""
    is_hot = ((labels == 0) | (labels == 1)).all(axis=1)
    return bool(np.count_nonzero(is_hot) >= len(labels) / 2)


def _as_rows(labels: NDArray[Any], split: str, where: str) -> tuple[NDArray[np.int8], dict[int, str]]:
    """Rows of several labels, and the reasons of bad ones. Where a row is nothing but -1 or nan, they are unknown."""
    is_hot = ((labels == 0) | (labels == 1)).all(axis=1)
    is_unknown = ((labels == -1) | (labels != labels)).all(axis=1)  # the latter is nan
    if not _are_rows(labels[~is_unknown]):
        raise InputError(
            f"{where}: y_{split} has the shape {labels.shape}; labels must be a class number an image, or a 0 or 1 for"
            " each class"
        )
    rows = np.full(labels.shape, -1, np.int8)
    rows[is_hot] = labels[is_hot]
    reason = "has labels that are not 0 or 1, like those of the others"
    return rows, dict.fromkeys(np.flatnonzero(~is_hot & ~is_unknown).tolist(), reason)


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
