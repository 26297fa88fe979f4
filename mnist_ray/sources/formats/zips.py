"""ZIP archives. `zipfile` reads the directory at their end; members are read by one request each, wherever they are."""

from __future__ import annotations

import bz2
import io
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from mnist_ray.errors import UserError
from mnist_ray.sources import meter
from mnist_ray.sources.formats.archive_index import Found, Member
from mnist_ray.sources.formats.archives import ArchiveSource
from mnist_ray.sources.formats.containers import ArrowFile, open_container
from mnist_ray.sources.formats.encoded import MAX_BYTES, TOO_LARGE
from mnist_ray.storage.location import Location

_HEADER = 30  # bytes in front of a member's name and extra field, which are in front of its data
_MORE = 512  # bytes that are read beyond what the directory tells of them, as they may be longer in front of the data
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_DIRECTORY_BUFFER = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ZipSource(ArchiveSource):
    SUFFIX: ClassVar = ".zip"
    COLUMNS: ClassVar = Member._fields

    @staticmethod
    def walk(archive: Location) -> Iterator[Found | str]:
        with open_container(archive) as opened:
            try:
                infos = zipfile.ZipFile(io.BufferedReader(ArrowFile(opened, archive), _DIRECTORY_BUFFER)).infolist()
            except UserError:
                raise
            except Exception as error:  # zipfile raises almost anything on a damaged directory
                yield f"is not a ZIP archive or is damaged ({str(error)[:100] or type(error).__name__})"
                return
            for info in infos:
                if not info.is_dir():
                    member = _member(info)
                    yield member, partial(_read_start, opened, member)

    @staticmethod
    def read_member(file: Any, row: Mapping[str, Any]) -> bytes:
        return _read(file, Member(**row))


def _member(info: zipfile.ZipInfo) -> Member:
    path = info.filename if "/" in info.filename else info.filename.replace("\\", "/")  # as some write on Windows
    path = path.encode(errors="backslashreplace").decode()
    return Member(
        path, info.header_offset, info.file_size, "", _refusal(info), info.compress_size, info.compress_type, info.CRC
    )


def _refusal(info: zipfile.ZipInfo) -> str | None:
    """Why a member is not read, by the directory alone."""
    if info.flag_bits & 1:
        return "is encrypted"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is a link or a device, not a file"
    if info.compress_type not in _METHODS:
        return f"is compressed by method {info.compress_type}, which is not read; pack it again by deflate"
    return None if max(info.file_size, info.compress_size) <= MAX_BYTES else TOO_LARGE


def _read_start(file: Any, member: Member, size: int) -> bytes:
    """Of a label. Damage is as good as no label: the image next to it is still read."""
    try:
        return _read(file, member)[:size] if member.size <= size else b""
    except ValueError:
        return b""


def _read(file: Any, member: Member) -> bytes:
    """The content of a member, whose size and checksum are those that the directory tells."""
    meter.count(member.packed)
    block = bytes(file.read_at(_HEADER + len(member.path) + _MORE + member.packed, member.offset))
    if block[:4] != b"PK\3\4":
        raise ValueError("is not where the archive's directory says; copy the archive again")
    begin = _HEADER + int.from_bytes(block[26:28], "little") + int.from_bytes(block[28:30], "little")
    data = block[begin : begin + member.packed]
    if len(data) < member.packed:
        data = bytes(file.read_at(member.packed, member.offset + begin))
    try:
        if member.method == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size + 1)
        elif member.method == zipfile.ZIP_BZIP2:
            data = bz2.BZ2Decompressor().decompress(data, member.size + 1)
    except (zlib.error, OSError) as error:
        raise ValueError(f"is damaged within its archive ({error})") from error
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise ValueError("is damaged within its archive: its size or checksum is another than the directory's")
    return data
