"""What `score` is given: one INPUT or many, globs and lists of paths among them, as one source."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from mnist_ray.errors import InputError
from mnist_ray.sources.base import DEFAULT_READING, IMAGE_SUFFIXES, Reading, Source
from mnist_ray.sources.formats.folders import open_images, reopen
from mnist_ray.sources.formats.shards import MANIFEST, ShardedSource
from mnist_ray.sources.joined import JoinedSource
from mnist_ray.sources.listing import children
from mnist_ray.sources.open import open_files, open_source
from mnist_ray.storage.location import Location

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


def open_inputs(specs: Sequence[str], split: str, reading: Reading = DEFAULT_READING) -> tuple[Source, str]:
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


def open_input(spec: str, reading: Reading = DEFAULT_READING) -> Source:
    """What `open_source` opens, and what `write_shards` wrote."""
    if spec != "embedded" and not spec.startswith("keras:"):
        folder = Location.parse(spec)
        if (folder / MANIFEST).is_file():
            return ShardedSource.open(folder, reading)
    return open_source(spec, reading)


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
