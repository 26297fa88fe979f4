"""What the pipeline decides before Ray starts."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from mnist_ray import pipeline
from mnist_ray.config import RunConfig, ScoreConfig, ShardConfig
from mnist_ray.console import Console
from mnist_ray.errors import RetryableError
from mnist_ray.runs import driver
from mnist_ray.steps.score import num_actors_for
from mnist_ray.storage.location import Location
from tests.support.data_makers import write_npz


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


def test_two_drivers_of_an_output_or_of_shards(tmp_path: Path) -> None:
    """Each ends before it has started a Ray."""
    source, model = write_npz(tmp_path / "data.npz"), tmp_path / "model.h5"
    model.write_bytes(b"\x89HDF\r\n\x1a\n of which nothing is read before Ray is started")
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
