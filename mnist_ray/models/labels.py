"""Which class of a model each class of an input is, and whether the names of folders are classes at all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError


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
) -> LabelMatch:
    """labels: where the input's labels come from, as in `Source.labels`. model_classes: None where it has no names.
    numbered: as in `Source.numbered`; a model without names takes the numbers.

    Raises InputError where the input is sure of its labels, and they cannot be the model's.
    """
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
