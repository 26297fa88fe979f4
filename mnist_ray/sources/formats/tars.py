"""Tar archives. Headers are read with `tarfile`, but the walk from one to the next is ours: an archive may be damaged
or forged, and what comes before the damage is still read.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from mnist_ray.sources import meter
from mnist_ray.sources.formats.archive_index import Found, Member
from mnist_ray.sources.formats.archives import ArchiveSource
from mnist_ray.sources.formats.containers import ArrowFile, open_container
from mnist_ray.sources.formats.encoded import MAX_BYTES, TOO_LARGE
from mnist_ray.sources.formats.unpacking import packer_of
from mnist_ray.storage.location import Location

_BUFFER_BYTES = 1 << 20  # read ahead of a header, so that an object store gets few requests
_MAGIC_BYTES = 16
_MAX_HEADER_BYTES = 1 << 20  # long names and pax records are smaller


@dataclass(frozen=True, kw_only=True)
class TarSource(ArchiveSource):
    SUFFIX: ClassVar = ".tar"
    COLUMNS: ClassVar = ("path", "offset", "size", "label", "bad")

    @staticmethod
    def walk(archive: Location) -> Iterator[Found | str]:
        with open_container(archive) as opened:
            if packer := packer_of(bytes(opened.read(_MAGIC_BYTES))):
                yield f"is compressed by {packer}; decompress it first"
                return
            headers = _Headers(ArrowFile(opened, archive), 512 if archive.is_local else _BUFFER_BYTES)
            for info in _walk(headers, opened.size()):
                if isinstance(info, str):
                    yield info
                elif not info.isdir():
                    member = Member(info.name, info.offset_data, info.size, "", _refusal(info))
                    yield member, partial(_read_start, headers, member)

    @staticmethod
    def read_member(file: Any, row: Mapping[str, Any]) -> bytes:
        meter.count(row["size"])
        return bytes(file.read_at(row["size"], row["offset"]))


def _walk(file: _Headers, size: int) -> Iterator[tarfile.TarInfo | str]:
    """All members. Where the archive does not end as it should, the last item is the reason, as text."""
    position = 0
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r", errors="replace")
        while True:
            file.seek(position)
            block = file.read(tarfile.BLOCKSIZE)
            if not block:
                yield "has no end: it may be truncated between two members"
                return
            if not any(block):  # the end: zeros to the end of the file
                while data := file.read(_MAX_HEADER_BYTES):
                    if any(data):
                        yield f"ends at byte {position:,}, but more follows, which is lost"
                        return
                return
            file.seek(position)
            info = tarfile.TarInfo.fromtarfile(tar)
            if tar.offset <= position:
                raise tarfile.ReadError("a member of a negative size")
            if info.isreg() and info.offset_data + info.size > size:
                yield f"is truncated within {ascii(info.name)[:200]}, with which the rest is lost"
                return
            yield info
            position = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
        yield (
            f"is not a tar archive or is damaged from byte {position:,} on"
            f" ({str(error)[:100] or type(error).__name__}); the rest is lost"
        )


def _read_start(file: _Headers, member: Member, size: int) -> bytes:
    file.seek(member.offset)
    wanted = min(member.size, size)
    return b"".join(file.read(min(wanted - at, _MAX_HEADER_BYTES)) for at in range(0, wanted, _MAX_HEADER_BYTES))


def _refusal(info: tarfile.TarInfo) -> str | None:
    """Why a member is not read, by its header alone."""
    if not info.isreg():
        return "is a link or a device, not a file"
    if info.issparse():
        return "is stored as a sparse file"
    return None if 0 <= info.size <= MAX_BYTES else TOO_LARGE


class _Headers(io.BufferedReader):
    """Refuses to read more at once than any header has: a forged one can ask for any number of bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header of more than 1 MiB")
        return super().read(size)
