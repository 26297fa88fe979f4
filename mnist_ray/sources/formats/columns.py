"""An Arrow column of images, labels or ids → numpy, and for each row that cannot be converted the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mnist_ray.sources import pixels
from mnist_ray.sources.pixels import NO_CONVERSION, Conversion


@dataclass(frozen=True)
class Layout:
    """How `image` is stored, the same in all files."""

    kind: str
    """raw, encoded or lists."""
    stored: tuple[int, ...] = ()
    """Lengths of the nested lists."""
    unit_range: bool = False
    """Floats of 0..1."""
    shape: tuple[int, ...] = ()
    """Of raw and listed images as they are stored; that of the source where it is not given."""


RAW = Layout("raw")


def layout_of(
    sample: pa.Array, named: tuple[int, ...] | None, convert: Conversion = NO_CONVERSION
) -> tuple[Layout, tuple[int, ...]]:
    """How images are stored and their shape once converted, from a few that are not null.

    Raises ValueError where that is unclear.
    """
    kind = sample.type
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        value = sample[0].as_py()
        if named is None and pixels.is_encoded(value):
            return Layout("encoded"), _first_decoded(sample, convert)
        shape = named or pixels.square(len(value))
        if pa.types.is_fixed_size_binary(kind) and kind.byte_width != math.prod(shape):
            raise ValueError(f"`image` has {kind.byte_width} bytes a row, which is not {shape}")
        return Layout("raw", shape=shape), convert.shape(shape)
    leaf, depth = kind, 0
    while pa.types.is_list(leaf) or pa.types.is_large_list(leaf) or pa.types.is_fixed_size_list(leaf):
        leaf, depth = leaf.value_type, depth + 1
    if not depth or not (pa.types.is_integer(leaf) or pa.types.is_floating(leaf)):
        raise ValueError(f"`image` is {kind}; images must be binary or lists of numbers")
    lengths, values = [], sample[0]
    for _ in range(depth):
        if not values.is_valid or not len(values):
            raise ValueError("the first image is empty or holds nulls; mend or remove it")
        lengths.append(len(values))
        values = values.values[0]
    shape = pixels.image_shape(tuple(lengths)) if len(lengths) > 1 else named or pixels.square(lengths[0])
    numbers = sample
    for _ in lengths:
        numbers = numbers.flatten()
    unit_range = pixels.in_unit_range(to_numbers(numbers))
    return Layout("lists", tuple(lengths), unit_range, shape), convert.shape(shape)


def _first_decoded(sample: pa.Array, convert: Conversion) -> tuple[int, ...]:
    for value in sample:
        try:
            return pixels.decode(value.as_py(), None, convert).shape
        except ValueError as error:
            last = error
    raise ValueError(f"the first image {last}")


def to_labels(column: pa.Array) -> tuple[NDArray[np.int64], dict[int, str]]:
    """(n,), -1 where null, and why a row's is none."""
    labels, reasons = pixels.to_labels(to_numbers(column))
    if column.null_count:
        labels[null_rows(column)] = -1
    return labels, reasons


def to_numbers(column: pa.Array) -> NDArray[Any]:
    """Null is 0, so that integers stay integers."""
    if column.null_count:
        column = pc.fill_null(column, 0)
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values


def to_text(column: pa.Array) -> tuple[NDArray[Any], dict[int, str]]:
    """(n,) str or None, and why a row's is none: Parquet does not check that its text is UTF-8."""
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
    nulls: NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    return nulls


def payload(column: pa.Array) -> pa.Array:
    """The bytes within Hugging Face's {"bytes", "path"}; anything else as it is."""
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        return pc.struct_field(column, "bytes")
    return column


def to_images(
    column: pa.Array, layout: Layout, shape: tuple[int, ...], convert: Conversion = NO_CONVERSION
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """(n, *shape), where bad rows hold anything, and why they are bad."""
    column = payload(column)
    reasons = {int(row): "has no image" for row in np.flatnonzero(null_rows(column))} if column.null_count else {}
    if layout.kind == "encoded":
        decoded = np.zeros((len(column), *shape), np.uint8)
        for row, value in enumerate(column):
            if row not in reasons:
                try:
                    decoded[row] = pixels.decode(value.as_py(), shape, convert)
                except ValueError as error:
                    reasons[row] = str(error)
        return decoded, reasons
    images, bad = _unpacked(column, layout, layout.shape or shape, reasons)
    return convert.arrays(images), bad


def _unpacked(
    column: pa.Array, layout: Layout, shape: tuple[int, ...], reasons: dict[int, str]
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Raw and listed images; reasons: of the rows that have none."""
    whole = _stored(column, layout, shape)
    if whole is not None:  # as usual; then nothing is copied
        converted, bad = pixels.to_uint8(whole, layout.unit_range)
        return converted.reshape(-1, *shape), bad
    images = np.zeros((len(column), *shape), np.uint8)
    pending = [(0, len(column))]
    while pending:  # halve until the rows that differ stand alone
        start, stop = pending.pop()
        part = column.slice(start, stop - start)
        stored = _stored(part, layout, shape)
        if stored is not None:
            converted, bad = pixels.to_uint8(stored, layout.unit_range)
            images[start:stop] = converted.reshape(-1, *shape)
            reasons |= {start + row: reason for row, reason in bad.items()}
        elif len(part) > 1:
            middle = (start + stop) // 2
            pending += [(start, middle), (middle, stop)]
        elif start not in reasons:
            reasons[start] = _ill_shaped(part[0], layout, shape)
    return images, reasons


def _stored(column: pa.Array, layout: Layout, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """(n, size) numbers, or None where not all rows have so many."""
    return _raw(column, shape) if layout.kind == "raw" else _lists(column, layout)


def _ill_shaped(value: Any, layout: Layout, shape: tuple[int, ...]) -> str:
    if layout.kind == "raw":
        return f"has an image of {len(value.as_py())} bytes, not {math.prod(shape)} as the others"
    return f"has an image that is not {' x '.join(map(str, layout.stored))} numbers as the others"


def _raw(column: pa.Array, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """(n, size) without a copy, or None where a row is null or of another size."""
    size, rows = math.prod(shape), len(column)
    if column.null_count:
        return None
    if pa.types.is_fixed_size_binary(column.type):
        if column.type.byte_width != size:
            return None
        begin = column.offset * size
        data = column.buffers()[1]
    else:
        wide = pa.types.is_large_binary(column.type)
        offsets = np.frombuffer(column.buffers()[1], np.int64 if wide else np.int32)
        offsets = offsets[column.offset : column.offset + rows + 1]
        if (np.diff(offsets) != size).any():
            return None
        begin, data = int(offsets[0]), column.buffers()[2]
    return np.frombuffer(data, np.uint8, rows * size, offset=begin).reshape(rows, size)


def _lists(column: pa.Array, layout: Layout) -> NDArray[Any] | None:
    """(n, size) numbers, or None where a row is null, holds nulls or has other lengths."""
    values = column
    for length in layout.stored:
        if values.null_count or not pc.all(pc.equal(pc.list_value_length(values), length)).as_py():
            return None
        values = values.flatten()
    return None if values.null_count else to_numbers(values).reshape(len(column), -1)
