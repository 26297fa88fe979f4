"""What a job says at its beginning: what it continues, and that it reads for long."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mnist_ray.config import RunConfig
from mnist_ray.console import Console
from mnist_ray.runs.folder import RunFolder
from mnist_ray.sources.formats.shards import Manifest, Shard
from mnist_ray.steps import begin
from mnist_ray.storage.location import Location
from tests.support.output_maker import make_output

CONFIG = RunConfig(epochs=4, batch_size=5, num_shards=2)  # 3 steps an epoch


def shard(split: str, number: int, rows: int) -> Shard:
    return Shard(f"{split}/part-{number:05d}.parquet", rows, "0" * 64)


def written(folder: RunFolder, *, step: int | None = None, has_model: bool = False) -> str:
    """What is said of a run's folder with two train shards of 7 and 6 rows, two test shards and a checkpoint."""
    shards = {split: (shard(split, 0, 7), shard(split, 1, 6)) for split in ("train", "test")}
    (folder.shards / "dataset.json").write_json(Manifest("n", (4, 4), ("0",), "d", shards).to_json())
    if step is not None:
        (folder.root / "checkpoints" / f"step-{step:010d}-{'a' * 64}.npz").write_bytes(b"")
    if has_model:
        (folder.model / "model.json").write_json({})
    return said(folder)


def said(folder: RunFolder) -> str:
    stream = io.StringIO()
    begin.print_what_is_there(folder, CONFIG, Console(stream))
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.at(str(tmp_path), "m")


@pytest.mark.parametrize(
    ("step", "has_model", "words"),
    [
        (None, False, ""),
        (6, False, "; training goes on from epoch 3 of 4"),
        (7, False, "; training goes on from epoch 3 of 4, step 2"),
        (12, False, "; all epochs are trained"),
        (12, True, "; the model is trained"),
    ],
)
def test_what_is_there_is_told(step: int | None, has_model: bool, words: str, folder: RunFolder) -> None:
    assert written(folder, step=step, has_model=has_model) == f"continuing m: 4 shards are there{words}\n"


def test_a_new_run_continues_nothing(folder: RunFolder) -> None:
    assert said(folder) == ""
    (folder.shards / "dataset.json").write_json({})  # damaged: it will be written again
    assert said(folder) == ""


def test_parts_of_the_predictions(folder: RunFolder) -> None:
    make_output(Path(folder.predictions.path))
    assert begin.parts_there(folder.predictions) is None  # complete
    (folder.predictions / "_manifest.json").delete()
    (folder.predictions / "part-00001.parquet").delete()
    assert begin.parts_there(folder.predictions) == "2 of 3 parts of the predictions are there"
    assert said(folder) == "continuing m: 2 of 3 parts of the predictions are there\n"
    assert begin.parts_there(Location.parse(folder.root.path)) is None


def test_reading_for_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_ray.console._PATIENCE_SECONDS", 0.05)
    stream = io.StringIO()

    def source(seconds: float) -> Any:
        return SimpleNamespace(
            name="d", splits={"train": 1000, "test": 34}, fingerprint=lambda: time.sleep(seconds) or "digest"
        )

    assert begin.digest_of(source(0), Console(stream)) == "digest"
    time.sleep(0.1)
    assert stream.getvalue() == ""
    assert begin.digest_of(source(0.3), Console(stream)) == "digest"
    assert stream.getvalue() == "reading the 1,034 images of d for their checksum ...\n"


def test_the_code_of_a_users_model_is_part_of_what_identifies_a_run() -> None:
    plain = begin.fingerprint_of(RunConfig(), data="d")
    assert plain == {"data": "d", **RunConfig().fingerprint()}
    users = begin.fingerprint_of(RunConfig(architecture="tests.support.own_model:classifier"), data="d")
    assert users.keys() - plain.keys() == {"code"}
    assert len(users["code"]) == 64
