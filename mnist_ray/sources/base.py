"""What all formats share: a source of images in splits, the batches that it gives, and how it is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.sources.listing import Listing, is_of_another
from mnist_ray.sources.pixels import NO_CONVERSION, Conversion
from mnist_ray.storage.location import Location, sha256

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an input is read with, besides its place."""

    id_column: str | None = None
    """Of Parquet, as the next two; None: `id` and `label` where there are such, `image`."""
    label_column: str | None = None
    image_column: str | None = None
    convert: Conversion = NO_CONVERSION
    lenient: bool = False
    """A file that cannot be read counts as images that cannot."""
    say: Callable[[str], None] | None = None
    """Is told how far a long listing is."""
    list_file: Location | None = None
    """Where a long listing is kept."""
    is_listed: bool = False
    """Whether what an earlier start has kept there is of this input as it was when the scoring began."""

    def listed(self, of: str) -> Listing | None:
        return Listing.load(self.list_file, of) if self.is_listed and self.list_file else None

    def kept(self, of: str) -> Location | None:
        """Where a listing goes; not over that of another input, by which a scoring goes."""
        if self.list_file is None or (self.is_listed and is_of_another(self.list_file, of)):
            return None
        return self.list_file

    def of_part(self, part: int) -> Reading:
        """For another of many inputs: each keeps its own listing."""
        if not part or self.list_file is None:
            return self
        stem, dot, suffix = self.list_file.name.partition(".")
        return replace(self, list_file=self.list_file.parent / f"{stem}-{part}{dot}{suffix}")

    def require_no_columns(self, name: str) -> None:
        """Raises InputError where a column is asked of what has none."""
        for option in ("id_column", "label_column", "image_column"):
            if (column := getattr(self, option)) is not None:
                raise InputError(
                    f"--{option.replace('_', '-')} {column} names a Parquet column, and {name} is not Parquet"
                )


DEFAULT_READING = Reading()


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
    convert: Conversion = NO_CONVERSION
    """To `image_shape`, from what is stored."""
    sampled: tuple[tuple[int, ...], ...] = ()
    """Shapes that are found at the beginning of a few stretches, where images may differ in theirs."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """That can be read: one, where all images are stored alike."""
        return tuple(dict.fromkeys((self.image_shape, *self.sampled)))

    @property
    def id_kind(self) -> str:
        """row: the row's number in the whole input; integer or text: as the input names its rows."""
        return "row"

    @property
    def is_encoded(self) -> bool:
        """Whether each image is a PNG or JPEG, which takes far longer to decode than pixels to read."""
        return False

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
        return self._as_converted(self.digest())

    def _as_converted(self, identity: str) -> str:
        return sha256(f"{identity} {self.convert}".encode()) if self.convert else identity

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
