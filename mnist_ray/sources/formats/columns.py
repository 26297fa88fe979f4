"""Arrow columns of images, labels and ids to numpy, with a reason for each row that cannot be converted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mnist_ray.sources import decoding, pixels
from mnist_ray.sources import labels as label_lists
from mnist_ray.sources.base import IMAGE_SUFFIXES
from mnist_ray.sources.formats.arrow_types import element_type, from_base64, id_text, is_binary, is_text, plain
from mnist_ray.sources.pixels import NO_CONVERSION, Conversion

PATHS_ALONE = "write paths and labels into a CSV list, which `score` reads"

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""The value of a partition column whose rows have none."""


@dataclass(frozen=True)
class Layout:
    """How the column `image` stores its images, the same in all files."""

    kind: str
    """"raw" (pixels as bytes), "encoded" (image files) or "lists" (of numbers)."""
    stored: tuple[int, ...] = ()
    """The lengths of nested lists, from the outside."""
    span: pixels.Span = pixels.BYTES
    """What numbers stand for pixels."""
    shape: tuple[int, ...] = ()
    """The shape of raw and listed images before they are converted. (): the source's shape."""
    channels_first: bool = False
    """Whether their three channels are stored one after the other."""


def layout_of(
    sample: pa.Array, named: tuple[int, ...] | None, convert: Conversion = NO_CONVERSION, *, signed: bool = False
) -> tuple[Layout, tuple[int, ...]]:
    """How images are stored, and their shape once converted, from a few that are not null.

    `named` is the shape in the schema metadata, if it is there. signed: whether floats may be -1..1. Raises ValueError
    where the layout is unclear.
    """
    sample = plain(sample)
    kind, depth = sample.type, 0
    if is_text(kind):
        if sample[0].as_py().lower().endswith(IMAGE_SUFFIXES):
            raise ValueError(f"`image` holds paths, not images; {PATHS_ALONE}")
        sample = from_base64(sample)
        if not decoding.is_encoded(sample[0].as_py()):
            raise ValueError("`image` is text, which is not the base64 of image files; images must be binary or lists")
        return Layout("encoded"), _first_decoded(sample, convert)
    if is_binary(kind):
        return _binary_layout(sample, named, convert)
    while (inner := element_type(kind)) is not None:
        kind, depth = inner, depth + 1
    if not depth or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"`image` is {sample.type}; images must be binary or lists of numbers")
    return _list_layout(sample, depth, named, convert, signed=signed)


def _binary_layout(
    sample: pa.Array, named: tuple[int, ...] | None, convert: Conversion
) -> tuple[Layout, tuple[int, ...]]:
    first = sample[0].as_py()
    if named is None and decoding.is_encoded(first):
        return Layout("encoded"), _first_decoded(sample, convert)
    if named is None:
        pixels.require_bytes(first)
    shape, is_first = pixels.channels_last(named or pixels.square(len(first)))
    if pa.types.is_fixed_size_binary(sample.type) and sample.type.byte_width != math.prod(shape):
        raise ValueError(f"`image` has {sample.type.byte_width} bytes a row, which is not {shape}")
    return Layout("raw", shape=shape, channels_first=is_first), convert.shape(shape)


def _list_layout(
    sample: pa.Array, depth: int, named: tuple[int, ...] | None, convert: Conversion, *, signed: bool
) -> tuple[Layout, tuple[int, ...]]:
    lengths: list[int] = []
    value = sample[0]
    for _ in range(depth):
        if not value.is_valid or not len(value):
            raise ValueError("the first image is empty or holds nulls; repair or remove it")
        lengths.append(len(value))
        value = value.values[0]
    shape, is_first = pixels.channels_last(tuple(lengths) if depth > 1 else named or pixels.square(lengths[0]))
    numbers = sample
    for _ in range(depth):
        numbers = plain(numbers.flatten())
    span = pixels.span_of(to_numbers(numbers), signed=signed)
    return Layout("lists", tuple(lengths), span, shape, is_first), convert.shape(shape)


def _first_decoded(sample: pa.Array, convert: Conversion) -> tuple[int, ...]:
    """The shape of the first image that can be decoded."""
    for value in sample:
        try:
            return decoding.decode(value.as_py(), None, convert).shape
        except ValueError as error:
            last = error
    raise ValueError(f"the first image {last}")


def labels_of(
    records: pa.RecordBatch, name: str, partition: Mapping[str, str], numbers: Mapping[str, int]
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Labels of rows as `to_labels` has them: from the column, else from the partition, -1 where it is in neither.

    numbers: the class number of each label that is text.
    """
    if name in records.schema.names:
        return to_labels(records.column(name), numbers)
    return np.full(len(records), numbers.get(pixels.by_value(partition.get(name, HIVE_NULL)), -1), np.int64), {}


def to_labels(column: pa.Array, numbers: Mapping[str, int]) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Class numbers (n,), -1 where null, and the reasons of bad rows."""
    column = plain(column)
    if is_text(column.type):
        return np.array([numbers.get(text, -1) for text in label_texts(column)], np.int64), {}
    labels, reasons = pixels.to_labels(to_numbers(column))
    if column.null_count:
        labels[null_rows(column)] = -1
    return labels, reasons


def to_label_rows(
    column: pa.Array, numbers: Mapping[str, int], several: str
) -> tuple[NDArray[np.int8], dict[int, str]]:
    """Lists of labels as rows (n, classes), -1 where null, and the reasons of bad rows. several: as in `Source`."""
    column = plain(column)
    is_null = null_rows(column)
    if is_null.all():  # perhaps a column of nothing else
        return np.full((len(column), len(numbers)), -1, np.int8), {}
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    values = _class_numbers(plain(column.flatten()), numbers)
    rows, reasons = label_lists.rows_of_lists(lengths, values, len(numbers), several)
    rows[is_null] = -1
    return rows, {row: reason for row, reason in reasons.items() if not is_null[row]}


def seen_in_lists(column: pa.Array) -> set[str]:
    """What `sources/labels.py` must know of lists of labels, none of them null."""
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    values = plain(column.flatten())
    if is_text(values.type):
        return label_lists.seen_in_lists(lengths, {*label_texts(values)} - {""})
    found = _class_numbers(values, {})
    return label_lists.seen_in_lists(lengths, map(str, np.flatnonzero(np.bincount(found[found >= 0])).tolist()))


def _class_numbers(column: pa.Array, numbers: Mapping[str, int]) -> NDArray[np.int64]:
    """Of text or numbers (n,), -1 for what is neither a class number nor, in `numbers`, a name."""
    if is_text(column.type):
        return np.array([numbers.get(text, -1) for text in label_texts(column)], np.int64)
    found = pixels.class_numbers(to_numbers(column))
    if column.null_count:
        found[null_rows(column)] = -1
    return found


def label_texts(column: pa.Array) -> list[str]:
    """Labels that are text, "" where null."""
    values = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()).to_pylist()
    return [pixels.by_value(value.decode(errors="replace").strip()) if value else "" for value in values]


def to_numbers(column: pa.Array) -> NDArray[Any]:
    """Numbers (n,), 0 where null, so that integers stay integers; 1 where true."""
    if pa.types.is_boolean(column.type) or pa.types.is_null(column.type):
        column = column.cast(pa.uint8())
    if column.null_count:
        column = pc.fill_null(column, 0)
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values


def to_text(column: pa.Array) -> tuple[NDArray[Any], dict[int, str]]:
    """Text (n,), None where null, and the reasons of bad rows: Parquet does not check that text is UTF-8."""
    column = id_text(column)
    try:
        return np.array(column.to_pylist(), object), {}
    except UnicodeDecodeError:
        values = np.empty(len(column), object)
        reasons = {}
        for row, value in enumerate(column):
            try:
                values[row] = value.as_py()
            except UnicodeDecodeError:
                reasons[row] = "has an id that is not UTF-8"
        return values, reasons


def null_rows(column: pa.Array) -> NDArray[np.bool_]:
    """(n,), whether each row is null."""
    nulls: NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    return nulls


def to_images(
    column: pa.Array, layout: Layout, shape: tuple[int, ...], convert: Conversion = NO_CONVERSION
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Images (n, *shape), of which bad rows hold anything, and the reasons of bad rows."""
    column = plain(column)
    if is_text(column.type):
        column = from_base64(column)
    reasons = {int(row): "has no image" for row in np.flatnonzero(null_rows(column))} if column.null_count else {}
    if layout.kind == "encoded":
        decoded = np.zeros((len(column), *shape), np.uint8)
        for row, value in enumerate(column):
            if row not in reasons:
                try:
                    decoded[row] = decoding.decode(value.as_py(), shape, convert)
                except ValueError as error:
                    reasons[row] = str(error)
        return decoded, reasons
    images, reasons = _to_pixels(column, layout, layout.shape or shape, reasons)
    if layout.channels_first:
        height, width, _ = layout.shape
        images = np.ascontiguousarray(images.reshape(-1, 3, height, width).transpose(0, 2, 3, 1))
    return convert.arrays(images), reasons


def _to_pixels(
    column: pa.Array, layout: Layout, shape: tuple[int, ...], reasons: dict[int, str]
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Raw and listed images (n, *shape). `reasons` has the rows without an image; those of other bad rows are added."""
    values = _values(column, layout, shape)
    if values is not None:  # the usual case, without a copy
        converted, bad = pixels.to_uint8(values, layout.span)
        return converted.reshape(-1, *shape), bad
    images = np.zeros((len(column), *shape), np.uint8)
    pending = [(0, len(column))]
    while pending:  # halve a range until its bad rows are alone
        start, stop = pending.pop()
        part = column.slice(start, stop - start)
        values = _values(part, layout, shape)
        if values is not None:
            converted, bad = pixels.to_uint8(values, layout.span)
            images[start:stop] = converted.reshape(-1, *shape)
            reasons |= {start + row: reason for row, reason in bad.items()}
        elif len(part) > 1:
            middle = (start + stop) // 2
            pending += [(start, middle), (middle, stop)]
        elif start not in reasons:
            reasons[start] = _wrong_size(part[0], layout, shape)
    return images, reasons


def _values(column: pa.Array, layout: Layout, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """Numbers (n, size). None where a row is null, holds nulls or has another size."""
    return _raw_values(column, shape) if layout.kind == "raw" else _list_values(column, layout)


def _raw_values(column: pa.Array, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Without a copy, from Arrow's buffers."""
    size, rows = math.prod(shape), len(column)
    if column.null_count:
        return None
    if pa.types.is_fixed_size_binary(column.type):
        if column.type.byte_width != size:
            return None
        begin = column.offset * size
        data = column.buffers()[1]
    else:
        is_large = pa.types.is_large_binary(column.type)
        offsets = np.frombuffer(column.buffers()[1], np.int64 if is_large else np.int32)
        offsets = offsets[column.offset : column.offset + rows + 1]
        if (np.diff(offsets) != size).any():
            return None
        begin, data = int(offsets[0]), column.buffers()[2]
    return np.frombuffer(data, np.uint8, rows * size, offset=begin).reshape(rows, size)


def _list_values(column: pa.Array, layout: Layout) -> NDArray[Any] | None:
    values = column
    for length in layout.stored:
        if values.null_count or not pc.all(pc.equal(pc.list_value_length(values), length)).as_py():
            return None
        values = plain(values.flatten())
    return None if values.null_count else to_numbers(values).reshape(len(column), -1)


def _wrong_size(value: Any, layout: Layout, shape: tuple[int, ...]) -> str:
    if layout.kind == "raw":
        return f"has an image of {len(value.as_py())} bytes, not {math.prod(shape)} like the others"
    return f"has an image that is not {' x '.join(map(str, layout.stored))} numbers like the others"
