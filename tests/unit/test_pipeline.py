"""What the pipeline decides before Ray starts."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import numpy as np
import pytest

from mnist_ray import pipeline, sharding
from mnist_ray.config import RunConfig, ScoreConfig, ShardConfig, TrainConfig
from mnist_ray.console import Console
from mnist_ray.errors import InputError, RetryableError
from mnist_ray.models import outline
from mnist_ray.models.build import Recipe
from mnist_ray.runs import driver
from mnist_ray.sources.open import open_source
from mnist_ray.steps import begin, exclusive
from mnist_ray.steps.score import num_actors_for
from mnist_ray.storage.location import Location, sha256
from tests.support.data_makers import write_folders, write_npz


@pytest.mark.parametrize(
    ("images", "shape", "encoded", "actors"),
    [
        (10_000, (28, 28), False, 1),
        (100_001, (28, 28), False, 2),
        (10_000, (28, 28), True, 1),
        (60_000, (28, 28), True, 6),
        (1_000, (224, 224, 3), True, 8),
        (3, (4096, 4096, 3), False, 2),
    ],
)
def test_no_more_actors_than_there_is_work_for(images: int, shape: tuple[int, ...], encoded: bool, actors: int) -> None:
    source = SimpleNamespace(image_shape=shape, is_encoded=encoded)
    assert num_actors_for(RunConfig(), source, images, SimpleNamespace(cpus=8.0)) == actors  # type: ignore[arg-type]
    assert num_actors_for(RunConfig(num_actors=3), source, images, SimpleNamespace(cpus=8.0)) == 3  # type: ignore[arg-type]


def write_keras(folder: Path) -> Path:
    """A model of which nothing but the config is read before Ray is started."""
    config = {"module": "keras", "class_name": "Sequential", "config": {"layers": []}}
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
    return folder / "model.keras"


def test_two_drivers_of_an_output_or_of_shards(tmp_path: Path) -> None:
    """Each ends before it has started a Ray."""
    source, model = write_npz(tmp_path / "data.npz"), write_keras(tmp_path)
    config = ScoreConfig(input=(str(source),), model=str(model), output=str(tmp_path / "out"))
    shards = ShardConfig(source=str(source), destination=str(tmp_path / "shards"))
    tell = Console(io.StringIO())
    for folder, start, remedy in (
        ("out", lambda: pipeline.score(config, tell), "--output"),
        ("shards", lambda: pipeline.shard(shards, tell), "DEST"),
    ):
        said = f"another mnist-ray is working on {tmp_path}/{folder}; wait for it or choose another {remedy}"
        with driver.hold(Location.parse(tmp_path / folder), ""), pytest.raises(RetryableError, match=said):
            start()


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are written in this process."""
    monkeypatch.setattr(
        sharding, "_run_tasks", lambda source, to, each, *_: sharding._write(source, to, each, False, "run")
    )


@pytest.mark.parametrize("command", ["run", "train"])
def test_classes_without_images_are_told_of_shards_too(
    command: str, without_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    y_train, y_test = np.array([0, 1, 3, 0, 1, 3, 0]), np.array([0, 4, 1, 0, 0])
    source = open_source(str(write_npz(tmp_path / "data.npz", y_train=y_train, y_test=y_test)))
    sharding.write_shards(source, Location.parse(tmp_path / "shards"), 2, num_tasks=1)
    monkeypatch.setattr(begin, "connect", Mock(side_effect=RetryableError("no Ray today")))
    shards, where = str(tmp_path / "shards"), {"storage": str(tmp_path), "num_workers": "1"}
    config = RunConfig(data=shards, **where) if command == "run" else TrainConfig(shards=shards, **where)
    out = io.StringIO()
    with pytest.raises(RetryableError, match="no Ray today"):
        getattr(pipeline, command)(config, Console(out))
    assert out.getvalue().splitlines()[1:4] == [
        "warning: there are no train images of the class 4, so no model can learn them",
        "warning: there are no test images of the class 3, so their accuracy stays unknown",
        "warning: there are no images at all of the class 2",
    ]


@pytest.mark.parametrize("command", ["run", "train", "score"])
def test_a_users_function_is_tried_before_anything_starts(
    command: str, without_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = Mock(side_effect=InputError("ends in softmax"))
    monkeypatch.setattr(exclusive, "try_training", lambda config, recipe: tried(recipe))
    monkeypatch.setattr(outline, "try_architecture", tried)
    shards, own = Location.parse(tmp_path / "shards"), {"architecture": "tests.support.own_model:classifier"}
    source = open_source(str(write_npz(tmp_path / "data.npz", 7, 5)))
    sharding.write_shards(source, shards, 2, num_tasks=1)
    model = Location.parse(tmp_path) / "model"
    recipe = {
        "image_shape": (4, 4),
        "num_classes": len(source.classes),
        "dropout": 0.2,
        "seed": 0,
        "precision": "float32",
    }
    (model / "classifier.keras").write_bytes(b"")
    (model / "model.json").write_json(
        {"sha256": sha256(b""), "recipe": own | recipe, "classes": source.classes, "pixels": "0-255"}
    )
    where = {"storage": str(tmp_path / "storage"), **own}
    config = {
        "run": RunConfig(data=str(shards), **where),
        "train": TrainConfig(shards=str(shards), **where),
        "score": ScoreConfig(input=(str(shards),), model=str(tmp_path), output=str(tmp_path / "out"), **own),
    }[command]
    with pytest.raises(InputError, match=r"^ends in softmax$"):
        getattr(pipeline, command)(config, Console(io.StringIO()))
    assert tried.mock_calls == [call(Recipe(**own, **recipe))]
    assert not {"storage", "out"} & {path.name for path in tmp_path.iterdir()}


def test_a_class_folder_in_test_alone_is_not_made_into_shards(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "data", train=2, test=2)
    (source / "test" / "class-1").rename(source / "test" / "klass-1")
    config = ShardConfig(source=str(source), destination=str(tmp_path / "shards"))
    with pytest.raises(InputError, match="train/ has no images of the class klass-1, but test/ has; add images to"):
        pipeline.shard(config, Console(io.StringIO()))
    assert not (tmp_path / "shards").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_line_above_a_bar_stands_alone(stream: type[io.StringIO]) -> None:
    out = stream()
    console = Console(out)
    with console.bar("scoring", 10) as bar:
        bar.update(3)
        console.print("trying again in 1 s: [slow] " + "down " * 40)
        bar.finish("done")
    console.print("after")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", out.getvalue()).splitlines()
    wanted = ["trying again in 1 s: [slow] " + "down " * 40, "scoring  done", "after"]
    assert [line for line in plain if line in wanted] == wanted
