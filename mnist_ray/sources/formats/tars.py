"""Tar archives of image files, as WebDataset has them. Members are read in place; nothing is extracted.

The members are indexed once. The label of an image is the text of the member with the same key that ends in `.cls`, or
in an input without any such member, the class folder of its path. Other members are passed over, and counted by kind.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import pyarrow as pa

from mnist_ray.errors import InputError
from mnist_ray.sources import pixels
from mnist_ray.sources.base import Reading, absent_classes
from mnist_ray.sources.formats.encoded import EncodedSource, Entry, class_of, sorted_classes, text_classes, with_shapes
from mnist_ray.sources.formats.tar_members import Member, Sorting, read_members
from mnist_ray.sources.listing import Lister, Listing
from mnist_ray.storage.location import Location, file_sha256, io_errors

_SCHEMA = pa.schema(
    [("path", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("label", pa.string()), ("bad", pa.string())]
)  # the fields of a Member


@dataclass(frozen=True, kw_only=True)
class TarSource(EncodedSource):
    """Its listing has the members of all archives, archive after archive."""

    archives: Mapping[str, tuple[Location, ...]]

    @cached_property
    def _ends(self) -> Mapping[str, list[int]]:
        """For each split and archive, the number of rows up to its end."""
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
            number = bisect_right(ends, start)
            archive, last = self.archives[split][number], min(stop, ends[number])
            rows = self.listing.rows(split, start, last).to_pylist()
            if all(row["bad"] for row in rows):  # perhaps it is not an archive at all
                yield from (_entry(archive, row, -1, b"") for row in rows)
            else:
                yield from self._read_archive(archive, rows, numbers)
            start = last

    def _read_archive(self, archive: Location, rows: list[dict[str, Any]], numbers: dict[str, int]) -> Iterator[Entry]:
        try:
            with archive.open_file() as file:
                for row in rows:
                    with io_errors(archive, "read"):
                        data = b"" if row["bad"] else bytes(file.read_at(row["size"], row["offset"]))
                    name = row["label"] if self.labels == "column" else class_of(row["path"])
                    yield _entry(archive, row, numbers.get(name, -1), data)
        except FileNotFoundError as error:
            raise InputError(f"{archive} has been removed since it was indexed; start again") from error


def _entry(archive: Location, row: dict[str, Any], label: int, data: bytes) -> Entry:
    """The id is archive/member. A row for a whole archive has no member."""
    inside = f"/{row['path']}" if row["path"] else ""
    return Entry(f"{archive.name}{inside}", f"{archive}{inside}", label, data, row["bad"])


def open_tars(archives: Mapping[str, list[Location]], name: str, reading: Reading) -> TarSource:
    """Reads the headers of every archive. One that cannot be indexed counts as one image that cannot be read."""
    key = json.dumps([str(file) for files in archives.values() for file in files])
    if reading.image_field is not None:
        key += f" --image-field {reading.image_field}"
    listing = reading.stored_listing(key)
    if listing is None:
        lister = Lister(key, _SCHEMA, file=reading.new_list_file(key), notify=reading.notify)
        listing = _index(archives, lister, Sorting(reading.image_field))
    labels, classes, held = _labels(listing, reading)
    return with_shapes(
        TarSource(
            name=name,
            classes=classes,
            image_shape=(1, 1),
            splits=dict(listing.splits),
            labels=labels,
            absent=absent_classes(held, classes),
            passed_over=listing.facts["passed_over"],
            convert=reading.convert,
            listing=listing,
            archives={split: tuple(files) for split, files in archives.items()},
        )
    )


def _labels(listing: Listing, reading: Reading) -> tuple[str, tuple[str, ...], Mapping[str, list[str]]]:
    """Where the labels come from, as in `Source.labels`, the classes, and those of each split."""
    texts, folders = (set().union(*listing.facts[kind].values()) for kind in ("classes", "folders"))
    if texts and reading.takes("column"):
        return "column", tuple(text_classes(texts)), listing.facts["classes"]
    if reading.takes("folders"):
        return reading.labels, tuple(sorted_classes(folders)), listing.facts["folders"]
    return "none", (), {}


def _index(archives: Mapping[str, list[Location]], lister: Lister, sorting: Sorting) -> Listing:
    texts: dict[str, set[str]] = {}
    folders: dict[str, set[str]] = {}
    counts: dict[str, list[int]] = {}
    for split, files in archives.items():
        lister.begin(split)
        counts[split], texts[split], folders[split] = [], set(), set()
        for archive in files:
            before = len(lister)
            for member in read_members(archive, sorting, partial(lister.report_progress, archive)):
                if member.bad is None:
                    texts[split].add(member.label)
                    if len(folders[split]) <= pixels.MAX_CLASSES:  # of more, it does not matter how many they are
                        folders[split].add(class_of(member.path))
                lister.add(member)
            if len(lister) == before:
                lister.add(Member("", 0, 0, "", f"holds no image{_where(sorting)}"))
            counts[split].append(len(lister) - before)
    return lister.finish(
        classes={split: sorted(found - {""}) for split, found in texts.items()},
        folders={split: sorted(found - {""}) for split, found in folders.items()},
        members=counts,
        passed_over=dict(sorted(sorting.passed_over.items())),
    )  # fmt: skip


def _where(sorting: Sorting) -> str:
    return "" if sorting.image_field is None else f" called KEY.{sorting.image_field.removeprefix('.')}"
