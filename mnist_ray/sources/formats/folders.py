"""Folders of image files, any number of folders deep: DIR/train/7/00001.png. Files are opened when they are read.

The first folder below DIR, or below its train/ and test/, is the class. In a class folder, every file counts as an
image whatever its name, so that what is not an image is reported, not passed over. Beside the class folders, only
files that are called like images count; the others are counted by kind.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from mnist_ray.errors import InputError
from mnist_ray.sources import meter, pixels
from mnist_ray.sources.base import IMAGE_SUFFIXES, Reading, absent_classes
from mnist_ray.sources.formats.encoded import (
    MAX_BYTES,
    TOO_LARGE,
    EncodedSource,
    Entry,
    class_of,
    with_shapes,
)
from mnist_ray.sources.labels import Classes, classes_of, seen_in, sorted_classes
from mnist_ray.sources.listing import (
    Child,
    Lister,
    Listing,
    children,
    count_kinds,
    is_litter,
    local_path,
    rows_of,
    walk,
)
from mnist_ray.sources.lists import labels_beside
from mnist_ray.storage.location import Location, io_errors
from mnist_ray.storage.parallel import in_parallel

_FILES_AT_ONCE = 1024  # in memory
_SCHEMA = pa.schema([("path", pa.string())])
_LABELLED = pa.schema([("path", pa.string()), ("label", pa.string())])


@dataclass(frozen=True, kw_only=True)
class FolderSource(EncodedSource):
    """Its listing has the files' paths relative to `folder`."""

    folder: Location

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        total = hashlib.sha256()
        for split, rows in self.splits.items():
            for start in range(0, rows, _FILES_AT_ONCE):
                for entry in self._entries(split, start, min(start + _FILES_AT_ONCE, rows)):
                    label = [entry.label] if self.labels == "column" and entry.label else []
                    total.update("".join(f"{each}\0" for each in (f"{split}/{entry.id}", *label)).encode())
                    total.update(hashlib.sha256(entry.data).digest())
        return total.hexdigest()

    def _entries(self, split: str, start: int, stop: int) -> Iterator[Entry]:
        """Reads an object store by many requests at once, as each is a round trip."""
        rows = rows_of(self.listing.rows(split, start, stop))

        def entry(row: dict[str, Any]) -> Entry:
            name = row["path"]
            label = row["label"] if self.labels == "column" else class_of(name)
            data, reason = _read(self.folder / name)
            return Entry(name, str(self.folder / name), label, data, reason)

        if self.folder.is_local:
            yield from map(entry, rows)
            return
        with closing(in_parallel(entry, rows, at_once=self.folder.reads_at_once)) as entries:
            yield from entries


def open_folders(
    folder: Location,
    roots: Mapping[str, tuple[Location, list[Child]]],
    reading: Reading,
    *,
    beside: Iterable[str] = (),
    below: tuple[Location, list[Child]] | None = None,
) -> FolderSource | None:
    """Class folders below `folder`. `roots` has each split's folder and what it holds; `beside` names what lies beside
    them; `below` is a class folder that has been listed already.

    None where there is no image, and no file in any class folder.
    """
    known = {str(below[0]): below[1]} if below else {}
    key = str(folder)
    named: set[str] = set()
    classes: dict[str, set[str]] = {}
    others = list(beside)
    tables = _tables(folder, others, roots, reading)
    schema = _LABELLED if any(tables.values()) else _SCHEMA
    reading.require_columns(() if schema is _SCHEMA else ("label_column", "image_column"), key)
    lister = Lister(key, schema, file=reading.new_list_file(key), notify=reading.notify)
    for split, (root, held) in roots.items():
        prefix = "" if split == "all" else f"{root.name}/"
        table, labels = tables[split] or ("", {})
        lister.begin(split, labels if schema is _LABELLED else None)
        classes[split] = set()
        for child in held:
            if child.is_folder and is_litter(child.name):
                others.append(f"{child.name}/")
            elif child.is_folder:
                before, skipped, below_root = len(lister), len(lister.skipped), root / child.name
                walk(below_root, f"{prefix}{child.name}/", known.get(str(below_root)) or children(below_root), lister)
                if len(lister) > before:
                    classes[split].add(child.name)
                if len(lister) > before or len(lister.skipped) == skipped:  # a folder of texts is no class
                    named.add(child.name)
        files = [child for child in held if not child.is_folder]
        loose = [child for child in files if child.name.lower().endswith(IMAGE_SUFFIXES)]
        lister.add_files(prefix, loose)
        others += [
            child.name for child in files if child.name != table and not child.name.lower().endswith(IMAGE_SUFFIXES)
        ]
    listing = lister.finish(
        classes=_classes(set().union(*classes.values()), reading),
        absent=absent_classes(classes, _classes(named, reading)),
        passed_over=count_kinds([*others, *lister.skipped]),
        **({} if schema is _SCHEMA else {"texts": _texts(tables), "remarks": _remarks(key, tables, lister)}),
    )
    return reopen(folder, listing, reading) if any(listing.splits.values()) else None


def _tables(
    folder: Location, beside: list[str], roots: Mapping[str, tuple[Location, list[Child]]], reading: Reading
) -> dict[str, tuple[str, dict[str, str]] | None]:
    """For each split, the name of the table beside its images, and their labels by their paths in the input. The table
    may also lie beside the folders of the splits; it is then taken out of `beside`."""
    above = labels_beside(folder, beside, reading)
    if above:
        beside.remove(above[0])
    tables: dict[str, tuple[str, dict[str, str]] | None] = {}
    for split, (root, held) in roots.items():
        found = labels_beside(root, [child.name for child in held if not child.is_folder], reading)
        prefix = "" if split == "all" else f"{root.name}/"
        if found:
            tables[split] = found[0], {prefix + name: label for name, label in found[1].items()}
        else:
            tables[split] = above and (above[0], {name: above[1][name] for name in above[1] if name.startswith(prefix)})
    return tables


def _texts(tables: Mapping[str, tuple[str, dict[str, str]] | None]) -> dict[str, list[str]]:
    """The labels of each split."""
    found = {split: {*table[1].values()} for split, table in tables.items() if table}
    return {split: sorted(set().union(*map(seen_in, each)) - {""}) for split, each in found.items()}


def _remarks(key: str, tables: Mapping[str, tuple[str, dict[str, str]] | None], lister: Lister) -> list[str]:
    """What users should know of images that the tables do not name. Raises InputError where they name none."""
    name = next(table[0] for table in tables.values() if table)
    if not lister.num_unnamed:
        return []
    if lister.num_unnamed == len(lister):
        raise InputError(
            f"{key}: {name} names none of the images, such as {lister.unnamed}; write their paths as they are in its"
            " folder, or rename the table if its labels are not theirs"
        )
    return [f"{name} does not name {lister.num_unnamed:,} of {len(lister):,} images: they have no labels"]


def open_images(
    base: str, files: Iterable[tuple[str, str | None]], reading: Reading, *, key: str = "", labelled_by: str = ""
) -> FolderSource:
    """Files that are named one by one, relative to the folder `base`; whether they exist shows when they are read.

    `key` names what is listed, for a resumed scoring; `labelled_by` tells whether the class folders are the labels
    ("folder"), or what stands beside the names ("list").
    """
    folder = Location.parse(base)
    key = key or f"files in {folder}"
    classes: set[str] = set()
    texts: set[str] = set()
    is_list = labelled_by == "list"
    lister = Lister(key, _LABELLED if is_list else _SCHEMA, file=reading.new_list_file(key), notify=reading.notify)
    lister.begin("all")
    for number, (name, label) in enumerate(files):
        lister.add((name, label) if is_list else (name,))
        if is_list:
            texts |= seen_in(label or "")
        elif labelled_by:
            classes.add(class_of(name))
        if not number % 1000:
            lister.report_progress(folder)
    facts: dict[str, Any] = {"texts": {"all": sorted(texts - {""})}} if is_list else {}
    return reopen(folder, lister.finish(classes=_classes(classes - {""}, reading), base=base, **facts), reading)


def _classes(names: set[str], reading: Reading) -> list[str]:
    """Too many folders are no fault where they are not wanted as labels."""
    wanted = reading.takes("folders") or len(names) <= pixels.MAX_CLASSES
    return sorted_classes(names) if wanted else []


def reopen(folder: Location, listing: Listing, reading: Reading) -> FolderSource:
    """The source of files that are listed already, relative to `folder`."""
    texts: Mapping[str, list[str]] = listing.facts.get("texts", {})
    labels = {"column": "none"}.get(reading.labels, reading.labels)
    classes = Classes(tuple(listing.facts["classes"]) if reading.takes("folders") else ())
    absent = listing.facts.get("absent", {}) if reading.takes("folders") else {}
    if texts and reading.takes("column"):
        seen = (text for each in texts.values() for text in each)
        labels, classes = "column", classes_of(seen, str(folder), takes_several=reading.takes_several)
        absent = absent_classes(texts, classes.names, classes.several)
    return with_shapes(
        FolderSource(
            name=str(folder),
            classes=classes.names,
            several=classes.several,
            image_shape=(1, 1),
            splits=dict(listing.splits),
            labels=labels,
            absent=absent,
            passed_over=listing.facts.get("passed_over", {}),
            remarks=tuple(listing.facts.get("remarks", ())) if labels == "column" else (),
            convert=reading.convert,
            listing=listing,
            folder=folder,
        )
    )


def _read(file: Location) -> tuple[bytes, str | None]:
    """The file's bytes, and why it is not an image where that shows before it is decoded."""
    try:
        with io_errors(file, "read"):
            data, reason = _read_local(file.path) if file.is_local else _read_remote(file)
    except FileNotFoundError:
        is_link = file.is_local and Path(local_path(file.path)).is_symlink()
        return b"", "is a link to a file that does not exist" if is_link else "does not exist"
    meter.count(len(data))
    return data, reason


def _read_local(path: str) -> tuple[bytes, str | None]:
    """Refuses pipes and devices: reading one could block for ever, or never end."""
    try:
        descriptor = os.open(local_path(path), os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself
            raise FileNotFoundError from error
        raise
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return b"", "is not a regular file"
        return (file.readall(), None) if status.st_size <= MAX_BYTES else (b"", TOO_LARGE)


def _read_remote(file: Location) -> tuple[bytes, str | None]:
    with file.filesystem.open_input_stream(file.path, compression=None) as stream:
        data = bytes(stream.read(MAX_BYTES + 1))
    return data, TOO_LARGE if len(data) > MAX_BYTES else None
