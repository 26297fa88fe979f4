"""TFRecord files of tf.train.Example, without TensorFlow: each record is its length, its bytes and a checksum of both.

The records are indexed once. An image is an image file, raw pixels or numbers; a label is a number or text.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.sources import decoding, meter, pixels
from mnist_ray.sources.base import Reading, absent_classes
from mnist_ray.sources.formats.containers import ArrowFile, ContainerSource
from mnist_ray.sources.formats.encoded import MAX_BYTES, TOO_LARGE, Entry, with_shapes
from mnist_ray.sources.formats.tf_example import features_of, values_of
from mnist_ray.sources.formats.unpacking import Unpacked, is_packed, unpacked_start
from mnist_ray.sources.labels import classes_of, list_text, seen_in, several_labels
from mnist_ray.sources.listing import Lister, Listing
from mnist_ray.storage.location import Location
from mnist_ray.storage.parallel import in_parallel
from mnist_ray.storage.tfrecord import checksum

_SCHEMA = pa.schema([("offset", pa.int64()), ("size", pa.int64()), ("label", pa.string()), ("bad", pa.string())])
_HEADER, _CHECKSUM = 12, 4  # bytes in front of a record's own, and behind them
_BUFFER_BYTES = 1 << 20
_MOST_BYTES = 1 << 60  # of a file, whatever a forged length says
_SAMPLES = 100  # records that decide what numbers stand for
_IMAGES = ("image/encoded", "image", "image_raw", "image/raw", "encoded", "img", "x", "pixels")
_LABELS = ("image/class/label", "label", "class", "y", "fine_label", "target")
_SIDES = ("height", "image/height"), ("width", "image/width"), ("depth", "channels", "image/channels", "image/depth")


class _Labels(Counter[str]):
    """How many labels there are of each kind: "one-hot", other "lists", and "plain"."""

    def remarks(self, name: str) -> list[str]:
        """Raises InputError where most labels are lists, as then it is no mistake."""
        found = []
        if self["lists"] > self["one-hot"] + self["plain"]:
            raise several_labels(f"{name}: labels are lists that are not one-hot")
        if self["one-hot"]:
            found.append(f"{name}: labels are one-hot; each is the number of its 1")
        if self["lists"]:
            found.append(f"{name}: {self['lists']:,} labels are lists that are not one-hot; their images have no label")
        return found


class _Record(NamedTuple):
    """A row of the listing."""

    offset: int
    """Of the record's own bytes."""
    size: int
    label: str
    bad: str | None = None


def is_tfrecord(first_bytes: bytes) -> bool:
    """Whether a file begins as TFRecord does, or what is compressed in it."""
    begin = unpacked_start(first_bytes, _HEADER) if is_packed(first_bytes) else b""
    return _is_header(first_bytes[:_HEADER]) or _is_header(begin)


def _is_header(data: bytes) -> bool:
    """Whether it is a length and its checksum."""
    return len(data) == _HEADER and checksum(data[:8]) == data[8:]


def open_tfrecords(files: Mapping[str, list[Location]], name: str, reading: Reading) -> TFRecordSource:
    """Reads every file once, for the places and labels of its records. What is lost to damage counts as one image."""
    read_as = [reading.image_column, reading.label_column, reading.takes("column")]
    key = json.dumps([*read_as, *(str(file) for each in files.values() for file in each)])
    listing = reading.stored_listing(key) or _index(files, name, key, reading)
    texts: Mapping[str, list[str]] = listing.facts["classes"]
    seen = (text for found in texts.values() for text in found)
    classes, several = classes_of(seen, name, takes_several=reading.takes_several)
    if reading.label_column and reading.takes("column") and not classes:
        raise InputError(f"{name}: no record has a label in `{reading.label_column}`, which --label-column names")
    return with_shapes(
        TFRecordSource(
            name=name,
            classes=classes,
            image_shape=(1, 1),
            splits=dict(listing.splits),
            labels="column" if reading.takes("column") else "none",
            several=several,
            absent=absent_classes(texts, classes, several),
            remarks=tuple(listing.facts.get("remarks", ())),
            convert=reading.convert,
            listing=listing,
            containers={split: tuple(each) for split, each in files.items()},
            image_column=reading.image_column,
            label_column=reading.label_column,
        ).with_span(signed=reading.signed)
    )


@dataclass(frozen=True, kw_only=True)
class TFRecordSource(ContainerSource):
    image_column: str | None = None
    label_column: str | None = None
    span: pixels.Span = pixels.BYTES
    """What numbers stand for pixels."""

    @property
    def _chosen(self) -> str:
        chosen = [self.image_column, self.label_column]
        return str(chosen) if any(chosen) else ""

    def _entries_of(self, container: Location, rows: Iterator[dict[str, Any]], first: int) -> Iterator[Entry]:
        try:
            with _opened(container) as stream:
                for number, row in enumerate(rows, first):
                    data, reason = b"", row["bad"]
                    if not reason:
                        stream.seek(row["offset"])
                        data = stream.read(row["size"] + _CHECKSUM)
                        meter.count(len(data))
                        data, reason = data[:-_CHECKSUM], _damage(data)
                    yield Entry(f"{container.name}/{number}", f"{container}/{number}", row["label"], data, reason)
        except FileNotFoundError as error:
            raise InputError(f"{container} has been removed since it was indexed; start again") from error

    def _pixels(self, data: bytes, shape: tuple[int, ...] | None) -> NDArray[np.uint8]:
        features = features_of(data)
        values = self._image(features)
        if isinstance(values, bytes) and (decoding.is_encoded(values) or not values):
            return decoding.decode(values, shape, self.convert)
        numbers = np.frombuffer(values, np.uint8) if isinstance(values, bytes) else values
        stored = _stored_shape(features, len(numbers))
        if isinstance(values, bytes):
            pixels.require_bytes(values)
        made, reasons = pixels.to_uint8(numbers.reshape(1, *stored), self.span)
        if reasons:
            raise ValueError(reasons[0])
        converted: NDArray[np.uint8] = self.convert.arrays(made)[0]
        if shape is not None and converted.shape != shape:
            raise ValueError(f"has the shape {converted.shape}, not {shape} like the others")
        return converted

    def _image(self, features: Mapping[str, Any]) -> bytes | NDArray[Any]:
        """An image file, raw pixels, or numbers. Raises ValueError where a record has none."""
        name = _name(features, self.image_column, _IMAGES)
        if name is None:
            raise ValueError(f"has no image, only {', '.join(features)[:200] or 'nothing'}")
        values = values_of(features, name)
        if not len(values) or isinstance(values[0], bytes):
            return bytes(values[0]) if values else b""
        return np.array(values)

    def with_span(self, *, signed: bool) -> TFRecordSource:
        """The source that knows what numbers stand for pixels, from its first records."""
        split, rows = next(iter(self.splits.items()))
        found: list[NDArray[Any]] = []
        for entry in self._entries(split, 0, min(rows, _SAMPLES)):
            with suppress(ValueError):
                values = self._image(features_of(entry.data))
                found += [values] if not isinstance(values, bytes) else []
        try:
            return replace(self, span=pixels.span_of(np.concatenate(found), signed=signed)) if found else self
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from error


def _index(files: Mapping[str, list[Location]], name: str, key: str, reading: Reading) -> Listing:
    lister = Lister(key, _SCHEMA, file=reading.new_list_file(key), notify=reading.notify)
    counts: dict[str, list[int]] = {}
    classes: dict[str, set[str]] = {}
    labels = _Labels()
    look = partial(_records, reading=reading)
    for split, each in files.items():
        lister.begin(split)
        counts[split], classes[split] = [], set()
        with closing(in_parallel(look, each, at_once=each[0].reads_at_once if each else 1)) as found:
            for file, (records, of_file) in zip(each, found, strict=True):
                labels.update(of_file)
                lister.report_progress(file)
                for record in records:
                    lister.add(record)
                    classes[split] |= seen_in(record.label)
                counts[split].append(len(records))
    return lister.finish(
        members=counts,
        classes={split: sorted(each - {""}) for split, each in classes.items()},
        remarks=labels.remarks(name),
    )


@contextmanager
def _opened(file: Location) -> Iterator[io.BufferedReader[io.RawIOBase]]:
    """A file, or what is compressed in it. Records are small, and on an object store each read is a round trip."""
    with file.open_file() as opened:
        raw: io.RawIOBase = ArrowFile(opened, file)
        begin = raw.read(_HEADER) or b""
        raw.seek(0)
        is_plain = _is_header(begin) or not is_packed(begin)
        with io.BufferedReader(raw if is_plain else Unpacked(raw), _BUFFER_BYTES) as stream:
            yield stream


def _records(file: Location, *, reading: Reading) -> tuple[list[_Record], _Labels]:
    """All records of a file, a last bad one for what is lost to damage, and how many labels are of which kind."""
    found: list[_Record] = []
    labels = _Labels()
    try:
        with _opened(file) as stream:
            at = 0
            while header := stream.read(_HEADER):
                size = int.from_bytes(header[:8], "little")
                if not _is_header(header):
                    return [*found, _Record(at, 0, "", _lost(at))], labels
                at += _HEADER
                end = at + size + _CHECKSUM
                reads = reading.takes("column") and size <= MAX_BYTES
                data = stream.read(size + _CHECKSUM) if reads else b""
                if len(data) < size + _CHECKSUM if reads else not _reaches(stream, end):
                    reason = f"is truncated within record {len(found):,}, with which the rest is lost"
                    return [*found, _Record(at - _HEADER, 0, "", reason)], labels
                label, kind = _label(data, reading) if reads else ("", "")
                bad = TOO_LARGE if size > MAX_BYTES else _damage(data) if reads else None
                found.append(_Record(at, size, label, bad))
                labels[kind] += 1
                at = end
            if isinstance(stream.raw, Unpacked) and not stream.raw.is_whole:
                return [*found, _Record(at, 0, "", _lost(at))], labels
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist") from error
    return found or [_Record(0, 0, "", "holds no record")], labels


def _reaches(stream: io.BufferedReader[io.RawIOBase], end: int) -> bool:
    """Skips to `end`. Whether there is as much."""
    stream.seek(min(end, _MOST_BYTES) - 1)
    return bool(stream.read(1))


def _lost(at: int) -> str:
    what = "is damaged" if at else "is not a TFRecord file or is damaged"
    return f"{what} from byte {at:,} on; the rest is lost"


def _damage(data: bytes) -> str | None:
    """Of a record's bytes and their checksum."""
    if checksum(data[:-_CHECKSUM]) == data[-_CHECKSUM:]:
        return None
    return "is damaged: its checksum is not that of its bytes"


def _label(data: bytes, reading: Reading) -> tuple[str, str]:
    """(the label of a record, as text; its kind, as `_Labels` has it). The label is "" where it has none, or -1, as
    TensorFlow Datasets marks unknown ones.

    The digits of numbers are kept: 1234567 and 1234568 are two classes.
    """
    try:
        features = features_of(data[:-_CHECKSUM])
    except ValueError:
        return "", ""
    name = _name(features, reading.label_column, _LABELS)
    values = [] if name is None else list(values_of(features, name))
    if reading.takes_several and name is not None and len(values) != 1:
        return list_text(each.decode(errors="replace") if isinstance(each, bytes) else each for each in values), "plain"
    if len(values) > 1:
        is_hot = values.count(1) == 1 and values.count(0) == len(values) - 1
        return (str(values.index(1)), "one-hot") if is_hot else ("", "lists")
    value = values[0] if values else ""
    text = pixels.by_value(value.decode(errors="replace").strip() if isinstance(value, bytes) else str(value))
    return text, "plain" if text else ""


def _name(features: Mapping[str, Any], chosen: str | None, usual: tuple[str, ...]) -> str | None:
    return next((name for name in ((chosen,) if chosen else usual) if name in features), None)


def _stored_shape(features: Mapping[str, Any], size: int) -> tuple[int, ...]:
    """The shape of raw pixels: as the record says, else a square. Raises ValueError where it is neither."""
    height, width, depth = (_number(features, names) for names in _SIDES)
    if height and width:
        shape = pixels.image_shape((height, width, depth or max(size // (height * width), 1)))
        if size == int(np.prod(shape)):
            return shape
        raise ValueError(f"has {size} pixels, which are no image of {height} x {width}")
    if not pixels.is_square(size):
        raise ValueError(f"has {size} pixels, which are no square gray image, and names no `height` and `width`")
    return pixels.square(size)


def _number(features: Mapping[str, Any], names: tuple[str, ...]) -> int:
    found = _name(features, None, names)
    values = features[found].int64_list.value if found else []
    return int(values[0]) if len(values) == 1 and 0 < values[0] <= pixels.MAX_SIDE else 0
