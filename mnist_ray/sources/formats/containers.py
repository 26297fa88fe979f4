"""What archives and TFRecord files share: files that hold many images each, which a listing finds in them."""

from __future__ import annotations

import hashlib
import io
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from mnist_ray.errors import InputError
from mnist_ray.sources.formats.encoded import EncodedSource, Entry
from mnist_ray.sources.listing import rows_of
from mnist_ray.storage.location import Location, file_sha256, io_errors


@dataclass(frozen=True, kw_only=True)
class ContainerSource(EncodedSource):
    """Its listing has the rows of all containers, one after the other, and in `facts["members"]` how many each has."""

    containers: Mapping[str, tuple[Location, ...]]

    @abstractmethod
    def _entries_of(self, container: Location, rows: Iterator[dict[str, Any]], first: int) -> Iterator[Entry]:
        """The images of some rows of the listing, all of one container. `first` is the number of the first there."""

    @property
    @abstractmethod
    def _chosen(self) -> str:
        """The options that decide what is read of the containers; "" by default."""

    @cached_property
    def _ends(self) -> Mapping[str, list[int]]:
        """For each split and container, the number of rows up to its end."""
        return {split: list(accumulate(counts)) for split, counts in self.listing.facts["members"].items()}

    def units(self, split: str) -> list[tuple[int, int]]:
        ends = self._ends[split]
        return [(start, stop) for start, stop in zip([0, *ends], ends, strict=False) if stop > start]

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        names = [f"{split} {file_sha256(file)}\n" for split, files in self.containers.items() for file in files]
        return hashlib.sha256("".join([*names, self._chosen]).encode()).hexdigest()

    def _entries(self, split: str, start: int, stop: int) -> Iterator[Entry]:
        ends = self._ends[split]
        while start < stop:
            number = bisect_right(ends, start)
            last = min(stop, ends[number])
            rows = rows_of(self.listing.rows(split, start, last))
            yield from self._entries_of(self.containers[split][number], rows, start - ([0, *ends][number]))
            start = last


def open_container(container: Location) -> Any:
    """Its open file. Raises InputError where it does not exist."""
    try:
        return container.open_file()
    except FileNotFoundError as error:
        raise InputError(f"{container} does not exist") from error


class ArrowFile(io.RawIOBase):
    """A pyarrow file with the interface of Python's files."""

    def __init__(self, file: Any, where: Location) -> None:
        self._file, self._where = file, where

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == io.SEEK_END and -offset > self._file.size():
            raise OSError(
                "before the file's beginning"
            )  # as Python's files do, and `zipfile` expects of small archives
        if whence == io.SEEK_SET:
            offset = min(offset, self._file.size())  # an object store refuses more
        with io_errors(self._where, "read"):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with io_errors(self._where, "read"):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
