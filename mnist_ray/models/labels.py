"""Which class of a model each class of an input is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError


def label_table(
    source_classes: tuple[str, ...], model_classes: tuple[str, ...] | None, num_classes: int
) -> NDArray[np.int64]:
    """(len(source_classes),): the model's class for each label of the input, -1 where the model does not have it.

    By name where the model has names, else by number. Raises InputError where neither can be right.
    """
    numbered = source_classes == tuple(map(str, range(len(source_classes))))
    shared = set(source_classes) & set(model_classes or ())
    if model_classes and shared:
        numbers = {name: number for number, name in enumerate(model_classes)}
        return np.array([numbers.get(name, -1) for name in source_classes], np.int64)
    if model_classes and source_classes and not numbered:
        raise InputError(
            f"the input's classes ({_some(source_classes)}) are not the model's ({_some(model_classes)}); name the"
            " folders like the model's classes, or move the images out of class folders to score them without labels"
        )
    if numbered or len(source_classes) == num_classes:
        return np.array([number if number < num_classes else -1 for number in range(len(source_classes))], np.int64)
    if all(name.isdecimal() for name in source_classes):
        return np.array([int(name) if int(name) < num_classes else -1 for name in source_classes], np.int64)
    raise InputError(
        f"the input has {len(source_classes)} classes ({_some(source_classes)}), but the model has {num_classes},"
        " without names; add folders of the other classes, or move the images out of class folders to score them"
        " without labels"
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
