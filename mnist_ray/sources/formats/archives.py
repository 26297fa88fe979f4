"""Archives of image files, tar and ZIP, as WebDataset and people have them. Members are read in place: nothing is
extracted.

The members are indexed once. The label of an image is in the `.cls` or `.json` member with the same key; in an input
without any such label, in a table (metadata.csv) in its folder or one above; else it is the class folder of its path.
Other members are passed over, and counted by kind.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple, TypeVar

import pyarrow as pa

from mnist_ray.errors import InputError
from mnist_ray.sources import pixels
from mnist_ray.sources.base import IMAGE_SUFFIXES, Reading, absent_classes
from mnist_ray.sources.formats.containers import ContainerSource
from mnist_ray.sources.formats.encoded import (
    Entry,
    class_of,
    sorted_classes,
    text_classes,
    with_shapes,
)
from mnist_ray.sources.layout import inner_layout
from mnist_ray.sources.listing import Lister, Listing, is_litter, kind_of
from mnist_ray.sources.lists import METADATA, labels_in
from mnist_ray.storage.location import Location, io_errors

_MAX_KEY_MEMBERS = 1000  # images with one key; WebDataset has far fewer
_MAX_LABEL_BYTES = 64
_MAX_JSON_BYTES = 64 << 10
_MAX_TABLE_BYTES = 64 << 20
_LABEL_NAMES = ("label", "cls", "class", "class_id", "class_name", "target")  # in a .json member
_MAX_HEADS = 4 * pixels.MAX_CLASSES  # of more folders, it does not matter how many they are


class Member(NamedTuple):
    """An image in an archive: a row of the listing, whose text, reason included, is part of an input's identity."""

    path: str
    """"" for a row that stands for the archive itself, or for its damaged rest."""
    offset: int
    """Of the data, or of the header in front of it, in bytes from the archive's beginning."""
    size: int
    label: str = ""
    """The text of its .cls member, or the label in its .json member; "" where it has neither."""
    bad: str | None = None
    """Why it cannot be read."""
    packed: int = 0
    """Bytes that it takes up in the archive, where members may be compressed."""
    method: int = 0
    """Of compression, as ZIP numbers them."""
    crc: int = 0


Found = tuple[Member, Callable[[int], bytes]]
"""A file in an archive, and a function that reads the first bytes of it."""

_TYPES = {"offset": pa.int64(), "size": pa.int64(), "packed": pa.int64(), "method": pa.int32(), "crc": pa.int64()}


@dataclass(frozen=True, kw_only=True)
class ArchiveSource(ContainerSource):
    """Its listing has the members of all archives, archive after archive."""

    SUFFIX: ClassVar[str]
    COLUMNS: ClassVar[tuple[str, ...]]
    """The fields of a Member that are listed: the first ones."""

    image_field: str | None = None

    @staticmethod
    @abstractmethod
    def walk(archive: Location) -> Iterator[Found | str]:
        """All files of an archive, without folders. Where it is damaged, the last item is the reason, as text."""

    @staticmethod
    @abstractmethod
    def read_member(file: Any, row: Mapping[str, Any]) -> bytes:
        """The content of a member in an open archive. Raises ValueError with a reason where it cannot be read."""

    @property
    def _chosen(self) -> str:
        return self.image_field or ""

    def _entries_of(self, archive: Location, rows: list[dict[str, Any]], first: int) -> Iterator[Entry]:
        numbers = {name: number for number, name in enumerate(self.classes)}
        if all(row["bad"] for row in rows):  # perhaps it is not an archive at all
            yield from (_entry(archive, row, -1, b"") for row in rows)
            return
        root = self.listing.facts["root"]
        try:
            with archive.open_file() as file:
                for row in rows:
                    data, reason = b"", row["bad"]
                    try:
                        with io_errors(archive, "read"):
                            data = b"" if reason else self.read_member(file, row)
                    except ValueError as error:
                        reason = str(error)
                    name = row["label"] if self.labels == "column" else class_of(_inside(row["path"], root))
                    yield _entry(archive, row | {"bad": reason}, numbers.get(name, -1), data)
        except FileNotFoundError as error:
            raise InputError(f"{archive} has been removed since it was indexed; start again") from error


def _entry(archive: Location, row: dict[str, Any], label: int, data: bytes) -> Entry:
    """The id is archive/member. A row for a whole archive has no member."""
    inside = f"/{row['path']}" if row["path"] else ""
    return Entry(f"{archive.name}{inside}", f"{archive}{inside}", label, data, row["bad"])


S = TypeVar("S", bound=ArchiveSource)


def open_archives(kind: type[S], archives: Mapping[str, list[Location]], name: str, reading: Reading) -> S:
    """Reads the headers of every archive. One that cannot be indexed counts as one image that cannot be read.

    Where the archives hold folders for training and for testing, these are the splits.
    """
    key = json.dumps([str(file) for files in archives.values() for file in files])
    if reading.image_field is not None:
        key += f" --image-field {reading.image_field}"
    listing = reading.stored_listing(key)
    if listing is None:
        listing = _Index(kind, key, reading).of(archives)
    labels, classes, held = _labels(listing, reading)
    is_split = list(listing.splits) != list(archives)  # by the folders inside
    return with_shapes(
        kind(
            name=name,
            classes=classes,
            image_shape=(1, 1),
            splits=dict(listing.splits),
            labels=labels,
            absent=absent_classes(held, classes),
            passed_over=listing.facts["passed_over"],
            remarks=tuple(listing.facts.get("remarks", ())) if labels == "column" else (),
            convert=reading.convert,
            listing=listing,
            containers={split: tuple(archives["all" if is_split else split]) for split in listing.splits},
            image_field=reading.image_field,
        )
    )


def _labels(listing: Listing, reading: Reading) -> tuple[str, tuple[str, ...], Mapping[str, list[str]]]:
    """Where the labels come from, as in `Source.labels`, the classes, and those of each split."""
    texts, folders = (set().union(*listing.facts[kind].values()) for kind in ("classes", "folders"))
    if texts and reading.takes("column"):
        return "column", tuple(text_classes(texts)), listing.facts["classes"]
    if reading.takes("folders"):
        return reading.labels, tuple(sorted_classes(folders)), listing.facts["folders"]
    return "none", (), {}


class _Index:
    """Lists the members of archives: in the splits of the archives, or in those of the folders inside."""

    def __init__(self, kind: type[ArchiveSource], key: str, reading: Reading) -> None:
        self._kind, self._key, self._reading = kind, key, reading
        self._schema = pa.schema([(column, _TYPES.get(column, pa.string())) for column in kind.COLUMNS])
        self._sorting = Sorting(reading.image_field)
        self._heads: dict[str, set[tuple[str, ...]]] = {}  # the first folders of the images of each split
        self._texts: dict[str, set[str]] = {}
        self._tables: dict[tuple[str, int], dict[str, str]] = {}  # labels by path, of the archives of each split
        self._remarks: list[str] = []

    def of(self, archives: Mapping[str, list[Location]]) -> Listing:
        lister = self._lister()
        counts: dict[str, list[int]] = {}
        for split, files in archives.items():
            lister.begin(split)
            self._heads[split], self._texts[split], counts[split] = set(), set(), []
            for number, archive in enumerate(files):
                before = len(lister)
                for member in self._members(archive, lister, (split, number)):
                    self._note(split, member)
                    lister.add(member[: len(self._schema)])
                if len(lister) == before:
                    wanted = self._reading.image_field
                    which = "" if wanted is None else f" called KEY.{wanted.removeprefix('.')}"
                    lister.add(Member("", 0, 0, "", f"holds no image{which}")[: len(self._schema)])
                counts[split].append(len(lister) - before)
        root, splits = inner_layout(set().union(*self._heads.values()), is_split="all" not in archives)
        listing = self._finish(lister, counts, root)
        if self._tables and not any(listing.facts["classes"].values()):
            listing = self._with_labels(listing, root)
        return self._by_folder(listing, root, splits) if splits else listing

    def _with_labels(self, listing: Listing, root: str) -> Listing:
        """The same rows with the labels that the tables among the members give them."""
        lister = self._lister()
        self._texts = {split: set() for split in listing.splits}
        images, unnamed = 0, []
        for split, counts in listing.facts["members"].items():
            lister.begin(split)
            for number, (start, stop) in enumerate(_ranges(counts)):
                labels = self._tables.get((split, number), {})
                for batch in listing.rows(split, start, stop).to_batches():
                    for row in batch.to_pylist():
                        path = _inside(row["path"], "")
                        row["label"] = labels.get(path, "")
                        images += bool(path)
                        unnamed += [path] if path and path not in labels else []
                        self._note(split, Member(**row))
                        lister.add(tuple(row.values()))
        if unnamed and len(unnamed) == images:
            raise InputError(
                f"a table of labels among the members names none of the images, such as {unnamed[0]}; write their paths"
                " as they are in its folder, or rename the table if its labels are not theirs"
            )
        if unnamed:
            which = f"{len(unnamed):,} of {images:,} images: they have no labels"
            self._remarks.append(f"the table of labels among the members does not name {which}")
        return self._finish(lister, listing.facts["members"], root)

    def _by_folder(self, listing: Listing, root: str, splits: Mapping[str, str]) -> Listing:
        """The same rows in the splits of the folders: `splits` has the folder of each. Images elsewhere are passed
        over; what stands for damage belongs to the test split."""
        lister = self._lister()
        rows = [listing.rows("all", start, stop) for start, stop in _ranges(listing.facts["members"]["all"])]
        counts: dict[str, list[int]] = {}
        self._heads, self._texts = {split: set() for split in splits}, {split: set() for split in splits}
        for split, folder in splits.items():
            lister.begin(split)
            counts[split] = []
            for table in rows:
                before = len(lister)
                for batch in table.to_batches():
                    for row in batch.to_pylist():
                        member = Member(**row)
                        is_damage = not member.path and split == "test"
                        if is_damage or _inside(member.path, root).startswith(f"{folder}/"):
                            self._note(split, member)
                            lister.add(tuple(row.values()))
                counts[split].append(len(lister) - before)
        for table in rows:
            for path in table["path"].to_pylist():
                first, slash, _ = _inside(path, root).partition("/")
                if path and first not in splits.values():
                    self._sorting.pass_over(f"{first}/" if slash else kind_of(path))
        return self._finish(lister, counts, root)

    def _lister(self) -> Lister:
        return Lister(self._key, self._schema, file=self._reading.new_list_file(self._key), notify=self._reading.notify)

    def _note(self, split: str, member: Member) -> None:
        if member.bad is None:
            self._texts[split].add(member.label)
            if len(self._heads[split]) <= _MAX_HEADS:
                self._heads[split].add(tuple(_inside(member.path, "").split("/")[:-1][:3]))

    def _finish(self, lister: Lister, counts: Mapping[str, list[int]], root: str) -> Listing:
        folders = {
            split: {class_of(_inside("/".join([*head, ""]), root)) for head in heads}
            for split, heads in self._heads.items()
        }
        return lister.finish(
            classes={split: sorted(found - {""}) for split, found in self._texts.items()},
            folders={split: sorted(found - {""}) for split, found in folders.items()},
            members=counts,
            passed_over=dict(sorted(self._sorting.passed_over.items())),
            root=root,
            remarks=self._remarks,
        )

    def _members(self, archive: Location, lister: Lister, place: tuple[str, int]) -> Iterator[Member]:
        """The images of an archive in their order, and a last bad member for what is lost to damage."""
        key, label = "", ""
        images: list[Member] = []  # those with the current key: the member with their label may follow them
        for found in self._kind.walk(archive):
            if isinstance(found, str):
                yield from _labelled(self._sorting.choose(images), label)
                yield Member("", 0, 0, "", found)
                return
            member, read = found
            lister.report_progress(archive)
            folder, _, base = member.path.rpartition("/")
            stem, _, suffix = base.partition(".")
            if base.startswith(".") or any(map(is_litter, member.path.split("/"))):
                self._sorting.pass_over("hidden")
                continue
            if f"{folder}/{stem}" != key:
                yield from _labelled(self._sorting.choose(images), label)
                key, images, label = f"{folder}/{stem}", [], ""
            if suffix == "cls" and not member.bad:
                label = pixels.by_value(read(_MAX_LABEL_BYTES).decode(errors="replace").strip())
            elif suffix == "json" and not member.bad and (found_label := _json_label(member, read)) is not None:
                label = label or found_label
            elif base.lower().endswith(IMAGE_SUFFIXES):
                if len(images) == _MAX_KEY_MEMBERS:
                    yield from _labelled(self._sorting.choose(images), label)
                    images = []
                images.append(member)
            elif not (base in METADATA and self._take_table(archive, member, read, place)):
                self._sorting.pass_over(f".{suffix.lower()}" if suffix else "no suffix")
        yield from _labelled(self._sorting.choose(images), label)

    def _take_table(
        self, archive: Location, member: Member, read: Callable[[int], bytes], place: tuple[str, int]
    ) -> bool:
        """Keep the labels of a table, where a member is one, by the paths of the images in the archive."""
        if member.bad or member.size > _MAX_TABLE_BYTES or not self._reading.takes("column"):
            return False
        labels = labels_in(read(_MAX_TABLE_BYTES), f"{archive}/{member.path}", self._reading)
        if labels:
            folder = _inside(member.path, "").removesuffix(member.path.rpartition("/")[2])
            self._tables.setdefault(place, {}).update((folder + path, label) for path, label in labels.items())
        return bool(labels)


def _inside(path: str, root: str) -> str:
    """A member's path below the folder that holds all others."""
    return path.removeprefix("./").removeprefix(root)


def _labelled(images: Iterable[Member], label: str) -> Iterator[Member]:
    for image in images:
        yield image._replace(label=label)


def _json_label(member: Member, read: Callable[[int], bytes]) -> str | None:
    """The label in a .json member. None where it has none."""
    if member.size > _MAX_JSON_BYTES:
        return None
    try:
        content = json.loads(read(_MAX_JSON_BYTES))
    except (ValueError, RecursionError):
        return None
    if isinstance(content, int | float):
        label: Any = content
    else:
        values = [content[name] for name in _LABEL_NAMES if name in content] if isinstance(content, dict) else []
        label = values[0] if values else None
    is_label = isinstance(label, str | int | float) and not isinstance(label, bool)
    return pixels.by_value(str(label).strip()) if is_label else None


def _ranges(counts: list[int]) -> list[tuple[int, int]]:
    ends = list(accumulate(counts))
    return list(zip([0, *ends], ends, strict=False))


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
