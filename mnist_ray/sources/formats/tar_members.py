"""The image members of a tar archive: where each one is, its label, and what is wrong with it.

Headers are read with `tarfile`, but the walk from one to the next is ours: an archive may be damaged or forged, and
what comes before the damage is still read.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mnist_ray.errors import InputError
from mnist_ray.sources.base import IMAGE_SUFFIXES
from mnist_ray.sources.formats.encoded import MAX_BYTES
from mnist_ray.storage.location import Location, io_errors

_BUFFER_BYTES = 1 << 20  # read ahead of a header, so that an object store gets few requests
_MAX_HEADER_BYTES = 1 << 20  # long names and pax records are smaller
_MAX_KEY_MEMBERS = 1000  # images with one key; WebDataset has far fewer


@dataclass
class Sorting:
    """Which members are images, and how many others there are of each kind."""

    image_field: str | None = None
    """Of the members with one key (`0001.png`, `0001.seg.png`), the suffix of the image: "png", "seg.png". None: those
    with a simple suffix, or where there is none such, all."""
    passed_over: dict[str, int] = field(default_factory=dict)

    def choose(self, images: list[Member]) -> list[Member]:
        """Of the image files with one key, those to read."""
        fields = {image: _field(image.path) for image in images}
        if self.image_field is not None:
            chosen = [image for image in images if fields[image] == self.image_field.removeprefix(".").lower()]
        else:
            chosen = [image for image in images if "." not in fields[image]] or images
        for image in images:
            if image not in chosen:
                self.pass_over(f".{fields[image]}")
        return chosen

    def pass_over(self, kind: str) -> None:
        self.passed_over[kind] = self.passed_over.get(kind, 0) + 1


def _field(path: str) -> str:
    """What follows the key: "seg.png" of train/0001.seg.png."""
    return path.rpartition("/")[2].partition(".")[2].lower()


class Member(NamedTuple):
    """An image in an archive: a row of the listing, whose text, reason included, is part of an input's identity."""

    path: str
    """"" for a row that stands for the archive itself, or for its damaged rest."""
    offset: int
    """Of the data, in bytes from the archive's beginning."""
    size: int
    label: str
    """The text of its .cls member; "" where it has none."""
    bad: str | None
    """Why it cannot be read."""


def read_members(archive: Location, sorting: Sorting, on_member: Callable[[], None]) -> Iterator[Member]:
    """The images of an archive in their order, and a last bad member for what is lost to damage.

    `sorting` chooses the images and counts the other files. `on_member` is called for each member, image or not.
    """
    try:
        file = archive.open_file()
    except FileNotFoundError as error:
        raise InputError(f"{archive} does not exist") from error
    with file as opened:
        headers = _Headers(_ArrowFile(opened, archive), 512 if archive.is_local else _BUFFER_BYTES)
        key, label = "", ""
        images: list[Member] = []  # those with the current key: its .cls member may follow them
        damage: str | None = None
        for info in _walk(headers, opened.size()):
            if isinstance(info, str):
                damage = info
                break
            on_member()
            folder, _, base = info.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            if f"{folder}/{stem}" != key:
                yield from _labelled(sorting.choose(images), label)
                key, images, label = f"{folder}/{stem}", [], ""
            if suffix == "cls" and info.isreg():
                label = _read_label(headers, info)
            elif base.lower().endswith(IMAGE_SUFFIXES) and not info.isdir():
                if len(images) == _MAX_KEY_MEMBERS:
                    yield from _labelled(sorting.choose(images), label)
                    images = []
                images.append(Member(info.name, info.offset_data, info.size, "", _refusal(info)))
            elif not info.isdir():
                sorting.pass_over(f".{suffix.lower()}" if suffix else "no suffix")
        yield from _labelled(sorting.choose(images), label)
        if damage:
            yield Member("", 0, 0, "", damage)


def _labelled(images: list[Member], label: str) -> Iterator[Member]:
    for image in images:
        yield image._replace(label=label)


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


def _read_label(file: _Headers, info: tarfile.TarInfo) -> str:
    file.seek(info.offset_data)
    return file.read(min(info.size, 64)).decode(errors="replace").strip()


def _refusal(info: tarfile.TarInfo) -> str | None:
    """Why a member is not read, by its header alone."""
    if not info.isreg():
        return "is a link or a device, not a file"
    if info.issparse():
        return "is stored as a sparse file"
    return None if 0 <= info.size <= MAX_BYTES else f"is larger than {MAX_BYTES >> 20} MiB"


class _ArrowFile(io.RawIOBase):
    """A pyarrow file with the interface of Python's files."""

    def __init__(self, file: Any, where: Location) -> None:
        self._file, self._where = file, where

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        with io_errors(self._where, "read"):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with io_errors(self._where, "read"):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Headers(io.BufferedReader):
    """Refuses to read more at once than any header has: a forged one can ask for any number of bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header of more than 1 MiB")
        return super().read(size)
