"""Runs and outputs side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import InputError
from mnist_ray.predictions.plan import Plan
from mnist_ray.report.page import write_comparison
from mnist_ray.report.pairs import OtherImagesError, Pairs, compare
from mnist_ray.report.result import Result
from mnist_ray.report.statistics import mcnemar
from mnist_ray.storage.location import Location
from tests.support.output_maker import NAMES, make_output
from tests.support.report_maker import Page, change, decode, idx, make_run, write_json


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on the same images: one gets 15 of 300 wrong, the other 45, with other options."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "good")
    make_run(root / "poor", error=0.15, num_shards=5)
    config = json.loads((root / "poor/config.json").read_text())
    config["config"] |= {"epochs": 3, "architecture": "cnn", "name": "poor"}
    write_json(root / "poor/config.json", config)
    train = json.loads((root / "poor/metrics.json").read_text())["train"]
    change(root / "poor", train={**train, "epochs": train["epochs"][:3]})
    return root


def comparison(*folders: Path) -> Page:
    where = write_comparison([Location.parse(folder) for folder in folders])
    return Page(Path(where.path).read_text(encoding="utf-8"))


def predictions(run: Path) -> dict[str, np.ndarray]:
    table = pa.concat_tables([pq.read_table(part) for part in sorted((run / "predictions").glob("part-*"))])
    return {name: table[name].to_numpy() for name in ("id", "label", "prediction")}


def test_two_runs(runs: Path) -> None:
    page = comparison(runs / "good", runs / "poor")
    assert (runs / "good-vs-poor.html").exists()
    assert page.table("Result")[0] == ["Accuracy", "95.00 %", "85.00 %"]
    assert page.table("Setting") == [
        ["epochs", "5", "3"], ["architecture", "mlp", "cnn"], ["num shards", "3", "5"],
    ]  # fmt: skip
    one, other = predictions(runs / "good"), predictions(runs / "poor")
    first, second = one["prediction"] == one["label"], other["prediction"] == one["label"]
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    assert page.table("Of 300 images") == [
        ["good right", str((first & second).sum()), str(only_first)],
        ["good wrong", str(only_second), str((~first & ~second).sum())],
    ]
    assert mcnemar(only_first, only_second) < 0.001
    assert "good is better than poor: a difference like this is hardly chance. McNemar's test, exact: p < " in page.text
    matrices = [
        json.loads((runs / name / "metrics.json").read_text())["after"]["confusion"] for name in ("good", "poor")
    ]
    shown = [[int(cell.replace("\u2212", "-")) for cell in row[1:]] for row in page.table("true")]
    assert shown == (np.array(matrices[1]) - np.array(matrices[0])).tolist()


def test_the_images_that_changed_sides(runs: Path) -> None:
    page = comparison(runs / "good", runs / "poor")
    one, other = predictions(runs / "good"), predictions(runs / "poor")
    lost = np.flatnonzero((one["prediction"] == one["label"]) & (other["prediction"] != one["label"]))
    won = np.flatnonzero((one["prediction"] != one["label"]) & (other["prediction"] == one["label"]))
    assert [image["alt"] for image in page.images] == [
        f"Image {row}, predicted {one['prediction'][row]} and {other['prediction'][row]}"
        for row in [*won[:12], *lost[:12]]
    ]
    pixels = idx("t10k-images-idx3", 300)
    for image in page.images:
        assert np.array_equal(decode(image["src"]), pixels[int(str(image["alt"]).split()[1].strip(","))])
    assert f"Only good is right: {len(lost)} images, 12 of them" in page.text


def test_curves_lie_in_one_plot(runs: Path) -> None:
    page = comparison(runs / "good", runs / "poor")
    lines = [attributes for tag, attributes in page.tags if tag == "polyline"]
    assert [line["class"] for line in lines] == ["curve s0", "curve s1"] * 2
    assert [len(str(line["points"]).split()) for line in lines] == [5, 3, 5, 3]
    assert str(lines[0]["points"]).startswith(str(lines[1]["points"]).strip().split()[0])  # the same axes


def test_a_run_and_itself(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "good", tmp_path / "good")
    page = comparison(runs / "good", tmp_path / "good")
    assert "Neither the options nor the packages differ." in page.text
    assert "are right equally often. McNemar's test, exact: p = 1.000." in page.text
    assert str(tmp_path / "good") in page.text  # where two have the same name


def test_three_runs_and_one_that_was_not_scored(runs: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "new", test=12)
    shutil.rmtree(tmp_path / "new/predictions")
    change(tmp_path / "new", after=None, score=None)
    page = comparison(runs / "good", runs / "poor", tmp_path / "new")
    assert page.table("Result")[0] == ["Accuracy", "95.00 %", "85.00 %", "—"]
    assert "They have no predictions of the same images. So the two cannot be compared image by image." in page.text


def test_runs_of_other_images(runs: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "new")
    part = tmp_path / "new/predictions/part-00002.parquet"
    table = pq.read_table(part)
    pq.write_table(table.set_column(1, "label", pa.array([(n + 1) % 10 for n in table["label"].to_pylist()])), part)
    page = comparison(runs / "good", tmp_path / "new")
    assert "Their images differ: the labels are not the same." in page.text
    assert "McNemar" not in page.text


# Outputs.


def result(folder: Path) -> Result:
    return Result.read(Location.parse(folder))


def test_outputs_with_other_images_in_quarantine(tmp_path: Path) -> None:
    """Rows are matched by their number in the input, however the two are cut into parts."""
    one = make_output(tmp_path / "a", units=(6, 5, 7), bad=(0, 7, 13))
    other = make_output(tmp_path / "b", units=(9, 9), bad=(6, 7, 8, 17), seed=0)
    pairs = compare(result(tmp_path / "a"), result(tmp_path / "b"), 3)
    rows = np.setdiff1d(np.arange(18), [0, 7, 13, 6, 8, 17])
    assert np.array_equal(one["labels"], other["labels"])
    known = one["labels"][rows] >= 0
    right = one["labels"][rows] == one["predictions"][rows]
    assert pairs == Pairs(len(rows), int(known.sum()), int(right.sum()), 0, 0, int((known & ~right).sum()), 0)


@pytest.mark.parametrize("most_shown", [1, 5])
def test_images_that_were_kept_are_shown_first(tmp_path: Path, most_shown: int) -> None:
    made = make_output(tmp_path / "a", bad=())
    make_output(tmp_path / "b", bad=())
    parts = [tmp_path / f"b/part-{unit:05d}.parquet" for unit in range(3)]
    for part in parts:  # where a label is known, the second is right
        table = pq.read_table(part)
        right = pa.array([label or 0 for label in table["label"].to_pylist()])
        pq.write_table(table.set_column(2, "prediction", right), part)
    lost = np.flatnonzero((made["labels"] >= 0) & (made["labels"] != made["predictions"]))
    pairs = compare(result(tmp_path / "a"), result(tmp_path / "b"), most_shown, {int(lost[-1]), int(lost[-2])})
    shown = [each.image.row for each in pairs.won]
    assert pairs.only_second == len(lost)
    assert shown == [*lost[-2:], *lost[:-2]][:most_shown]
    assert all(made["labels"][row] == each.prediction for row, each in zip(shown, pairs.won, strict=True))


def test_outputs_without_labels_are_of_the_same_input_by_its_digest(tmp_path: Path) -> None:
    for name, digest in (("a", "cd"), ("b", "cd"), ("c", "ef")):
        made = make_output(tmp_path / name, bad=(), input_digest=digest * 32)
        for unit, (start, stop) in enumerate(Plan.load(Location.parse(tmp_path / name)).units):  # type: ignore[union-attr]
            part = tmp_path / name / f"part-{unit:05d}.parquet"
            pq.write_table(pq.read_table(part).set_column(1, "label", pa.nulls(stop - start, pa.int64())), part)
    pairs = compare(result(tmp_path / "a"), result(tmp_path / "b"), 3)
    assert (pairs.images, pairs.labelled, pairs.disagree) == (18, 0, 0)
    with pytest.raises(OtherImagesError, match="Their inputs differ, and no labels show"):
        compare(result(tmp_path / "a"), result(tmp_path / "c"), 3)
    del made


def test_ids_that_differ(tmp_path: Path) -> None:
    make_output(tmp_path / "a", bad=())
    make_output(tmp_path / "b", bad=(), ids=np.arange(18) + 1)
    make_output(tmp_path / "c", bad=(), classes=NAMES)
    change(tmp_path / "c", dataset={"classes": list(NAMES)})
    with pytest.raises(OtherImagesError, match="the ids are not the same"):
        compare(result(tmp_path / "a"), result(tmp_path / "b"), 3)
    with pytest.raises(OtherImagesError, match="Their classes differ"):
        compare(result(tmp_path / "a"), result(tmp_path / "c"), 3)


def test_a_thousand_classes(tmp_path: Path) -> None:
    """No matrix; the classes whose recall changed most."""
    for name, step in (("a", 0.0), ("b", 0.0004)):
        make_output(tmp_path / name, bad=())
        rows = [{"class": i, "precision": 0.5, "recall": 0.5 + step * (i - 500), "support": 9} for i in range(1_000)]
        after = {"num_correct": 5, "num_seen": 9, "accuracy": 5 / 9, "loss": 0.1, "per_class": rows,
                 "confusion": (np.eye(1_000, dtype=int) * 3).tolist()}  # fmt: skip
        change(tmp_path / name, after=after)
    page = comparison(tmp_path / "a", tmp_path / "b")
    assert [row[0] for row in page.table("Recall of")] == ["0", "1", "999", "2", "998", "3", "997", "4", "996", "5"]
    assert page.table("Recall of")[0] == ["0", "50.0 %", "30.0 %"]
    assert "Change of the confusion matrix" not in page.html
    assert (tmp_path / "a-vs-b.html").stat().st_size < 100_000


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["good", "good"], "report was given the same folder twice; give different runs"),
        (["good", "none"], "/none does not exist; report takes the folder of a finished run"),
        (["good"] * 9, "report compares at most 8 runs, not 9"),
    ],
)
def test_bad_input_is_one_line(runs: Path, names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"{message}$"):
        comparison(*(runs / name for name in names))


def test_names_that_are_long(runs: Path, tmp_path: Path) -> None:
    folders: list[Any] = [tmp_path / (letter * 100) for letter in "abc"]
    for folder in folders:
        shutil.copytree(runs / "good", folder)
    comparison(*folders)
    assert [path.name for path in tmp_path.glob("*.html")] == ["a" * 60 + "-vs-2-others.html"]
