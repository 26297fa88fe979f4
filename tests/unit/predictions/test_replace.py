"""Replacing an output: the old one is whole until the new one is, wherever it is cut short."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from mnist_ray.config import ScoreConfig
from mnist_ray.errors import InputError, UserError
from mnist_ray.predictions import replace
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.verify import verify
from mnist_ray.storage.location import Location
from tests.support.output_maker import make_output

OLD, NEW = "cd" * 32, "ef" * 32
JOB = {"input_digest": NEW, "split": "all", "limit": None, "top_k": None}


def digest_of(output: Location) -> str | None:
    plan = Plan.load(output)
    return plan and plan.input_digest


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_same_job_and_an_empty_folder_are_written_right_into(tmp_path: Path) -> None:
    output = Location.parse(tmp_path / "out")
    assert replace.target(output, JOB) == output
    make_output(tmp_path / "out", input_digest=NEW)
    assert replace.target(output, JOB) == output
    make_output(tmp_path / ".out.new", input_digest="12" * 32)  # of a third job, never finished
    assert replace.target(output, {**JOB, "pixels": "0-255"}) == output
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("other", [{"input_digest": OLD}, {"limit": 5}, {"pixels": "0-1"}, {"top_k": 1}])
def test_another_job_is_left_alone(tmp_path: Path, other: dict[str, Any]) -> None:
    make_output(tmp_path / "out", input_digest=NEW)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    new = replace.target(Location.parse(tmp_path / "out"), {**JOB, **other})
    assert new == Location.parse(tmp_path / ".out.new")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_damaged_output_is_another_jobs(tmp_path: Path) -> None:
    make_output(tmp_path / "out", input_digest=NEW)
    (tmp_path / "out" / "_plan.json").write_text("{")
    assert replace.target(Location.parse(tmp_path / "out"), JOB).name == ".out.new"
    (tmp_path / "out" / "_plan.json").unlink()
    assert replace.target(Location.parse(tmp_path / "out"), JOB).name == ".out.new"


def test_files_of_somebody_else_are_not_lost(tmp_path: Path) -> None:
    make_output(tmp_path / "out")
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"out holds thesis\.tex, which mnist-ray did not write; move it away"):
        replace.target(Location.parse(tmp_path / "out"), JOB)
    assert names(tmp_path) == {"out"}


def test_a_whole_bucket_has_nothing_beside_it(tmp_path: Path) -> None:
    bucket = Location(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket", "s3://")
    with pytest.raises(InputError, match=r"s3://bucket has no folder beside it .* give --output a folder within it"):
        replace.target(bucket, JOB)


def test_mending_and_making_anew_exclude_each_other() -> None:
    with pytest.raises(InputError, match="exclude each other"):
        ScoreConfig(input=("a",), model="b", output="c", overwrite=True, retry_quarantined=True)


class CutError(Exception):
    """The process is gone."""


@pytest.mark.parametrize("is_local", [True, False])
def test_cut_short_at_any_step_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_local: bool) -> None:
    cuts = 0
    for cut in itertools.count():
        folder, steps = tmp_path / str(cut) / "bucket", itertools.count()
        make_output(folder / "out", input_digest=OLD)
        make_output(folder / ".out.new", input_digest=NEW, seed=1)
        expected = {file.name: file.read_bytes() for file in (folder / ".out.new").glob("part-*")}
        (folder / "out" / "progress.json").write_text('{"phase": "done"}')
        output = Location.parse(folder / "out")
        if not is_local:
            output = Location(fs.SubTreeFileSystem(str(folder.parent), fs.LocalFileSystem()), "bucket/out", "s3://")

        def stepping(action: Any, cut: int = cut, steps: Any = steps) -> Any:
            def step(*args: Any) -> None:
                if next(steps) == cut:
                    raise CutError
                action(*args)

            return step

        place = replace.target(output, JOB)
        assert place.name == ".out.new"
        with monkeypatch.context() as patch:
            for name in ("_rename", "_copy"):
                patch.setattr(replace, name, stepping(getattr(replace, name)))
            patch.setattr(Location, "delete", stepping(Location.delete))
            try:
                replace.replace(output, place)
            except CutError:
                cuts += 1
                whole = [name for name in ("out", ".out.old") if is_whole(folder / name)]
                assert whole or not is_local  # the old one or the new one is there at any moment
                if (folder / "out" / "_manifest.json").exists():  # nothing has been touched, or all is there
                    assert verify(Location.parse(folder / "out")).images == 18
        if is_local:
            (folder / "out").mkdir(exist_ok=True)  # as a command does that looks whether it can write
        if (place := replace.target(output, JOB)) != output:
            replace.replace(output, place)
        assert names(folder) == {"out"}
        assert verify(Location.parse(folder / "out")).images == 18
        assert digest_of(output) == NEW
        assert {file.name: file.read_bytes() for file in (folder / "out").glob("part-*")} == expected
        if cuts == cut:
            break
    assert cuts == 3 if is_local else cuts > 10


def is_whole(folder: Path) -> bool:
    try:
        verify(Location.parse(folder))
    except UserError:
        return False
    return True
