"""What `score` is given: one INPUT or many, globs and lists of paths among them, as one source."""

from __future__ import annotations

import fnmatch
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import NamedTuple

import numpy as np

from mnist_ray.errors import InputError
from mnist_ray.readers import pixels
from mnist_ray.readers.folders import open_images, reopen
from mnist_ray.readers.listing import children
from mnist_ray.sharding import MANIFEST, ShardedSource
from mnist_ray.sources import IMAGE_SUFFIXES, PLAIN, Bad, Batch, Reading, Source, open_files, open_source
from mnist_ray.storage import Location, sha256

_LONGEST_LINE = 8192  # bytes: no file system takes longer paths
_WILD = "*?["
_SUFFIXES = (*IMAGE_SUFFIXES, ".parquet", ".tar")


class _Item(NamedTuple):
    """One input of many. `base` / `name` is where it lies, for files that go with others of their kind."""

    kind: str
    """images, .parquet, .tar, or "" for anything that is an input of its own."""
    spec: str
    """Of those."""
    base: str = ""
    name: str = ""
    is_glob: bool = False


def open_inputs(specs: Sequence[str], split: str, reading: Reading = PLAIN) -> tuple[Source, str]:
    """One source of all, in their order, and the split to read of it.

    Files of one kind that follow each other are one input. Raises InputError where nothing matches, and where two
    inputs cannot be scored together.
    """
    glob = f"glob {specs[0]}" if len(specs) == 1 else ""
    if glob and (listing := reading.listed(glob)) is not None:
        return reopen(Location.parse(listing.facts["base"]), listing, reading), "all"
    parts: list[tuple[Source, str]] = []
    for (kind, base, is_glob), items in groupby(_items(specs), lambda item: (item.kind, item.base, item.is_glob)):
        mine = reading.of_part(len(parts))
        opened: list[Source]
        if kind == "images":
            # Of a glob that matches images only, a resume takes the listing and does not go through folders again.
            of = glob if is_glob and specs[0].lower().endswith(IMAGE_SUFFIXES) else ""
            names = (item.name for item in items)
            opened = [open_images(base, names, mine, of=of, labelled=is_glob)]
        elif kind:
            found = [Location.parse(base) / item.name for item in items]
            named = str(found[0]) if len(found) == 1 else f"{len(found)} {kind} files from {found[0]} on"
            opened = [open_files(kind[1:], {"all": found}, named, mine)]
        else:
            opened = [open_input(item.spec, reading.of_part(len(parts) + n)) for n, item in enumerate(items)]
        parts += [(source, source.choose_split(split)) for source in opened]
    if not parts:
        raise InputError(f"{', '.join(specs)} names no input; a list has one path or URI a line")
    return parts[0] if len(parts) == 1 else (JoinedSource.of(parts), "all")


def open_input(spec: str, reading: Reading = PLAIN) -> Source:
    """What `open_source` opens, and what `write_shards` wrote."""
    if spec != "embedded" and not spec.startswith("keras:"):
        folder = Location.parse(spec)
        if (folder / MANIFEST).is_file():
            return ShardedSource.open(folder, reading)
    return open_source(spec, reading)


@dataclass(frozen=True, kw_only=True)
class JoinedSource(Source):
    """Several inputs as one, in a single split."""

    parts: tuple[tuple[Source, str], ...]
    """And the split that is read of each."""

    @classmethod
    def of(cls, parts: Sequence[tuple[Source, str]]) -> JoinedSource:
        """Raises InputError where two have images of different shapes or ids of different kinds, and names them."""
        first = parts[0][0]
        for source, _ in parts[1:]:
            if not set(source.shapes) & set(first.shapes):
                raise InputError(
                    f"{first.name} has images of {first.image_shape}, but {source.name} of {source.image_shape}; they"
                    " cannot be scored together without --resize or --gray"
                )
            if source.id_kind != first.id_kind:
                raise InputError(
                    f"the ids of {first.name} are {_ID_WORDS[first.id_kind]}, but those of {source.name}"
                    f" {_ID_WORDS[source.id_kind]}; score them apart"
                )
        classes = list(dict.fromkeys(source.classes for source, _ in parts if source.classes))
        longest = max(map(len, classes), default=0)
        if all(each == pixels.class_names(len(each) - 1) for each in classes):
            joined = pixels.class_names(longest - 1)
        else:
            joined = tuple(sorted({name for each in classes for name in each}))
        shared = [shape for shape in first.shapes if all(shape in source.shapes for source, _ in parts)]
        return cls(
            name=f"{len(parts)} inputs from {first.name} on",
            classes=joined,
            image_shape=(shared or list(first.shapes))[0],
            splits={"all": sum(source.splits[split] for source, split in parts)},
            convert=first.convert,
            sampled=tuple(shared),
            parts=tuple(parts),
        )

    @property
    def id_kind(self) -> str:
        return self.parts[0][0].id_kind

    @property
    def is_encoded(self) -> bool:
        return any(source.is_encoded for source, _ in self.parts)

    def units(self, split: str) -> list[tuple[int, int]]:
        return [
            (start + before, stop + before)
            for (source, part), before in zip(self.parts, self._begins(), strict=True)
            for start, stop in source.units(part)
        ]

    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        batches = list(self.stream(split, start, stop, strict=strict))
        return batches[0] if len(batches) == 1 else _joined(batches)

    def stream(self, split: str, start: int, stop: int, *, strict: bool = True) -> Iterator[Batch]:
        begins = self._begins()
        which = max(bisect_right(begins, start) - 1, 0)
        while True:
            (source, part), before = self.parts[which], begins[which]
            last = min(stop, before + source.splits[part])
            if source.image_shape != self.image_shape:
                source = replace(source, image_shape=self.image_shape)
            for batch in source.stream(part, start - before, last - before, strict=strict):
                yield self._as_mine(source, batch, before)
            if last >= stop:
                return
            start, which = last, which + 1

    def digest(self) -> str:
        return sha256("".join(f"{part} {source.digest()}\n" for source, part in self.parts).encode())

    def identity(self) -> str:
        return sha256("".join(f"{part} {source.identity()}\n" for source, part in self.parts).encode())

    def _begins(self) -> list[int]:
        return [0, *accumulate(source.splits[part] for source, part in self.parts)][:-1]

    def _as_mine(self, source: Source, batch: Batch, before: int) -> Batch:
        """Rows and classes as they are in the whole; every image says what it is of."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        table = np.array([*(numbers[name] for name in source.classes), -1], np.int64)  # -1 takes the last
        return Batch(
            batch.ids + before if source.id_kind == "row" else batch.ids,
            batch.images,
            table[batch.labels],
            batch.sources or [source.name] * len(batch.ids),
            tuple(Bad(bad.row + before, bad.source or source.name, bad.reason) for bad in batch.bad),
        )


_ID_WORDS = {"row": "row numbers", "integer": "integers of a column", "text": "text"}


def _joined(batches: Sequence[Batch]) -> Batch:
    return Batch(
        np.concatenate([batch.ids for batch in batches]),
        np.concatenate([batch.images for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
        [source for batch in batches for source in batch.sources or ()],
        tuple(bad for batch in batches for bad in batch.bad),
    )


# Globs and lists.


def _items(specs: Sequence[str]) -> Iterator[_Item]:
    for spec in specs:
        if spec.endswith(".txt"):
            listed = Location.parse(spec)
            for number, line in enumerate(_lines(listed), 1):
                if line.endswith(".txt"):
                    raise InputError(f"{listed}: line {number} is a list itself; give it as an INPUT of its own")
                yield from _expanded(line, str(listed.parent))
        else:
            yield from _expanded(spec, ".")


def _expanded(spec: str, base: str) -> Iterator[_Item]:
    """base: what a relative path is relative to."""
    if spec == "embedded" or spec.startswith("keras:"):
        yield _Item("", spec)
        return
    absolute = "://" in spec or spec.startswith(("/", "~"))
    whole = spec if absolute or base == "." else _below_base(base, spec)
    path, query = whole.split("?", 1) if "://" in whole and "?" in whole else (whole, "")
    is_pattern = any(letter in path for letter in _WILD)
    if is_pattern and ("://" in path or not Location.parse(whole).exists()):  # a name may have brackets
        fixed, found = _matches(path, query)
        nothing = True
        for name in found:
            nothing = False
            yield _item(name, fixed, is_glob=True)
        if nothing:
            raise InputError(f"{spec} matches nothing; ** goes through folders, * does not")
    elif not absolute:
        yield _item(spec, base)
    else:
        scheme, separator, rest = path.rpartition("://")
        root = f"{scheme}{separator}{rest.split('/')[0] or '/'}" if separator else "/" if path.startswith("/") else "~"
        yield _item(path.removeprefix(root).lstrip("/"), f"{root}?{query}" if query else root)


def _item(name: str, base: str, *, is_glob: bool = False) -> _Item:
    suffix = next((each for each in _SUFFIXES if name.lower().endswith(each)), "")
    if suffix in IMAGE_SUFFIXES:
        return _Item("images", "", base, name, is_glob)
    if suffix and not (Location.parse(base) / name).is_dir():  # Spark calls its folders so
        return _Item(suffix, "", base, name)
    return _Item("", name if base == "." else _below_base(base, name))


def _below_base(base: str, name: str) -> str:
    """A path below a folder, whose URI may end in ?region=… and the like."""
    path, question, query = base.partition("?") if "://" in base else (base, "", "")
    return f"{path.rstrip('/')}/{name}{question}{query}"


def _lines(listed: Location) -> Iterator[str]:
    """Paths of a list, without blank lines and comments; however many there are, few are in memory."""
    try:
        with listed.open_file() as file:
            rest = b""
            while block := file.read(1 << 20):
                *lines, rest = (rest + block).split(b"\n")
                yield from filter(None, (_path(line, listed) for line in lines))
                if len(rest) > _LONGEST_LINE:
                    break
            if line := _path(rest, listed):
                yield line
    except FileNotFoundError as error:
        raise InputError(f"{listed} does not exist") from error


def _path(line: bytes, listed: Location) -> str:
    if len(line) > _LONGEST_LINE or b"\0" in line:
        raise InputError(f"{listed} is no list of paths: a line of it is none; a list has one path or URI a line")
    try:
        text = line.decode().strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{listed} is no list of paths: it is not UTF-8") from error
    return "" if text.startswith("#") else text


def _matches(pattern: str, query: str) -> tuple[str, Iterator[str]]:
    """The folder before the first component with a wildcard, and what matches, relative to it."""
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if any(letter in part for letter in _WILD))
    fixed = "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")
    fixed = f"{fixed}?{query}" if query else fixed
    return fixed, _below(Location.parse(fixed), "", parts[first:])


def _below(folder: Location, inside: str, patterns: list[str]) -> Iterator[str]:
    """Sorted; what begins with a dot does not match."""
    pattern, *rest = patterns
    if pattern == "**":
        if rest:
            yield from _below(folder, inside, rest)
        for child in children(folder):
            if child.is_folder:
                yield from _below(folder / child.name, f"{inside}{child.name}/", patterns)
            elif not rest:
                yield f"{inside}{child.name}"
        return
    for child in children(folder):
        if fnmatch.fnmatchcase(child.name, pattern):
            if not rest:
                yield f"{inside}{child.name}"
            elif child.is_folder:
                yield from _below(folder / child.name, f"{inside}{child.name}/", rest)
