"""Reading what users have: embedded MNIST, IDX, `.npz`, `keras:NAME`, class folders, Parquet. Knows nothing of Ray.

Here are the types that all formats share and the choice among them; the formats themselves are in `mnist_ray.readers`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.storage import Location

ACCEPTED = (
    "embedded, keras:NAME, an .npz or Parquet file, or a directory of IDX files, of Parquet files or of class folders"
)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Bad:
    """A row that could not be read. `row` counts from the split's beginning; `source` is its file, where it has one."""

    row: int
    source: str | None
    reason: str


@dataclass(frozen=True)
class Batch:
    """What one read gives: n readable rows, in order, and what could not be read."""

    ids: NDArray[Any]
    """(n,) int64, or object array of str where the input names its rows."""
    images: NDArray[np.uint8]
    """(n, h, w) or (n, h, w, 3); may be read-only."""
    labels: NDArray[np.int64]
    """(n,), -1 where unknown."""
    sources: list[str] | None = None
    """The path of each image, for inputs of one file an image."""
    bad: tuple[Bad, ...] = ()
    """By row; these are not in the arrays."""


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Images with labels, in splits. Picklable: it names its files and opens them where it is read.

    Send it to a Ray process once (a folder source carries its list of files), not with each unit of work.
    """

    name: str
    classes: tuple[str, ...]
    """() where no label is known."""
    image_shape: tuple[int, ...]
    """(h, w) or (h, w, 3)."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """Rows of each split: train and test, or all where the input has no splits."""

    @abstractmethod
    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        """Rows start..stop of a split. Large formats read only what the range needs.

        A row that cannot be read raises InputError that names it, or with `strict=False` is put into `bad`.
        """

    def stream(self, split: str, start: int, stop: int, *, strict: bool = True) -> Iterator[Batch]:
        """What `read` gives, in order, a part at a time where the format allows it: so it stays in the caches."""
        yield self.read(split, start, stop, strict=strict)

    @abstractmethod
    def digest(self) -> str:
        """sha256 of the content, wherever it lies. Reads the files once where opening them has not done so already."""

    def identity(self) -> str:
        """sha256 that tells this input from another, from what opening has read: a scoring of 100 million images that
        is gone on with must not read them all to know that they are the same."""
        return self.digest()

    def units(self, split: str) -> list[tuple[int, int]]:
        """Row ranges that a unit of work must not span: one for each Parquet file, else one for all."""
        return [(0, self.splits[split])]

    def choose_split(self, wanted: str) -> str:
        """`wanted`, or the only split of an input without splits. Raises InputError where there is no such split."""
        if wanted in self.splits:
            return wanted
        if list(self.splits) == ["all"]:
            return "all"
        raise InputError(f"{self.name} has no split {wanted!r}; it has {' and '.join(self.splits)}")

    def require_training(self) -> None:
        """Raises InputError unless there are train and test images and labels."""
        if missing := [split for split in ("train", "test") if split not in self.splits]:
            raise InputError(
                f"{self.name} has no {' and no '.join(missing)} images; training takes them from train/ and test/"
            )
        if not self.classes:
            raise InputError(f"{self.name} has no labels; training needs one for every image")

    def _settled(self, split: str, batch: Batch, strict: bool) -> Batch:
        """The batch, unless it must not have bad rows and has."""
        if strict and batch.bad:
            first = batch.bad[0]
            more = f" (and {len(batch.bad) - 1} more)" if len(batch.bad) > 1 else ""
            raise InputError(
                f"{first.source or self.name}: {split} row {first.row} {first.reason}{more}; mend or remove it"
            )
        return batch


def open_source(spec: str, *, id_column: str | None = None) -> Source:
    """The source that `--data` names; it is opened, and checked as far as opening reads it.

    Raises InputError that names the file and what is wrong with it; RetryableError where a download fails.
    """
    source = _open(spec, id_column)
    for split, rows in source.splits.items():
        if not rows:
            raise InputError(f"{source.name} holds no {'' if split == 'all' else split + ' '}images")
    return source


def _open(spec: str, id_column: str | None) -> Source:
    from mnist_ray.readers import arrays, folders

    if spec == "embedded":
        return _unnamed(arrays.open_embedded(), id_column)
    if spec.startswith("keras:"):
        return _unnamed(arrays.open_keras(spec.removeprefix("keras:")), id_column)
    location = Location.parse(spec)
    if location.is_file():
        magic = first_bytes(location)
        if not magic:
            raise InputError(f"{location} is empty; --data takes {ACCEPTED}")
        if magic == b"PK\x03\x04":
            return _unnamed(arrays.open_npz(location), id_column)
        if magic == b"PAR1":
            return _parquet({"all": [location]}, location, id_column)
        raise InputError(f"{location} is neither an .npz nor a Parquet file; --data takes {ACCEPTED}")
    if not location.is_dir():
        raise InputError(f"{location} does not exist; --data takes {ACCEPTED}")
    if any(child.name.removesuffix(".gz") in arrays.IDX_NAMES for child in location.list()):
        return _unnamed(arrays.open_idx(location), id_column)
    roots = {name: location / name for name in ("train", "test") if (location / name).is_dir()} or {"all": location}
    parquet = {
        split: [child for child in root.list() if _visible(child) and child.name.endswith(".parquet")]
        for split, root in roots.items()
    }
    if any(parquet.values()):
        return _parquet(parquet, location, id_column)
    files = {split: image_files(root) for split, root in roots.items()}
    if any(files.values()):
        return _unnamed(folders.open_folders(location, files, split_folders="all" not in files), id_column)
    raise InputError(f"{location} holds no images that mnist-ray knows; --data takes {ACCEPTED}")


def _parquet(files: dict[str, list[Location]], where: Location, id_column: str | None) -> Source:
    from mnist_ray.readers.parquet import open_parquet  # pyarrow.parquet takes a while to import

    return open_parquet(files, where, id_column)


def _unnamed(source: Source, id_column: str | None) -> Source:
    if id_column is not None:
        raise InputError(f"--id-column {id_column} names a Parquet column, and {source.name} is not Parquet")
    return source


def image_files(root: Location) -> list[str]:
    """`class/file` of every file in the class folders, then the images beside them; each sorted by name.

    In a class folder every file counts as an image, whatever its name: what is none is named, not left out silently.
    """
    children = [child for child in root.list() if _visible(child)]
    loose = [child.name for child in children if child.name.lower().endswith(IMAGE_SUFFIXES)]
    folders = [child for child in children if child.name not in loose and child.is_dir()]
    return [f"{folder.name}/{file.name}" for folder in folders for file in folder.list() if _visible(file)] + loose


def _visible(location: Location) -> bool:
    return not location.name.startswith(".")


def first_bytes(location: Location) -> bytes:
    """The first four bytes of a file, fewer where it is shorter."""
    with location.open_file() as file:
        return bytes(file.read(4))
