"""What `--data` or INPUT names, as the formats recognize it: a file by its first bytes, a folder by what it holds."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from mnist_ray.config import accepted_data
from mnist_ray.errors import InputError
from mnist_ray.sources.base import IMAGE_SUFFIXES
from mnist_ray.sources.formats.idx import is_idx
from mnist_ray.sources.formats.pixel_tables import SUFFIXES as TABLES
from mnist_ray.sources.formats.pixel_tables import is_pixel_table
from mnist_ray.sources.formats.tfrecords import is_tfrecord
from mnist_ray.sources.layout import NOTHING, Collected, Files, Wanted, collect, only_folder, split_folders
from mnist_ray.sources.listing import Child, children, is_litter, kind_of
from mnist_ray.storage.location import Location

GZIP = b"\x1f\x8b"
ZIP = b"PK\x03\x04"
PARQUET = b"PAR1"
_TFRECORD = re.compile(r"\.tfrec(ords?)?(?![a-z])")
_NUMBERED = re.compile(r"part-[^.]*|[^.]*-\d+-of-\d+")
_FIRST_BYTES = 512  # enough to recognize any format
_MAX_ALONE = 3  # folders, one in the other


@dataclass(frozen=True)
class Input:
    """What a format is recognized by: the spec itself, the first bytes of a file, or the content of a folder."""

    spec: str
    found: Location | None = None
    """The file or folder that the spec names, if it names one."""
    first_bytes: bytes = b""
    is_folder: bool = False

    @classmethod
    def of(cls, spec: str) -> Input:
        """What a spec names. Raises InputError where there is nothing."""
        if is_dataset_name(spec):
            return cls(spec)
        location = Location.parse(spec)
        if location.is_file():
            first_bytes = first_bytes_of(location)
            if not first_bytes:
                raise InputError(f"{location} is empty; accepted are {accepted_data()}")
            return cls(spec, location, first_bytes)
        if not location.is_dir():
            raise InputError(f"{location} does not exist; accepted are {accepted_data()}")
        return cls(spec, location, is_folder=True)

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

    @property
    def names(self) -> list[str]:
        """The names of the files that the folder holds."""
        return [child.name for child in self.children if not child.is_folder]

    @cached_property
    def decompressed(self) -> bytes:
        """The first bytes of the file, or of what gzip has compressed into it."""
        if not self.first_bytes.startswith(GZIP):
            return self.first_bytes
        try:
            return zlib.decompressobj(wbits=31).decompress(self.first_bytes, _FIRST_BYTES)
        except zlib.error:
            return b""

    @property
    def first_member(self) -> str:
        """The name of the first member of a ZIP archive."""
        length = int.from_bytes(self.first_bytes[26:28], "little")
        return self.first_bytes[30 : 30 + length].decode(errors="replace")

    @cached_property
    def beside(self) -> list[str]:
        """What lies beside train/ and test/; the name of a folder ends in a slash."""
        if "all" in self.roots:
            return []
        roots = {root.name for root, _ in self.roots.values()}
        return [
            f"{child.name}/" if child.is_folder else child.name for child in self.children if child.name not in roots
        ]

    @property
    def hub_versions(self) -> list[Child]:
        """The versions in a cache of the Hugging Face Hub; none in any other folder."""
        is_cache = {"blobs", "snapshots"} <= {child.name for child in self.children if child.is_folder}
        return children(self.location / "snapshots") if is_cache else []

    @cached_property
    def roots(self) -> dict[str, tuple[Location, list[Child]]]:
        """The folder of each split and what it holds: train/ and test/, or this one for the split "all"."""
        names = split_folders(child.name for child in self.children if child.is_folder)
        return {split: (self.location / name, children(self.location / name)) for split, name in names.items()} or {
            "all": (self.location, self.children)
        }

    @cached_property
    def below(self) -> tuple[Location, list[Child]] | None:
        """The only folder in this one, and what it holds, listed once."""
        return only_folder(*self.roots["all"]) if "all" in self.roots else None

    @cached_property
    def idx(self) -> tuple[Location, list[str]] | None:
        """The folder that holds IDX files, and the names of its files: this one, or one that lies in it alone, as
        torchvision has them in MNIST/raw/."""
        place = (self.location, self.children) if self.is_folder else None
        for depth in range(_MAX_ALONE):
            names = [child.name for child in place[1] if not child.is_folder] if place else []
            if place and any(map(is_idx, names)):
                return place[0], names
            place = self.below if depth == 0 else only_folder(*place) if place else None
        return None

    @cached_property
    def parquet(self) -> Collected:
        found = self._collect(lambda name: joined_kind(name) == "parquet")
        return found if found.is_any else self._unnamed(lambda first: first.startswith(PARQUET))

    @cached_property
    def tars(self) -> Collected:
        return self._collect(lambda name: joined_kind(name) == "tar")

    @cached_property
    def zips(self) -> Collected:
        return self._alone(self._collect(lambda name: joined_kind(name) == "zip"))

    @cached_property
    def records(self) -> Collected:
        found = self._collect(lambda name: joined_kind(name) == "tfrecord", kind=".gz")
        return found if found.is_any else self._unnamed(is_tfrecord)

    @cached_property
    def tables(self) -> Collected:
        """Of pixels."""
        found = self._alone(self._collect(lambda name: name.endswith(TABLES), kind=".gz"))
        begins = (Input("", file, first_bytes_of(file)).decompressed for file in found.all)
        return found if all(map(is_pixel_table, begins)) else NOTHING

    def _unnamed(self, recognizes: Callable[[bytes], bool]) -> Collected:
        """Numbered files without a suffix, as Hadoop and TensorFlow write them, by the first bytes of the first."""
        found = self._collect(lambda name: _NUMBERED.fullmatch(name) is not None, kind="no suffix")
        first = next(iter(found.all), None)
        return found if first is not None and recognizes(first_bytes_of(first)) else NOTHING

    def _alone(self, found: Collected) -> Collected:
        """Nothing where there are images or class folders, too: an archive beside them is often what they came from."""
        others = [name for name in found.others if name not in self.beside and not is_litter(name.rstrip("/"))]
        return NOTHING if any(name.lower().endswith(("/", *IMAGE_SUFFIXES)) for name in others) else found

    @cached_property
    def _kinds(self) -> set[str]:
        """The kinds of the files that are looked at, so that a million images are not gone through for each format."""
        held = [child for _, each in self.roots.values() for child in each]
        held += self.below[1] if self.below else []
        return {kind_of(f"{child.name}/" if child.is_folder else child.name.lower()) for child in held}

    def _collect(self, wanted: Wanted, *, kind: str | None = None) -> Collected:
        """This file, or the files of this folder whose names are of a format.

        kind: of all of them, where their names alone do not tell it.
        """
        if not self.is_folder:
            return Collected({"all": [self.location]}, [])
        if not any(each == kind or wanted(each) or "=" in each for each in self._kinds):
            return NOTHING
        if "all" in self.roots:
            return collect(*self.roots["all"], self.below, wanted)
        found = {split: Files().add(root, held, wanted) for split, (root, held) in self.roots.items()}
        others = [name for each in found.values() for name in each.others]
        return Collected({split: each.taken for split, each in found.items()}, [*others, *self.beside])

    def ends_with(self, *suffixes: str) -> bool:
        """Whether it is a file whose name has one of these suffixes, in upper or lower case."""
        return self.found is not None and not self.is_folder and self.found.name.lower().endswith(suffixes)


def is_dataset_name(spec: str) -> bool:
    """Whether a spec is `embedded` or `keras:NAME`, rather than a path or URI."""
    return spec == "embedded" or spec.startswith("keras:")


_JOINED = {
    "parquet": re.compile(r"\.(parquet|pq|parq)$"),
    "tar": re.compile(r"\.tar$"),
    "zip": re.compile(r"\.zip$"),
    "tfrecord": _TFRECORD,
}


def joined_kind(name: str) -> str:
    """The key of the format, for a file that is one input with others like it, by its name; "" for any other."""
    return next((key for key, pattern in _JOINED.items() if pattern.search(name.lower())), "")


def first_bytes_of(file: Location) -> bytes:
    with file.open_file() as opened:
        return bytes(opened.read(_FIRST_BYTES))
