"""The report of a made-up run: real MNIST pixels, predictions from numpy."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import InputError
from mnist_ray.predictions.tally import Tally
from mnist_ray.report.page import write_report
from mnist_ray.storage.location import Location
from tests.support.output_maker import NAMES, make_output
from tests.support.report_maker import change, decode, idx, make_run, report, write_json


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "mnist")


def test_numbers(run: Path) -> None:
    page = report(run)
    metrics = json.loads((run / "metrics.json").read_text())
    after = metrics["after"]
    assert after["num_correct"] == 285
    assert "95.00 %" in page.text
    assert (
        "285 of 300 test images classified correctly after 5 epochs of training. Untrained: 27 (9.00 %)." in page.text
    )
    assert "No image was quarantined." in page.text
    assert page.table("On the test images") == [
        ["Untrained", "27", "300", "9.00 %", "2.3971"],
        ["Trained", "285", "300", "95.00 %", "0.0731"],
    ]
    assert page.table("Epoch")[1] == ["2", "0.1425", "95.77 %", "2.3", "26,346"]
    assert len(page.table("Epoch")) == 5
    matrix = page.table("true")
    assert [[int(cell) for cell in row[1:]] for row in matrix] == after["confusion"]
    assert [row[0] for row in matrix] == list("0123456789")
    for shown, row in zip(page.table("Class"), after["per_class"], strict=True):
        numbers = [f"{row['precision'] * 100:.1f} %", f"{row['recall'] * 100:.1f} %", str(row["support"])]
        assert shown == [str(row["class"]), *numbers]
    for words in ("1.73 ms per step", "37.6 s", "21.4 s", "learning rate 0.001", "tensorflow 2.21.0", "375 images/s"):
        assert words in page.text, words


def test_it_needs_neither_ray_nor_tensorflow(run: Path) -> None:
    code = (
        "import sys; from mnist_ray.report.page import write_report; from mnist_ray.storage.location import Location;"
        "write_report(Location.parse(sys.argv[1]));"
        "print({'ray', 'tensorflow', 'keras'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_interval_is_wilsons(run: Path) -> None:
    # Wilson's score interval of 285 of 300, as published tables and statsmodels give it.
    assert "91.92 % to 96.95 %" in report(run).text


def test_first_images_are_exact(run: Path) -> None:
    page = report(run)
    shown = [image for image in page.images if str(image["alt"]).startswith("Training")]
    assert [str(image["alt"])[-1] for image in shown] == list("504192131")  # as TensorFlow's tutorial shows them
    for image, pixels in zip(shown, idx("train-images-idx3", 9), strict=True):
        assert np.array_equal(decode(image["src"]), pixels)


def test_first_images_span_shards(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "r", train=10, num_shards=4))  # 3, 3, 2, 2 rows
    assert np.array_equal(decode(page.images[8]["src"]), idx("train-images-idx3", 9)[8])


def test_images_of_several_classes_where_the_first_are_of_one(tmp_path: Path) -> None:
    """As class folders are read. Row r of 40 has the label r // 10."""
    folder = make_run(tmp_path / "r", train=40, num_shards=3)
    start = 0
    for shard in sorted((folder / "shards" / "train").glob("*.parquet")):
        table = pq.read_table(shard)
        labels = pa.array([(start + row) // 10 for row in range(len(table))], pa.int64())
        pq.write_table(table.set_column(2, "label", labels), shard, row_group_size=5)
        start += len(table)
    shown = [image for image in report(folder).images if str(image["alt"]).startswith("Training")]
    assert [str(image["alt"])[-1] for image in shown] == list("000112233")
    for image, row in zip(shown, [0, 4, 8, 13, 17, 22, 26, 31, 35], strict=True):
        assert np.array_equal(decode(image["src"]), idx("train-images-idx3", 40)[row])


def test_mistakes(run: Path) -> None:
    page = report(run)
    parts = [pq.read_table(part) for part in sorted((run / "predictions").glob("part-*"))]
    rows = [row for row in pa.concat_tables(parts).to_pylist() if row["label"] != row["prediction"]]
    rows.sort(key=lambda row: -row["probabilities"][row["prediction"]])
    shown = [image for image in page.images if str(image["alt"]).startswith("Test")]
    assert len(rows) == 15
    assert len(shown) == 12 + 12  # and those of the lowest confidence
    test_images = idx("t10k-images-idx3", 300)
    for image, row in zip(shown, rows[:12], strict=False):
        expected = f"Test image {row['id']}, labelled {row['label']}, predicted {row['prediction']}"
        assert image["alt"] == expected
        assert np.array_equal(decode(image["src"]), test_images[row["id"]])
    top = rows[0]
    chances = [f"{top['probabilities'][top[key]] * 100:.1f} %" for key in ("prediction", "label")]
    assert f"predicted {top['prediction']} {chances[0]} true {top['label']} {chances[1]}" in page.text


def test_the_least_sure_images(run: Path) -> None:
    page = report(run)
    parts = [pq.read_table(part) for part in sorted((run / "predictions").glob("part-*"))]
    rows = sorted(pa.concat_tables(parts).to_pylist(), key=lambda row: row["probabilities"][row["prediction"]])
    shown = [image for image in page.images if str(image["alt"]).startswith("Test")][12:]
    assert [image["alt"] for image in shown] == [
        f"Test image {row['id']}, labelled {row['label']}, predicted {row['prediction']}" for row in rows[:12]
    ]
    first, second = np.argsort(rows[0]["probabilities"])[:-3:-1]
    chances = [f"{rows[0]['probabilities'][number] * 100:.1f} %" for number in (first, second)]
    assert f"predicted {first} {chances[0]} or {second} {chances[1]} image {rows[0]['id']}" in page.text


def test_the_command_that_makes_it_again(run: Path) -> None:
    page = report(run)
    command = "mnist-ray run --num-shards 3 --storage 's3://…@bucket/runs'"
    assert f"Make it again {command} Copy" in page.text
    [button] = [attributes for tag, attributes in page.tags if tag == "button"]
    assert ("code", {"id": button["data-copies"]}) in page.tags


def test_self_contained(run: Path) -> None:
    page = report(run)
    allowed = {"meta", "img"}
    script = page.html.split("<script>")[1].split("</script>")[0]  # the one that copies
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert policy in [attributes.get("content") for _, attributes in page.tags]
    assert "http" not in script
    assert [tag for tag, _ in page.tags].count("script") == 1
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object"}
        for name, value in attributes.items():
            assert "//" not in (value or "") or (tag == "img" and name == "src"), (tag, name)
            assert name not in {"href", "srcset", "xmlns"}
            assert name != "src" or str(value).startswith("data:image/png;base64,")
            assert not name.startswith("on") or tag in allowed
    style = page.html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert all(image["alt"] for image in page.images)
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert not list(run.glob(".*"))  # the temporary file is gone


def test_everything_of_the_user_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    classes = [f"{evil}\"'{digit}" for digit in range(10)]
    folder = make_run(tmp_path / "<b>evil&", classes=classes)
    score = {"images": 303, "quarantined": 3, "num_actors": 2, "seconds": 1.0, "images_per_second": 303.0}
    environment = {"host": evil, "finished": evil}
    change(folder, score=score, environment=environment)
    (folder / "predictions/quarantine").mkdir()
    bad = pa.table({"source": [evil], "row": pa.array([7], pa.int64()), "reason": [f"{evil} is not an image"]})
    pq.write_table(bad, folder / "predictions/quarantine/part-00000.parquet")
    page = report(folder)
    assert page.html.count("<script") == 1
    assert "alert(1)</script" not in page.html
    assert "<b>evil" not in page.html
    assert page.text.startswith("<b>evil&: run report")
    assert page.table("Source") == [[evil, "7", f"{evil} is not an image"]]
    assert "3 images could not be scored; the first is listed." in page.text
    assert page.table("Class")[3][0] == classes[3]


def test_secrets_of_a_uri_are_not_shown(run: Path) -> None:
    page = report(run)
    assert "secret" not in page.html
    assert "s3://…@bucket/runs" in page.text


def test_zero_mistakes(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "r", error=0))
    assert "None: every image was classified correctly." in page.text
    assert "100.00 %" in page.text
    assert "Most often" not in page.text


def test_almost_all_is_not_100_percent(run: Path) -> None:
    n = 10_000_000
    after = {"num_correct": n - 1, "num_seen": n, "accuracy": (n - 1) / n, "loss": 0.0}
    change(run, after=after)
    page = report(run)
    assert "9,999,999 of 10,000,000" in page.text
    assert "99.99 %" in page.text
    assert "Confusion matrix" not in page.text


def test_a_trained_run_that_was_not_scored(run: Path, tmp_path: Path) -> None:
    """`mnist-ray train SHARDS`: no predictions, and the shards lie elsewhere."""
    (run / "shards").rename(tmp_path / "shards")
    for part in (run / "predictions").iterdir():
        part.unlink()
    (run / "predictions").rmdir()
    write_json(run / "config.json", {"config": {"shards": str(tmp_path / "shards")}, "fingerprint": {}})
    change(run, before=None, after=None, score=None, seconds={"start": 5.0, "train": 20.0, "score": None})
    page = report(run)
    assert "This run was trained, not scored" in page.text
    assert len(page.images) == 9
    assert len(page.table("Epoch")) == 5
    for left_out in ("Before and after", "Confusion matrix", "mistakes", "Quarantined"):
        assert left_out not in page.text
    assert "10 classes" in page.text


def test_only_metrics(tmp_path: Path) -> None:
    """What `score --output` writes next to its parts, at its barest."""
    (tmp_path / "metrics.json").write_text('{"score": {"images": 5, "quarantined": 0, "num_actors": 1}}')
    page = report(tmp_path)
    assert "No labelled image was scored" in page.text
    assert "classes" not in page.text


def test_nulls_show_as_dashes(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["after"]["per_class"][4] |= {"precision": None, "recall": None, "support": 0}
    metrics["before"]["loss"] = None
    metrics["train"]["epochs"] = [{"epoch": 1, "loss": None, "accuracy": 0.5}]
    change(run, **metrics)
    page = report(run)
    assert page.table("Class")[4] == ["4", "—", "—", "0"]
    assert page.table("Epoch") == [["1", "—", "50.00 %", "—", "—"]]
    assert page.table("On the test images")[0][-1] == "—"


def test_missing_shards_leave_the_numbers(run: Path) -> None:
    for shard in (run / "shards/test").iterdir():
        shard.unlink()
    page = report(run)
    assert page.text.count("image not found") == 24
    assert len(page.images) == 9


def test_string_ids_unknown_labels_and_color(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", test=4)
    color = np.random.default_rng(1).integers(0, 256, (4, 5, 6, 3), np.uint8)
    for split in ("train", "test"):
        for old in (folder / "shards" / split).iterdir():
            old.unlink()
    columns = {"id": ["a/1", "a/2", "b", "c"], "label": pa.array([1, 0, 1, 0], pa.int64()),
               "image": pa.array([image.tobytes() for image in color], pa.binary(90))}  # fmt: skip
    pq.write_table(pa.table(columns), folder / "shards/test/part-00000.parquet", row_group_size=1)
    dataset = {"name": "x", "image_shape": [5, 6, 3], "classes": ["cat", "dog"],
               "shards": {"train": [], "test": [{"path": "test/part-00000.parquet", "rows": 4}]}}  # fmt: skip
    write_json(folder / "shards/dataset.json", dataset)
    for old in (folder / "predictions").iterdir():
        old.unlink()
    chances = pa.FixedSizeListArray.from_arrays(pa.array([0.9, 0.1, 0.2, 0.8, 0.7, 0.3, 0.6, 0.4], pa.float32()), 2)
    columns = {"id": ["a/1", "a/2", "b", "c"], "label": pa.array([1, 0, None, 0], pa.int64()),
               "prediction": pa.array([0, 1, 0, 0], pa.int64()), "probabilities": chances}  # fmt: skip
    pq.write_table(pa.table(columns), folder / "predictions/part-00000.parquet")
    page = report(folder)
    assert [image["alt"] for image in page.images] == [
        "Test image a/1, labelled dog, predicted cat",
        "Test image a/2, labelled cat, predicted dog",
        "Test image c, labelled cat, predicted cat",
        "Test image b, predicted cat",
        "Test image a/2, labelled cat, predicted dog",
        "Test image a/1, labelled dog, predicted cat",
    ]
    assert np.array_equal(decode(page.images[1]["src"]), color[1])


@pytest.mark.parametrize("num_classes", [26, 101])
def test_many_classes(run: Path, num_classes: int) -> None:
    classes = [f"kind {number}" for number in range(num_classes)]
    confusion = np.eye(num_classes, dtype=int) * 3
    confusion[2, 1] = 2
    (run / "shards/dataset.json").unlink()
    dataset = {"name": "x", "train_images": 1, "test_images": 1, "image_shape": [28, 28], "classes": classes}
    after = {"num_correct": 3 * num_classes, "num_seen": 3 * num_classes + 2, "accuracy": 0.97, "loss": 0.1,
             "confusion": confusion.tolist(), "per_class": None}  # fmt: skip
    change(run, dataset=dataset, after=after)
    page = report(run)
    assert "Most often: kind 2 as kind 1 (2)." in page.text
    if num_classes == 26:
        matrix = page.table("true")
        assert len(matrix) == 26
        assert set(matrix[2][1:]) == {""}
        assert "kind 2 as kind 1: 2" in [attributes.get("title") for tag, attributes in page.tags if tag == "td"]
    else:
        assert "A matrix of 101 classes is too large to show." in page.text


@pytest.mark.parametrize("cells", [[[7, 4, 30], [4, 7, 20]], None])
def test_thousands_of_classes(tmp_path: Path, cells: list[list[int]] | None) -> None:
    """No matrix, and of the classes those that are recognized worst."""
    rows = [
        {"class": i, "precision": 0.5, "recall": None if i == 8 else i / 20_000, "support": 9} for i in range(20_000)
    ]
    after = {"num_correct": 5, "num_seen": 9, "accuracy": 0.6, "loss": 0.1, "confusion": None, "confusion_cells": cells,
             "per_class": rows[::-1]}  # fmt: skip
    names = [f"kind {number}" for number in range(20_000)]
    write_json(tmp_path / "metrics.json", {"dataset": {"name": "x", "classes": names}, "after": after})
    page = report(tmp_path)
    assert "A matrix of 20,000 classes is too large to show." in page.text
    assert ("Most often: kind 7 as kind 4 (30), kind 4 as kind 7 (20)." in page.text) == (cells is not None)
    assert "the 100 classes of the lowest recall, out of 20,000" in page.text
    assert [row[0] for row in page.table("Class")][6:10] == ["kind 6", "kind 7", "kind 9", "kind 10"]
    assert len(page.table("Class")) == 100
    assert (tmp_path / "report.html").stat().st_size < 100_000


def test_one_epoch_has_a_curve_of_one_point(run: Path) -> None:
    epoch = {"epoch": 1, "loss": 0.5, "accuracy": 0.5, "seconds": 1.0, "images_per_second": 10.0}
    change(run, train={"num_workers": 1, "epochs": [epoch]}, after=None)
    page = report(run)
    assert [tag for tag, _ in page.tags].count("circle") == 2


def test_what_is_wrong_is_said_in_one_line(run: Path) -> None:
    part = run / "predictions/part-00001.parquet"
    part.write_bytes(b"not Parquet")
    with pytest.raises(InputError, match=r"cannot read .*part-00001.parquet: [^\n]+$"):
        write_report(Location.parse(run))
    (run / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"is not the folder of a run"):
        write_report(Location.parse(run))
    assert not (run / "report.html").exists()


# What `score` wrote.


@pytest.mark.parametrize("changed", [{}, {"top_k": 2}])
def test_an_output_has_a_report(tmp_path: Path, changed: dict[str, Any]) -> None:
    made = make_output(tmp_path / "out", classes=NAMES, **changed)
    change(tmp_path / "out", dataset={"name": "images", "image_shape": [4, 4], "classes": list(NAMES)})
    page = report(tmp_path / "out")
    rows = np.setdiff1d(np.arange(18), [7, 8, 13])
    labels, chosen, chances = (made[name][rows] for name in ("labels", "predictions", "probabilities"))
    known = labels >= 0
    right = int((labels == chosen).sum())
    assert f"{right} of {int(known.sum())} images classified correctly" in page.text
    assert "3 images were quarantined." in page.text
    assert [row[1] for row in page.table("Source")] == ["7", "8", "13"]
    wrong = np.flatnonzero(known & (labels != chosen))
    worst = wrong[chances[wrong, chosen[wrong]].argmax()]
    assert f"predicted {NAMES[chosen[worst]]}" in page.text
    assert f"image {rows[worst]}" in page.text
    likely = chances[worst, labels[worst]]
    is_kept = not changed or likely >= np.sort(chances[worst])[-2]
    assert (f"{likely * 100:.1f} %" in page.text) or not is_kept


def test_the_reliability_curve(run: Path) -> None:
    """Two bins of three images: 4 of 6 right, of confidences 0.5 and 0.9."""
    assert "Calibration" not in report(run).text
    labels, chosen = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 0, 0, 0, 1, 2])
    confidences = np.array([0.5] * 3 + [0.9] * 3, np.float32)
    tally = Tally.of(labels, chosen, np.zeros(6), confidences, 3)
    change(run, after=tally.summary(detailed=True))
    assert "Expected calibration error 0.1333" in report(run).text
    page = (run / "report.html").read_text()
    assert '<polyline class="line" points="175.0,104.7 286.2,30.0 "/>' in page
    assert page.count('<rect class="share"') == 2
    assert "<title>3 images: confidence 50.00\u202f%, accuracy 33.33\u202f%</title>" in page
