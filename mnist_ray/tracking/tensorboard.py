"""TensorBoard's event files: one for each epoch and split, written whole.

A file that grows could not lie in object storage, and an attempt that was cut off would leave steps that a later one
repeats. Here an epoch that is trained again takes the place of the one before. As Keras' own callback does, the splits
are TensorBoard's runs, and the tags are `epoch_loss` and the like, so that a chart shows them together.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Sequence
from itertools import groupby

from mnist_ray.storage.location import Location
from mnist_ray.storage.tfrecord import framed
from mnist_ray.tracking.scalars import Scalar, Snapshot

_SPLITS = ("train", "validation", "test")  # the figures of a scoring are single points, no curves
_SUFFIX = ".tfevents"
_LARGEST = float.fromhex("0x1.fffffep127")  # that 32 bits hold


class TensorBoard:
    """The event files of one run."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._written: dict[tuple[str, str], list[Scalar]] = {}

    @property
    def label(self) -> str:
        return f"TensorBoard's files in {self._folder}"

    @property
    def place(self) -> tuple[str, str]:
        return "scalars", str(self._folder)

    def sync(self, snapshot: Snapshot) -> None:
        """Write what this process has not written yet. Of a finished run, remove the epochs that it does not have."""
        scalars = sorted((each for each in snapshot.scalars() if each.split in _SPLITS), key=_file)
        files = {file: list(each) for file, each in groupby(scalars, key=_file)}
        for (split, name), content in files.items():
            if self._written.get((split, name)) != content:
                (self._folder / split / name).write_bytes(event_file(content))
                self._written[split, name] = content
        if snapshot.metrics:
            self._remove_others(files)

    def _remove_others(self, files: Container[tuple[str, str]]) -> None:
        for split in _SPLITS:
            for file in (self._folder / split).list():
                if file.name.endswith(_SUFFIX) and (split, file.name) not in files:
                    file.delete()

    def end(self, status: str) -> None:
        """There is nothing to note."""

    def lacking(self, snapshot: Snapshot) -> str:
        """What of a run is not there."""
        return "some epochs are not written"


def _file(scalar: Scalar) -> tuple[str, str]:
    """TensorBoard reads the files of a folder in the order of their names."""
    return scalar.split, f"epoch-{scalar.epoch:06d}{_SUFFIX}"


def event_file(scalars: Sequence[Scalar]) -> bytes:
    """The bytes of a file. Its messages are those of tensorflow/core/util/event.proto and framework/summary.proto."""
    first = _double(1, scalars[0].unix_time) + _bytes(3, b"brain.Event:2")  # wall_time, file_version
    events = [
        _double(1, each.unix_time) + _integer(2, each.epoch) + _bytes(5, _summary(each))  # wall_time, step, summary
        for each in scalars
    ]
    return b"".join(map(framed, [first, *events]))


def _summary(scalar: Scalar) -> bytes:
    tag = f"epoch_{scalar.name}".encode()
    return _bytes(1, _bytes(1, tag) + _float(2, scalar.value))  # value: tag, simple_value


# Protocol buffers: the number of a field, the kind of its value, the value.


def _double(number: int, value: float) -> bytes:
    return bytes([number << 3 | 1]) + struct.pack("<d", value)


def _float(number: int, value: float) -> bytes:
    return bytes([number << 3 | 5]) + struct.pack("<f", max(-_LARGEST, min(value, _LARGEST)))


def _integer(number: int, value: int) -> bytes:
    return bytes([number << 3]) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
