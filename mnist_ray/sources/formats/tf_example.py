"""tf.train.Example, the message in TFRecord files: features by name, each a list of bytes, floats or integers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any


def features_of(data: bytes) -> dict[str, Any]:
    """The features of a tf.train.Example by their names. Raises ValueError for other bytes."""
    from google.protobuf.message import DecodeError

    try:
        example = _example().FromString(data)
    except DecodeError as error:
        raise ValueError("is not a tf.train.Example") from error
    return {entry.key.decode(errors="replace"): entry.value for entry in example.features.feature}


def values_of(features: Mapping[str, Any], name: str) -> Any:
    """The bytes, floats or integers of a feature."""
    kind = features[name].WhichOneof("kind")
    return getattr(features[name], kind).value if kind else []


@cache
def _example() -> Any:
    """The message tf.train.Example. Its map is read as what it is on the wire: entries of a key and a value."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    messages: dict[str, list[tuple[str, int, bool, str]]] = {
        "BytesList": [("value", kinds.TYPE_BYTES, True, "")],
        "FloatList": [("value", kinds.TYPE_FLOAT, True, "")],
        "Int64List": [("value", kinds.TYPE_INT64, True, "")],
        "Feature": [(f"{name.lower()}_list", 11, False, f"{name}List") for name in ("Bytes", "Float", "Int64")],
        "Entry": [("key", kinds.TYPE_BYTES, False, ""), ("value", kinds.TYPE_MESSAGE, False, "Feature")],
        "Features": [("feature", kinds.TYPE_MESSAGE, True, "Entry")],
        "Example": [("features", kinds.TYPE_MESSAGE, False, "Features")],
    }
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="mnist_ray", syntax="proto3")
    for message, fields in messages.items():
        made = file.message_type.add(name=message)
        if message == "Feature":
            made.oneof_decl.add(name="kind")
        for number, (name, kind, repeated, of) in enumerate(fields, 1):
            added = made.field.add(
                name=name, number=number, type=kind, label=3 if repeated else 1,
                type_name=f".mnist_ray.{of}" if of else None,
            )  # fmt: skip
            if message == "Feature":
                added.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mnist_ray.Example"))
