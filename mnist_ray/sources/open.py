"""The format of an input, and the source that it opens as: `FORMATS` is the one list of what `--data` takes."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from mnist_ray.config import accepted_data
from mnist_ray.errors import InputError
from mnist_ray.sources.base import DEFAULT_READING, IMAGE_SUFFIXES, Reading, Source
from mnist_ray.sources.formats import folders
from mnist_ray.sources.formats.archives import open_archives
from mnist_ray.sources.formats.idx import IDX_IMAGES, is_idx, open_embedded, open_idx
from mnist_ray.sources.formats.keras_datasets import open_keras
from mnist_ray.sources.formats.npz import open_npy, open_npz
from mnist_ray.sources.formats.parquet import open_parquet
from mnist_ray.sources.formats.pixel_tables import SUFFIXES as TABLES
from mnist_ray.sources.formats.pixel_tables import is_pixel_table, open_pixel_tables
from mnist_ray.sources.formats.shards import MANIFEST, ShardedSource
from mnist_ray.sources.formats.tars import TarSource
from mnist_ray.sources.formats.tfrecords import is_tfrecord, open_tfrecords
from mnist_ray.sources.formats.zips import ZipSource
from mnist_ray.sources.layout import NOTHING, Collected, Files, Wanted, collect, only_folder, split_folders
from mnist_ray.sources.listing import Child, children, count_kinds, is_litter, kind_of
from mnist_ray.sources.lists import labels_beside
from mnist_ray.storage.location import Location

_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_PARQUET = b"PAR1"
_TFRECORD = re.compile(r"\.tfrec(ords?)?(?![a-z])")
_NUMBERED = re.compile(r"part-[^.]*|[^.]*-\d+-of-\d+")
_PACKED = (".7z", ".rar", ".tgz", ".gz", ".bz2", ".xz")
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

    @property
    def names(self) -> list[str]:
        """The names of the files that the folder holds."""
        return [child.name for child in self.children if not child.is_folder]

    @cached_property
    def decompressed(self) -> bytes:
        """The first bytes of the file, or of what gzip has compressed into it."""
        if not self.first_bytes.startswith(_GZIP):
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
    def parquet(self) -> Collected:
        found = self._collect(lambda name: joined_kind(name) == "parquet")
        return found if found.is_any else self._unnamed(lambda first: first.startswith(_PARQUET))

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


def _open_images(found: Input, reading: Reading) -> Source:
    if not found.is_folder:
        reading.require_columns((), found.name)
        return folders.open_images(str(found.location.parent), [(found.location.name, None)], reading)
    if source := folders.open_folders(found.location, found.roots, reading, beside=found.beside, below=found.below):
        return source
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in count_kinds([*found.names, *found.beside]).items())
    packed = [name for name in found.names if name.lower().endswith(_PACKED)]
    remedy = f"unpack {packed[0]}" if packed else f"accepted are {accepted_data()}"
    raise InputError(
        f"{found.name} holds no images that mnist-ray can read{f', only {kinds}' if kinds else ''}; {remedy}"
    )


class Format(NamedTuple):
    recognizes: Callable[[Input], bool]
    open: Callable[[Input, Reading], Source]
    columns: tuple[str, ...] = ()
    """The options that can name one of its columns."""
    has_fields: bool = False
    """Whether --image-field can choose among its members."""

    def require(self, reading: Reading, name: str) -> None:
        """Raises InputError for options that this format does not have."""
        reading.require_columns(self.columns, name)
        if not self.has_fields:
            reading.require_no_field(name)


def _beside(source: Source, others: list[str]) -> Source:
    """The source with what lies beside its files."""
    counts = Counter(source.passed_over)
    counts.update(count_kinds(others))
    return replace(source, passed_over=dict(sorted(counts.items())))


def _open_archives(
    kind: type[TarSource | ZipSource], found: Input, archives: Collected, reading: Reading
) -> Source:  # fmt: skip
    """With the labels of a table that lies beside them, as Hugging Face's ImageFolder has it."""
    table = labels_beside(found.location, archives.others, reading) if found.is_folder else None
    source = open_archives(kind, archives.files, found.name, reading, table and table[1])
    return _beside(source, [name for name in archives.others if table is None or name != table[0]])


_COLUMNS = ("id_column", "label_column", "image_column")

FORMATS = {
    "embedded": Format(
        lambda found: found.spec == "embedded",
        lambda found, reading: open_embedded(reading),
    ),
    "keras": Format(
        lambda found: found.spec.startswith("keras:"),
        lambda found, reading: open_keras(found.spec, reading),
    ),
    "shards": Format(
        lambda found: found.is_folder and MANIFEST in found.names,
        lambda found, reading: ShardedSource.open(found.location, reading),
        columns=_COLUMNS,
    ),
    "idx": Format(
        lambda found: found.decompressed.startswith(IDX_IMAGES) or any(is_idx(name) for name in found.names),
        lambda found, reading: _beside(
            open_idx(found.location, reading), [name for name in found.names if not is_idx(name)]
        ),
    ),
    "parquet": Format(
        lambda found: found.first_bytes.startswith(_PARQUET) or (found.is_folder and found.parquet.is_any),
        lambda found, reading: _beside(open_parquet(found.parquet.files, found.name, reading), found.parquet.others),
        columns=_COLUMNS,
    ),
    "tar": Format(
        lambda found: (
            found.ends_with(".tar") or found.first_bytes[257:262] == b"ustar" or (found.is_folder and found.tars.is_any)
        ),
        lambda found, reading: _open_archives(TarSource, found, found.tars, reading),
        has_fields=True,
    ),
    "npz": Format(
        lambda found: (
            found.first_bytes.startswith(_ZIP) and (found.ends_with(".npz") or found.first_member.endswith(".npy"))
        ),
        lambda found, reading: open_npz(found.location, reading),
    ),
    "npy": Format(
        lambda found: found.first_bytes.startswith(b"\x93NUMPY"),
        lambda found, reading: open_npy(found.location, reading),
    ),
    "zip": Format(
        lambda found: found.first_bytes.startswith(_ZIP) or (found.is_folder and found.zips.is_any),
        lambda found, reading: _open_archives(ZipSource, found, found.zips, reading),
        has_fields=True,
    ),
    "tfrecord": Format(
        lambda found: (
            found.records.is_any
            if found.is_folder
            else is_tfrecord(found.first_bytes) or joined_kind(found.name) == "tfrecord"
        ),
        lambda found, reading: _beside(open_tfrecords(found.records.files, found.name, reading), found.records.others),
        columns=("label_column", "image_column"),
    ),
    "csv": Format(
        lambda found: (
            (found.ends_with(*TABLES) and is_pixel_table(found.decompressed))
            or (found.is_folder and found.tables.is_any)
        ),
        lambda found, reading: _beside(open_pixel_tables(found.tables.files, found.name, reading), found.tables.others),
        columns=("label_column",),
    ),
    "images": Format(
        lambda found: found.is_folder or found.ends_with(*IMAGE_SUFFIXES),
        _open_images,
        columns=("label_column", "image_column"),  # of a table beside them
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


_JOINED = {
    "parquet": re.compile(r"\.(parquet|pq|parq)$"),
    "tar": re.compile(r"\.tar$"),
    "zip": re.compile(r"\.zip$"),
    "tfrecord": _TFRECORD,
}


def joined_kind(name: str) -> str:
    """The key of the format, for a file that is one input with others like it, by its name; "" for any other."""
    return next((key for key, pattern in _JOINED.items() if pattern.search(name.lower())), "")


def open_files(key: str, files: Mapping[str, list[Location]], name: str, reading: Reading) -> Source:
    """The files of each split, all of one `joined_kind`, as one source."""
    FORMATS[key].require(reading, name)
    if key == "parquet":
        return open_parquet(files, name, reading)
    if key == "tfrecord":
        return open_tfrecords(files, name, reading)
    return open_archives(TarSource if key == "tar" else ZipSource, files, name, reading)


def is_dataset_name(spec: str) -> bool:
    """Whether a spec is `embedded` or `keras:NAME`, rather than a path or URI."""
    return any(FORMATS[key].recognizes(Input(spec)) for key in ("embedded", "keras"))


def is_table_of_pixels(file: Location) -> bool:
    """Whether a file is a CSV table of pixels, rather than one of paths."""
    return FORMATS["csv"].recognizes(_look_at(str(file)))


def first_bytes_of(file: Location) -> bytes:
    with file.open_file() as opened:
        return bytes(opened.read(_FIRST_BYTES))


def _look_at(spec: str) -> Input:
    if is_dataset_name(spec):
        return Input(spec)
    location = Location.parse(spec)
    if location.is_file():
        first_bytes = first_bytes_of(location)
        if not first_bytes:
            raise InputError(f"{location} is empty; accepted are {accepted_data()}")
        return Input(spec, location, first_bytes)
    if not location.is_dir():
        raise InputError(f"{location} does not exist; accepted are {accepted_data()}")
    return Input(spec, location, is_folder=True)


_HDF5 = "HDF5 is not read; save its arrays with numpy.savez (x_train, y_train, x_test, y_test)"
_ELSEWHERE = {
    ".csv": "it is no table of pixels; a table of paths and labels is for `score`, and for training goes beside the"
    " images as metadata.csv",
    ".h5": _HDF5, ".hdf5": _HDF5,
}  # fmt: skip


def _open(found: Input, reading: Reading) -> Source:
    for format_ in FORMATS.values():
        if format_.recognizes(found):
            format_.require(reading, found.name)
            return format_.open(found, reading)
    if _is_pickle(found):
        raise InputError(
            f"{found.name} is a Python pickle, which may run any code when it is read; load it where you trust it, and"
            " save its arrays with numpy.savez (x_train, y_train, x_test, y_test)"
        )
    if found.first_bytes.startswith(_GZIP):
        raise InputError(f"{found.name} is compressed by gzip; decompress it first (gunzip)")
    if remedy := next((text for suffix, text in _ELSEWHERE.items() if found.name.lower().endswith(suffix)), ""):
        raise InputError(f"{found.name}: {remedy}")
    raise InputError(f"{found.name} is not a file that mnist-ray reads; accepted are {accepted_data()}")


def _is_pickle(found: Input) -> bool:
    """By its first bytes or its name."""
    start = found.decompressed[:2]
    return start in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5") or found.ends_with(".pkl", ".pickle", ".pkl.gz")
