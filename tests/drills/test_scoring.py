"""Long drills of scoring: lose any process, fill the disk, break the store; the parts come out as if nothing had been.

Real processes, the real command line, millions of real MNIST rows. `make drill` runs them; `make test` does not.
By OpenVINO, or by the engine that DRILL_ENGINE names.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.predictions.verify import verify
from mnist_ray.sources.open import open_source
from mnist_ray.storage.location import Location
from tests.support.command import metrics_of
from tests.support.drilling import Drill
from tests.support.model_maker import make_model
from tests.support.process import Process
from tests.support.s3_server import BUCKET, Faults, s3_server, settings

pytestmark = [pytest.mark.drill, pytest.mark.timeout(400)]

FILES, TIMES = 8, 25

ROWS = FILES * TIMES * 10_000

UNITS = FILES * 4  # of 65,536 rows at the most

ACTOR = "ray::ScoringActor"

ENGINE = os.environ.get("DRILL_ENGINE", "openvino")

PINNED = ("--engine", ENGINE, "--jit", "off", "--batch-size", "4096", "--precision", "float32", "--num-actors", "2")

LINKS = 6
"""Times that the input is longer where the speed is measured: scoring must take longer than the start of an actor."""


class Scoring(Drill):
    """Scorings of the same input by the same model, into `output`."""

    def __init__(self, folder: Path, data: Path) -> None:
        super().__init__(folder)
        self.output, self._data = folder / "output", data

    def score(self, output: str | None = None, *settings: str, images: str = "images", **env: str) -> Process:
        into = output or str(self.output)
        inputs = (str(self._data / images), "--model", str(self._data / "model.keras"), "--output", into)
        return self.start("mnist-ray", "score", *inputs, *PINNED, *settings, **env)

    def parts(self) -> int:
        return len(list(self.output.glob("part-*.parquet")))

    def until_parts(self, driver: Process, number: int) -> None:
        self.until(driver, f"{number} parts", lambda: self.parts() >= number)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files of the test images, over and over; each begins with another. And a model."""
    folder = tmp_path_factory.mktemp("millions")
    test = open_source("embedded").read("test", 0, 10_000)
    (folder / "images").mkdir()
    table = pa.table(
        {
            "image": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(784), 10_000, [None, pa.py_buffer(np.ascontiguousarray(test.images).tobytes())]
            ),
            "label": pa.array(test.labels),
        }
    )
    for number in range(FILES):
        turned = pa.concat_tables([table.slice(number), table.slice(0, number)])
        repeated = pa.concat_tables([turned] * TIMES)
        pq.write_table(repeated, folder / "images" / f"{number}.parquet", compression="zstd", row_group_size=65_536)
    (folder / "many").mkdir()
    for number in range(FILES * LINKS):
        (folder / "many" / f"{number:02}.parquet").hardlink_to(folder / "images" / f"{number % FILES}.parquet")
    make_model(28, 10, folder / "model.keras")
    return folder


@pytest.fixture
def drill(tmp_path: Path, data: Path) -> Iterator[Scoring]:
    made = Scoring(tmp_path, data)
    yield made
    made.remove()


def manifest_of(output: Location) -> Any:
    return (output / "_manifest.json").read_json()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Any:
    """(path, rows, sha256) of each part of a scoring that nothing happened to; its seconds; its output."""
    calm = Scoring(tmp_path_factory.mktemp("calm"), data)
    driver = calm.score()
    try:
        assert driver.end(200) == 0, driver.said()
    finally:
        calm.remove()
    told = metrics_of(calm.output)
    print(
        f"\n  undisturbed: {told['score']['seconds']:.1f} s of {time.monotonic() - driver.began:.1f} s score"
        f" {ROWS:,} images, {told['score']['images_per_second']:,.0f} images/s"
    )
    assert told["score"]["engine"] == ENGINE
    parts = manifest_of(Location.parse(calm.output))["parts"]
    assert len(parts) == UNITS
    return parts, told["score"]["seconds"], calm.output


def assert_as_undisturbed(output: Location, undisturbed: Any) -> None:
    """No part lost, none twice, none another; nothing else left."""
    parts, *_ = undisturbed
    manifest = manifest_of(output)
    assert manifest["parts"] == parts
    assert (manifest["images"], manifest["scored"], manifest["quarantined"]) == (ROWS, ROWS, 0)
    verified = verify(output)
    assert (verified.images, verified.parts, verified.tally.num_seen) == (ROWS, UNITS, ROWS)
    names = [file.name for file in output.list()]
    assert [name for name in names if name.endswith(".parquet")] == [part["path"] for part in parts]
    assert not [name for name in names if name.endswith(".tmp")]


@pytest.mark.parametrize("who", ["one actor", "all actors", "one actor after the other"])
def test_actors_are_killed(drill: Scoring, undisturbed: Any, who: str) -> None:
    driver = drill.score()
    for time_ in range(3 if who == "one actor after the other" else 1):
        drill.until_parts(driver, 4 + 8 * time_)
        actors = driver.processes(ACTOR)
        assert actors
        driver.strike(signal.SIGKILL, *actors[: None if who == "all actors" else 1])
    assert driver.end() == 0, driver.said()
    assert_as_undisturbed(Location.parse(drill.output), undisturbed)


def test_an_actor_hangs(drill: Scoring, undisturbed: Any) -> None:
    """The others do what it has, and in the end it is gone: awake again it could still write."""
    driver = drill.score()
    drill.until_parts(driver, 4)
    hanging = driver.processes(ACTOR)[0]
    struck = driver.strike(signal.SIGSTOP, hanging)
    assert driver.end() == 0, driver.said()
    print(f"\n  done {time.monotonic() - struck:.1f} s after")
    assert hanging not in driver.processes()
    assert_as_undisturbed(Location.parse(drill.output), undisturbed)


def test_the_driver_is_killed_at_ten_moments(drill: Scoring, undisturbed: Any) -> None:
    """From its very start to its end, whatever it does; each time the same command goes on."""
    chance = random.Random(0)
    reached = []
    for moment in range(10):
        driver = drill.score()
        before = drill.parts()
        if moment % 5 == 0:
            time.sleep(chance.uniform(0.5, 8))  # while it starts
        else:
            with suppress(AssertionError):  # ended: there were not so many left
                drill.until_parts(driver, min(before + chance.randint(1, 3), UNITS))
            time.sleep(chance.uniform(0, 0.3))
        driver.strike(signal.SIGKILL, driver.pid)
        driver.end()
        reached.append(drill.parts())
    print(f"\n  parts after each: {reached}")
    assert 0 < reached[1] < UNITS
    driver = drill.score()
    assert driver.end() == 0, driver.said()
    assert_as_undisturbed(Location.parse(drill.output), undisturbed)


def test_nine_tenths_that_are_done_are_not_done_again(drill: Scoring, undisturbed: Any) -> None:
    parts, seconds, output = undisturbed
    chosen = parts[3::8]  # the shorter one at the end of every second file: as many for each actor
    left = [part["path"] for part in chosen]
    assert sum(part["rows"] for part in chosen) == pytest.approx(0.1 * ROWS, rel=0.1)
    drill.output.mkdir()
    for file in output.iterdir():
        if file.is_file() and file.name not in (*left, "_manifest.json", "metrics.json", "progress.json"):
            os.link(file, drill.output / file.name)
    driver = drill.score()
    assert driver.end() == 0, driver.said()
    resumed = metrics_of(drill.output)["score"]["seconds"]
    print(f"\n  {len(left)} of {UNITS} parts: {resumed:.2f} s of {seconds:.1f} s, {resumed / seconds:.1%};"
          f" {time.monotonic() - driver.began:.1f} s with its start")  # fmt: skip
    assert resumed <= 0.15 * seconds + 0.5  # which the actors' first calls take, however long the whole takes
    assert_as_undisturbed(Location.parse(drill.output), undisturbed)


def test_a_node_is_lost(drill: Scoring, undisturbed: Any) -> None:
    cluster = drill.cluster()
    node = cluster.add()
    driver = drill.score(None, **cluster.joined)
    drill.until_parts(driver, 4)
    assert node.processes(ACTOR)
    driver.strike(signal.SIGKILL, *node.processes())
    assert driver.end(200) == 0, driver.said()
    assert_as_undisturbed(Location.parse(drill.output), undisturbed)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What the block starts runs on this core alone."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def test_two_nodes_score_faster_than_one(drill: Scoring) -> None:
    """Nodes of one CPU each, an actor on each."""
    first, second, *_ = os.sched_getaffinity(0)
    rates = []
    with on_core(first):
        cluster = drill.cluster()
    for nodes in (1, 2):
        if nodes == 2:
            with on_core(second):
                cluster.add()
            shutil.rmtree(drill.output)
        driver = drill.score(None, "--num-actors", str(nodes), images="many", **cluster.joined)
        assert driver.end(200) == 0, driver.said()
        rates.append(metrics_of(drill.output)["score"]["images_per_second"])
        assert verify(Location.parse(drill.output)).images == ROWS * LINKS
    print(f"\n  images/s with one node {rates[0]:,.0f}, with two {rates[1]:,.0f}: {rates[1] / rates[0]:.2f} x")
    assert rates[1] > 1.5 * rates[0]


@pytest.fixture
def small_disk(drill: Scoring, undisturbed: Any) -> Iterator[Path]:
    """With room for half of the parts."""
    drill.output.mkdir()
    room = sum(file.stat().st_size for file in undisturbed[2].glob("part-*.parquet")) // 2
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(drill.output)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield drill.output
    subprocess.run(["umount", "-l", drill.output], check=True)


def test_the_disk_is_full_in_mid_write(drill: Scoring, small_disk: Path, undisturbed: Any) -> None:
    driver = drill.score()
    assert driver.end() == 1, driver.said()
    (line,) = driver.err.read_text().splitlines()
    assert f"no space left to write {small_disk}" in line
    assert 0 < drill.parts() < UNITS
    assert not (small_disk / "_manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=600m", small_disk], check=True)
    driver = drill.score()
    assert driver.end() == 0, driver.said()
    assert_as_undisturbed(Location.parse(small_disk), undisturbed)


def test_the_store_fails_all_the_time(drill: Scoring, undisturbed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses, is slow, cuts connections: 15 in 100 requests. Where that is too much, the same command goes on."""
    with s3_server() as port, Faults(port, seed=1, rate=0.15) as proxy:
        starts, code = 0, 1
        while code == 1 and starts < 4:
            driver = drill.score(f"s3://{BUCKET}/output", **settings(proxy.port))
            code, starts = driver.end(200), starts + 1
        assert code == 0, driver.said()
        print(f"\n  {starts} starts, requests: {json.dumps(proxy.done)}")
        for name, value in settings(port).items():
            monkeypatch.setenv(name, value)
        assert_as_undisturbed(Location.parse(f"s3://{BUCKET}/output"), undisturbed)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-s", "-v", "-p", "no:cacheprovider", *sys.argv[1:]]))
