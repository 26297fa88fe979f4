"""Parts as others read them: the values of numpy, by four readers; the most probable classes, ties included."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import SetupError
from mnist_ray.predictions import parts
from mnist_ray.predictions.answers import top
from mnist_ray.predictions.parts import ScoredRows
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.tally import Tally
from mnist_ray.predictions.verify import verify
from mnist_ray.sources.base import Bad
from mnist_ray.storage.location import Location
from mnist_ray.storage.s3 import S3
from tests.support.output_maker import NAMES, make_output, retry, rows_of
from tests.support.s3_server import BUCKET


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
    probabilities = made["probabilities"][rows]
    if "probabilities" in columns:
        assert [list(row["probabilities"]) for row in found] == probabilities.tolist()
    else:
        for row, expected in zip(found, probabilities, strict=True):
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
    probabilities = np.array([[0.2, 0.3, 0.3, 0.2], [0.25] * 4, [0.0, 0.5, 0.0, 0.5]], np.float32)
    classes, most = top(np.array([1, 2, 1]), probabilities, 4)
    assert classes.tolist() == [[1, 2, 0, 3], [2, 0, 1, 3], [1, 3, 0, 2]]
    assert most.tolist() == [[probabilities[row, number] for number in numbers] for row, numbers in enumerate(classes)]
    assert top(np.array([1, 2, 1]), probabilities, 1)[0].tolist() == [[1], [2], [1]]
    assert top(np.empty(0, np.int64), np.empty((0, 4), np.float32), 2)[0].shape == (0, 2)


@pytest.mark.parametrize("k", [1, 3, 40])
def test_the_top_is_that_of_a_stable_sort(k: int) -> None:
    generator = np.random.default_rng(k)
    probabilities = generator.integers(0, 6, (200, 40)).astype(np.float32) / 7  # many ties, and zeros
    predictions = generator.integers(0, 40, 200)
    probabilities[7] = np.nan  # what a broken model gives
    classes, most = top(predictions, probabilities.astype(np.float64), k)
    for row, (prediction, values) in enumerate(zip(predictions, probabilities, strict=True)):
        expected = [prediction, *(each for each in np.argsort(-values, kind="stable") if each != prediction)][:k]
        assert classes[row].tolist() == expected
        np.testing.assert_array_equal(most[row], values[expected])


# Scoring again what was quarantined.


class CutError(Exception):
    """The process is gone."""


def mend(out: Path, made: dict[str, np.ndarray], mended: tuple[int, ...]) -> list[parts.Committed]:
    """What `score --retry-quarantined` does to each unit; of the rows aside, the mended ones can be read now."""
    output = Location.parse(out)
    plan = Plan.load(output)
    assert plan is not None
    done = [retry(output, plan, made, before, mended) for before in list(parts.resume(output, plan))]
    parts.write_manifest(output, plan, done)
    return done


@pytest.mark.parametrize(
    "changed", [{}, {"top_k": 2, "classes": NAMES}, {"ids": np.array(list("abcdefghijklmnopqr"), object)}]
)
def test_what_was_mended_takes_its_place(tmp_path: Path, changed: dict[str, Any]) -> None:
    """The rows are those of an output that had nothing to mend; unit 2 had no row at all."""
    bad = (0, 7, 8, *range(11, 18))
    made = make_output(tmp_path / "out", bad=bad, **changed)
    make_output(tmp_path / "sound", bad=(0, 8), **changed)
    mend(tmp_path / "out", made, (7,))
    (tmp_path / "out" / "metrics.json").unlink()
    assert verify(Location.parse(tmp_path / "out")).scored == 9
    mend(tmp_path / "out", made, tuple(range(9, 18)))
    verified = verify(Location.parse(tmp_path / "out"))
    assert (verified.scored, verified.quarantined) == (16, 2)
    assert by_pyarrow(tmp_path / "out") == by_pyarrow(tmp_path / "sound")
    assert verified.tally.loss == pytest.approx(verify(Location.parse(tmp_path / "sound")).tally.loss, rel=1e-12)
    mend(tmp_path / "out", made, (0, 8))
    assert verify(Location.parse(tmp_path / "out")).scored == 18
    assert list((tmp_path / "out" / "quarantine").iterdir()) == []


def test_nothing_mended_changes_nothing(tmp_path: Path) -> None:
    made = make_output(tmp_path / "out")
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.parquet")}
    mend(tmp_path / "out", made, ())
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.parquet")} == before


@pytest.mark.parametrize("first", [(), (7,)])
def test_at_every_moment_of_a_mending_each_image_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: tuple[int, ...]
) -> None:
    """Cut before and after each write and removal; what a resume then finds is whole, and the mending goes on."""
    made = make_output(tmp_path / "made", bad=(3, 7, 8, 13))
    if first:  # the quarantine has its other name
        mend(tmp_path / "made", made, first)
    (tmp_path / "made" / "metrics.json").unlink()
    actions = {name: getattr(Location, name) for name in ("write_bytes", "write_over", "delete")}
    cuts = 0
    for cut in itertools.count():
        out, steps = shutil.copytree(tmp_path / "made", tmp_path / str(cut)), itertools.count()

        def stepping(action: Any, cut: int = cut, steps: Any = steps) -> Any:
            def step(*args: Any) -> None:
                if next(steps) == cut:
                    raise CutError
                action(*args)
                if next(steps) == cut:
                    raise CutError

            return step

        with monkeypatch.context() as patch:
            for name, action in actions.items():
                patch.setattr(Location, name, stepping(action))
            try:
                mend(out, made, (3, 8))
            except CutError:
                cuts += 1
            else:
                break
        (out / "_manifest.json").unlink(missing_ok=True)  # the driver removes it before anything else
        output = Location.parse(out)
        plan = Plan.load(output)
        assert plan is not None
        there = list(parts.resume(output, plan))
        assert [each.unit for each in there] == [0, 1, 2]  # no unit has to be read again
        parts.write_manifest(output, plan, there)
        assert verify(output).images == 18
        mend(out, made, (3, 8))
        assert verify(output).quarantined == 4 - 2 - len(first)
    assert cuts >= 10


@pytest.mark.parametrize("mended", [((7, 8), (7, 8)), ((7,), (7, 8)), ((7, 8), (8,)), ((7,), (8,))])
@pytest.mark.parametrize("ids", [np.arange(18), np.array(list("abcdefghijklmnopqr"), object)])
def test_two_actors_that_retry_the_same_unit_change_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mended: tuple[tuple[int, ...], ...], ids: np.ndarray
) -> None:
    """One does all of it at any moment of the other, and answers first. They need not find the same images mended.

    A moment is before a file is read, or between a file's being written and its getting its name.
    """
    made = make_output(tmp_path / "made", ids=ids)
    (tmp_path / "made" / "metrics.json").unlink()
    read, fsync = Location.read_bytes, os.fsync
    for moment in itertools.count():
        out = Location.parse(shutil.copytree(tmp_path / "made", tmp_path / str(moment)))
        plan = Plan.load(out)
        assert plan is not None
        done, answers, steps = list(parts.resume(out, plan)), list[parts.Committed](), itertools.count()

        def stepping(
            action: Any, out: Location = out, plan: Plan = plan, done: Any = done, moment: int = moment,
            answers: Any = answers, steps: Any = steps,
        ) -> Any:  # fmt: skip
            def step(argument: Any) -> Any:
                if next(steps) == moment:
                    answers.append(retry(out, plan, made, done[1], mended[0]))
                return action(argument)

            return step

        with monkeypatch.context() as patch:
            patch.setattr(Location, "read_bytes", stepping(read))
            patch.setattr(os, "fsync", stepping(fsync))
            answers.append(retry(out, plan, made, done[1], mended[1]))
        if len(answers) == 1:
            break
        assert (answers[1].part, answers[1].quarantine) == (answers[0].part, answers[0].quarantine)
        parts.write_manifest(out, plan, [done[0], answers[0], done[2]])
        verified = verify(out)
        assert verified.scored in (15 + len(mended[0]), 15 + len(mended[1]))  # the other's, where it had its name
        found = [row["id"] for row in by_pyarrow(Path(out.path))]
        either = [np.setdiff1d(np.arange(18), sorted({7, 8, 13} - set(each))) for each in mended]
        assert found in [ids[rows].tolist() for rows in either]
    assert moment >= 5  # three reads, the part, its folder


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_two_actors_that_score_the_same_unit_commit_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, here: None
) -> None:
    """Their CPUs round in different ways, and an image was repaired in between. The first commit stands, whatever the
    other was doing."""
    fsync, upload = os.fsync, S3.write_if_unchanged
    for moment in itertools.count():
        uri = tmp_path / str(moment) if place == "disk" else f"s3://{BUCKET}/{tmp_path.name}/{moment}"
        make_output(uri, bad=(7, 13))
        out = Location.parse(uri)
        plan = Plan.load(out)
        assert plan is not None
        for name in ("part-00001.parquet", "quarantine/part-00001.parquet", "_manifest.json", "metrics.json"):
            (out / name).delete()
        answers, steps = list[parts.Committed](), itertools.count()

        def stepping(
            action: Any, out: Location = out, plan: Plan = plan, moment: int = moment, answers: Any = answers,
            steps: Any = steps,
        ) -> Any:  # fmt: skip
            def step(*arguments: Any) -> Any:
                if next(steps) == moment:
                    answers.append(parts.commit(out, plan, 1, rows_of((7, 8), 1)))
                return action(*arguments)

            return step

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", stepping(fsync))
            patch.setattr(S3, "write_if_unchanged", stepping(upload))
            answers.append(parts.commit(out, plan, 1, rows_of((7,), 2)))
        if len(answers) == 1:
            break
        assert (answers[1].part, answers[1].quarantine) == (answers[0].part, answers[0].quarantine)
        done = list(parts.resume(out, plan))
        assert done[1].part == answers[0].part
        parts.write_manifest(out, plan, done)
        assert verify(out).quarantined == answers[0].quarantined + 1
    assert moment >= 2


def test_a_damaged_part_is_written_again(tmp_path: Path) -> None:
    """Or one of another job, which a late actor has written where no part was yet."""
    make_output(tmp_path / "out", bad=(7, 13))
    output = Location.parse(tmp_path / "out")
    plan = Plan.load(output)
    assert plan is not None
    (output / "metrics.json").delete()
    make_output(tmp_path / "other", bad=(7,), input_digest="ef" * 32)
    for damage in (b"", b"damaged", (tmp_path / "other" / "part-00001.parquet").read_bytes()):
        (output / "part-00001.parquet").write_bytes(damage)
        assert [each.unit for each in parts.resume(output, plan)] == [0, 2]
        committed = parts.commit(output, plan, 1, rows_of((8,), 3))
        done = list(parts.resume(output, plan))
        assert done[1].part == committed.part
        parts.write_manifest(output, plan, done)
        assert verify(output).quarantined == 2


def test_a_part_that_may_not_be_read_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its quarantine would go, and its images be scored again."""
    make_output(tmp_path / "out")
    output, plan = Location.parse(tmp_path / "out"), Plan.load(Location.parse(tmp_path / "out"))
    assert plan is not None
    before, read_bytes = sorted((tmp_path / "out").rglob("*")), Path.read_bytes

    def deny(file: Path) -> bytes:
        if file == tmp_path / "out" / "part-00001.parquet":
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", deny)
    for look in (lambda: list(parts.resume(output, plan)), lambda: verify(output)):
        with pytest.raises(
            SetupError, match=r"^cannot read .*part-00001\.parquet: Permission denied; correct the path"
        ):
            look()
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_a_part_keeps_its_quarantine_where_another_actor_finds_other_images_bad(tmp_path: Path) -> None:
    """The unit was taken for lost, and is scored by two."""
    make_output(tmp_path / "out", bad=(7,))
    output = Location.parse(tmp_path / "out")
    plan = Plan.load(output)
    assert plan is not None
    bad = [Bad(8, "images/8.png", "cannot be decoded")]
    parts._write_quarantine(output, "part-00001.parquet", _rows_without_good_ones(bad))
    assert parts.committed(output, plan, 1) is not None
    parts.write_manifest(output, plan, list(parts.resume(output, plan)))
    assert verify(output).quarantined == 1


def _rows_without_good_ones(bad: list[Bad]) -> ScoredRows:
    none = np.empty(0, np.int64)
    return ScoredRows(
        ids=none, labels=none, predictions=none, probabilities=np.empty((0, 4), np.float32), sources=None, bad=bad,
        input_name="images", tally=Tally.zero(4),
    )  # fmt: skip
