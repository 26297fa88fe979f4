"""Choosing the format of an input, and opening it."""

from __future__ import annotations

from collections.abc import Mapping

from mnist_ray.errors import InputError
from mnist_ray.sources.base import DEFAULT_READING, IMAGE_SUFFIXES, Reading, Source
from mnist_ray.sources.listing import children
from mnist_ray.storage.location import Location

ACCEPTED = (
    "embedded, keras:NAME, an .npz, .npy, .tar or Parquet file, or a directory of IDX, Parquet or .tar files or of"
    " class folders"
)


def open_source(spec: str, reading: Reading = DEFAULT_READING) -> Source:
    """The source that `--data` names; it is opened, and checked as far as opening reads it.

    Raises InputError that names the file and what is wrong with it; RetryableError where a download fails.
    """
    source = _open(spec, reading)
    for split, rows in source.splits.items():
        if not rows:
            raise InputError(f"{source.name} holds no {'' if split == 'all' else split + ' '}images")
    return source


def _open(spec: str, reading: Reading) -> Source:
    from mnist_ray.sources.formats import keras_datasets

    if spec == "embedded" or spec.startswith("keras:"):
        reading.require_no_columns(spec)
        return keras_datasets.open_named(spec, reading)
    location = Location.parse(spec)
    if location.is_file():
        return _open_file(location, reading)
    if not location.is_dir():
        raise InputError(f"{location} does not exist; --data takes {ACCEPTED}")
    return _open_folder(location, reading)


def _open_file(file: Location, reading: Reading) -> Source:
    from mnist_ray.sources.formats import folders, npz

    magic = first_bytes(file)
    if not magic:
        raise InputError(f"{file} is empty; --data takes {ACCEPTED}")
    if magic.startswith(b"PAR1"):
        return open_files("parquet", {"all": [file]}, file, reading)
    if file.name.lower().endswith(".tar") or magic[257:262] == b"ustar":
        return open_files("tar", {"all": [file]}, file, reading)
    reading.require_no_columns(str(file))
    if magic.startswith(b"PK\x03\x04"):
        return npz.open_npz(file, reading)
    if magic.startswith(b"\x93NUMPY"):
        return npz.open_npy(file, reading)
    if file.name.lower().endswith(IMAGE_SUFFIXES):
        return folders.open_images(str(file.parent), [file.name], reading)
    if magic.startswith(b"\x1f\x8b"):
        raise InputError(
            f"{file} is compressed by gzip; unpack it first (gunzip): members of a .tar are read where they lie"
        )
    raise InputError(f"{file} is no file that mnist-ray reads; --data takes {ACCEPTED}")


def _open_folder(folder: Location, reading: Reading) -> Source:
    """Each folder is listed once: there may be millions of files in it."""
    from mnist_ray.sources.formats import folders, idx

    if (listing := reading.listed(str(folder))) is not None:
        return folders.reopen(folder, listing, reading)
    held = children(folder)
    names = {child.name for child in held if not child.is_folder}
    if any(f"{name}{suffix}" in names for name in idx.IDX_NAMES for suffix in ("", ".gz")):
        reading.require_no_columns(str(folder))
        return idx.open_idx(folder, reading)
    splits = [child.name for child in held if child.is_folder and child.name in ("test", "train")][::-1]
    roots = {name: (folder / name, children(folder / name)) for name in splits} or {"all": (folder, held)}
    for kind in ("parquet", "tar"):
        files = {
            split: [root / child.name for child in inside if child.name.endswith(f".{kind}")]
            for split, (root, inside) in roots.items()
        }
        if any(files.values()):
            return open_files(kind, files, folder, reading)
    reading.require_no_columns(str(folder))
    if source := folders.open_folders(folder, roots, reading):
        return source
    raise InputError(f"{folder} holds no images that mnist-ray knows; --data takes {ACCEPTED}")


def open_files(kind: str, files: Mapping[str, list[Location]], where: Location | str, reading: Reading) -> Source:
    """Parquet files or tar archives, split by split, as one source."""
    if kind == "tar":
        from mnist_ray.sources.formats.tars import open_tars

        reading.require_no_columns(str(where))
        return open_tars(str(where), files, reading)
    from mnist_ray.sources.formats.parquet import open_parquet  # pyarrow.parquet takes a while to import

    return open_parquet(files, str(where), reading)


def first_bytes(file: Location) -> bytes:
    """What tells one format from another, fewer where the file is shorter."""
    with file.open_file() as opened:
        return bytes(opened.read(512))
