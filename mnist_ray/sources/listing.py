"""The files of an input, or the members of its archives, as Arrow batches in memory or in a file beside the output.

100 million paths are listed once, folder by folder, and never are 100 million Python objects: a read takes the rows
that it needs. A long listing is written to a file while it is made, and a scoring that is resumed reads that file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
import unicodedata
import uuid
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from mnist_ray.errors import InputError
from mnist_ray.storage.location import Location, io_errors
from mnist_ray.storage.records import Count, parse_checked

BATCH_ROWS = 65_536
_ROWS_AT_ONCE = 1024  # as Python objects
LONG = 200_000
"""A listing of more rows than this is stored in a file."""

_NOTIFY_SECONDS = 5.0
_MAX_DEPTH = 100  # folders
_ESCAPE = re.compile(r"\\x([89a-f][0-9a-f])")  # of a byte that is not UTF-8
_LITTER = (
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx",
    "@eadir", "$recycle.bin", "system volume information", "lost+found",
)  # fmt: skip
_WINDOWS_NOTE = ":zone.identifier"  # where a file came from: cat.png:Zone.Identifier
_TEXTS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html")
_METADATA = b"listing 3"  # key in the custom metadata of the last batch; a new one where the facts change


class Child(NamedTuple):
    """A file or folder in a folder."""

    name: str
    size: int | None
    """In bytes. None for a folder, -1 for pipes and devices."""
    mtime_ns: int | None

    @property
    def is_folder(self) -> bool:
        return self.size is None


def children(folder: Location) -> list[Child]:
    """What a folder holds, sorted by name, without names that start with a dot. Empty where there is no such folder.

    Raises InputError for a symbolic link to a folder that contains it.
    """
    path = Path(folder.path)
    if folder.is_local and path.is_symlink() and path.resolve() in map(Path.resolve, path.parents):
        raise InputError(
            f"{folder} is a link to a folder that contains it; remove it, or its images are read again and again"
        )
    with io_errors(folder, "list"):
        if folder.is_local and _ESCAPE.search(folder.path):
            return _scan(folder)
        infos = folder.filesystem.get_file_info(fs.FileSelector(folder.path, allow_not_found=True))
        if folder.is_local and path.is_dir() and _count(path) != len(infos):  # Arrow leaves out links to nothing
            return _scan(folder)
        try:
            held = [Child(info.base_name, _size(info), info.mtime_ns) for info in infos]
        except UnicodeDecodeError:  # a name in Latin-1, say; object stores have none such
            return _scan(folder)
    return sorted(child for child in held if child.name[:1] != ".")


def _count(path: Path) -> int:
    with os.scandir(path) as entries:
        return sum(1 for _ in entries)


def _scan(folder: Location) -> list[Child]:
    """`children` of a local folder, of links to nothing as well. Bytes that are not UTF-8 are escaped: "caf\\xe9"."""
    path = local_path(folder.path)
    with os.scandir(path) if Path(path).is_dir() else nullcontext(()) as entries:
        return sorted(_child(entry) for entry in entries if entry.name[:1] != ".")


def _child(entry: os.DirEntry[str]) -> Child:
    name = os.fsencode(entry.name).decode(errors="backslashreplace")
    try:
        status = entry.stat()
    except OSError:  # a link that leads to nothing, or to itself
        return Child(name, -1, None)
    if stat.S_ISREG(status.st_mode):
        return Child(name, status.st_size, status.st_mtime_ns)
    return Child(name, None if stat.S_ISDIR(status.st_mode) else -1, None)


def local_path(path: str) -> str:
    """The path to open for one that a listing gave: escaped bytes as they are, unless it exists as it is written."""
    if not _ESCAPE.search(path) or Path(path).exists():
        return path
    plain = _ESCAPE.sub(lambda found: bytes.fromhex(found[1]).decode(errors="surrogateescape"), path)
    return os.fsdecode(plain.encode(errors="surrogateescape"))


def _size(info: fs.FileInfo) -> int | None:
    size: int | None = info.size
    return -1 if size is None and info.type != fs.FileType.Directory else size


@dataclass(frozen=True)
class Listing:
    """Rows in order, split after split. Its pickle holds the batches, or where their file is."""

    splits: Mapping[str, int]
    """The number of rows in each split."""
    facts: Mapping[str, Any]
    """What else is known once everything is listed: values that JSON can hold."""
    digest: str
    """sha256 of all rows, with the size and modification time of each file."""
    ends: tuple[int, ...]
    """For each batch, the number of rows up to its end."""
    batches: tuple[pa.RecordBatch, ...] = ()
    file: Location | None = None

    def rows(self, split: str, start: int, stop: int) -> pa.Table:
        """Rows start..stop of a split."""
        names = list(self.splits)
        before = sum(self.splits[name] for name in names[: names.index(split)])
        start, stop = start + before, stop + before
        first, last = bisect_right(self.ends, start), bisect_right(self.ends, max(stop - 1, start))
        batches = self._read_batches(min(first, len(self.ends) - 1), min(last, len(self.ends) - 1))
        offset = self.ends[first - 1] if first else 0
        return pa.Table.from_batches(batches).slice(start - offset, stop - start)

    def _read_batches(self, first: int, last: int) -> list[pa.RecordBatch]:
        if self.file is None:
            return list(self.batches[first : last + 1])
        try:
            with self.file.open_file() as file, io_errors(self.file, "read"):
                reader = pa.ipc.open_file(file)
                if _metadata(reader)["digest"] != self.digest:  # another command has written its own
                    raise InputError(f"{self.file} now lists another input; score each into a folder of its own")
                return [reader.get_batch(number) for number in range(first, last + 1)]
        except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError) as error:
            raise InputError(
                f"{self.file}, which lists the input, is missing or damaged; score into another folder"
            ) from error

    @classmethod
    def load(cls, file: Location, key: str) -> Listing | None:
        """The listing of the input `key` in a file. None where it is missing, incomplete or of another input."""
        metadata = _stored_metadata(file)
        if metadata is None or metadata.pop("of") != key:
            return None
        fields = {name: metadata[name] for name in ("splits", "facts", "digest")}
        return cls(**fields, ends=tuple(metadata["ends"]), file=file)


@dataclass(frozen=True)
class _ListingRecord:
    """What the last batch of a listing's file carries."""

    of: str
    splits: dict[str, Count]
    facts: dict[str, Any]
    digest: str
    ends: list[Count]


def stored_key(file: Location) -> str | None:
    """The key of the input that a file lists. None where the file is missing or incomplete."""
    metadata = _stored_metadata(file)
    return None if metadata is None else str(metadata["of"])


def _stored_metadata(file: Location) -> dict[str, Any] | None:
    try:
        with file.open_file() as opened, io_errors(file, "read"):
            return _metadata(pa.ipc.open_file(opened))
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None


def _metadata(reader: Any) -> dict[str, Any]:
    """Everything but the rows. The last batch, which is empty, carries it."""
    last = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
    return parse_checked(last.custom_metadata[_METADATA], _ListingRecord, "the listing", "score into another folder")


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a part of a listing; few of them are Python objects at a time."""
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        yield from batch.to_pylist()


class Lister:
    """Builds a Listing from rows as they are found."""

    def __init__(
        self, key: str, schema: pa.Schema, *, file: Location | None = None, notify: Callable[[str], None] | None = None
    ) -> None:
        """`key` names what is listed, `file` is where a long listing goes, `notify` is called with its progress."""
        self._key, self._schema, self._file, self._notify = key, schema, file, notify
        self._rows: list[tuple[Any, ...]] = []
        self._labels: Mapping[str, str] | None = None
        self._batches: list[pa.RecordBatch] = []
        self._ends: list[int] = []
        self._count = 0  # rows in batches
        self._splits: dict[str, int] = {}
        self._digest = hashlib.sha256(key.encode())
        self.num_unnamed, self.unnamed = 0, ""
        """How many files `labels` of `begin` does not name, and one of them."""
        self.skipped: list[str] = []
        """The names of files that were not added, as no person has put them there."""
        self._last_notified = time.monotonic()
        self._sink: Any = None
        self._writer: Any = None
        self._temporary: Location | None = None

    def __len__(self) -> int:
        return self._count + len(self._rows)

    def begin(self, split: str, labels: Mapping[str, str] | None = None) -> None:
        """The rows that follow belong to this split. labels: of files, by their paths in the input."""
        self._split, self._labels = split, labels
        self._splits[split] = 0
        if labels is not None:
            self._digest.update(json.dumps(list(labels.items())).encode())

    def add(self, row: tuple[Any, ...]) -> None:
        """Add one row, a value for each column of the schema."""
        self._digest.update(f"{self._split}\0{tuple(row)}\n".encode())
        self._extend([row])

    def add_files(self, inside: str, files: list[Child]) -> None:
        """Add a row, the path and perhaps the label, for each file of a folder, whose path in the input is `inside`."""
        if others := [file.name for file in files if _is_no_image(file.name)]:
            self.skipped += others
            files = [file for file in files if not _is_no_image(file.name)]
        # One hash update for a whole folder: there may be millions of files.
        states = "\n".join([f"{file.name}\0{file.size}\0{file.mtime_ns}" for file in files])
        self._digest.update(f"{self._split}\0{inside}\0{states}\n".encode())
        names = [inside + file.name for file in files]
        if self._labels is None:
            self._extend([(name,) for name in names])
            return
        labels = [self._labels.get(composed(name)) for name in names]
        if unnamed := [name for name, label in zip(names, labels, strict=True) if label is None]:
            self.num_unnamed, self.unnamed = self.num_unnamed + len(unnamed), unnamed[0]
        self._extend([(name, label or "") for name, label in zip(names, labels, strict=True)])

    def _extend(self, rows: list[tuple[Any, ...]]) -> None:
        self._splits[self._split] += len(rows)
        self._rows += rows
        while len(self._rows) >= BATCH_ROWS:
            self._flush()

    def report_progress(self, where: Location) -> None:
        """Notify the user, at most every few seconds. Call it often."""
        now = time.monotonic()
        if self._notify and now - self._last_notified >= _NOTIFY_SECONDS:
            self._last_notified = now
            self._notify(f"listing {where}: {len(self):,} files …")

    def finish(self, **facts: Any) -> Listing:
        """The listing of all rows that were added. `facts` go into it."""
        self._flush()
        digest = self._digest.hexdigest()
        if self._writer is None:
            return Listing(self._splits, facts, digest, tuple(self._ends), tuple(self._batches))
        assert self._file is not None
        metadata = {"of": self._key, "splits": self._splits, "facts": facts, "digest": digest, "ends": self._ends}
        empty = pa.RecordBatch.from_pylist([], self._schema)
        with io_errors(self._file, "write"):
            self._writer.write_batch(empty, custom_metadata={_METADATA: json.dumps(metadata)})
            self._writer.close()
            self._sink.close()
            if self._temporary is not None:
                Path(self._temporary.path).replace(self._file.path)
        return Listing(self._splits, facts, digest, tuple(self._ends), file=self._file)

    def _flush(self) -> None:
        rows, self._rows = self._rows[:BATCH_ROWS], self._rows[BATCH_ROWS:]
        columns = list(zip(*rows, strict=True)) or [()] * len(self._schema)
        batch = pa.RecordBatch.from_arrays(
            [pa.array(values, kind.type) for values, kind in zip(columns, self._schema, strict=True)],
            schema=self._schema,
        )
        self._count += len(rows)
        self._ends.append(self._count)
        self._batches.append(batch)
        if self._file is not None and self._count > LONG:
            with io_errors(self._file, "write"):
                if self._writer is None:
                    self._open_writer(self._file)
                for each in self._batches:
                    self._writer.write_batch(each)
            self._batches.clear()

    def _open_writer(self, file: Location) -> None:
        """Write to a temporary name on a local disk. An object store shows the object once it is complete.

        A file that an interrupted command has left lacks its last batch, and `Listing.load` ignores it.
        """
        file.parent.make_dir()
        if file.is_local:
            self._temporary = file.parent / f".{file.name}.{uuid.uuid4().hex[:8]}.tmp"
        self._sink = file.filesystem.open_output_stream((self._temporary or file).path, compression=None)
        self._writer = pa.ipc.new_file(self._sink, self._schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))


def is_litter(name: str) -> bool:
    """Whether systems leave files or folders of this name among everybody's, and in the archives made of them."""
    return name.lower() in _LITTER or name.lower().endswith(_WINDOWS_NOTE)


def _is_no_image(name: str) -> bool:
    """Whether a file is litter, or what people keep of images among them: boxes, captions, a README."""
    return is_litter(name) or name.lower().endswith(_TEXTS)


def composed(name: str) -> str:
    """A name in the form of Unicode that tables have: macOS writes the letter and its accent one by one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def count_kinds(names: Iterable[str]) -> dict[str, int]:
    """How many files there are of each kind."""
    return dict(sorted(Counter(map(kind_of, names)).items()))


def kind_of(name: str) -> str:
    """A suffix in lower case, or "no suffix"; of a folder, the name, which ends in a slash."""
    dot = name.rfind(".")
    return name if name.endswith("/") else name[dot:].lower() if dot > 0 else "no suffix"


def walk(folder: Location, inside: str, held: list[Child], lister: Lister) -> None:
    """List every file in a folder and below: first the folder's own, by name, then those of its folders.

    `inside` is the folder's path in the input, "" or ending in a slash; `held` is what it holds.
    """
    lister.report_progress(folder)
    if inside.count("/") > _MAX_DEPTH:
        raise InputError(f"{folder} is more than {_MAX_DEPTH} folders deep; give a folder below as INPUT")
    if files := [child for child in held if not child.is_folder]:
        lister.add_files(inside, files)
    for child in held:
        if child.is_folder and is_litter(child.name):
            lister.skipped.append(f"{child.name}/")
        elif child.is_folder:
            below = folder / child.name
            walk(below, f"{inside}{child.name}/", children(below), lister)
