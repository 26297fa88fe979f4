"""Tar archives of PNG or JPEG files, as WebDataset has them. Members are read where they lie; nothing is extracted.

An index of the members is made once. A member's label is in the member of the same key that ends in `.cls`, else its
folder is its class. Other members are no images, and are passed over.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa

from mnist_ray.errors import InputError
from mnist_ray.sources import pixels
from mnist_ray.sources.base import IMAGE_SUFFIXES, Reading
from mnist_ray.sources.formats.encoded import MAX_BYTES, EncodedSource, Entry, class_of, numbered, with_shapes
from mnist_ray.sources.listing import Lister, Listing
from mnist_ray.storage.location import Location, file_sha256, io_errors

_LOOK_AHEAD = 1 << 20  # bytes: headers lie between images, so that an object store is asked seldom
_MOST_AT_ONCE = 1 << 20  # bytes of a header: long names and pax records are smaller
_SCHEMA = pa.schema(
    [("path", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("label", pa.string()), ("bad", pa.string())]
)


_Row = tuple[str, int, int, str, str | None]


@dataclass(frozen=True, kw_only=True)
class TarSource(EncodedSource):
    """The listing has the members of all archives, one archive after the other."""

    archives: Mapping[str, tuple[Location, ...]]

    @cached_property
    def _ends(self) -> Mapping[str, list[int]]:
        return {split: list(accumulate(counts)) for split, counts in self.listing.facts["members"].items()}

    def units(self, split: str) -> list[tuple[int, int]]:
        ends = self._ends[split]
        return [(start, stop) for start, stop in zip([0, *ends], ends, strict=False) if stop > start]

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        names = [f"{split} {file_sha256(file)}\n" for split, files in self.archives.items() for file in files]
        return hashlib.sha256("".join(names).encode()).hexdigest()

    def _entries(self, split: str, start: int, stop: int) -> Iterator[Entry]:
        numbers = {name: number for number, name in enumerate(self.classes)}
        ends = self._ends[split]
        while start < stop:
            which = bisect_right(ends, start)
            archive, last = self.archives[split][which], min(stop, ends[which])
            rows = self.listing.rows(split, start, last).to_pylist()
            if all(row["bad"] for row in rows):  # it may be no archive at all
                yield from (Entry(_id(archive, row), _id(archive, row, True), -1, b"", row["bad"]) for row in rows)
            else:
                yield from self._members(archive, rows, numbers)
            start = last

    def _members(self, archive: Location, rows: list[dict[str, Any]], numbers: dict[str, int]) -> Iterator[Entry]:
        try:
            with archive.open_file() as file:
                for row in rows:
                    with io_errors(archive, "read"):
                        data = b"" if row["bad"] else bytes(file.read_at(row["size"], row["offset"]))
                    label = numbers.get(row["label"], -1)
                    yield Entry(_id(archive, row), _id(archive, row, True), label, data, row["bad"])
        except FileNotFoundError as error:
            raise InputError(f"{archive} was there when it was indexed and is gone; start anew") from error


def _id(archive: Location, row: dict[str, Any], whole: bool = False) -> str:
    return "/".join(part for part in (str(archive) if whole else archive.name, row["path"]) if part)


def open_tars(where: str, archives: Mapping[str, list[Location]], reading: Reading) -> TarSource:
    """Reads every archive's headers. What cannot be indexed counts as one image that cannot be read."""
    of = json.dumps([str(file) for files in archives.values() for file in files])
    if (listing := reading.listed(of)) is not None:
        return _opened(where, archives, listing, reading)
    lister = Lister(of, _SCHEMA, file=reading.kept(of), say=reading.say)
    classes: set[str] = set()
    members: dict[str, list[int]] = {}
    for split, files in archives.items():
        lister.begin(split)
        members[split] = []
        for archive in files:
            count = 0
            for row in _indexed(archive, lister):
                if row[4] is None and row[3]:
                    classes.add(row[3])
                lister.add(row)
                count += 1
            if not count:
                lister.add(("", 0, 0, "", "holds no PNG or JPEG member"))
                count = 1
            members[split].append(count)
    return _opened(where, archives, lister.finish(classes=_ordered(classes), members=members), reading)


def _opened(where: str, archives: Mapping[str, list[Location]], listing: Listing, reading: Reading) -> TarSource:
    return with_shapes(
        TarSource(
            name=where,
            classes=tuple(listing.facts["classes"]),
            image_shape=(1, 1),
            splits=dict(listing.splits),
            convert=reading.convert,
            listing=listing,
            archives={split: tuple(files) for split, files in archives.items()},
        )
    )


def _ordered(classes: set[str]) -> list[str]:
    """Class numbers are 0 to the highest; names are sorted."""
    if classes and all(name.isdecimal() and name.isascii() and len(name) < 6 for name in classes):
        highest = max(map(int, classes))
        if highest < pixels.MAX_CLASSES:
            return list(pixels.class_names(highest))
    return numbered(classes)


class _Headers(io.RawIOBase):
    """A pyarrow file, for tarfile to read headers from. A forged header may ask for any number of bytes at once."""

    def __init__(self, file: Any, where: Location) -> None:
        self._file, self._where = file, where

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        with io_errors(self._where, "read"):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with io_errors(self._where, "read"):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Bounded(io.BufferedReader):
    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MOST_AT_ONCE:
            raise tarfile.ReadError("a header of more than 1 MiB")
        return super().read(size)


def _indexed(archive: Location, lister: Lister) -> Iterator[_Row]:
    """A row for each image, in order; a last one for what is behind damage."""
    try:
        file = archive.open_file()
    except FileNotFoundError as error:
        raise InputError(f"{archive} does not exist") from error
    with file as opened:
        size = opened.size()
        headers = _Bounded(_Headers(opened, archive), 512 if archive.is_local else _LOOK_AHEAD)
        key, label = "", ""
        held: list[_Row] = []
        damage: str | None = None
        for member in _walked(headers, size):
            if isinstance(member, str):
                damage = member
                break
            lister.said(archive)
            folder, _, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            if (mine := f"{folder}/{stem}") != key:
                yield from _labelled(held, label)
                key, held, label = mine, [], ""
            if suffix == "cls" and member.isreg():
                label = _class_text(headers, member)
            elif base.lower().endswith(IMAGE_SUFFIXES) and not member.isdir():
                if len(held) == 1000:  # of one key: it would be none of WebDataset's
                    yield from _labelled(held, label)
                    held = []
                held.append((member.name, member.offset_data, member.size, class_of(member.name), _refused(member)))
        yield from _labelled(held, label)
        if damage:
            yield "", 0, 0, "", damage


def _labelled(rows: list[_Row], label: str) -> Iterator[_Row]:
    for path, offset, size, folder, bad in rows:
        yield path, offset, size, label or folder, bad


def _walked(file: _Bounded, size: int) -> Iterator[tarfile.TarInfo | str]:
    """The members, and where the archive does not end as one does, why."""
    position = 0
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r", errors="replace")
        while True:
            file.seek(position)
            block = file.read(tarfile.BLOCKSIZE)
            if not block:
                yield "has no end: it may be truncated between two members"
                return
            if not any(block):  # zeros, to the end of the file
                while data := file.read(_MOST_AT_ONCE):
                    if any(data):
                        yield f"ends at byte {position:,}, but more follows, which is lost"
                        return
                return
            file.seek(position)
            member = tarfile.TarInfo.fromtarfile(tar)
            if tar.offset <= position:
                raise tarfile.ReadError("a member of a negative size")
            if member.isreg() and member.offset_data + member.size > size:
                yield f"is truncated within {ascii(member.name)[:200]}, with which the rest is lost"
                return
            yield member
            position = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
        yield (
            f"is no tar archive or is damaged from byte {position:,} on"
            f" ({str(error)[:100] or type(error).__name__}); the rest is lost"
        )


def _refused(member: tarfile.TarInfo) -> str | None:
    if not member.isreg():
        return "is a link or a device, not a file"
    if member.issparse():
        return "is stored as a sparse file"
    return None if 0 <= member.size <= MAX_BYTES else f"is larger than {MAX_BYTES >> 20} MiB"


def _class_text(file: _Bounded, member: tarfile.TarInfo) -> str:
    file.seek(member.offset_data)
    return file.read(min(member.size, 64)).decode(errors="replace").strip()
