"""The INPUTs of `score` as one source: paths, URIs, globs and lists of paths."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple
from urllib.parse import unquote

from mnist_ray.errors import InputError
from mnist_ray.sources.base import DEFAULT_READING, IMAGE_SUFFIXES, Reading, Source
from mnist_ray.sources.formats.folders import open_images, reopen
from mnist_ray.sources.input import is_dataset_name, joined_kind
from mnist_ray.sources.joined import JoinedSource
from mnist_ray.sources.listing import children, is_litter
from mnist_ray.sources.lists import LIST_SUFFIXES, read_list
from mnist_ray.sources.open import is_table_of_pixels, open_files, open_source
from mnist_ray.storage.location import Location

_WILDCARDS = "*?["


class _Item(NamedTuple):
    """One path of many, with its globs and lists expanded.

    Items in a row whose `kin` is the same become one source.
    """

    kind: str
    """"images" or a `joined_kind` for a file that is one input with others like it, "" for an input of its own."""
    base: str
    """The folder that `name` is relative to; "" for an input of its own."""
    name: str
    """A path, or the spec of an input of its own."""
    from_glob: bool = False
    """Whether it is an image that a glob has matched: its class folder is then its label."""
    label: str | None = None
    """What a list says that it is; None where it says nothing."""

    @property
    def kin(self) -> tuple[str, str, bool, bool]:
        return self.kind, self.base, self.from_glob, self.label is not None


def open_inputs(specs: Sequence[str], split: str, reading: Reading = DEFAULT_READING) -> tuple[Source, str]:
    """One source of all inputs in their order, and the split to read of it.

    Files of one kind that follow each other are one input. Raises InputError where nothing matches, and where two
    inputs cannot be scored together.
    """
    specs = [_without_scheme(spec) for spec in specs]
    glob = f"glob {specs[0]}" if len(specs) == 1 else ""
    if glob and (listing := reading.stored_listing(glob)) is not None:
        return reopen(Location.parse(listing.facts["base"]), listing, reading), "all"
    parts: list[tuple[Source, str]] = []
    for (kind, base, from_glob, has_labels), items in groupby(_expand(specs, reading), lambda item: item.kin):
        part_reading = reading.of_part(len(parts))
        sources: list[Source]
        if kind == "images":
            # The listing of a glob for images alone is kept by the glob: a resumed scoring need not match it again.
            key = glob if from_glob and specs[0].lower().endswith(IMAGE_SUFFIXES) else ""
            files = ((item.name, item.label) for item in items)
            by = "list" if has_labels else "folder" if from_glob else ""
            sources = [open_images(base, files, part_reading, key=key, labelled_by=by)]
        elif kind:
            found = [Location.parse(base) / item.name for item in items]
            name = str(found[0]) if len(found) == 1 else f"{len(found)} .{kind} files from {found[0]} on"
            sources = [open_files(kind, {"all": found}, name, part_reading)]
        else:
            sources = [open_source(item.name, reading.of_part(len(parts) + n)) for n, item in enumerate(items)]
        parts += [(source, source.choose_split(split)) for source in sources]
    if not parts:
        raise InputError(f"{', '.join(specs)} names no input; a list has one path or URI a line")
    if reading.labels in ("folders", "column") and not any(source.labels == reading.labels for source, _ in parts):
        what = {"folders": "class folders", "column": "labels of its own"}[reading.labels]
        raise InputError(f"--labels {reading.labels}: {parts[0][0].name} has no {what}; leave the option out")
    return parts[0] if len(parts) == 1 else (JoinedSource.of(parts), "all")


# Globs and lists.


def _expand(specs: Sequence[str], reading: Reading) -> Iterator[_Item]:
    for spec in specs:
        if not spec.lower().endswith(LIST_SUFFIXES) or any(letter in spec for letter in _WILDCARDS):
            yield from _expand_one(spec, ".")
            continue
        file = Location.parse(spec)
        if is_table_of_pixels(file):
            yield _Item("", "", spec)
            continue
        for path, label in read_list(file, reading):
            for item in _expand_one(_without_scheme(path), str(file.parent)):
                yield item._replace(label=label if item.kind == "images" else None)


def _without_scheme(spec: str) -> str:
    """The path of a `file:///` URI; any other spec as it is."""
    return unquote(spec.removeprefix("file://")) if spec.startswith("file:///") else spec


def _expand_one(spec: str, base: str) -> Iterator[_Item]:
    """One spec, perhaps a glob. A relative path is relative to `base`."""
    if is_dataset_name(spec):
        yield _Item("", "", spec)
        return
    is_absolute = "://" in spec or spec.startswith(("/", "~"))
    whole = spec if is_absolute or base == "." else _join(base, spec)
    path, query = whole.split("?", 1) if "://" in whole and "?" in whole else (whole, "")
    is_pattern = any(letter in path for letter in _WILDCARDS)
    if is_pattern and ("://" in path or not Location.parse(whole).exists()):  # a file's name may have brackets
        folder, names = _match(path, query)
        is_empty = True
        for name in names:
            is_empty = False
            yield _item(name, folder, from_glob=True)
        if is_empty:
            raise InputError(f"{spec} matches nothing; ** matches any number of folders, * does not match a slash")
    elif not is_absolute:
        yield _item(spec, base)
    else:
        scheme, separator, rest = path.rpartition("://")
        root = f"{scheme}{separator}{rest.split('/')[0] or '/'}" if separator else "/" if path.startswith("/") else "~"
        yield _item(path.removeprefix(root).lstrip("/"), f"{root}?{query}" if query else root)


def _item(name: str, base: str, *, from_glob: bool = False) -> _Item:
    if name.lower().endswith(IMAGE_SUFFIXES):
        return _Item("images", base, name, from_glob)
    kind = joined_kind(name)
    if kind and not (Location.parse(base) / name).is_dir():  # Spark writes x.parquet/
        return _Item(kind, base, name)
    return _Item("", "", name if base == "." else _join(base, name))


def _join(base: str, name: str) -> str:
    """A path in the folder `base`, whose URI may end in options such as ?region=…"""
    path, question, query = base.partition("?") if "://" in base else (base, "", "")
    return f"{path.rstrip('/')}/{name}{question}{query}"


def _match(pattern: str, query: str) -> tuple[str, Iterator[str]]:
    """The folder in front of the first component with a wildcard, and the matches, relative to it."""
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if any(letter in part for letter in _WILDCARDS))
    folder = "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")
    folder = f"{folder}?{query}" if query else folder
    return folder, _match_below(Location.parse(folder), "", parts[first:])


def _match_below(folder: Location, inside: str, patterns: list[str]) -> Iterator[str]:
    """Matches in sorted order, without names that start with a dot. `inside` is the folder's path, with a slash."""
    pattern, *rest = patterns
    held = [child for child in children(folder) if child.name == pattern or not is_litter(child.name)]
    if pattern == "**":
        if rest:
            yield from _match_below(folder, inside, rest)
        for child in held:
            if child.is_folder:
                yield from _match_below(folder / child.name, f"{inside}{child.name}/", patterns)
            elif not rest:
                yield f"{inside}{child.name}"
        return
    for child in held:
        if fnmatch.fnmatchcase(child.name, pattern):
            if not rest:
                yield f"{inside}{child.name}"
            elif child.is_folder:
                yield from _match_below(folder / child.name, f"{inside}{child.name}/", rest)
