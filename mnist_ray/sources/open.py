"""The format of an input, and the source that it opens as: `FORMATS` is the one list of what `--data` takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
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
from mnist_ray.sources.formats.unpacking import packer_of
from mnist_ray.sources.formats.zips import ZipSource
from mnist_ray.sources.input import PARQUET, ZIP, Input, joined_kind
from mnist_ray.sources.layout import Collected
from mnist_ray.sources.listing import count_kinds, kind_of
from mnist_ray.sources.lists import labels_beside
from mnist_ray.storage.location import Location

_PACKED = (".7z", ".rar", ".tgz", ".gz", ".bz2", ".xz", ".zst")


def _open_images(found: Input, reading: Reading) -> Source:
    if not found.is_folder:
        reading.require_columns((), found.name)
        return folders.open_images(str(found.location.parent), [(found.location.name, None)], reading)
    if versions := [child.name for child in found.hub_versions]:
        raise InputError(
            f"{found.name} is a cache of the Hugging Face Hub; give the folder of a version in it:"
            f" {found.location / 'snapshots' / versions[-1]}"
        )
    if source := folders.open_folders(found.location, found.roots, reading, beside=found.beside, below=found.below):
        return source
    raise _without_images(found)


def _without_images(found: Input) -> InputError:
    """What to do with a folder that holds other things."""
    held = [f"{child.name}/" if child.is_folder else child.name for child in found.children]
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in count_kinds(held).items())
    for name in found.names[:_LOOKED_INTO]:
        if "." not in name and _is_pickle(file := Input.of(str(found.location / name))):
            return InputError(f"{file.name} {_PICKLE}")
    packed = [name for name in found.names if name.lower().endswith(_PACKED)]
    remedy = f"unpack {packed[0]}" if packed else _elsewhere(found.names) or f"accepted are {accepted_data()}"
    return InputError(
        f"{found.name} holds no images that mnist-ray can read{f', only {kinds}' if kinds else ''}; {remedy}"
    )


def _open_idx(found: Input, reading: Reading) -> Source:
    folder, names = found.idx or (found.location, [])
    return _beside(open_idx(folder, reading), [name for name in names if not is_idx(name)])


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
        lambda found: found.decompressed.startswith(IDX_IMAGES) or found.idx is not None,
        lambda found, reading: _open_idx(found, reading),
    ),
    "parquet": Format(
        lambda found: found.first_bytes.startswith(PARQUET) or (found.is_folder and found.parquet.is_any),
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
            found.first_bytes.startswith(ZIP) and (found.ends_with(".npz") or found.first_member.endswith(".npy"))
        ),
        lambda found, reading: open_npz(found.location, reading),
    ),
    "npy": Format(
        lambda found: found.first_bytes.startswith(b"\x93NUMPY"),
        lambda found, reading: open_npy(found.location, reading),
    ),
    "zip": Format(
        lambda found: found.first_bytes.startswith(ZIP) or (found.is_folder and found.zips.is_any),
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
    found = Input.of(spec)
    if found.is_folder and (listing := reading.stored_listing(found.name)) is not None:
        source: Source = folders.reopen(found.location, listing, reading)
    else:
        source = _open(found, reading)
    for split, rows in source.splits.items():
        if not rows:
            raise InputError(f"{source.name} holds no {'' if split == 'all' else split + ' '}images")
    return source


def open_files(key: str, files: Mapping[str, list[Location]], name: str, reading: Reading) -> Source:
    """The files of each split, all of one `joined_kind`, as one source."""
    FORMATS[key].require(reading, name)
    if key == "parquet":
        return open_parquet(files, name, reading)
    if key == "tfrecord":
        return open_tfrecords(files, name, reading)
    return open_archives(TarSource if key == "tar" else ZipSource, files, name, reading)


def is_table_of_pixels(file: Location) -> bool:
    """Whether a file is a CSV table of pixels, rather than one of paths."""
    return FORMATS["csv"].recognizes(Input.of(str(file)))


_SAVEZ = "save its arrays with numpy.savez (x_train, y_train, x_test, y_test)"
_HDF5 = f"HDF5 is not read; {_SAVEZ}"
_TABLE = (
    "it is no table of pixels; a table of paths and labels is for `score`, and for training goes beside the images as"
    " metadata.csv"
)
_ARROW = "Arrow files are not read; write Parquet: datasets.load_from_disk(FOLDER).to_parquet(FILE)"
_PICKLE = f"is a Python pickle, which may run any code when it is read; load it where you trust it, and {_SAVEZ}"
_ELSEWHERE = {
    ".csv": _TABLE, ".tsv": _TABLE, ".jsonl": _TABLE, ".h5": _HDF5, ".hdf5": _HDF5, ".arrow": _ARROW,
    ".feather": "Feather is not read; write Parquet: pandas.read_feather(FILE).to_parquet(FILE)",
    ".mat": f"MATLAB's files are not read; {_SAVEZ}",
}  # fmt: skip
_LOOKED_INTO = 20  # files of a folder without images


def _elsewhere(names: Iterable[str]) -> str:
    """What to do with the first of these files of which something is known; "" where nothing is."""
    kinds = (kind_of(name.lower()) for name in names)
    return next((_ELSEWHERE[kind] for kind in kinds if kind in _ELSEWHERE), "")


def _open(found: Input, reading: Reading) -> Source:
    for format_ in FORMATS.values():
        if format_.recognizes(found):
            format_.require(reading, found.name)
            return format_.open(found, reading)
    if _is_pickle(found):
        raise InputError(f"{found.name} {_PICKLE}")
    if packer := packer_of(found.first_bytes):
        raise InputError(f"{found.name} is compressed by {packer}; decompress it first")
    if remedy := _elsewhere([found.name]):
        raise InputError(f"{found.name}: {remedy}")
    raise InputError(f"{found.name} is not a file that mnist-ray reads; accepted are {accepted_data()}")


def _is_pickle(found: Input) -> bool:
    """By its first bytes or its name."""
    start = found.decompressed[:2]
    return start in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5") or found.ends_with(".pkl", ".pickle", ".pkl.gz")
