"""Labels: which classes their texts name, and lists of them, for inputs whose images may have any number of labels.

As text, a list is its elements, each behind a separator, which no other label begins with: labels are stripped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError, require
from mnist_ray.sources import pixels

LISTED, HOT = "listed", "hot"
"""How an input tells the labels of an image: by their numbers or names, or by a 0 or 1 for each class (multi-hot)."""

_SEPARATOR, _LENGTH = "\x1f", "\x1e"


class Classes(NamedTuple):
    """What the labels of an input are."""

    names: tuple[str, ...]
    several: str = ""
    """LISTED or HOT where they are lists."""


def sorted_classes(names: set[str]) -> list[str]:
    """The classes in order, numbers by value. Raises InputError where there are too many."""
    if len(names) > pixels.MAX_CLASSES:
        raise InputError(
            f"{len(names):,} class folders; there can be at most {pixels.MAX_CLASSES:,} classes (--labels none scores"
            " without labels)"
        )
    return pixels.in_order(names)


def text_classes(texts: set[str]) -> list[str]:
    """The classes of labels that are text. Class numbers become all of 0 to the highest; names are sorted."""
    if texts and all(name.isdecimal() and name.isascii() and len(name) < 6 for name in texts):
        highest = max(map(int, texts))
        if highest < pixels.MAX_CLASSES:
            return list(pixels.class_names(highest))
    return sorted_classes(texts)


# Lists.


def list_text(values: Iterable[object]) -> str:
    """The text of a list of labels. What is no label stays as it is, for `row_of_text` to find."""
    words = (
        str(int(value) if isinstance(value, bool) else value).strip() if isinstance(value, str | int | float) else "nan"
        for value in values
    )
    return _SEPARATOR + _SEPARATOR.join(pixels.by_value(word) or word for word in words)


def is_list(text: str) -> bool:
    return text.startswith(_SEPARATOR)


def elements(text: str) -> list[str]:
    """Of a list, or of a label that stands alone; none of "", which is no label."""
    return [each for each in text.split(_SEPARATOR) if each]


def seen_in(text: str) -> set[str]:
    """What `classes_of` must know of a label: its text; of a list, each element as a list of its own, and how many."""
    return seen_in_lists([len(found := elements(text))], found) if is_list(text) else {text}


def seen_in_lists(lengths: Iterable[int], found: Iterable[str]) -> set[str]:
    """The same of many lists. found: their elements."""
    return {*(_LENGTH + str(length) for length in lengths), *(_SEPARATOR + each for each in found if _is_label(each))}


def _is_label(element: str) -> bool:
    """Whether it is a name or a class number, rather than another number."""
    if element.isdecimal():
        return True
    try:
        float(element)
    except ValueError:
        return True
    return False


def classes_of(seen: Iterable[str], where: str, *, takes_several: bool) -> Classes:
    """The classes of an input, from `seen_in` all of its labels.

    Lists of 0 and 1 that all have one length, two or more, are multi-hot; other lists are of numbers or names. No class
    number stands in a list twice, so this can only be wrong of lists that are all 0, 1 or 1, 0.

    Where an image must have one label (not `takes_several`), a list among others is no label. Raises InputError where
    all are lists then, and where lists are neither.
    """
    texts = set(seen) - {""}
    lengths = {int(text[1:]) for text in texts if text.startswith(_LENGTH)}
    if not lengths:
        return Classes(tuple(text_classes(texts)))
    alone = {text for text in texts if text[0] not in (_SEPARATOR, _LENGTH)}
    if not takes_several:
        if not alone:
            raise several_labels(f"{where}: labels are lists")
        return Classes(tuple(text_classes(alone)))
    names = alone | {text[1:] for text in texts if is_list(text)}
    lengths |= {1} if alone else set()
    if not names:
        if max(lengths):
            raise InputError(f"{where}: labels are lists of neither class numbers nor names; add --labels none")
        return Classes(())
    if names <= {"0", "1"} and max(lengths) > 1:
        if len(lengths) == 1:
            return Classes(pixels.class_names(max(lengths) - 1), HOT)
        if max(lengths) > 2:
            raise InputError(
                f"{where}: labels are lists of 0 and 1, but of several lengths, such as {min(lengths)} and"
                f" {max(lengths)}; write a 0 or 1 for each class, or the numbers of the classes, each once"
            )
    return Classes(tuple(text_classes(names)), LISTED)


def several_labels(what: str) -> InputError:
    """The error of an input whose images may have several labels, where each must have one."""
    return InputError(
        f"{what}: an image may have several labels, but training needs one, and so does a model that gives one class of"
        " several (score --kind labels, if it gives labels; --labels none scores without labels)"
    )


def rows_of_lists(
    lengths: NDArray[np.int64], values: NDArray[np.int64], num_classes: int, several: str
) -> tuple[NDArray[np.int8], dict[int, str]]:
    """Lists as rows (n, num_classes) of 0 and 1, and the reasons of bad rows.

    lengths: (n,). values: the elements of all lists, one after the other: class numbers, or of HOT lists 0 and 1; -1
    where one is neither.
    """
    rows = np.zeros((len(lengths), num_classes), np.int8)
    place = np.repeat(np.arange(len(lengths)), lengths)
    is_valid = (values >= 0) & (values < (2 if several == HOT else num_classes))
    is_bad = np.zeros(len(lengths), bool)
    is_bad[place[~is_valid]] = True
    if several == HOT:
        is_bad |= lengths != num_classes
        rows[~is_bad] = values[~is_bad[place]].reshape(-1, num_classes)
        reason = f"has labels that are not {num_classes} times 0 or 1, like those of the others"
        return rows, dict.fromkeys(np.flatnonzero(is_bad).tolist(), reason)
    rows[place[is_valid], values[is_valid]] = 1
    reasons = dict.fromkeys(np.flatnonzero(is_bad).tolist(), "has a label that is neither a class number nor a name")
    twice = np.flatnonzero((rows.sum(axis=1) != lengths) & ~is_bad).tolist()
    return rows, reasons | dict.fromkeys(twice, "has the same label twice")


def row_of_text(text: str, numbers: Mapping[str, int], several: str) -> NDArray[np.int8]:
    """The row of a label or list that is text, -1 where it is "". Raises ValueError with a reason where it is bad."""
    if not text:
        return np.full(len(numbers), -1, np.int8)
    values = np.array([numbers.get(each, -1) for each in elements(text)], np.int64)
    rows, reasons = rows_of_lists(np.array([len(values)]), values, len(numbers), several)
    if reasons:
        raise ValueError(reasons[0])
    row: NDArray[np.int8] = rows[0]
    return row


# Labels of a batch: (n,) class numbers, -1 where unknown; or rows (n, num_classes) of 0 and 1, all -1 where unknown.


def is_known(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """(n,)"""
    known: NDArray[np.bool_] = (labels if labels.ndim == 1 else labels[:, 0]) >= 0
    return known


def as_rows(labels: NDArray[Any], num_classes: int) -> NDArray[np.int8]:
    """Labels of either kind as rows (n, num_classes)."""
    if labels.ndim == 2:
        rows: NDArray[np.int8] = labels
        return rows
    require(labels.max(initial=0) < num_classes, f"a label is not one of {num_classes}")
    rows = np.zeros((len(labels), num_classes), np.int8)
    known = is_known(labels)
    rows[known, labels[known]] = 1
    rows[~known] = -1
    return rows


def renumbered(labels: NDArray[Any], table: NDArray[np.int64], num_classes: int) -> NDArray[Any]:
    """Labels of either kind by other numbers: those of `table`, which has -1 for a class that is not among them. An
    image with such a label has none that is known."""
    if labels.ndim == 1:
        in_table = (labels >= 0) & (labels < len(table))
        found = np.full(len(labels), -1, np.int64)
        found[in_table] = table[labels[in_table]]
        return found
    kept = table >= 0
    rows = np.zeros((len(labels), num_classes), np.int8)
    rows[:, table[kept]] = labels[:, kept]
    rows[(labels[:, ~kept] != 0).any(axis=1) | ~is_known(labels)] = -1
    return rows


def foreign_in(label: Any, table: NDArray[np.int64], names: Sequence[str]) -> str:
    """Of the label of an image, of either kind, the first name, or else number, that `table` has no number for."""
    number = int(label) if np.ndim(label) == 0 else int(np.flatnonzero((label == 1) & (table < 0))[0])
    return names[number] if number < len(names) else str(number)
