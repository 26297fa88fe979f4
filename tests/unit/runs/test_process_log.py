"""What a worker's process printed, kept in the run's folder."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from mnist_ray.errors import RetryableError
from mnist_ray.runs import process_log
from mnist_ray.runs.process_log import MOST_BYTES, ProcessLog, logging_to, worker_log, worker_logs
from mnist_ray.storage.location import Location


@pytest.fixture
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file behind both streams of this process, as far as the log can tell."""
    file = tmp_path / "worker-1.out"
    file.write_bytes(b":job_id:01\n:actor_name:A\nimported\n")
    monkeypatch.setattr(process_log, "_file_behind", lambda descriptor: file)
    return file


def content(folder: Location, name: str) -> list[str]:
    return worker_log(folder, name).read_bytes().decode().splitlines()


def test_what_is_printed_follows_a_heading_without_the_marks_of_ray(printed: Path, tmp_path: Path) -> None:
    folder = Location.parse(tmp_path)
    log = ProcessLog(worker_log(folder, "train-0"))
    with printed.open("ab") as out:
        out.write("é half of a li".encode())
        out.flush()
        log.flush()
        out.write(b"ne\n")
    log.close()
    heading, *lines = content(folder, "train-0")
    assert heading.startswith("--- ")
    assert f"process {os.getpid()}" in heading
    assert lines == ["imported", "é half of a line"]
    assert [each.name for each in worker_logs(folder)] == ["train-0.log"]


def test_it_is_bounded_and_processes_of_the_same_name_follow_each_other(printed: Path, tmp_path: Path) -> None:
    folder = Location.parse(tmp_path)
    ProcessLog(worker_log(folder, "score-0")).close()
    with printed.open("ab") as out:
        out.writelines(b"line %06d\n" % number for number in range(30_000))
    ProcessLog(worker_log(folder, "score-0")).close()
    assert worker_log(folder, "score-0").size() <= MOST_BYTES
    assert content(folder, "score-0")[-1] == "line 029999"
    assert content(folder, "score-0")[0] == "... earlier lines are left out"


def test_two_threads_of_an_actor_write_one_log(printed: Path, tmp_path: Path) -> None:
    class Slow(ProcessLog):
        def add(self, text: str) -> None:
            super().add(text)
            time.sleep(0.1)

    folder = Location.parse(tmp_path)
    log = Slow(worker_log(folder, "score-0"))
    threads = [threading.Thread(target=log.failed) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    heading, *lines = content(folder, "score-0")
    assert heading.startswith("--- ")
    assert lines == ["imported", "NoneType: None", "NoneType: None"]


def test_the_traceback_of_what_is_raised_is_kept_of_any_worker(printed: Path, tmp_path: Path) -> None:
    folder = Location.parse(tmp_path)
    for number, name in ((0, "train-0"), (1_000, "train-1000")):
        with pytest.raises(RetryableError), logging_to(folder, name, number=number):
            raise RetryableError("a peer is gone")
        assert content(folder, name)[-1] == "mnist_ray.errors.RetryableError: a peer is gone"
        assert "Traceback (most recent call last):" in content(folder, name)
    with logging_to(folder, "train-1001", number=1_001):
        pass
    assert not worker_log(folder, "train-1001").exists()


def test_a_worker_that_prints_nothing_has_no_log(tmp_path: Path) -> None:
    with logging_to(Location.parse(tmp_path), "train-0", number=0):
        pass
    assert worker_logs(Location.parse(tmp_path)) == []
