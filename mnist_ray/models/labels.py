"""Which class of a model each class of an input is, and whether the names of folders are classes at all."""

from __future__ import annotations

import json
from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError, one_line
from mnist_ray.models.view import CLASSES, EMBEDDINGS, LABELS
from mnist_ray.sources.labels import HOT, several_labels
from mnist_ray.storage.location import Location


def read_classes(file: Location) -> tuple[str, ...]:
    """The names of a model's classes, in order: one a line, or a JSON list. Raises InputError for anything else."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        if text.lstrip().startswith(("[", "{")):
            names = json.loads(text)
        else:
            names = [line.strip() for line in text.splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise InputError(f"--classes: {file} does not exist") from error
    except ValueError as error:
        raise InputError(f"--classes: {file} is not text or JSON ({one_line(error)})") from error
    if not (isinstance(names, list) and names and all(isinstance(name, str) and _is_name(name) for name in names)):
        raise InputError(f"--classes: {file} must have a name a line, or a JSON list of names")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"--classes: {file} has the name {repeated[0]} more than once")
    return tuple(names)


def _is_name(name: str) -> bool:
    return bool(name.strip()) and name.isprintable()


def name_classes(
    given: tuple[str, ...], own: tuple[str, ...] | None, num_classes: int | None, file: str
) -> tuple[str, ...]:
    """The names that the user gives the model's classes. own: those that it has. Raises InputError where they cannot
    be right: numbers may be named, but other names not changed."""
    if num_classes is not None and len(given) != num_classes:
        raise InputError(f"{file} names {len(given)} classes, but the model has {num_classes}; give one for each")
    if own is not None and given != own and not all(map(is_number, own)):
        raise InputError(f"{file} names the classes {_some(given)}, but the model's are {_some(own)}; leave it out")
    return given


class LabelMatch(NamedTuple):
    """The classes of an input, matched with those of a model."""

    table: NDArray[np.int64]
    """(number of the input's classes,): the model's class for each label of the input, -1 where it has none."""
    note: str | None = None
    """What the user should know of it."""


def match_labels(
    source_classes: tuple[str, ...],
    labels: str,
    model_classes: tuple[str, ...] | None,
    num_classes: int,
    *,
    numbered: bool = False,
    kind: str = CLASSES,
    several: str = "",
) -> LabelMatch:
    """labels: where the input's labels come from, as in `Source.labels`. model_classes: None where it has no names.
    numbered: as in `Source.numbered`; a model without names takes the numbers. kind: of the model, as in
    `models/view.py`; beside embeddings, which are no classes, the input's own numbers stay. several: as in `Source`.

    Raises InputError where the input is sure of its labels, and they cannot be the model's.
    """
    if several and kind == CLASSES:
        raise several_labels("the labels of the input are lists, or 0 and 1 for each class")
    if several == HOT and kind == LABELS and len(source_classes) != num_classes:
        raise InputError(
            f"the input tells {len(source_classes)} labels of each image, by 0 or 1, but the model gives {num_classes};"
            " add --labels none to score without labels"
        )
    if kind == EMBEDDINGS:
        is_label = labels != "auto" or not source_classes
        note = None if is_label else "folders are not taken for labels of embeddings (--labels folders takes them)"
        return LabelMatch(np.arange(len(source_classes)) if is_label else np.full(len(source_classes), -1), note)
    if numbered and (not model_classes or all(map(is_number, model_classes))):
        source_classes = tuple(map(str, range(len(source_classes))))
    if labels == "auto":
        return _match_folders(source_classes, model_classes, num_classes)
    return LabelMatch(_match_given(source_classes, model_classes, num_classes))


def _match_folders(folders: tuple[str, ...], model_classes: tuple[str, ...] | None, num_classes: int) -> LabelMatch:
    """Folders that may be classes, or dates and cameras. Those with the name of a class are that class.

    Names that are numbers count by value, and only together: the days 1 to 31 are not labels where there are ten
    classes.
    """
    numbers = {_by_value(name): number for number, name in enumerate(model_classes or map(str, range(num_classes)))}
    table = [numbers.get(_by_value(name), -1) for name in folders]
    lacking = tuple(name for name, number in zip(folders, table, strict=True) if number < 0)
    if any(map(is_number, lacking)):
        table = [-1 if is_number(name) else number for name, number in zip(folders, table, strict=True)]
    unlabelled = sum(number < 0 for number in table)
    note = _note(lacking, unlabelled, len(folders)) if lacking else None
    if len(lacking) == num_classes and not model_classes:
        note = f"{note}; --labels folders takes them as the classes, in this order"
    return LabelMatch(np.array(table, np.int64), note)


def _note(lacking: tuple[str, ...], unlabelled: int, num_folders: int) -> str:
    """lacking: the folders that are not classes. unlabelled: the number of those that are not labels."""
    is_one = len(lacking) == 1
    what = f"the folder {lacking[0]} is not a class" if is_one else f"the folders {_some(lacking)} are not classes"
    if unlabelled == len(lacking):
        return f"{what} of the model: the images in {'it' if is_one else 'them'} are scored without labels"
    which = "no folder is" if unlabelled == num_folders else "no folder that is called by a number is"
    return f"{what} of the model, so {which} taken for a label (--labels folders takes those that are classes)"


def _match_given(
    source_classes: tuple[str, ...], model_classes: tuple[str, ...] | None, num_classes: int
) -> NDArray[np.int64]:
    """By name where the model has names, else by number. Raises InputError where neither can be right."""
    numbered = source_classes == tuple(map(str, range(len(source_classes))))
    shared = set(source_classes) & set(model_classes or ())
    if model_classes and shared:
        numbers = {name: number for number, name in enumerate(model_classes)}
        return np.array([numbers.get(name, -1) for name in source_classes], np.int64)
    if model_classes and source_classes and not numbered:
        raise InputError(
            f"the input's classes ({_some(source_classes)}) are not the model's ({_some(model_classes)}); name the"
            " folders like the model's classes, or add --labels none to score without labels"
        )
    values = [int(name) for name in source_classes if is_number(name)]
    if len(source_classes) == num_classes and not (len(values) == num_classes > max(values)):
        return np.arange(num_classes)
    if len(values) == len(source_classes):
        return np.array([value if value < num_classes else -1 for value in values], np.int64)
    raise InputError(
        f"the input has {len(source_classes)} classes ({_some(source_classes)}), but the model has {num_classes},"
        " without names; add folders of the other classes, or add --labels none to score without labels"
    )


def is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _by_value(name: str) -> str:
    return str(int(name)) if is_number(name) else name


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
