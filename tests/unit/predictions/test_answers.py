"""Parts of labels and of embeddings, without a model: empty lists, empty units, rows out of quarantine, damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
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


def plan_of(kind: dict[str, Any]) -> Plan:
    return Plan(model_sha256="ab" * 32, input_digest="cd" * 32, split="all", limit=None, pixels="0-1", num_classes=3,
                units=((0, 5), (5, 8), (8, ROWS)), **kind)  # fmt: skip


def values() -> np.ndarray:
    made = np.random.default_rng(1).random((ROWS, 3), dtype=np.float32)
    made[1] = 0  # no label at all
    made[2] = 1
    return made


def rows_of(plan: Plan, rows: list[int], bad: list[int]) -> ScoredRows:
    labels = np.arange(ROWS)[rows] % 4 - 1
    return ScoredRows(
        ids=np.array(rows, np.int64), labels=labels, predictions=None, probabilities=values()[rows], sources=None,
        bad=[Bad(row, None, "is an empty file") for row in bad], input_name="x",
        tally=answers_of(plan).tally(labels, values()[rows]),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_out_of_quarantine_in_their_order(kind: dict[str, Any], tmp_path: Path) -> None:
    output = Location.parse(tmp_path)
    plan = plan_of(kind).freeze(output)
    units = [rows_of(plan, [0, 1, 3, 4], [2]), rows_of(plan, [], [5, 6, 7]), rows_of(plan, [8, 9, 10, 11], [])]
    done = [parts.commit(output, plan, unit, rows) for unit, rows in enumerate(units)]
    parts.write_manifest(output, plan, done, ids="row")
    assert (verify(output).scored, verify(output).quarantined) == (8, 4)
    done[0] = parts.commit_retried(output, plan, done[0], rows_of(plan, [2], []))
    done[1] = parts.commit_retried(output, plan, done[1], rows_of(plan, [5, 6, 7], []))
    parts.write_manifest(output, plan, done, ids="row")
    whole = rows_of(plan, list(range(ROWS)), [])
    assert verify(output).tally.has_counts_of(whole.tally)  # type: ignore[arg-type]
    assert [parts.committed(output, plan, unit) is not None for unit in range(3)] == [True] * 3
    table = pl.read_parquet(f"{tmp_path}/part-*.parquet")
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
