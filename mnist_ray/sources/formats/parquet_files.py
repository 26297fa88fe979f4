"""Single Parquet files: opening one, reading its footer, and telling a damaged one from a sound one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.storage.location import Location, sha256

_TAIL = 64 << 10  # bytes; most footers are within the last so many
_FOOTERS_AT_ONCE = 16
_DAMAGE = ("thrift", "integrity", "magic", "ecompress", "orrupt", "nexpected end")  # in an OSError of pyarrow's


class DamagedError(InputError):
    """A file that is no Parquet, or not whole. `reason` follows its name."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return DamagedError, (self.message, self.reason)


def read_footers(locations: list[Location]) -> Iterator[tuple[str, Any] | DamagedError]:
    """Each file's identity and its metadata, in order; many at once, for each is a round trip to an object store."""
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        yield from pool.map(_footer, locations)


def _footer(location: Location) -> tuple[str, Any] | DamagedError:
    try:
        with parquet_errors(location), location.open_file() as file:
            size = file.size()
            tail = file.read_at(min(size, _TAIL), max(size - _TAIL, 0))
            length = int.from_bytes(tail[-8:-4], "little") + 8  # thrift, its length in 4 bytes, "PAR1"
            if len(tail) < length <= size:
                tail = file.read_at(length, size - length)
            footer = tail[-length:]
            # A file of nothing but its footer: parsed from memory, so that it is read once.
            metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer))
            rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
                raise pa.ArrowInvalid(f"its footer promises {metadata.num_rows} rows, its row groups {sum(rows)}")
            return f"{size} {sha256(footer)}", metadata
    except DamagedError as error:
        return error


@contextmanager
def open_parquet_file(location: Location, metadata: Any = None) -> Iterator[Any]:
    """A pyarrow ParquetFile; metadata: its footer, where it is read already."""
    with parquet_errors(location), location.open_file() as file:
        # Page checksums are verified where the writer made some, as ours does.
        yield pq.ParquetFile(file, metadata=metadata, page_checksum_verification=True, pre_buffer=not location.is_local)


@contextmanager
def parquet_errors(location: Location) -> Iterator[None]:
    """What pyarrow raises becomes one line that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{location} does not exist") from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        text = str(error).split("\n")[0]
        if isinstance(error, OSError) and not location.is_local and not any(word in text for word in _DAMAGE):
            raise RetryableError(f"cannot read {location}: {text}") from error
        reason = f"is no Parquet file or is damaged ({text})"
        raise DamagedError(f"{location} {reason}; copy it again", reason) from error
