"""One driver: a second one is refused while the first lives."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray.errors import LeaseLostError, RetryableError
from mnist_ray.runs import driver
from mnist_ray.runs.folder import RunFolder
from mnist_ray.storage import fence, lease, location
from mnist_ray.storage.location import Location
from tests.support.run_folders import PRINT, non_local


def test_a_second_driver_is_refused_while_the_first_lives(folder: RunFolder) -> None:
    code = (
        "import sys; from mnist_ray.runs.folder import RunFolder\n"
        "with RunFolder.at(sys.argv[1], 'mnist').hold():\n"
        "  print('locked', flush=True); input()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.root.parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "locked\n"
    with pytest.raises(RetryableError, match=f"another mnist-ray is working on {folder.root}; wait"), folder.hold():
        pass
    first.kill()
    first.communicate()
    with folder.hold():
        pass


def test_two_runs_of_one_storage_do_not_meet(tmp_path: Path) -> None:
    first, second = RunFolder.at(str(tmp_path), "a"), RunFolder.at(f"file://{tmp_path}", "b")
    again = RunFolder.at(f"file://{tmp_path}", "a")
    with first.hold(), second.hold(), pytest.raises(RetryableError), again.hold():
        pass


# Without locks: by a lease, which tests/unit/storage/test_lease.py tests.


@pytest.fixture
def leased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A claimed run in storage without locks, where everything is quick."""
    for name, seconds in (("RENEW", 0.1), ("DOUBTFUL", 30), ("TAKEOVER", 60)):
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(lease, "_WATCH_SECONDS", 0.02)
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(driver, "FOREIGN_DRIVER_SECONDS", 0.3)

    def put(file: Location, data: bytes) -> None:  # at once, as object stores do
        with fence.exempt():
            Location.parse(f"{tmp_path}/{file.path}").write_bytes(data)

    monkeypatch.setattr(location, "_upload", put)
    folder = non_local(tmp_path)
    folder.config.write_json({"fingerprint": PRINT, "versions": {"ray": "2.60.0"}})
    return folder


def test_a_living_driver_is_waited_for_then_refused(leased: RunFolder) -> None:
    with leased.hold():
        for _ in range(2):
            said = r"another mnist-ray \(process \d+ on .*\) is working on s3://"
            with pytest.raises(RetryableError, match=said), leased.hold():
                pass
    with leased.hold():
        pass


def test_a_driver_that_finishes_meanwhile_is_followed(leased: RunFolder) -> None:
    with leased.hold():
        leased.metrics.write_json({})
        with leased.hold(PRINT):  # only to show the result
            pass


def test_a_driver_that_makes_the_result_anew_is_not_let_in_as_one_that_shows_it(leased: RunFolder) -> None:
    """--fresh would remove what the other is about to finish, and more --epochs go on with it, without a lease."""
    with leased.hold():
        leased.metrics.write_json({})
        for wanted in (None, PRINT | {"epochs": 99}):
            with pytest.raises(RetryableError, match="is working on s3://"), leased.hold(wanted):
                pass


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell starts what it runs in the background with Ctrl-C ignored. A command has a handler of its own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_driver_that_lost_its_lease_ends_with_that_error(leased: RunFolder) -> None:

    def work() -> None:
        file = lease._File(leased.root)
        file.write(lease.Holder.new(), over=file.read()[0])
        time.sleep(30)  # the main thread may be anywhere: it is interrupted

    with pytest.raises(LeaseLostError, match="another mnist-ray has taken over s3://"), leased.hold():
        work()
    (leased.root / "free.json").write_json(1)  # outside, this process is free to write


def test_whether_a_driver_is_at_work_is_told_without_a_clock(folder: RunFolder, leased: RunFolder) -> None:
    assert driver.has_driver(folder.root) is None
    with folder.hold():
        assert driver.has_driver(folder.root) is True
    assert driver.has_driver(folder.root) is False
    assert driver.has_driver(leased.root) is None  # not without waiting, in storage without a clock of its own
