"""The index of archives: which members are images, where they are, and what labels them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa

from mnist_ray.errors import InputError
from mnist_ray.sources import pixels
from mnist_ray.sources.base import IMAGE_SUFFIXES, Reading
from mnist_ray.sources.formats.encoded import class_of
from mnist_ray.sources.labels import list_text, seen_in
from mnist_ray.sources.layout import inner_layout
from mnist_ray.sources.listing import Lister, Listing, composed, is_litter, kind_of
from mnist_ray.sources.lists import METADATA, labels_in
from mnist_ray.storage.location import Location

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

Walk = Callable[[Location], Iterator[Found | str]]
"""All files of an archive, without folders. Where it is damaged, the last item is the reason, as text."""

_TYPES = {"offset": pa.int64(), "size": pa.int64(), "packed": pa.int64(), "method": pa.int32(), "crc": pa.int64()}


class Index:
    """Lists the members of archives: in the splits of the archives, or in those of the folders inside."""

    def __init__(
        self, walk: Walk, columns: tuple[str, ...], key: str, beside: dict[str, str], reading: Reading
    ) -> None:
        """walk: all files of an archive. columns: the fields of a Member that are listed, the first ones. beside:
        labels by path, of a table that lies beside the archives."""
        self._walk, self._key, self._beside, self._reading = walk, key, beside, reading
        self._schema = pa.schema([(column, _TYPES.get(column, pa.string())) for column in columns])
        self._sorting = Sorting(reading.image_field)
        self._heads: dict[str, set[tuple[str, ...]]] = {}  # the first folders of the images of each split
        self._texts: dict[str, set[str]] = {}
        self._tables: dict[tuple[str, int], dict[str, str]] = {}  # labels by path, of the archives of each split
        self._apart: dict[tuple[str, int], dict[str, str]] = {}  # labels by key, of samples that do not lie together
        self._remarks: list[str] = []

    def of(self, archives: Mapping[str, list[Location]]) -> Listing:
        lister = self._lister()
        counts: dict[str, list[int]] = {}
        for split, files in archives.items():
            lister.begin(split)
            self._heads[split], self._texts[split], counts[split] = set(), set(), []
            for number, archive in enumerate(files):
                before, others = len(lister), Counter(self._sorting.passed_over)
                for member in self._members(archive, lister, (split, number)):
                    self._note(split, member)
                    lister.add(member[: len(self._schema)])
                if len(lister) == before:
                    others = Counter(self._sorting.passed_over) - others
                    lister.add(Member("", 0, 0, "", self._without_images(others))[: len(self._schema)])
                counts[split].append(len(lister) - before)
        root, splits = inner_layout(set().union(*self._heads.values()), is_split="all" not in archives)
        listing = self._finish(lister, counts, root)
        if self._apart or ((self._tables or self._beside) and not any(listing.facts["classes"].values())):
            listing = self._with_labels(listing, root)
        return self._by_folder(listing, root, splits) if splits else listing

    def _without_images(self, others: Counter[str]) -> str:
        """Why an archive is bad that holds only others."""
        if self._reading.image_field is not None:
            return f"holds no image called KEY.{self._reading.image_field.removeprefix('.')}"
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(others.items()))
        return f"holds no image, only {kinds}; if these are your data, unpack it" if kinds else "holds no image"

    def _with_labels(self, listing: Listing, root: str) -> Listing:
        """The same rows with the labels that members elsewhere in the archive, or else the tables, give them."""
        lister = self._lister()
        self._texts = {split: set() for split in listing.splits}
        images, unnamed = 0, []
        for split, counts in listing.facts["members"].items():
            lister.begin(split)
            for number, (start, stop) in enumerate(_ranges(counts)):
                apart = self._apart.get((split, number), {})
                labels = {} if self._apart else self._beside | self._tables.get((split, number), {})
                for batch in listing.rows(split, start, stop).to_batches():
                    for row in batch.to_pylist():
                        path = inside(row["path"], "")
                        row["label"] = (
                            row["label"] or labels.get(composed(path), "") or apart.get(_key(row["path"]), "")
                        )
                        images += bool(path)
                        unnamed += [path] if path and composed(path) not in labels and not self._apart else []
                        self._note(split, Member(**row))
                        lister.add(tuple(row.values()))
        if unnamed and len(unnamed) == images:
            raise InputError(
                f"a table of labels in or beside the archive names none of the images, such as {unnamed[0]}; write"
                " their paths as they are in its folder, or rename the table if its labels are not theirs"
            )
        if unnamed:
            which = f"{len(unnamed):,} of {images:,} images: they have no labels"
            self._remarks.append(f"the table of labels in or beside the archive does not name {which}")
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
                        if is_damage or inside(member.path, root).startswith(f"{folder}/"):
                            self._note(split, member)
                            lister.add(tuple(row.values()))
                counts[split].append(len(lister) - before)
        for table in rows:
            for path in table["path"].to_pylist():
                first, slash, _ = inside(path, root).partition("/")
                if path and first not in splits.values():
                    self._sorting.pass_over(f"{first}/" if slash else kind_of(path))
        return self._finish(lister, counts, root)

    def _lister(self) -> Lister:
        return Lister(self._key, self._schema, file=self._reading.new_list_file(self._key), notify=self._reading.notify)

    def _note(self, split: str, member: Member) -> None:
        if member.bad is None:
            self._texts[split] |= seen_in(member.label)
            if len(self._heads[split]) <= _MAX_HEADS:
                self._heads[split].add(tuple(inside(member.path, "").split("/")[:-1][:3]))

    def _finish(self, lister: Lister, counts: Mapping[str, list[int]], root: str) -> Listing:
        folders = {
            split: {class_of(inside("/".join([*head, ""]), root)) for head in heads}
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
        for found in self._walk(archive):
            if isinstance(found, str):
                yield from self._sample(key, images, label, place)
                yield Member("", 0, 0, "", found)
                return
            member, read = found
            lister.report_progress(archive)
            base, suffix = member.path.rpartition("/")[2], _field(member.path)
            if base.startswith(".") or any(map(is_litter, member.path.split("/"))):
                self._sorting.pass_over("hidden")
                continue
            if (next_key := _key(member.path)) != key:
                yield from self._sample(key, images, label, place)
                key, images, label = next_key, [], ""
            if suffix == "cls" and not member.bad:
                label = pixels.by_value(read(_MAX_LABEL_BYTES).decode(errors="replace").strip())
            elif suffix == "json" and not member.bad and (found_label := _json_label(member, read)) is not None:
                label = label or found_label
            elif base.lower().endswith(IMAGE_SUFFIXES):
                if len(images) == _MAX_KEY_MEMBERS:
                    yield from self._sample(key, images, label, place)
                    images = []
                images.append(member)
            elif not (base in METADATA and self._take_table(archive, member, read, place)):
                self._sorting.pass_over(f".{suffix}" if suffix else "no suffix")
        yield from self._sample(key, images, label, place)

    def _sample(self, key: str, images: list[Member], label: str, place: tuple[str, int]) -> Iterator[Member]:
        """The images of those members with one key that follow each other. A label without an image is kept, as the
        archive may have all labels in one place, and all images in another."""
        if label and not images and self._reading.takes("column"):
            self._apart.setdefault(place, {})[key] = label
        for image in self._sorting.choose(images):
            yield image._replace(label=label)

    def _take_table(
        self, archive: Location, member: Member, read: Callable[[int], bytes], place: tuple[str, int]
    ) -> bool:
        """Keep the labels of a table, where a member is one, by the paths of the images in the archive."""
        if member.bad or member.size > _MAX_TABLE_BYTES or not self._reading.takes("column"):
            return False
        labels = labels_in(read(_MAX_TABLE_BYTES), f"{archive}/{member.path}", self._reading)
        if labels:
            folder = inside(member.path, "").removesuffix(member.path.rpartition("/")[2])
            self._tables.setdefault(place, {}).update((folder + path, label) for path, label in labels.items())
        return bool(labels)


def inside(path: str, root: str) -> str:
    """A member's path below the folder that holds all others."""
    return path.removeprefix("./").removeprefix(root)


def _key(path: str) -> str:
    """What the members of a sample have in common: train/0001 of train/0001.seg.png."""
    folder, _, base = path.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


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
    if isinstance(label, list) and all(isinstance(each, str | int) for each in label):
        return list_text(label)
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
