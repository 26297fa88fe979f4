"""Single Parquet files: reading a footer, opening a file, and recognizing damage."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.errors import InputError
from mnist_ray.storage.location import Location, io_errors, sha256

_TAIL = 64 << 10  # bytes read from a file's end; most footers are shorter
_LOCAL_BUFFER, _REMOTE_BUFFER = 1 << 20, 8 << 20  # bytes of a column that are read at once; it may have gigabytes
_DAMAGE = ("thrift", "integrity", "magic", "ecompress", "orrupt", "nexpected end")  # words in pyarrow's OSErrors


@dataclass(frozen=True)
class ParquetFile:
    location: Location
    rows: int
    footer: str = ""
    """The file's size and the sha256 of its footer, which has the offsets, sizes and statistics of all pages."""
    reason: str | None = None
    """Why nothing of it can be read. It then counts as one row."""
    is_unlabelled: bool = False
    """Whether all labels of its split are -1."""

    @property
    def partition(self) -> dict[str, str]:
        """The columns that the names of its folders hold, as Hive writes them: `label=3/part-00000.parquet`."""
        return partition_of(self.location)


def partition_of(location: Location) -> dict[str, str]:
    """Column and value of each folder NAME=VALUE right above a file."""
    found: dict[str, str] = {}
    for folder in reversed(location.path.split("/")[:-1]):
        name, equals, value = folder.partition("=")
        if not (name and equals):
            break
        found.setdefault(unquote(name), unquote(value))
    return found


class Footer(NamedTuple):
    identity: str
    """As in `ParquetFile.footer`."""
    rows: int


class DamagedError(InputError):
    """A file that is not Parquet, or is damaged. `reason` is the message without the file's name."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return DamagedError, (self.message, self.reason)


def read_footer(file: Any, location: Location) -> tuple[Footer, Any]:
    """The footer of an open file, and a pyarrow ParquetFile of it. A small file is read once, and whole."""
    size = file.size()
    tail = file.read_at(min(size, _TAIL), max(size - _TAIL, 0))
    length = int.from_bytes(tail[-8:-4], "little") + 8  # Thrift, its length in 4 bytes, "PAR1"
    if len(tail) < length <= size:
        tail = file.read_at(length, size - length)
    footer = tail[-length:]
    if len(tail) == size:
        reader = parquet_reader(pa.BufferReader(tail), location)
    else:  # the footer is parsed from memory, as a file of nothing else
        reader = parquet_reader(file, location, pq.read_metadata(pa.BufferReader(b"PAR1" + footer)))
    metadata = reader.metadata
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise pa.ArrowInvalid(f"its footer promises {metadata.num_rows} rows, its row groups {sum(rows)}")
    return Footer(f"{size} {sha256(footer)}", metadata.num_rows), reader


@contextmanager
def open_parquet_file(location: Location, *, ahead: bool = True) -> Iterator[Any]:
    """A pyarrow ParquetFile. ahead: as in `parquet_reader`."""
    with parquet_errors(location), location.open_file() as file:
        yield parquet_reader(file, location, ahead=ahead)


def parquet_reader(file: Any, location: Location, metadata: Any = None, *, ahead: bool = True) -> Any:
    """A pyarrow ParquetFile of an open file. metadata: its footer, if it has been read. ahead: whether the row groups
    that are asked for are fetched whole from an object store, many requests at once."""
    return pq.ParquetFile(
        file, metadata=metadata, pre_buffer=ahead and not location.is_local,
        buffer_size=_LOCAL_BUFFER if location.is_local else _REMOTE_BUFFER,
        page_checksum_verification=True,  # in files that have them, as our shards do
    )  # fmt: skip


def row_groups(file: ParquetFile, reader: Any) -> list[tuple[int, int]]:
    """(start, stop) of each row group. Raises InputError where the file has changed since it was opened as a source."""
    if reader.metadata.num_rows != file.rows:
        raise InputError(f"{file.location} has {reader.metadata.num_rows} rows, not {file.rows}: it has changed")
    ends = list(accumulate(reader.metadata.row_group(group).num_rows for group in range(reader.num_row_groups)))
    return list(zip([0, *ends], ends, strict=False))


def stored_bytes(reader: Any, groups: Sequence[int], names: Collection[str]) -> int:
    """Of these columns in these row groups, compressed."""
    found = 0
    for group in groups:
        metadata = reader.metadata.row_group(group)
        columns = map(metadata.column, range(metadata.num_columns))
        found += sum(each.total_compressed_size for each in columns if each.path_in_schema.split(".")[0] in names)
    return found


@contextmanager
def parquet_errors(location: Location) -> Iterator[None]:
    """Turn what pyarrow raises into one line that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{location} does not exist") from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:  # of a column's name
        text = str(error).split("\n")[0]
        if isinstance(error, OSError):
            is_damage = error.errno is None and (location.is_local or any(word in text for word in _DAMAGE))
            if not is_damage:  # but a network disk that is away, say
                with io_errors(location, "read"):
                    raise
        reason = f"is not a Parquet file or is damaged ({text})"
        raise DamagedError(f"{location} {reason}; copy it again", reason) from error
