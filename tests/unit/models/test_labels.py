"""The classes of an input, matched with the model's."""

from __future__ import annotations

import pytest

from mnist_ray.errors import InputError
from mnist_ray.models.labels import label_table
from tests.support.scored import CLASSES


@pytest.mark.parametrize(
    ("source", "models", "num_classes", "expected"),
    [
        (("0", "1", "2"), CLASSES, 3, [0, 1, 2]),
        (("1",), CLASSES, 3, [1]),  # the folders of an input need not be all of the model's
        (("0", "1", "2", "3"), CLASSES, 3, [0, 1, 2, -1]),
        (("cat", "eel"), ("ape", "cat", "dog"), 3, [1, -1]),
        (("0", "1", "2", "3"), ("ape", "cat", "dog"), 3, [0, 1, 2, -1]),  # numbers are numbers
        (("1", "2"), None, 3, [1, 2]),
        (("ape", "cat", "dog"), None, 3, [0, 1, 2]),
        ((), CLASSES, 3, []),
        ((), None, 3, []),
    ],
)
def test_labels_are_matched(
    source: tuple[str, ...], models: tuple[str, ...] | None, num_classes: int, expected: list[int]
) -> None:
    assert label_table(source, models, num_classes).tolist() == expected


def test_labels_that_cannot_be_matched_are_refused() -> None:
    with pytest.raises(InputError, match=r"classes \(one, two\) are not the model's \(0, 1, 2\)"):
        label_table(("one", "two"), CLASSES, 3)
    with pytest.raises(InputError, match=r"has 2 classes \(one, two\), but the model has 3, without names"):
        label_table(("one", "two"), None, 3)
