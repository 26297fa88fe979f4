"""The format of an input, and the source that it opens as: `FORMATS` is the one list of what `--data` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from mnist_ray.config import accepted_data
from mnist_ray.errors import InputError
from mnist_ray.sources.base import DEFAULT_READING, IMAGE_SUFFIXES, Reading, Source
from mnist_ray.sources.formats import folders
from mnist_ray.sources.formats.idx import FILES, open_embedded, open_idx
from mnist_ray.sources.formats.keras_datasets import open_keras
from mnist_ray.sources.formats.npz import open_npy, open_npz
from mnist_ray.sources.formats.parquet import open_parquet
from mnist_ray.sources.formats.tars import open_tars
from mnist_ray.sources.listing import Child, children
from mnist_ray.storage.location import Location

_IDX_NAMES = {f"{name}{suffix}" for name in FILES for suffix in ("", ".gz")}
_FIRST_BYTES = 512  # enough to recognize any format


@dataclass(frozen=True)
class Input:
    """What a format is recognized by: the spec itself, the first bytes of a file, or the content of a folder."""

    spec: str
    found: Location | None = None
    """The file or folder that the spec names, if it names one."""
    first_bytes: bytes = b""
    is_folder: bool = False

    @property
    def name(self) -> str:
        return self.spec if self.found is None else str(self.found)

    @property
    def location(self) -> Location:
        assert self.found is not None
        return self.found

    @cached_property
    def children(self) -> list[Child]:
        """What the folder holds, listed once: there may be millions of files."""
        return children(self.location) if self.is_folder else []

    @cached_property
    def roots(self) -> dict[str, tuple[Location, list[Child]]]:
        """The folder of each split and what it holds: train/ and test/, or this one for the split "all"."""
        names = [child.name for child in self.children if child.is_folder]
        splits = [split for split in ("train", "test") if split in names]
        return {split: (self.location / split, children(self.location / split)) for split in splits} or {
            "all": (self.location, self.children)
        }

    def files(self, suffix: str) -> dict[str, list[Location]]:
        """This file, or the files of this folder with a suffix, by split."""
        if not self.is_folder:
            return {"all": [self.location]}
        return {
            split: [root / child.name for child in held if child.name.endswith(suffix)]
            for split, (root, held) in self.roots.items()
        }

    def holds(self, suffix: str) -> bool:
        """Whether it is a folder with such files."""
        return self.is_folder and any(self.files(suffix).values())

    def ends_with(self, *suffixes: str) -> bool:
        """Whether it is a file whose name has one of these suffixes, in upper or lower case."""
        return self.found is not None and not self.is_folder and self.found.name.lower().endswith(suffixes)


def _open_images(found: Input, reading: Reading) -> Source:
    if not found.is_folder:
        return folders.open_images(str(found.location.parent), [found.location.name], reading)
    if source := folders.open_folders(found.location, found.roots, reading):
        return source
    raise InputError(f"{found.name} holds no images that mnist-ray can read; --data takes {accepted_data()}")


class Format(NamedTuple):
    recognizes: Callable[[Input], bool]
    open: Callable[[Input, Reading], Source]
    has_columns: bool = False
    """Whether --id-column and the like can name one of its columns."""


FORMATS = {
    "embedded": Format(
        lambda found: found.spec == "embedded",
        lambda found, reading: open_embedded(reading),
    ),
    "keras": Format(
        lambda found: found.spec.startswith("keras:"),
        lambda found, reading: open_keras(found.spec, reading),
    ),
    "idx": Format(
        lambda found: any(child.name in _IDX_NAMES and not child.is_folder for child in found.children),
        lambda found, reading: open_idx(found.location, reading),
    ),
    "parquet": Format(
        lambda found: found.first_bytes.startswith(b"PAR1") or found.holds(".parquet"),
        lambda found, reading: open_parquet(found.files(".parquet"), found.name, reading),
        has_columns=True,
    ),
    "tar": Format(
        lambda found: found.ends_with(".tar") or found.first_bytes[257:262] == b"ustar" or found.holds(".tar"),
        lambda found, reading: open_tars(found.files(".tar"), found.name, reading),
    ),
    "npz": Format(
        lambda found: found.first_bytes.startswith(b"PK\x03\x04"),
        lambda found, reading: open_npz(found.location, reading),
    ),
    "npy": Format(
        lambda found: found.first_bytes.startswith(b"\x93NUMPY"),
        lambda found, reading: open_npy(found.location, reading),
    ),
    "images": Format(
        lambda found: found.is_folder or found.ends_with(*IMAGE_SUFFIXES),
        _open_images,
    ),
}
"""By the keys of `config.DATA_FORMATS`. The first format that recognizes an input opens it."""


def open_source(spec: str, reading: Reading = DEFAULT_READING) -> Source:
    """The source that `--data` names, checked as far as opening reads it.

    Raises InputError that names the file and what is wrong with it, RetryableError where a download fails.
    """
    found = _look_at(spec)
    if found.is_folder and (listing := reading.stored_listing(found.name)) is not None:
        source: Source = folders.reopen(found.location, listing, reading)
    else:
        source = _open(found, reading)
    for split, rows in source.splits.items():
        if not rows:
            raise InputError(f"{source.name} holds no {'' if split == 'all' else split + ' '}images")
    return source


def open_files(key: str, files: Mapping[str, list[Location]], name: str, reading: Reading) -> Source:
    """The files of each split, Parquet ("parquet") or archives ("tar"), as one source."""
    if not FORMATS[key].has_columns:
        reading.require_no_columns(name)
    return {"parquet": open_parquet, "tar": open_tars}[key](files, name, reading)


def is_dataset_name(spec: str) -> bool:
    """Whether a spec is `embedded` or `keras:NAME`, rather than a path or URI."""
    return any(FORMATS[key].recognizes(Input(spec)) for key in ("embedded", "keras"))


def _look_at(spec: str) -> Input:
    if is_dataset_name(spec):
        return Input(spec)
    location = Location.parse(spec)
    if location.is_file():
        with location.open_file() as opened:
            first_bytes = bytes(opened.read(_FIRST_BYTES))
        if not first_bytes:
            raise InputError(f"{location} is empty; --data takes {accepted_data()}")
        return Input(spec, location, first_bytes)
    if not location.is_dir():
        raise InputError(f"{location} does not exist; --data takes {accepted_data()}")
    return Input(spec, location, is_folder=True)


def _open(found: Input, reading: Reading) -> Source:
    for format_ in FORMATS.values():
        if format_.recognizes(found):
            if not format_.has_columns:
                reading.require_no_columns(found.name)
            return format_.open(found, reading)
    if found.first_bytes.startswith(b"\x1f\x8b"):
        raise InputError(f"{found.name} is compressed by gzip; decompress it first (gunzip)")
    raise InputError(f"{found.name} is not a file that mnist-ray reads; --data takes {accepted_data()}")
