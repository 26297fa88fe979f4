"""Parts as others read them: the values of numpy, by four readers; the most probable classes, ties included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from mnist_ray.predictions import top
from mnist_ray.storage import Location
from tests.test_verify import NAMES, make_output


def by_pyarrow(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ds.dataset(sorted(out.glob("part-*.parquet"))).to_table().to_pylist()
    return rows


def by_pandas(out: Path) -> list[dict[str, Any]]:
    frame = pd.concat([pd.read_parquet(file) for file in sorted(out.glob("part-*.parquet"))])
    return [
        {key: None if np.ndim(value) == 0 and pd.isna(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def by_polars(out: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(out / "part-*.parquet").to_dicts()


def by_duckdb(out: Path) -> list[dict[str, Any]]:
    found = duckdb.connect().sql(f"select * from '{out}/part-*.parquet' order by filename")
    rows: list[dict[str, Any]] = [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    return rows


@pytest.mark.parametrize("read", [by_pyarrow, by_pandas, by_polars, by_duckdb])
@pytest.mark.parametrize(
    ("changed", "columns"),
    [
        ({}, ["id", "label", "prediction", "probabilities"]),
        ({"classes": NAMES}, ["id", "label", "prediction", "class", "probabilities"]),
        (
            {"top_k": 3, "classes": ("0", "1", "2", "3")},
            ["id", "label", "prediction", "top_classes", "top_probabilities"],
        ),
        ({"ids": np.array([f"é/{row}" for row in range(18)], object)}, ["id", "label", "prediction", "probabilities"]),
    ],
)  # fmt: skip
def test_parts_are_read_alike(tmp_path: Path, read: Any, changed: dict[str, Any], columns: list[str]) -> None:
    made = make_output(tmp_path / "out", **changed)
    rows = np.setdiff1d(np.arange(18), [7, 8, 13])  # in the order of the input
    found = read(tmp_path / "out")
    assert [list(row) for row in found] == [columns] * 15
    assert [row["id"] for row in found] == made["ids"][rows].tolist()
    assert [row["label"] for row in found] == [label if label >= 0 else None for label in made["labels"][rows].tolist()]
    assert [row["prediction"] for row in found] == made["predictions"][rows].tolist()
    if "class" in columns:
        assert [row["class"] for row in found] == [NAMES[number] for number in made["predictions"][rows]]
    chances = made["probabilities"][rows]
    if "probabilities" in columns:
        assert [list(row["probabilities"]) for row in found] == chances.tolist()
    else:
        for row, expected in zip(found, chances, strict=True):
            most = sorted(range(4), key=lambda number: -expected[number])[:3]
            assert list(row["top_classes"]) == most
            assert list(row["top_probabilities"]) == expected[most].tolist()


def test_parts_are_zstd(tmp_path: Path) -> None:
    make_output(tmp_path / "out", classes=NAMES)
    metadata = pq.read_metadata(tmp_path / "out" / "part-00000.parquet")
    assert {metadata.row_group(0).column(place).compression for place in range(metadata.num_columns)} == {"ZSTD"}


def test_the_classes_names_are_in_the_manifest(tmp_path: Path) -> None:
    for classes in (None, NAMES):
        make_output(tmp_path / str(classes), classes=classes)
        told = (Location.parse(tmp_path / str(classes)) / "_manifest.json").read_json()["classes"]
        assert told == (list(classes) if classes else None)


def test_ties_are_by_class_number_but_for_the_prediction() -> None:
    chances = np.array([[0.2, 0.3, 0.3, 0.2], [0.25] * 4, [0.0, 0.5, 0.0, 0.5]], np.float32)
    classes, most = top(np.array([1, 2, 1]), chances, 4)
    assert classes.tolist() == [[1, 2, 0, 3], [2, 0, 1, 3], [1, 3, 0, 2]]
    assert most.tolist() == [[chances[row, number] for number in numbers] for row, numbers in enumerate(classes)]
    assert top(np.array([1, 2, 1]), chances, 1)[0].tolist() == [[1], [2], [1]]
    assert top(np.empty(0, np.int64), np.empty((0, 4), np.float32), 2)[0].shape == (0, 2)
