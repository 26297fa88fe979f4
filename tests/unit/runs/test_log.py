"""The log that a run's folder keeps: of all attempts, at most so many bytes, and never in the way."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from pyarrow import fs

from mnist_ray.errors import RetryableError
from mnist_ray.runs.log import LOCAL_SECONDS, REMOTE_SECONDS, DriverLog, driver_log, heading
from mnist_ray.storage.location import Location
from tests.support.slow_store import slow_first_write


@pytest.fixture
def file(tmp_path: Path) -> Location:
    return driver_log(Location.parse(tmp_path))


def logged(file: Location, *lines: str, most: int = 1000) -> str:
    log = DriverLog(file, most=most)
    for line in lines:
        log.add(line)
    log.close()
    return file.read_bytes().decode()


def test_attempts_follow_each_other(file: Location) -> None:
    assert file.path.endswith("/logs/driver.log")
    assert logged(file, "one", "two\nthree") == "one\ntwo\nthree\n"
    assert logged(file, "four") == "one\ntwo\nthree\nfour\n"
    assert logged(file) == "one\ntwo\nthree\nfour\n"


def test_the_oldest_lines_go_first_and_the_size_is_bounded(file: Location) -> None:
    lines = [f"line {number:03}" for number in range(200)]
    for _ in range(3):
        content = logged(file, *lines, most=1000)
        assert len(content.encode()) <= 1000
        assert content.startswith("... earlier lines are left out\nline ")
        assert content.endswith("line 198\nline 199\n")
        assert content.count("left out") == 1
    assert len(logged(file, "é" * 5000, most=1000).encode()) <= 1000
    assert logged(file, "last", most=1000).endswith("\nlast\n")


def test_it_is_written_while_the_run_goes_on(file: Location) -> None:
    log = DriverLog(file, interval=0.01)
    log.add("now")
    deadline = time.monotonic() + 5
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert file.read_bytes() == b"now\n"
    log.close()


def test_object_storage_is_written_to_seldom(file: Location, tmp_path: Path) -> None:
    remote = Location(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "driver.log", "s3://")
    for where, seconds in ((remote, REMOTE_SECONDS), (file, LOCAL_SECONDS)):
        log = DriverLog(where)
        assert log._interval == seconds
        log.close()
    assert not file.exists()  # nothing was told


def test_a_storage_that_fails_does_not_matter(file: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Location, *_: object) -> None:
        raise RetryableError("no")

    monkeypatch.setattr(Location, "write_bytes", fail)
    log = DriverLog(file)
    log.add("x")
    log.close()
    assert not file.exists()


def test_the_first_line_of_an_attempt() -> None:
    owner = {"host": "h", "pid": 7, "job": None}
    assert heading("mnist-ray 0.1.0", owner).endswith("Z mnist-ray 0.1.0 on h, process 7")
    assert heading("mnist-ray 0.1.0", {**owner, "job": "raysubmit_x"}).endswith(", process 7, job raysubmit_x")


def test_an_older_text_is_not_written_over_a_newer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread writes to a store that is slow, as another flushes what has come meanwhile: the last lines."""
    began, may_go_on = slow_first_write(monkeypatch)
    log = DriverLog(Location.parse(tmp_path) / "driver.log", interval=0.01)
    log.add("first")
    assert began.wait(5)
    threading.Timer(0.2, may_go_on.set).start()
    log.add("last")
    log.flush()
    log._stop.set()
    log._thread.join()
    assert (tmp_path / "driver.log").read_text() == "first\nlast\n"
