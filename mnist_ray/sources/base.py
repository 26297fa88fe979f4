"""What all formats share: a source of images in splits, the batches that it yields, and the options of reading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.config import Images
from mnist_ray.errors import InputError
from mnist_ray.sources.decoding import RULES
from mnist_ray.sources.listing import Listing, stored_key
from mnist_ray.sources.pixels import NO_CONVERSION, Conversion
from mnist_ray.sources.preparation import Preparation
from mnist_ray.storage.location import Location, sha256

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm",
    ".pnm",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The options that an input is read with."""

    id_column: str | None = None
    """Parquet column of the ids. None: `id`, where there is one; else rows are numbered."""
    label_column: str | None = None
    """None: `label`, where there is one."""
    image_column: str | None = None
    """None: `image`."""
    image_field: str | None = None
    """Suffix of the images among the members of a tar archive with one key. None: those with a simple suffix."""
    labels: str = "auto"
    """Where labels come from: folders, column, none, or auto for what the input has."""
    takes_several: bool = False
    """Whether an image may have any number of labels; else it must have one, if any."""
    convert: Conversion = NO_CONVERSION
    signed: bool = False
    """Whether floats may be -1..1, as x / 127.5 - 1 makes pixels."""
    lenient: bool = False
    """Whether a file that cannot be read counts as bad images, instead of ending the job."""
    notify: Callable[[str], None] | None = None
    """Called every few seconds with a line on the progress of a long listing."""
    list_file: Location | None = None
    """Where a long listing is stored."""
    reuse_listing: bool = False
    """Whether a listing in `list_file` still holds: an unfinished scoring refers to it."""

    @classmethod
    def of(cls, config: Images, **more: Any) -> Reading:
        """As the options of a command say."""
        convert = Conversion(
            config.size(), config.gray, offered=True, rgb=config.rgb, applies_exif=config.exif != "ignore",
            background=config.background_rgb(),
        )  # fmt: skip
        return cls(
            id_column=config.id_column, label_column=config.label_column, image_column=config.image_column,
            image_field=config.image_field, convert=convert, **more,
        )  # fmt: skip

    def stored_listing(self, key: str) -> Listing | None:
        """The listing of the input `key` in `list_file`, if it still holds."""
        return Listing.load(self.list_file, key) if self.reuse_listing and self.list_file else None

    def new_list_file(self, key: str) -> Location | None:
        """Where to store a listing of the input `key`. None where another input's listing, still in use, is there."""
        if self.list_file is None or (self.reuse_listing and stored_key(self.list_file) not in (None, key)):
            return None
        return self.list_file

    def of_part(self, part: int) -> Reading:
        """The same for one of several inputs, by its number: each has a listing of its own."""
        if not part or self.list_file is None:
            return self
        stem, dot, suffix = self.list_file.name.partition(".")
        return replace(self, list_file=self.list_file.parent / f"{stem}-{part}{dot}{suffix}")

    def takes(self, kind: str) -> bool:
        """Whether labels of this kind ("folders" or "column") are wanted."""
        return self.labels in ("auto", kind)

    def require_columns(self, options: Collection[str], name: str) -> None:
        """Raises InputError where a column is given for an input that has none such. options: those that it takes."""
        for option in ("id_column", "label_column", "image_column"):
            if option not in options and (column := getattr(self, option)) is not None:
                has = "none such" if options else "none"
                raise InputError(
                    f"--{option.replace('_', '-')} {column} names a column, and {name} has {has}; leave the option out"
                )

    def require_no_field(self, name: str) -> None:
        """Raises InputError where a field is given for an input that is not an archive."""
        if self.image_field is not None:
            raise InputError(
                f"--image-field {self.image_field} chooses members of archives, and {name} is not one; leave it out"
            )


DEFAULT_READING = Reading()


def absent_classes(
    found: Mapping[str, Collection[str]], names: Iterable[str], several: str = ""
) -> dict[str, tuple[str, ...]]:
    """`Source.absent`, from the names of the classes that each split has images of. several: as in `Source`; of lists
    of labels it is not known, nor needed, as they are not trained on."""
    if several:
        return {}
    names = list(names)
    return {split: tuple(name for name in names if name not in held) for split, held in found.items()}


def some(names: Sequence[str], one: str, many: str) -> str:
    """ "the class cat", or "the classes cat, cow, dog, emu, ... (12)"."""
    listed = ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
    return f"the {one if len(names) == 1 else many} {listed}"


@dataclass(frozen=True)
class Bad:
    """A row that could not be read."""

    row: int
    """Its number in the split."""
    source: str | None
    """The path of its file, where it has one."""
    reason: str
    """Why it could not be read, as the rest of a sentence: "is an empty file"."""


@dataclass(frozen=True)
class Batch:
    """The result of one read: n readable rows, in order, and the rows that could not be read."""

    ids: NDArray[Any]
    """(n,) int64, or an object array of str where the input has text ids."""
    images: NDArray[np.uint8]
    """(n, h, w) or (n, h, w, 3); may be read-only."""
    labels: NDArray[Any]
    """(n,) int64, -1 where unknown. Where an image may have several: (n, number of classes) int8, 1 for each label that
    it has, else 0, and all -1 where they are unknown."""
    sources: list[str] | None = None
    """The path of each image, for inputs with a file for each image."""
    bad: tuple[Bad, ...] = ()
    """In order of their rows, which are missing from the arrays."""


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Images with labels, in splits. Picklable: it holds the names of its files, and opens them when it is read.

    Send it to another process once, not with each unit of work: a folder source carries its list of files.
    """

    name: str
    classes: tuple[str, ...]
    """The classes' names by number; () where no label is known."""
    image_shape: tuple[int, ...]
    """(h, w) or (h, w, 3)."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """The number of rows in each split: "train" and "test", or "all" for an input without splits."""
    numbered: bool = False
    """Whether these are names of the data's own class numbers, not names alone that have been put in an order."""
    labels: str = "column"
    """Where labels come from: "column" (the data say that they are labels), "folders" (their names are labels), "auto"
    (they are where the model has classes of these names) or "none" (labels are not wanted)."""
    several: str = ""
    """Where an image may have any number of labels, how they are told (`sources/labels.py`)."""
    absent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The classes of which a split has no images, where that is known; the names of empty class folders, too."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """How many files are not read, by kind: a suffix such as ".txt", or the name of a folder with a slash."""
    remarks: tuple[str, ...] = ()
    """What users should know of how it is read."""
    convert: Conversion = NO_CONVERSION
    """How stored images become images of `image_shape`."""
    sampled: tuple[tuple[int, ...], ...] = ()
    """The shapes found in a few places, for inputs whose images may differ in shape."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes that this input can be read with: one, unless its images differ."""
        return tuple(dict.fromkeys((self.image_shape, *self.sampled)))

    @property
    def id_kind(self) -> str:
        """ "row" where ids are the numbers of the rows; "integer" or "text" where the input has its own."""
        return "row"

    @property
    def is_encoded(self) -> bool:
        """Whether images are PNG or JPEG, which takes far longer to decode than raw pixels take to read."""
        return False

    @abstractmethod
    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        """Rows start..stop of a split. Formats for large inputs read only what the range needs.

        For a row that cannot be read, raises InputError that names it, or with `strict=False` adds it to `bad`.
        """

    def stream(self, split: str, start: int, stop: int, *, strict: bool = True) -> Iterator[Batch]:
        """The rows that `read` returns, in batches that fit the CPU's caches where the format allows it."""
        yield self.read(split, start, stop, strict=strict)

    @abstractmethod
    def digest(self) -> str:
        """sha256 of the content, independent of its place. May read all files once."""

    def fingerprint(self) -> str:
        """sha256 of the content as the options change it."""
        return self._as_converted(self.digest())

    def identity(self) -> str:
        """sha256 that distinguishes this input from others, computed from what opening it has read.

        A scoring of 100 million images that is resumed must not read them all to find that they are the same.
        """
        return self.fingerprint()

    @property
    def preparation(self) -> Preparation | None:
        """How its images are prepared; None where that is not known."""
        return Preparation.of(self.convert)

    @property
    def decoded_by(self) -> str | None:
        """What decides the pixels of an encoded image, beside its size and mode; None where none is encoded."""
        if not self.is_encoded:
            return None
        exif = "applied" if self.convert.applies_exif else "ignored"
        return f"rules {RULES}, exif {exif}, background #{bytes(self.convert.background).hex()}"

    def _as_converted(self, identity: str) -> str:
        """The identity of this input as the options change it, and as its images are decoded."""
        chosen = f" labels {self.labels}" if self.labels in ("folders", "none") else ""
        chosen += f" decoded by {RULES}" if self.is_encoded else ""
        return sha256(f"{identity} {self.convert}{chosen}".encode()) if self.convert or chosen else identity

    def units(self, split: str) -> list[tuple[int, int]]:
        """Row ranges (start, stop) whose limits a unit of work must not cross: one for each Parquet file or archive."""
        return [(0, self.splits[split])]

    def choose_split(self, wanted: str) -> str:
        """`wanted`, or "all" for an input without splits. Raises InputError where the input has other splits."""
        if wanted in self.splits:
            return wanted
        if list(self.splits) == ["all"]:
            return "all"
        remedy = f"; --split {next(iter(self.splits))} takes that" if len(self.splits) == 1 else ""
        raise InputError(f"{self.name} has no split {wanted!r}; it has {' and '.join(self.splits)}{remedy}")

    def require_training(self) -> None:
        """Raises InputError unless the input has train and test images and labels, or as `require_sharding` does."""
        if missing := [split for split in ("train", "test") if split not in self.splits]:
            raise InputError(
                f"{self.name} has no {' and no '.join(missing)} images; training takes them from train/ and test/"
            )
        if not self.classes:
            raise InputError(f"{self.name} has no labels; training needs one for every image")
        self.require_sharding()

    def require_sharding(self) -> None:
        """Raises InputError where images are known to differ in size, or as `require_classes` does."""
        sizes = sorted({shape[:2] for shape in self.shapes})
        if len(sizes) > 1:
            first, last = (f"{height} x {width}" for height, width in (sizes[0], sizes[-1]))
            raise InputError(
                f"{self.name} has images of several sizes, such as {first} and {last}; give --resize, such as --resize"
                f" {first.replace(' ', '')}"
            )
        self.require_classes()

    def require_classes(self) -> None:
        """Raises InputError where a folder in test/ alone would become a class."""
        if self.labels != "column" and (names := self._absent_from("train")):
            raise InputError(
                f"{self.name}: train/ has no images of the class {names[0]}, but test/ has; add images to"
                f" train/{names[0]}, or remove test/{names[0]} or rename it like its class in train/"
            )

    def notes_on_classes(self) -> Iterator[str]:
        """What users should know of classes without images."""
        for split, why in (("train", "no model can learn them"), ("test", "their accuracy stays unknown")):
            if names := self._absent_from(split):
                yield f"there are no {split} images of {some(names, 'class', 'classes')}, so {why}"
        if names := [name for name in self.absent.get("train", ()) if name in self.absent.get("test", ())]:
            yield f"there are no images at all of {some(names, 'class', 'classes')}"

    def _absent_from(self, split: str) -> list[str]:
        """The classes of which only the other split has images."""
        other = {"train": "test", "test": "train"}[split]
        return [name for name in self.absent.get(split, ()) if name not in self.absent.get(other, ())]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """The number of each class."""
        return {name: number for number, name in enumerate(self.classes)}

    def _to_labels(self, found: Sequence[Any]) -> NDArray[Any]:
        """Those of a batch, from class numbers or rows."""
        return np.array(found, np.int8).reshape(-1, len(self.classes)) if self.several else np.array(found, np.int64)

    def _unlabelled(self, rows: int) -> NDArray[Any]:
        """Of images whose labels are unknown."""
        return np.full((rows, len(self.classes)), -1, np.int8) if self.several else np.full(rows, -1, np.int64)

    def _checked(self, split: str, batch: Batch, strict: bool) -> Batch:
        """The batch. Raises InputError that names its first bad row where `strict`."""
        if strict and batch.bad:
            first = batch.bad[0]
            more = f" (and {len(batch.bad) - 1} more)" if len(batch.bad) > 1 else ""
            raise InputError(
                f"{first.source or self.name}: {split} row {first.row} {first.reason}{more}; repair or remove it"
            )
        return batch
