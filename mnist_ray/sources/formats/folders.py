"""Folders of PNG or JPEG files: DIR/train/7/00001.png, any number of folders deep. A file is opened when it is read.

The first folder below DIR, or below its train/ and test/, is the class. In a class folder every file counts as an
image, whatever its name: what is none is named, not left out silently. Beside the class folders only images do.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from mnist_ray.sources.base import IMAGE_SUFFIXES, Reading
from mnist_ray.sources.formats.encoded import MAX_BYTES, EncodedSource, Entry, class_of, numbered, with_shapes
from mnist_ray.sources.listing import Child, Lister, Listing, children, walk
from mnist_ray.storage.location import Location, io_errors

_REQUESTS_AT_ONCE = 16
_FILES_AHEAD = 1024  # held in memory
_SCHEMA = pa.schema([("path", pa.string())])


@dataclass(frozen=True, kw_only=True)
class FolderSource(EncodedSource):
    """The listing has the files' paths relative to `folder`: class folder by class folder, by name."""

    folder: Location

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        total = hashlib.sha256()
        for split, rows in self.splits.items():
            for start in range(0, rows, _FILES_AHEAD):
                for entry in self._entries(split, start, min(start + _FILES_AHEAD, rows)):
                    total.update(f"{split}/{entry.id}\0".encode())
                    total.update(hashlib.sha256(entry.data).digest())
        return total.hexdigest()

    def _entries(self, split: str, start: int, stop: int) -> Iterator[Entry]:
        """Many requests at once where each is a round trip to an object store."""
        names: list[str] = self.listing.rows(split, start, stop)["path"].to_pylist()
        numbers = {name: number for number, name in enumerate(self.classes)}

        def entry(name: str) -> Entry:
            data, reason = _read(self.folder / name)
            return Entry(name, str(self.folder / name), numbers.get(class_of(name), -1), data, reason)

        if self.folder.is_local:
            yield from map(entry, names)
            return
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            for first in range(0, len(names), _FILES_AHEAD):
                yield from pool.map(entry, names[first : first + _FILES_AHEAD])


def open_folders(
    folder: Location, roots: Mapping[str, tuple[Location, list[Child]]], reading: Reading
) -> FolderSource | None:
    """roots: each split's folder and what it holds. None where that is no image."""
    of, classes = str(folder), set()
    lister = Lister(of, _SCHEMA, file=reading.kept(of), say=reading.say)
    for split, (root, held) in roots.items():
        lister.begin(split)
        prefix = "" if split == "all" else f"{split}/"
        for top in held:
            if top.is_folder:
                before, below = len(lister), root / top.name
                walk(below, f"{prefix}{top.name}/", children(below), lister)
                if len(lister) > before:
                    classes.add(top.name)
        loose = [child for child in held if not child.is_folder and child.name.lower().endswith(IMAGE_SUFFIXES)]
        lister.add_files(prefix, loose)
    listing = lister.finish(classes=numbered(classes))
    return reopen(folder, listing, reading) if any(listing.splits.values()) else None


def open_images(
    base: str, names: Iterable[str], reading: Reading, *, of: str = "", labelled: bool = False
) -> FolderSource:
    """Files that are named one by one, relative to `base`; they are looked at when they are read."""
    folder = Location.parse(base)
    of, classes = of or f"files in {folder}", {""}
    lister = Lister(of, _SCHEMA, file=reading.kept(of), say=reading.say)
    lister.begin("all")
    for number, name in enumerate(names):
        lister.add((name,))
        if labelled:
            classes.add(class_of(name))
        if not number % 1000:
            lister.said(folder)
    return reopen(folder, lister.finish(classes=numbered(classes - {""}), base=base), reading)


def reopen(folder: Location, listing: Listing, reading: Reading) -> FolderSource:
    return with_shapes(
        FolderSource(
            name=str(folder),
            classes=tuple(listing.facts["classes"]),
            image_shape=(1, 1),
            splits=dict(listing.splits),
            convert=reading.convert,
            listing=listing,
            folder=folder,
        )
    )


_HUGE = f"is larger than {MAX_BYTES >> 20} MiB"


def _read(file: Location) -> tuple[bytes, str | None]:
    """The file's bytes, or why it is no image."""
    try:
        with io_errors(file, "read"):
            return _local(file.path) if file.is_local else _remote(file)
    except FileNotFoundError:
        return b"", "is not there, or not any more"


def _local(path: str) -> tuple[bytes, str | None]:
    """A pipe or a device could block for ever, or never end."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            return b"", "is no regular file"
        return (file.readall(), None) if about.st_size <= MAX_BYTES else (b"", _HUGE)


def _remote(file: Location) -> tuple[bytes, str | None]:
    with file.filesystem.open_input_stream(file.path, compression=None) as stream:
        data = bytes(stream.read(MAX_BYTES + 1))
    return data, _HUGE if len(data) > MAX_BYTES else None
