"""The drift of an output since a reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import InputError
from mnist_ray.report import label_sample
from mnist_ray.report.page import write_report
from mnist_ray.report.result import Result
from mnist_ray.report.statistics import chi_square_test, kolmogorov_smirnov, stability_index
from mnist_ray.storage.location import Location
from tests.support.output_maker import NAMES, make_label_output, make_output
from tests.support.report_maker import Page, change

COUNTS = (400, 300, 200, 100)


def output(folder: Path, counts: tuple[int, ...], confidence: float, seed: int, **plan: str) -> Location:
    """An output of so many predictions of each class, with confidences of about this."""
    make_output(folder, units=(sum(counts),), bad=(), **plan)
    random = np.random.default_rng(seed)
    predictions = random.permutation(np.repeat(np.arange(4), counts))
    chances = np.zeros((len(predictions), 4), np.float32)
    chances[np.arange(len(predictions)), predictions] = random.normal(confidence, 0.02, len(predictions))
    part = folder / "part-00000.parquet"
    table = pq.read_table(part).set_column(2, "prediction", pa.array(predictions))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(chances.ravel()), 4)
    pq.write_table(table.set_column(3, "probabilities", lists), part)
    change(folder, after=None, dataset={"name": "images", "classes": list(NAMES)})
    return Location.parse(folder)


def confidences(folder: Path) -> np.ndarray:
    lists = pq.read_table(folder / "part-00000.parquet")["probabilities"].combine_chunks()
    return np.asarray(lists.flatten()).reshape(-1, 4).max(1)


def drift(tmp_path: Path, now: Location, before: Location) -> Page:
    write_report(now, reference=before)
    return Page((tmp_path / "now/report.html").read_text(encoding="utf-8"))


def test_nothing_has_changed(tmp_path: Path) -> None:
    before = output(tmp_path / "before", COUNTS, 0.9, seed=1)
    page = drift(tmp_path, output(tmp_path / "now", COUNTS, 0.9, seed=2), before)
    assert (
        "The predicted classes have hardly changed, no more than chance explains. Population stability index 0.000, p ="
        " 1.000."
    ) in page.text
    assert "The confidences have hardly changed, no more than chance explains." in page.text
    assert "No single class has changed more than chance explains." in page.text
    assert "1,000 images compared with 1,000." in page.text
    assert "same model" not in page.text


def test_a_class_has_become_frequent_and_the_model_unsure(tmp_path: Path) -> None:
    now_counts = (400, 100, 200, 500)
    before = output(tmp_path / "before", COUNTS, 0.9, seed=1)
    page = drift(tmp_path, output(tmp_path / "now", now_counts, 0.6, seed=2, model_sha256="ef" * 32), before)
    histograms = np.array(COUNTS), np.array(now_counts)
    index, p = stability_index(*histograms), chi_square_test(*histograms)
    assert index > 0.25
    assert p < 1e-6
    assert (
        f"The predicted classes have changed much, more than chance explains. Population stability index {index:.3f}, p"
        " < 0.000001."
    ) in page.text
    assert "The confidences have changed much, more than chance explains." in page.text
    assert (
        "4 of 4 classes have changed : dog is predicted more often and has confidences that are lower bee is predicted"
        " less often and has confidences that are lower ape"
    ) in page.text
    means = [f"{confidences(tmp_path / name).mean() * 100:.1f} %" for name in ("before", "now")]
    assert f"The mean confidence was {means[0]} and is {means[1]}." in page.text
    assert "The two were not scored by the same model" in page.text
    rows = page.table("Class", "Share before")
    assert [row[:3] for row in rows[:2]] == [["dog", "10.00 %", "41.67 %"], ["bee", "30.00 %", "8.33 %"]]


def test_a_class_that_is_gone_has_no_confidence(tmp_path: Path) -> None:
    before = output(tmp_path / "before", COUNTS, 0.9, seed=1)
    page = drift(tmp_path, output(tmp_path / "now", (500, 300, 200, 0), 0.9, seed=2), before)
    row = next(row for row in page.table("Class", "Share before") if row[0] == "dog")
    assert (row[1:4], row[5:]) == (["10.00 %", "0.00 %", "< 0.000001"], ["—", "—", "1.000"])


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    now = output(tmp_path / "now", COUNTS, 0.9, seed=1)
    other = output(tmp_path / "other", COUNTS, 0.9, seed=1)
    change(tmp_path / "other", dataset={"classes": ["ape", "bee", "cat", "eel"]})
    with pytest.raises(InputError, match=r"/other has other classes .* give a --reference of the same classes$"):
        write_report(now, reference=other)
    (tmp_path / "other/part-00000.parquet").unlink()
    with pytest.raises(
        InputError, match=r"/other holds no predicted classes; --reference compares those of two outputs$"
    ):
        write_report(now, reference=other)
    with pytest.raises(InputError, match="/none does not exist"):
        write_report(now, reference=Location.parse(tmp_path / "none"))
    assert not (tmp_path / "now/report.html").exists()


# Of models that give an image any number of labels.


def scores(seed: int, n: int = 600) -> np.ndarray:
    """(n, 4): each label is given to 3 of 10 images."""
    random = np.random.default_rng(seed)
    return np.where(random.uniform(size=(n, 4)) < 0.3, random.uniform(0.5, 1, (n, 4)), random.uniform(0, 0.5, (n, 4)))


def labelled(folder: Path, values: np.ndarray) -> Location:
    make_label_output(folder, values, units=(len(values),), names=NAMES)
    return Location.parse(folder)


def test_labels_that_have_not_changed(tmp_path: Path) -> None:
    before, now = scores(1), scores(2)
    page = drift(tmp_path, labelled(tmp_path / "now", now), labelled(tmp_path / "before", before))
    numbers = [np.bincount((each >= 0.5).sum(axis=1), minlength=5) for each in (before, now)]
    assert (
        "The labels per image have hardly changed, no more than chance explains. Population stability index"
        f" {stability_index(*numbers):.3f}, p = {chi_square_test(*numbers):.3f}."
    ) in page.text
    assert "No single label has changed more than chance explains." in page.text
    means = [(each >= 0.5).sum() / 600 for each in (before, now)]
    assert f"An image had {means[0]:.2f} labels on average and has {means[1]:.2f}." in page.text
    assert "other thresholds" not in page.text


def test_labels_that_have_changed(tmp_path: Path) -> None:
    """One is given more often, one has higher scores that do not count yet, and one has others of the same mean."""
    before, now = scores(1), scores(2)
    now[:, 1] = np.random.default_rng(3).uniform(0.4, 1, 600)
    now[:, 2] = np.where(now[:, 2] < 0.5, np.clip(now[:, 2] + 0.2, 0, 0.499), now[:, 2])
    before[:, 3], now[:, 3] = 0.25, np.tile([0.05, 0.45], 300)
    page = drift(tmp_path, labelled(tmp_path / "now", now), labelled(tmp_path / "before", before))
    assert (
        "3 of 4 labels have changed : bee is given more often and has scores that are higher cat has scores that are"
        " higher dog has scores that are spread differently"
    ) in page.text
    row = next(row for row in page.table("Label", "Share before") if row[0] == "bee")
    old, new = before[:, 1].astype(np.float32), now[:, 1].astype(np.float32)
    shares = [f"{(each >= 0.5).mean() * 100:.2f} %" for each in (old, new)]
    inner = np.quantile(old, np.linspace(0, 1, 11)[1:-1])
    index = stability_index(*(np.bincount(np.searchsorted(inner, each, "right"), minlength=10) for each in (old, new)))
    means = [f"{each.mean() * 100:.1f} %" for each in (old, new)]
    assert row == ["bee", *shares, "< 0.000001", *means, f"{index:.3f}", "< 0.000001"]
    assert kolmogorov_smirnov(old, new)[1] < 1e-6


def test_labels_are_not_compared_with_classes(tmp_path: Path) -> None:
    several, one = labelled(tmp_path / "several", scores(1)), output(tmp_path / "one", COUNTS, 0.9, seed=1)
    message = (
        "/several has any number of labels for an image and .*/one one class; give a --reference of the same kind$"
    )
    for now, before in ((several, one), (one, several)):
        with pytest.raises(InputError, match=message):
            write_report(now, reference=before)


def test_other_thresholds_are_told(tmp_path: Path) -> None:
    before, now = (labelled(tmp_path / name, scores(1)) for name in ("before", "now"))
    plan = (now / "_plan.json").read_json()
    (now / "_plan.json").write_json(plan | {"thresholds": [0.4, 0.5, 0.5, 0.5]})
    assert "The two have other thresholds, so labels are given" in drift(tmp_path, now, before).text


def test_the_scores_of_few_images_of_each_part_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_sample, "MOST_VALUES", 16)
    values = scores(1, 30)
    make_label_output(tmp_path, values, units=(20, 10), names=NAMES)
    plan = Result.read(Location.parse(tmp_path)).plan
    assert plan is not None
    found = label_sample.scores_of(Location.parse(tmp_path), plan)
    np.testing.assert_array_equal(found, values[[0, 1, 20, 21]].astype(np.float32))
    (tmp_path / "part-00000.parquet").unlink()
    assert len(label_sample.scores_of(Location.parse(tmp_path), plan)) == 2
