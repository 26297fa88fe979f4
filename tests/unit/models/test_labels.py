"""The classes of an input, matched with the model's; and folders that are no classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mnist_ray.errors import InputError
from mnist_ray.models.labels import match_labels, name_classes, read_classes
from mnist_ray.storage.location import Location
from tests.support.scored import CLASSES

DAYS = tuple(f"2024-05-{day:02d}" for day in range(1, 4))


@pytest.mark.parametrize(
    ("source", "models", "num_classes", "expected"),
    [
        (("0", "1", "2"), CLASSES, 3, [0, 1, 2]),
        (("1",), CLASSES, 3, [1]),  # the folders of an input need not be all of the model's
        (("0", "1", "2", "3"), CLASSES, 3, [0, 1, 2, -1]),
        (("cat", "eel"), ("ape", "cat", "dog"), 3, [1, -1]),
        (("0", "1", "2", "3"), ("ape", "cat", "dog"), 3, [0, 1, 2, -1]),  # numbers are numbers
        (("1", "2"), None, 3, [1, 2]),
        (("1", "2", "10"), None, 3, [0, 1, 2]),  # as many as classes, which cannot be their numbers
        (("0", "2", "10"), None, 11, [0, 2, 10]),
        (("ape", "cat", "dog"), None, 3, [0, 1, 2]),
        ((), CLASSES, 3, []),
        ((), None, 3, []),
    ],
)
@pytest.mark.parametrize("labels", ["column", "folders"])
def test_labels_that_an_input_is_sure_of(
    labels: str, source: tuple[str, ...], models: tuple[str, ...] | None, num_classes: int, expected: list[int]
) -> None:
    match = match_labels(source, labels, models, num_classes)
    assert (match.table.tolist(), match.note) == (expected, None)


def test_labels_that_cannot_be_matched_are_refused() -> None:
    with pytest.raises(InputError, match=r"classes \(one, two\) are not the model's \(0, 1, 2\)"):
        match_labels(("one", "two"), "folders", CLASSES, 3)
    with pytest.raises(InputError, match=r"has 2 classes \(one, two\), but the model has 3, without names"):
        match_labels(("one", "two"), "folders", None, 3)


@pytest.mark.parametrize(
    ("folders", "models", "num_classes", "expected", "others"),
    [
        (("0", "1", "2"), CLASSES, 3, [0, 1, 2], None),
        (("0", "1", "2"), None, 3, [0, 1, 2], None),
        (("1", "2"), None, 3, [1, 2], None),
        (("00", "01", "10"), None, 11, [0, 1, 10], None),  # by value
        (("00", "02"), CLASSES, 3, [0, 2], None),
        (("cat",), ("ape", "cat", "dog"), 3, [1], None),
        (DAYS, None, 3, [-1] * 3, "the folders 2024-05-01, 2024-05-02, 2024-05-03 are not classes"),
        (DAYS, CLASSES, 3, [-1] * 3, "the folders 2024-05-01"),
        (("unknown",), None, 1, [-1], "the folder unknown is not a class"),
        (("0", "1", "2"), ("ape", "cat", "dog"), 3, [-1] * 3, "the folders 0, 1, 2 are not classes"),
        (
            ("1", "2", "31"),
            CLASSES,
            3,
            [-1] * 3,
            "the folder 31 is not a class of the model, so no folder is taken",
        ),  # a month
        (("1", "2", "31"), None, 3, [-1] * 3, "the folder 31 is not a class of the model, so no folder is taken"),
        (
            ("0", "3", "cat"),
            ("0", "1", "cat"),
            3,
            [-1, -1, 2],
            "the folder 3 is not a class of the model, so no folder that",
        ),
        (("0", "1", "unknown"), CLASSES, 3, [0, 1, -1], "the folder unknown is not a class"),
        (("cat", "eel"), ("ape", "cat", "dog"), 3, [1, -1], "the folder eel is not a class"),
        ((), None, 3, [], None),
    ],
)
def test_folders_are_labels_only_where_they_are_the_models_classes(
    folders: tuple[str, ...], models: tuple[str, ...] | None, num_classes: int, expected: list[int], others: str | None
) -> None:
    match = match_labels(folders, "auto", models, num_classes)
    assert match.table.tolist() == expected
    if others is None:
        assert match.note is None
    else:
        assert str(match.note).startswith(others)
        assert "are scored without labels" in str(match.note) or "taken for a label" in str(match.note)
        assert "\n" not in str(match.note)


def test_the_note_offers_the_option_only_where_it_works() -> None:
    for folders, models, num_classes in ((DAYS, None, 3), (DAYS, None, 4), (DAYS, CLASSES, 3)):
        offered = "--labels folders" in str(match_labels(folders, "auto", models, num_classes).note)
        try:
            match_labels(folders, "folders", models, num_classes)
            works = True
        except InputError:
            works = False
        assert offered == works


def test_labels_beside_embeddings_are_the_inputs_own() -> None:
    match = match_labels(("cat", "eel"), "column", ("0", "1", "2"), 3, kind="embeddings")
    assert (match.table.tolist(), match.note) == ([0, 1], None)
    match = match_labels(DAYS, "auto", None, 3, kind="embeddings")
    assert match.table.tolist() == [-1, -1, -1]
    assert "--labels folders" in str(match.note)


# --classes FILE


@pytest.mark.parametrize(
    "data",
    [
        b"ape\nbee\nthe cat\n",
        b"ape\r\nbee\r\n\r\nthe cat",
        b"\xef\xbb\xbfape\nbee\nthe cat",
        b'["ape", "bee", "the cat"]',
    ],
)
def test_a_file_of_names(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(data)
    assert read_classes(Location.parse(tmp_path / "names")) == ("ape", "bee", "the cat")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "does not exist"),
        (b"", "must have a name a line, or a JSON list of names"),
        (b"ape\nape\n", "has the name ape more than once"),
        (b'["ape", 3]', "must have a name a line"),
        (b'{"ape": 0}', "must have a name a line"),
        (b'["ape", "b\\ne"]', "must have a name a line"),
        (b"[ape", "is not text or JSON"),
        (b"\xff\xfe", "is not text or JSON"),
    ],
)
def test_a_file_that_names_no_classes(data: bytes | None, said: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / "names").write_bytes(data)
    with pytest.raises(InputError, match=f"--classes: .*names {said}") as raised:
        read_classes(Location.parse(tmp_path / "names"))
    assert "\n" not in str(raised.value)


def test_names_are_only_given_to_numbers() -> None:
    names = ("ape", "bee", "cat")
    assert name_classes(names, None, None, "f") == names
    assert name_classes(names, ("0", "1", "2"), 3, "f") == names
    assert name_classes(names, names, 3, "f") == names
    with pytest.raises(InputError, match="f names 3 classes, but the model has 4; give one for each"):
        name_classes(names, None, 4, "f")
    with pytest.raises(InputError, match="f names the classes ape, bee, cat, but the model's are bee, ape, cat"):
        name_classes(names, ("bee", "ape", "cat"), 3, "f")
