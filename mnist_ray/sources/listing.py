"""Which files, or members of archives, an input has: Arrow batches of rows, in memory or in a file beside the output.

100 million paths are listed once, folder by folder, and are never 100 million Python objects: a read takes the rows
that it needs. A long listing is written as it is made, and a scoring that is gone on with reads it instead.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from mnist_ray.errors import InputError
from mnist_ray.storage.location import Location, io_errors

BATCH_ROWS = 65_536
LONG = 200_000
"""Rows of a listing that is worth a file."""

_SAY_SECONDS = 5.0
_DEEPEST = 100


class Child(NamedTuple):
    """A file or a folder in a folder."""

    name: str
    size: int | None
    """None of a folder."""
    mtime_ns: int | None

    @property
    def is_folder(self) -> bool:
        return self.size is None


def children(folder: Location) -> list[Child]:
    """What a folder holds, sorted by name, without what begins with a dot; nothing where there is no folder.

    Raises InputError for a link that leads back to a folder that it lies in.
    """
    path = Path(folder.path)
    if folder.is_local and path.is_symlink() and path.resolve() in map(Path.resolve, path.parents):
        raise InputError(f"{folder} is a link that leads back to where it lies; remove it, or its images come again")
    with io_errors(folder, "list"):
        infos = folder.filesystem.get_file_info(fs.FileSelector(folder.path, allow_not_found=True))
    held = [Child(info.base_name, _size(info), info.mtime_ns) for info in infos]
    return sorted(child for child in held if child.name[:1] != ".")


def _size(info: fs.FileInfo) -> int | None:
    """-1 of what is neither a file nor a folder: pipes and devices."""
    size: int | None = info.size
    return -1 if size is None and info.type != fs.FileType.Directory else size


@dataclass(frozen=True)
class Listing:
    """Rows in order; those of a split follow each other. Pickled it is its batches, or where its file lies."""

    splits: Mapping[str, int]
    facts: Mapping[str, Any]
    """What was learnt while listing, as JSON has it."""
    digest: str
    """sha256 of all rows, and of the size and time of each file."""
    ends: tuple[int, ...]
    """Rows up to the end of each batch."""
    batches: tuple[pa.RecordBatch, ...] = ()
    file: Location | None = None

    def rows(self, split: str, start: int, stop: int) -> pa.Table:
        """Rows start..stop of a split."""
        names = list(self.splits)
        before = sum(self.splits[name] for name in names[: names.index(split)])
        start, stop = start + before, stop + before
        first, last = bisect_right(self.ends, start), bisect_right(self.ends, max(stop - 1, start))
        taken = self._taken(min(first, len(self.ends) - 1), min(last, len(self.ends) - 1))
        offset = self.ends[first - 1] if first else 0
        return pa.Table.from_batches(taken).slice(start - offset, stop - start)

    def _taken(self, first: int, last: int) -> list[pa.RecordBatch]:
        if self.file is None:
            return list(self.batches[first : last + 1])
        try:
            with self.file.open_file() as file, io_errors(self.file, "read"):
                reader = pa.ipc.open_file(file)
                if _told(reader)["digest"] != self.digest:  # another start has put its own there
                    raise InputError(f"{self.file} now lists another input; score each into a folder of its own")
                return [reader.get_batch(number) for number in range(first, last + 1)]
        except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError) as error:
            raise InputError(
                f"{self.file} is gone or damaged: it lists the input; score into another folder"
            ) from error

    @classmethod
    def load(cls, file: Location, of: str) -> Listing | None:
        """What an earlier start listed of the same input; None where there is no such file, or only half of it."""
        told = _kept(file)
        if told is None or told.pop("of") != of:
            return None
        return cls(**{**told, "ends": tuple(told["ends"]), "file": file})


def is_of_another(file: Location, of: str) -> bool:
    """Whether there is a listing of something else."""
    told = _kept(file)
    return told is not None and told["of"] != of


def _kept(file: Location) -> dict[str, Any] | None:
    try:
        with file.open_file() as opened, io_errors(file, "read"):
            return _told(pa.ipc.open_file(opened))
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None


def _told(reader: Any) -> dict[str, Any]:
    """What the last batch, which is empty, says of all."""
    last = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
    told: dict[str, Any] = json.loads(last.custom_metadata[b"listing"])
    return told


class Lister:
    """Makes a Listing from rows as they are found."""

    def __init__(
        self, of: str, schema: pa.Schema, *, file: Location | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        """of: what is listed. file: where a long listing goes. say: is told every few seconds how far it is."""
        self._of, self._schema, self._file, self._say = of, schema, file, say
        self._rows: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []
        self._ends: list[int] = []
        self._count = 0
        self._splits: dict[str, int] = {}
        self._digest = hashlib.sha256(of.encode())
        self._last_said = time.monotonic()
        self._sink: Any = None
        self._writer: Any = None
        self._where: Location | None = None

    def __len__(self) -> int:
        return self._count + len(self._rows)

    def begin(self, split: str) -> None:
        self._split = split
        self._splits[split] = 0

    def add(self, row: tuple[Any, ...]) -> None:
        """A row by the schema's columns."""
        self._digest.update(f"{self._split}\0{row}\n".encode())
        self._extend([row])

    def add_files(self, inside: str, files: list[Child]) -> None:
        """Rows of a path each."""
        # One text for thousands of files: they are many, and this is done for each.
        told = "\n".join([f"{file.name}\0{file.size}\0{file.mtime_ns}" for file in files])
        self._digest.update(f"{self._split}\0{inside}\0{told}\n".encode())
        self._extend([(inside + file.name,) for file in files])

    def _extend(self, rows: list[tuple[Any, ...]]) -> None:
        self._splits[self._split] += len(rows)
        self._rows += rows
        while len(self._rows) >= BATCH_ROWS:
            self._flush()

    def said(self, where: Location) -> None:
        """Call it now and then."""
        now = time.monotonic()
        if self._say and now - self._last_said >= _SAY_SECONDS:
            self._last_said = now
            self._say(f"listing {where}: {len(self):,} files …")

    def finish(self, **facts: Any) -> Listing:
        self._flush()
        digest = self._digest.hexdigest()
        if self._writer is None:
            return Listing(self._splits, facts, digest, tuple(self._ends), tuple(self._batches))
        assert self._file is not None
        told = {"of": self._of, "splits": self._splits, "facts": facts, "digest": digest, "ends": self._ends}
        empty = pa.RecordBatch.from_pylist([], self._schema)
        with io_errors(self._file, "write"):
            self._writer.write_batch(empty, custom_metadata={"listing": json.dumps(told)})
            self._writer.close()
            self._sink.close()
            if self._where is not None:
                Path(self._where.path).replace(self._file.path)
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
                    self._open(self._file)
                for each in self._batches:
                    self._writer.write_batch(each)
            self._batches.clear()

    def _open(self, file: Location) -> None:
        """A local file gets its name when it is whole; in an object store it is seen then only. What an attempt that
        was cut off leaves has no end, which `load` notices."""
        file.parent.make_dir()
        if file.is_local:
            self._where = file.parent / f".{file.name}.{uuid.uuid4().hex[:8]}.tmp"
        self._sink = file.filesystem.open_output_stream((self._where or file).path, compression=None)
        self._writer = pa.ipc.new_file(self._sink, self._schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))


def walk(folder: Location, inside: str, held: list[Child], lister: Lister) -> None:
    """List every file in a folder and below it: its own, by name, then its folders'."""
    lister.said(folder)
    if inside.count("/") > _DEEPEST:
        raise InputError(f"{folder} lies more than {_DEEPEST} folders deep; give a folder below as INPUT")
    if files := [child for child in held if not child.is_folder]:
        lister.add_files(inside, files)
    for child in held:
        if child.is_folder:
            below = folder / child.name
            walk(below, f"{inside}{child.name}/", children(below), lister)
