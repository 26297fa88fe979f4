"""Parts of labels and of embeddings, without a model: empty lists, empty units, rows out of quarantine, damage."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import RetryableError
from mnist_ray.predictions import parts
from mnist_ray.predictions.answers import answers_of
from mnist_ray.predictions.parts import ScoredRows
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.verify import verify
from mnist_ray.sources.base import Bad
from mnist_ray.storage.location import Location

NAMES = ("ape", "bee", "cat")
KINDS: list[dict[str, Any]] = [
    {"kind": "labels", "thresholds": (0.5, 0.5, 0.9), "classes": NAMES}, {"kind": "embeddings", "output_layer": "last"},
]  # fmt: skip
ROWS = 12
ONE = np.arange(ROWS) % 4 - 1
SEVERAL = np.array([[-1] * 3, [0] * 3, [1, 0, 1], [1] * 3] * 2 + [[-1] * 3] * 4, np.int8)
"""Of the last unit, none are known."""


def plan_of(kind: dict[str, Any]) -> Plan:
    return Plan(model_sha256="ab" * 32, input_digest="cd" * 32, split="all", limit=None, pixels="0-1", num_classes=3,
                units=((0, 5), (5, 8), (8, ROWS)), **kind)  # fmt: skip


def values() -> np.ndarray:
    made = np.random.default_rng(1).random((ROWS, 3), dtype=np.float32)
    made[1] = 0  # no label at all
    made[2] = 1
    return made


def rows_of(plan: Plan, rows: list[int], bad: list[int], truth: np.ndarray = ONE) -> ScoredRows:
    labels = truth[rows]
    return ScoredRows(
        ids=np.array(rows, np.int64), labels=labels, predictions=None, probabilities=values()[rows], sources=None,
        bad=[Bad(row, None, "is an empty file") for row in bad], input_name="x",
        tally=answers_of(plan).tally(labels, values()[rows]),
    )  # fmt: skip


@pytest.mark.parametrize("truth", [ONE, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_out_of_quarantine_in_their_order(kind: dict[str, Any], truth: np.ndarray, tmp_path: Path) -> None:
    output = Location.parse(tmp_path)
    plan = plan_of(kind).freeze(output)
    rows_of_plan = partial(rows_of, plan, truth=truth)
    units = [rows_of_plan([0, 1, 3, 4], [2]), rows_of_plan([], [5, 6, 7]), rows_of_plan([8, 9, 10, 11], [])]
    done = [parts.commit(output, plan, unit, rows) for unit, rows in enumerate(units)]
    parts.write_manifest(output, plan, done, ids="row")
    assert (verify(output).scored, verify(output).quarantined) == (8, 4)
    done[0] = parts.commit_retried(output, plan, done[0], rows_of_plan([2], []))
    done[1] = parts.commit_retried(output, plan, done[1], rows_of_plan([5, 6, 7], []))
    parts.write_manifest(output, plan, done, ids="row")
    whole = rows_of_plan(list(range(ROWS)), [])
    assert verify(output).tally.has_counts_of(whole.tally)  # type: ignore[arg-type]
    assert [parts.committed(output, plan, unit) is not None for unit in range(3)] == [True] * 3
    table = pl.read_parquet(f"{tmp_path}/part-*.parquet")
    lists = [None if row[0] < 0 else np.flatnonzero(row).tolist() for row in SEVERAL]
    assert table["label"].to_list() == (lists if truth is SEVERAL else [None if each < 0 else each for each in ONE])
    for unit, (start, stop) in enumerate(plan.units):  # the same bytes as of images that never were in quarantine
        fresh = parts.commit(Location.parse(tmp_path / "again"), plan, unit, rows_of_plan(list(range(start, stop)), []))
        assert fresh.part.sha256 == done[unit].part.sha256
    column = "scores" if kind["kind"] == "labels" else "embedding"
    np.testing.assert_array_equal(table[column].to_numpy(), values())
    if column == "scores":
        expected = [np.flatnonzero(row >= np.array(plan.thresholds, np.float32)).tolist() for row in values()]
        assert table["labels"].to_list() == expected
        assert table["classes"].to_list() == [[NAMES[number] for number in each] for each in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_counts_of_another_kind_are_not_taken(kind: dict[str, Any], tmp_path: Path) -> None:
    output = Location.parse(tmp_path)
    plan = plan_of(kind).freeze(output)
    done = [parts.commit(output, plan, unit, rows_of(plan, list(range(*plan.units[unit])), [])) for unit in range(3)]
    parts.write_manifest(output, plan, done, ids="row")
    file = output / "_plan.json"
    other = KINDS[1 - KINDS.index(kind)]
    file.write_json(file.read_json() | {"classes": None, "thresholds": None, "output_layer": None} | other)
    with pytest.raises(RetryableError, match=r"part-00000\.parquet"):
        verify(output)
    damaged = Plan.load(output)
    assert damaged is not None
    assert parts.committed(output, damaged, 0) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ([[0, 2]], "counts that do not match its rows"),
        ([[2, 0, 1]], r"lists of labels that are not in order, or not of its classes"),
        ([[1, 1]], r"lists of labels that are not in order, or not of its classes"),
        ([[3]], r"lists of labels that are not in order, or not of its classes"),
        ([None], "counts that do not match its rows"),
    ],
)
def test_labels_of_the_input_that_were_changed_are_noticed(changed: list[Any], said: str, tmp_path: Path) -> None:
    output = Location.parse(tmp_path)
    plan = plan_of(KINDS[0]).freeze(output)
    done = [
        parts.commit(output, plan, unit, rows_of(plan, list(range(*rows)), [], SEVERAL))
        for unit, rows in enumerate(plan.units)
    ]
    parts.write_manifest(output, plan, done, ids="row")
    assert verify(output).scored == ROWS
    file = tmp_path / "part-00000.parquet"
    table = pq.read_table(file)
    lists = table["label"].to_pylist()
    column = pa.array([*lists[:3], *changed, *lists[4:]], pa.list_(pa.int64()))
    pq.write_table(table.set_column(1, "label", column), file)
    manifest = (output / "_manifest.json").read_json()
    manifest["parts"][0]["sha256"] = parts.sha256(file.read_bytes())
    (output / "_manifest.json").write_json(manifest)
    with pytest.raises(RetryableError, match=said):
        verify(output)
