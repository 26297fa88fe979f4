"""Archives of image files, tar and ZIP, as WebDataset and people have them. Members are read in place: nothing is
extracted.

The members are indexed once. The label of an image is in the `.cls` or `.json` member with the same key; in an input
without any such label, in a table (metadata.csv) in its folder or one above; else it is the class folder of its path.
Other members are passed over, and counted by kind.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from mnist_ray.errors import InputError
from mnist_ray.sources.base import Reading, absent_classes
from mnist_ray.sources.formats.archive_index import Found, Index, inside
from mnist_ray.sources.formats.containers import ContainerSource
from mnist_ray.sources.formats.encoded import (
    Entry,
    class_of,
    with_shapes,
)
from mnist_ray.sources.labels import Classes, classes_of, sorted_classes
from mnist_ray.sources.listing import Listing
from mnist_ray.storage.location import Location, io_errors, sha256


@dataclass(frozen=True, kw_only=True)
class ArchiveSource(ContainerSource):
    """Its listing has the members of all archives, archive after archive."""

    SUFFIX: ClassVar[str]
    COLUMNS: ClassVar[tuple[str, ...]]
    """The fields of a Member that are listed: the first ones."""

    image_field: str | None = None

    @staticmethod
    @abstractmethod
    def walk(archive: Location) -> Iterator[Found | str]:
        """All files of an archive, without folders. Where it is damaged, the last item is the reason, as text."""

    @staticmethod
    @abstractmethod
    def read_member(file: Any, row: Mapping[str, Any]) -> bytes:
        """The content of a member in an open archive. Raises ValueError with a reason where it cannot be read."""

    @property
    def _chosen(self) -> str:
        return self.image_field or ""

    def _entries_of(self, archive: Location, rows: Iterator[dict[str, Any]], first: int) -> Iterator[Entry]:
        root = self.listing.facts["root"]
        try:
            with archive.open_file() as file:
                for row in rows:
                    data, reason = b"", row["bad"]
                    try:
                        with io_errors(archive, "read"):
                            data = b"" if reason else self.read_member(file, row)
                    except ValueError as error:
                        reason = str(error)
                    name = row["label"] if self.labels == "column" else class_of(inside(row["path"], root))
                    yield _entry(archive, row | {"bad": reason}, name, data)
        except FileNotFoundError as error:
            raise InputError(f"{archive} has been removed since it was indexed; start again") from error


def _entry(archive: Location, row: dict[str, Any], label: str, data: bytes) -> Entry:
    """The id is archive/member. A row for a whole archive has no member."""
    inside = f"/{row['path']}" if row["path"] else ""
    return Entry(f"{archive.name}{inside}", f"{archive}{inside}", label, data, row["bad"])


S = TypeVar("S", bound=ArchiveSource)


def open_archives(
    kind: type[S], archives: Mapping[str, list[Location]], name: str, reading: Reading,
    beside: dict[str, str] | None = None,
) -> S:  # fmt: skip
    """Reads the headers of every archive. One that cannot be indexed counts as one image that cannot be read.

    beside: labels by the paths of images in the archives, from a table that lies beside these.

    Where the archives hold folders for training and for testing, these are the splits.
    """
    key = json.dumps([str(file) for files in archives.values() for file in files])
    if reading.image_field is not None:
        key += f" --image-field {reading.image_field}"
    if beside:
        key += f" {sha256(json.dumps(beside).encode())}"
    listing = reading.stored_listing(key)
    if listing is None:
        listing = Index(kind.walk, kind.COLUMNS, key, beside or {}, reading).of(archives)
    labels, classes, held = _labels(listing, name, reading)
    is_split = list(listing.splits) != list(archives)  # by the folders inside
    return with_shapes(
        kind(
            name=name,
            classes=classes.names,
            several=classes.several,
            image_shape=(1, 1),
            splits=dict(listing.splits),
            labels=labels,
            absent=absent_classes(held, classes.names, classes.several),
            passed_over=listing.facts["passed_over"],
            remarks=tuple(listing.facts.get("remarks", ())) if labels == "column" else (),
            convert=reading.convert,
            listing=listing,
            containers={split: tuple(archives["all" if is_split else split]) for split in listing.splits},
            image_field=reading.image_field,
        )
    )


def _labels(listing: Listing, name: str, reading: Reading) -> tuple[str, Classes, Mapping[str, list[str]]]:
    """Where the labels come from, as in `Source.labels`, the classes, and those of each split."""
    texts, folders = (set().union(*listing.facts[kind].values()) for kind in ("classes", "folders"))
    if texts and reading.takes("column"):
        classes = classes_of(texts, name, takes_several=reading.takes_several)
        return "column", classes, listing.facts["classes"]
    if reading.takes("folders"):
        return reading.labels, Classes(tuple(sorted_classes(folders))), listing.facts["folders"]
    return "none", Classes(()), {}
