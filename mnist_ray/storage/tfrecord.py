"""TFRecord, the framing of TensorFlow's files: of each record its length, its bytes, and a checksum of both."""

from __future__ import annotations


def framed(data: bytes) -> bytes:
    """The bytes of one record in a file."""
    length = len(data).to_bytes(8, "little")
    return length + checksum(length) + data + checksum(data)


def checksum(data: bytes) -> bytes:
    """CRC-32C, rotated by 15 bits and moved by a constant."""
    import google_crc32c

    crc: int = google_crc32c.value(data)
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")
