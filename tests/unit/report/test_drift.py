"""The drift of an output since a reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import InputError
from mnist_ray.report.page import write_report
from mnist_ray.report.statistics import chi_square_test, stability_index
from mnist_ray.storage.location import Location
from tests.support.output_maker import NAMES, make_output
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
    assert "4 of 4 classes have changed : dog, bee, ape, cat." in page.text
    means = [f"{confidences(tmp_path / name).mean() * 100:.1f} %" for name in ("before", "now")]
    assert f"The mean confidence was {means[0]} and is {means[1]}." in page.text
    assert "The two were not scored by the same model" in page.text
    rows = page.table("Class", "Share before")
    assert [row[:3] for row in rows[:2]] == [["dog", "10.00 %", "41.67 %"], ["bee", "30.00 %", "8.33 %"]]


def test_a_class_that_is_gone_has_no_confidence(tmp_path: Path) -> None:
    before = output(tmp_path / "before", COUNTS, 0.9, seed=1)
    page = drift(tmp_path, output(tmp_path / "now", (500, 300, 200, 0), 0.9, seed=2), before)
    row = next(row for row in page.table("Class", "Share before") if row[0] == "dog")
    assert (row[1:4], row[5], row[6]) == (["10.00 %", "0.00 %", "< 0.000001"], "—", "1.000")


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
