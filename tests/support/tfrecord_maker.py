"""TFRecord files of tf.train.Example, written byte by byte as the specifications of both have them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Feature = bytes | str | int | float | list[int] | list[float] | list[str]


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers take ten bytes
    made = b""
    while value > 127:
        made, value = made + bytes([value & 127 | 128]), value >> 7
    return made + bytes([value])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def example(features: Mapping[str, Feature]) -> bytes:
    entries = b""
    for name, given in features.items():
        values: list[Any] = given if isinstance(given, list) else [given]
        if values and isinstance(values[0], bytes | str):
            kind, packed = 1, b"".join(_field(1, each.encode() if isinstance(each, str) else each) for each in values)
        elif values and isinstance(values[0], float):
            kind, packed = 2, _field(1, struct.pack(f"<{len(values)}f", *values))
        else:
            kind, packed = 3, _field(1, b"".join(map(_varint, values)))
        entries += _field(1, _field(1, name.encode()) + _field(2, _field(kind, packed)))
    return _field(1, entries)


def write_tfrecord(file: Path, examples: Iterable[Mapping[str, Feature] | bytes]) -> Path:
    """Bytes are a record as they are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(record(each if isinstance(each, bytes) else example(each)) for each in examples))
    return file
