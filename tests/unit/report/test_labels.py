"""The report of an output whose images may be given several labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mnist_ray.report import label_sample, sample
from mnist_ray.report.formatting import THIN_SPACE
from mnist_ray.report.images import encode
from mnist_ray.report.label_sample import LabelSample
from mnist_ray.report.page import write_report
from mnist_ray.report.result import Result
from mnist_ray.storage.location import Location
from tests.support.output_maker import make_label_output
from tests.support.report_maker import Page

NAMES = ("sky", "sea", "sand", "snow")

SCORES = np.array(
    [[0.9, 0.8, 0.1, 0.0], [0.9, 0.1, 0.1, 0.0], [0.6, 0.7, 0.8, 0.0], [0.1, 0.1, 0.1, 0.0], [0.5, 0.4, 0.2, 0.0]]
)


def page_of(folder: Path) -> Page:
    picture = encode(np.zeros((4, 4), np.uint8))
    fetch = lambda shown: {each.row: picture for each in shown if each.row is not None}  # noqa: E731
    return Page(Path(write_report(Location.parse(folder), fetch=fetch).path).read_text(encoding="utf-8"))


def test_how_often_each_label_is_given(tmp_path: Path) -> None:
    make_label_output(tmp_path, SCORES, units=(2, 3), names=NAMES)
    page = page_of(tmp_path)
    assert page.table("Label", "Images") == [
        ["sky", "4", "80.0 %"], ["sea", "2", "40.0 %"], ["sand", "1", "20.0 %"], ["snow", "0", "0.0 %"],
    ]  # fmt: skip
    for words in (
        "An image is given 1.40 labels on average.", "Images by number of labels", "Images of each label",
        "Counted over all images. A share is of the images, of which each may be given several labels, or none.",
    ):  # fmt: skip
        assert words in page.text, words
    assert [str(each["title"]).replace(THIN_SPACE, " ") for each in page.images if each.get("title")] == [
        *(f"{score} %, image {row}" for score, row in (("90.0", 0), ("90.0", 1), ("60.0", 2), ("50.0", 4))),
        "80.0 %, image 0", "70.0 %, image 2", "80.0 %, image 2",
    ]  # fmt: skip


def test_the_counts_are_those_of_the_scores_however_the_parts_lie(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).uniform(0, 0.7, (300, 1_000))
    make_label_output(tmp_path, scores, units=(100, 1, 199), names=tuple(f"label {n}" for n in range(1_000)))
    found = Result.read(Location.parse(tmp_path)).sample()
    assert isinstance(found, LabelSample)
    is_given = scores.astype(np.float32) >= 0.5
    np.testing.assert_array_equal(found.counts, is_given.sum(axis=0))
    np.testing.assert_array_equal(found.by_number, np.bincount(is_given.sum(axis=1)))
    assert (found.images, found.is_whole) == (300, True)
    page = page_of(tmp_path)
    assert len(page.html) < 2_000_000
    assert "The other 988 labels" in page.text
    assert len(page.table("Label", "Images")) == 12


def test_of_many_parts_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "MOST_PARTS", 4)
    monkeypatch.setattr(sample, "SPREAD_PARTS", 3)
    monkeypatch.setattr(label_sample, "MOST_VALUES", 9)
    make_label_output(tmp_path, np.tile(SCORES, (6, 1)), units=(5,) * 6, names=NAMES)
    found = Result.read(Location.parse(tmp_path)).sample()
    assert (found.images, found.is_whole) == (3, False)
    assert "Counted over 3 images from parts spread over the whole output." in page_of(tmp_path).text
