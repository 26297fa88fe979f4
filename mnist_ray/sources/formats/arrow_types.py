"""The types that programs give to columns (extensions, dictionaries, views, structs), as the plain ones in them."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mnist_ray.sources import pixels

_VIEWS = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
_EXTENSION = b"ARROW:extension:metadata"  # of a field whose extension type is not registered, as Ray Data's tensors


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of `plain`."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return plain_type(kind.field("bytes").type)
    return _VIEWS.get(kind, kind)


def plain(column: pa.Array) -> pa.Array:
    """A column without its extension type, dictionary or view; of Hugging Face's {"bytes", "path"}, the bytes."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain(column.storage)
    if pa.types.is_dictionary(kind):
        return plain(column.dictionary_decode())
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return plain(pc.struct_field(column, "bytes"))
    wanted = plain_type(kind)
    return column if wanted == kind else column.cast(wanted)


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def is_label(kind: pa.DataType) -> bool:
    """Whether values of a plain type can be labels: numbers, text, true and false, or nothing at all."""
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(is_number or is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind))


def element_type(kind: pa.DataType) -> pa.DataType | None:
    """The plain type of what is in lists of a plain type; None where it is no list."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return plain_type(kind.value_type) if is_list else None


def is_id(kind: pa.DataType) -> bool:
    """Whether values of a plain type can be ids: integers, or what has one way to be written."""
    return bool(pa.types.is_integer(kind) or is_text(kind) or is_binary(kind) or pa.types.is_temporal(kind))


def id_text(column: pa.Array) -> pa.Array:
    """Ids of a plain type that are not integers, as text: bytes in hexadecimal, times as ISO 8601."""
    if is_binary(column.type):
        return pa.array([None if value is None else value.hex() for value in column.to_pylist()], pa.string())
    return column if is_text(column.type) else column.cast(pa.string())


def from_base64(column: pa.Array) -> pa.Array:
    """Image files in text, also as `data:` URIs; what is not base64 stays as it is, which is no image."""

    def decoded(text: str | None) -> bytes | None:
        if text is None:
            return None
        try:
            return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
        except binascii.Error:
            return text.encode(errors="replace")

    return pa.array(map(decoded, column.cast(pa.binary()).cast(pa.large_string()).to_pylist()), pa.large_binary())


def kin(kind: pa.DataType) -> str:
    """What columns of several files must agree in: not how many bits an integer has, or how text is laid out."""
    kind, depth = plain_type(kind), 0
    while (inner := element_type(kind)) is not None:
        kind, depth = inner, depth + 1
    words = {
        "integers": pa.types.is_integer, "floats": pa.types.is_floating, "text": is_text,
        "bytes": lambda each: is_binary(each) and not pa.types.is_fixed_size_binary(each),
    }  # fmt: skip
    return "lists of " * depth + next((word for word, holds in words.items() if holds(kind)), str(kind))


def named_shape(schema: pa.Schema, column: str) -> tuple[int, ...] | None:
    """The shape of raw and flat images: from the schema's metadata `image_shape`, or of a tensor type.

    None where neither names one. Raises ValueError where it is not a shape.
    """
    where, text = "its schema metadata `image_shape`", (schema.metadata or {}).get(b"image_shape")
    kind = schema.field(column).type
    if text is None and isinstance(kind, pa.BaseExtensionType) and hasattr(kind, "shape"):
        if sorted(order := getattr(kind, "permutation", None) or []) != order:
            raise ValueError(f"`{column}` holds tensors whose axes are permuted; write them in the order of the axes")
        return tuple(kind.shape)
    if text is None:
        where, text = f"the tensor type of `{column}`", (schema.field(column).metadata or {}).get(_EXTENSION)
    if text is None:
        return None
    try:
        shape: Any = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deep") from error
    if shape is not None and not (isinstance(shape, list) and all(isinstance(side, int) for side in shape)):
        raise ValueError(f"{where} is {shape}, not a list of integers")
    return None if shape is None else tuple(shape)


def class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """The names of class numbers in the metadata that Hugging Face writes; () where it has none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[column]
        inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature)  # of a list of labels
        names = inner["names"]
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return ()
    is_names = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    return tuple(names) if is_names and len(set(names)) == len(names) <= pixels.MAX_CLASSES else ()
