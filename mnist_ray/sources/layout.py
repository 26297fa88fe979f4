"""How the files of a dataset lie in its folders: in train/ and test/, or under other names of these; in Hive's
`label=3/`, or in a clone's data/; and splits that the names of files tell, as the Hugging Face Hub and WebDataset have
them: `train-00000-of-00002.parquet`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from mnist_ray.sources.listing import Child, children, is_litter
from mnist_ray.storage.location import Location

_SPLIT = re.compile(r"(?:^|[-_.])(train|test|validation|valid|val|dev)(?=[-_.]|$)")
_FOLDERS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
_MAX_DEPTH = 20  # of partitions


def is_split_folder(name: str) -> bool:
    """Whether a folder of this name, in upper or lower case, is a split rather than a class."""
    return name.lower() in _FOLDERS


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """The folder of each split among these names. Without one for testing, that for validation is the test split."""
    found: dict[str, str] = {}
    for name in sorted(names, reverse=True):  # train rather than Train where there are both
        if is_split_folder(name) and found.get(_FOLDERS[name.lower()]) not in _FOLDERS:
            found[_FOLDERS[name.lower()]] = name
    test = found.get("test") or found.get("validation")
    return {split: name for split, name in (("train", found.get("train")), ("test", test)) if name}


def inner_layout(heads: set[tuple[str, ...]], *, is_split: bool) -> tuple[str, dict[str, str]]:
    """Of an archive, from the first folders of its images: the only folder that holds all others, as a path that ends
    in a slash, or ""; and the folder of each split, where there are both and the archives are no splits themselves."""
    firsts = {head[:1] for head in heads}
    seconds = {head[1] for head in heads if len(head) > 1}
    root = ""
    if len(firsts) == 1 and (len(seconds) > 1 or any(map(is_split_folder, seconds))):
        name = next(iter(firsts))[0]
        if not is_split_folder(name):
            root = f"{name}/"
    splits = split_folders(seconds if root else {first[0] for first in firsts if first})
    return root, splits if len(splits) == 2 and not is_split else {}


Wanted = Callable[[str], bool]
"""Whether a file of this name, in lower case, is of the format."""


@dataclass
class Files:
    """Files of one format, and the names of what lies beside them; the name of a folder ends in a slash."""

    taken: list[Location] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def add(self, folder: Location, held: Iterable[Child], wanted: Wanted, depth: int = 0) -> Files:
        """What a folder holds, and the folders below it that are partitions, `label=3`."""
        for child in held:
            if child.is_folder and "=" in child.name and depth < _MAX_DEPTH:
                below = folder / child.name
                self.add(below, children(below), wanted, depth + 1)
            elif child.is_folder:
                self.others.append(f"{child.name}/")
            elif wanted(child.name.lower()):
                self.taken.append(folder / child.name)
            else:
                self.others.append(child.name)
        return self


class Collected(NamedTuple):
    files: dict[str, list[Location]]
    """By split."""
    others: list[str]
    """The names of what lies beside them."""

    @property
    def all(self) -> list[Location]:
        return [file for files in self.files.values() for file in files]

    @property
    def is_any(self) -> bool:
        return bool(self.all)


NOTHING = Collected({}, [])


def collect(
    folder: Location, held: list[Child], below: tuple[Location, list[Child]] | None, wanted: Wanted
) -> Collected:
    """The files of a folder without train/ and test/, or of the only one `below` it, by the splits that their names
    tell."""
    others: list[str] = []
    if below and _has(below[1], wanted) and not _has(held, wanted):
        others = [child.name for child in held if not child.is_folder]
        folder, held = below
    found = Files().add(folder, held, wanted)
    files, rest = _by_split(found.taken)
    return Collected(files, [*others, *found.others, *rest])


def _by_split(files: list[Location]) -> tuple[dict[str, list[Location]], list[str]]:
    """The files of each split that their names tell, and the names of the rest; all files, where none is for training
    or none for testing. Without test files, those for validation are the test split."""
    found: dict[str, list[Location]] = {}
    for file in files:
        words = _SPLIT.findall(file.name.lower())
        word = words[0] if words else ""
        found.setdefault(word if word in ("train", "test", "") else "validation", []).append(file)
    train, test = found.pop("train", []), found.pop("test", []) or found.pop("validation", [])
    if not (train and test):
        return {"all": files}, []
    return {"train": train, "test": test}, [file.name for rest in found.values() for file in rest]


def only_folder(folder: Location, held: list[Child]) -> tuple[Location, list[Child]] | None:
    """The one folder in a folder, and what it holds: a clone's data/, perhaps."""
    folders = [child for child in held if child.is_folder and not is_litter(child.name)]
    return (folder / folders[0].name, children(folder / folders[0].name)) if len(folders) == 1 else None


def _has(held: list[Child], wanted: Wanted) -> bool:
    return any(wanted(child.name.lower()) and not child.is_folder for child in held)
