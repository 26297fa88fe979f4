"""Labels and embeddings, from the model to the part and back: both engines, against plain Keras, verified."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.models import runtime, users
from mnist_ray.models.conversion import convert
from mnist_ray.models.engines.openvino import ConvertedClassifier
from mnist_ray.models.view import View
from mnist_ray.predictions import parts
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.verify import verify
from mnist_ray.report.page import write_report
from mnist_ray.scoring.actor import Scorer
from mnist_ray.scoring.task import Settings, Task
from mnist_ray.sources.base import Reading
from mnist_ray.sources.open import open_source
from mnist_ray.storage.location import Location
from tests.support.data_makers import images, labels, write_parquet

SHAPE, ROWS, NAMES = (6, 5), 23, ("ape", "bee", "cat")

pytestmark = pytest.mark.tensorflow


def made() -> Any:
    keras = runtime.import_keras()
    layers = keras.layers
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input(SHAPE), layers.Rescaling(1 / 255), layers.Flatten(),
                             layers.Dense(7, "tanh", name="features"), layers.Dense(3, "sigmoid")])  # fmt: skip


def score(folder: Path, engine: str, model: Any, view: View, y: Any = None, **planned: Any) -> Location:
    """A whole output, as the pool has it written. y: a Parquet column of labels; else there is one for each image."""
    file = folder / ("data.npz" if y is None else "data.parquet")
    if y is None:
        np.savez(file, x=images(ROWS, SHAPE), y=labels(ROWS, 3))
    else:
        write_parquet(file, ROWS, shape=SHAPE, named_shape=True, label=y)
    source, output = open_source(str(file), Reading(takes_several=True)), Location.parse(folder / "out")
    found = users.classifier(model, "ab" * 32, view)
    converted = convert(found, images(3, SHAPE))
    assert isinstance(converted, ConvertedClassifier)
    plan = Plan(
        model_sha256="ab" * 32, input_digest=source.identity(), split="all", limit=None, pixels="0-255",
        num_classes=found.num_classes, units=((0, 10), (10, ROWS)), kind=found.kind, batch_size=8, engine=engine,
        **planned,
    )  # fmt: skip
    task = Task(
        model=converted, source=source, split="all", most_rows=ROWS, total_rows=ROWS, plan=plan.freeze(output),
        output=output, settings=Settings(pixels="0-255", jit=False, batch_size=8, classes=planned.get("classes")),
    )  # fmt: skip
    scorer = Scorer(task)
    if engine == "tensorflow":
        scorer.inference = type(scorer.inference)(found, SHAPE, most_rows=8)
    done = [scorer.score(unit) for unit in range(2)]
    parts.write_manifest(output, plan, done, ids=source.id_kind)
    tally = sum((each.tally for each in done[1:]), done[0].tally)  # type: ignore[arg-type]
    quarantined = sum(each.quarantined for each in done)
    after = {"after": tally.summary(detailed=True)} if tally.num_seen else {}
    (output / "metrics.json").write_json({"score": {"images": ROWS, "quarantined": quarantined}, **after})
    return output


def rows_of(output: Location) -> list[dict[str, Any]]:
    return pl.read_parquet(f"{output.path}/part-*.parquet").sort("id").to_dicts()


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_labels_are_those_whose_score_reaches_its_threshold(tmp_path: Path, engine: str) -> None:
    model, thresholds = made(), (0.4, 0.5, 0.6)
    output = score(tmp_path, engine, model, View(), thresholds=thresholds, classes=NAMES)
    scores = np.asarray(model(images(ROWS, SHAPE).astype(np.float32)))
    given = scores >= np.array(thresholds, np.float32)
    assert 0 < given.sum() < given.size
    rows = rows_of(output)
    assert list(rows[0]) == ["id", "label", "labels", "classes", "scores"]
    np.testing.assert_allclose([row["scores"] for row in rows], scores, atol=1e-6)
    assert [row["labels"] for row in rows] == [np.flatnonzero(each).tolist() for each in given]
    assert [row["classes"] for row in rows] == [[NAMES[number] for number in row["labels"]] for row in rows]
    assert [row["label"] for row in rows] == labels(ROWS, 3).tolist()

    right = int(given[np.arange(ROWS), labels(ROWS, 3)].sum())
    after = (output / "metrics.json").read_json()["after"]
    assert after["f1_micro"] == 2 * right / (ROWS + int(given.sum()))
    assert "confusion" not in after
    assert "accuracy" not in after
    keras = runtime.import_keras()
    truth = np.eye(3)[labels(ROWS, 3)]
    expected = float(np.mean(keras.losses.binary_crossentropy(truth, scores.astype(np.float64))))
    assert after["loss"] == pytest.approx(expected, rel=1e-5)
    assert str(verify(output)).endswith(f"each once; {verify(output).tally.line}")
    write_report(output)
    page = (output / "report.html").read_bytes().decode()
    assert f"{100 * after['f1_micro']:.2f}" in page
    assert "confusion" not in page.partition("<main>")[2].lower()


TRUTH = [[0, 2], [], None, [1], [2, 0, 1], [7, 1]] * 4
"""Of the first ROWS images. The model has no label 7."""


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
@pytest.mark.parametrize("named", [False, True])
def test_several_labels_an_image_count_as_by_hand(tmp_path: Path, engine: str, named: bool) -> None:
    words = {**dict(enumerate(NAMES)), 7: "gnu"}
    lists = [each and [words[number] for number in each] if named else each for each in TRUTH[:ROWS]]
    model, thresholds = made(), (0.4, 0.5, 0.6)
    kind = pa.list_(pa.string() if named else pa.int64())
    output = score(
        tmp_path, engine, model, View(), pa.array(lists, kind), thresholds=thresholds, classes=NAMES if named else None
    )
    foreign = [row for row in range(ROWS) if TRUTH[row] == [7, 1]]
    rows = rows_of(output)
    assert [row["id"] for row in rows] == [row for row in range(ROWS) if row not in foreign]
    assert [row["label"] for row in rows] == [
        None if truth is None else sorted(truth) for truth in TRUTH[:ROWS] if truth != [7, 1]
    ]
    bad = pl.read_parquet(f"{output.path}/quarantine/*.parquet").sort("row")
    assert bad["row"].to_list() == foreign
    assert set(bad["reason"]) == {f"has label {'gnu' if named else 7}, which is not one of the model's 3 classes"}

    truths = [(set(row["label"]), set(row["labels"])) for row in rows if row["label"] is not None]
    after = (output / "metrics.json").read_json()["after"]
    assert after["num_seen"] == len(truths)
    right, has, given = ([sum(number in each for each in sets) for number in range(3)] for sets in (
        [one & other for one, other in truths], [one for one, _ in truths], [other for _, other in truths]
    ))  # fmt: skip
    assert after["f1_micro"] == 2 * sum(right) / (sum(has) + sum(given))
    each_f1 = [2 * a / (b + c) for a, b, c in zip(right, has, given, strict=True) if b + c]
    assert after["f1_macro"] == pytest.approx(sum(each_f1) / len(each_f1))
    assert [row["support"] for row in after["per_class"]] == has
    assert [row["precision"] for row in after["per_class"]] == [
        a / c if c else None for a, c in zip(right, given, strict=True)
    ]
    assert [row["recall"] for row in after["per_class"]] == [
        a / b if b else None for a, b in zip(right, has, strict=True)
    ]
    known = [row for row in rows if row["label"] is not None]
    truth = np.array([[number in row["label"] for number in range(3)] for row in known], np.float64)
    scores = np.array([row["scores"] for row in known], np.float64)
    expected = runtime.import_keras().losses.binary_crossentropy(truth, scores)
    assert after["loss"] == pytest.approx(float(np.mean(expected)), rel=1e-5)
    assert verify(output).tally.summary(detailed=True) == after | {"loss": verify(output).tally.loss}
    assert (verify(output).scored, verify(output).quarantined) == (len(rows), len(foreign))
    write_report(output)
    assert f"{100 * after['f1_micro']:.2f}" in (output / "report.html").read_bytes().decode()


def test_a_model_of_one_class_is_refused_even_where_its_file_did_not_tell_it(tmp_path: Path) -> None:
    keras = runtime.import_keras()
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")])
    with pytest.raises(InputError, match="an image may have several labels, but training needs one, and so does a"):
        score(tmp_path, "openvino", model, View(), pa.array(TRUTH[:ROWS]))


def test_labels_that_were_changed_are_noticed(tmp_path: Path) -> None:
    output = score(tmp_path, "openvino", made(), View(), thresholds=(0.5,) * 3)
    table = pq.read_table(output.path + "/part-00001.parquet")
    changed = [[0, 1, 2] if each == [0] else [0] for each in table["labels"].to_pylist()]
    table = table.set_column(table.column_names.index("labels"), "labels", [changed])
    pq.write_table(table, output.path + "/part-00001.parquet")
    manifest = (output / "_manifest.json").read_json()
    manifest["parts"][1]["sha256"] = parts.sha256((output / "part-00001.parquet").read_bytes())
    (output / "_manifest.json").write_json(manifest)
    with pytest.raises(RetryableError, match=r"part-00001\.parquet has labels that are not those of its scores"):
        verify(output)
    plan = json.loads((tmp_path / "out" / "_plan.json").read_text())
    with pytest.raises(ValueError, match="has 2 thresholds for 3 classes"):
        replace(Plan(**{**plan, "units": ((0, 10),), "thresholds": (0.5,) * 3}), thresholds=(0.5, 0.5))


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_embeddings_are_a_vector_an_image(tmp_path: Path, engine: str) -> None:
    model = made()
    output = score(tmp_path, engine, model, View(output_layer="features"), output_layer="features")
    vectors = runtime.import_keras().Sequential(model.layers[:-1])(images(ROWS, SHAPE).astype(np.float32))
    frame = pl.read_parquet(f"{output.path}/part-*.parquet").sort("id")
    assert frame.schema["embedding"] == pl.Array(pl.Float32, 7)
    np.testing.assert_allclose(frame["embedding"].to_numpy(), vectors, atol=1e-6)
    assert frame.columns == ["id", "label", "embedding"]
    assert frame["label"].to_list() == labels(ROWS, 3).tolist()
    listed = tmp_path / "listed"
    listed.mkdir()
    beside = score(
        listed, engine, model, View(output_layer="features"), pa.array(TRUTH[:ROWS]), output_layer="features"
    )
    assert [row["label"] for row in rows_of(beside)] == [each and sorted(each) for each in TRUTH[:ROWS]]
    assert verify(beside).scored == ROWS
    query = f"select list_dot_product(embedding, embedding) from '{output.path}/part-*.parquet' order by id"
    squares = [row[0] for row in duckdb.sql(query).fetchall()]
    np.testing.assert_allclose(squares, (np.asarray(vectors) ** 2).sum(axis=1), rtol=1e-5)
    verified = verify(output)
    assert (verified.scored, verified.tally.num_seen) == (ROWS, 0)
    assert "after" not in (output / "metrics.json").read_json()
    write_report(output)
