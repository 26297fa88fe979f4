"""Leases: one process at a time holds a folder, and one that may have lost it writes nothing more.

On a local folder, as on a network filesystem without locks, and on S3 by conditional writes. No test and no line of the
lease asks for the time of day: two hosts' clocks may be any time apart.
"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mnist_ray.errors import LeaseLostError, RetryableError
from mnist_ray.storage import fence, lease
from mnist_ray.storage.disk import ChangedMeanwhileError
from mnist_ray.storage.lease import HeldError, Holder, Lease, acquire
from mnist_ray.storage.location import Location
from tests.support.command import ROOT
from tests.support.s3_server import BUCKET, Faults, s3_server, settings

RENEW, DOUBTFUL, TAKEOVER = 0.1, 1.0, 2.0


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> Location:
    for name, value in settings(port).items():
        monkeypatch.setenv(name, value)
    for name, seconds in (("RENEW", RENEW), ("DOUBTFUL", DOUBTFUL), ("TAKEOVER", TAKEOVER)):
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(lease, "_WATCH_SECONDS", 0.02)
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(time, "time", lambda: pytest.fail("it asked for the time of day"))
    return Location.parse(tmp_path if request.param == "local" else f"s3://{BUCKET}/{tmp_path.name}")


def held(folder: Location) -> Lease:
    return acquire(folder, wait_seconds=0.3)


def test_released_it_is_free_at_once(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TAKEOVER_SECONDS", 1000)
    for _ in range(3):
        held(folder).release()
    assert not fence._checks


def test_a_living_holder_is_named_however_long_it_lives(folder: Location) -> None:
    first = held(folder)
    for _ in range(3):
        with pytest.raises(HeldError) as refused:
            acquire(folder, wait_seconds=2 * TAKEOVER)
        assert refused.value.holder.token == first.holder.token
        assert str(refused.value.holder).startswith("process ")
    first.check()
    first.release()


def test_of_many_at_once_one_has_it(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TAKEOVER_SECONDS", 60.0)  # the one that has it may be slow to say that it lives
    start = threading.Barrier(8)

    def one(_: int) -> Lease | Holder:
        start.wait()
        try:
            return acquire(folder, wait_seconds=0.3)
        except HeldError as error:
            return error.holder

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(8)))
    winners = [each for each in found if isinstance(each, Lease)]
    assert len(winners) == 1
    assert {each.token for each in found if isinstance(each, Holder)} == {winners[0].holder.token}
    winners[0].release()


def test_who_waits_gets_it_when_it_is_released(folder: Location) -> None:
    first = held(folder)
    threading.Timer(0.3, first.release).start()
    acquire(folder, wait_seconds=30).release()


def test_asking_ends_the_waiting(folder: Location) -> None:
    first = held(folder)
    with pytest.raises(HeldError):
        acquire(folder, wait_seconds=30, give_up=lambda: True)
    first.release()


def test_a_dead_process_of_this_machine_is_known_to_be_dead(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TAKEOVER_SECONDS", 1000)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.lease_process", str(folder), "1", "100", "100"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()
    held(folder).release()


def test_a_process_in_another_container_of_the_same_name_is_not_taken_for_dead() -> None:
    here = Holder.new()
    pid = here.process.rpartition("/")[2]
    elsewhere = Holder(here.token, 0, False, here.host, f"another-boot/pid:[1]/{2**22 + 1}")
    assert not elsewhere.is_dead
    assert not here.is_dead
    assert Holder(here.token, 0, False, here.host, here.process.replace(pid, str(2**22 + 1))).is_dead


def test_a_stopped_process_writes_nothing_when_it_goes_on(folder: Location) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.lease_process", str(folder), str(RENEW), str(DOUBTFUL), str(TAKEOVER)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    while not (folder / "written.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    second = held(folder)  # a holder that is not heard of is waited for, and then taken over
    mine = {"token": second.holder.token, "count": 0}
    (folder / "written.json").write_json(mine)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=30)
    assert out.startswith("LeaseLostError ")
    assert (folder / "written.json").read_json() == mine
    second.check()
    second.release()


def test_whoever_has_lost_it_can_change_nothing(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_interrupt_main_thread", lambda: None)
    first = held(folder)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 1000)
    (folder / "kept.json").write_json(1)
    file = lease._File(folder)
    data, _ = file.read()
    other = Holder.new()
    file.write(other, over=data)
    deadline = time.monotonic() + 5
    while first.lost is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for change in ((folder / "kept.json").delete, lambda: (folder / "new.json").write_json(2)):
        with pytest.raises(LeaseLostError, match="another mnist-ray has taken over"):
            change()
    first.release()
    assert (folder / "kept.json").read_json() == 1
    assert not (folder / "new.json").exists()
    assert file.read()[1] == other, "what is lost is not released"


@pytest.mark.parametrize("becomes", ["another's", "released"])
def test_who_writes_for_a_holder_stops_with_it(folder: Location, becomes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder stands still, and cannot tell its train workers."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 1000)
    monkeypatch.setattr(lease, "DOUBTFUL_SECONDS", 1000)
    first, file = held(folder), lease._File(folder)
    with pickle.loads(pickle.dumps(first.guard)).fenced():
        (folder / "kept.json").write_json(1)
        first.renew()
        (folder / "kept.json").write_json(2)
        after = Holder.new() if becomes == "another's" else replace(first.holder, is_released=True)
        file.write(after, over=file.read()[0])
        for change in ((folder / "kept.json").delete, lambda: (folder / "new.json").write_json(3)):
            with pytest.raises(LeaseLostError, match="another mnist-ray has taken over"):
                change()
    assert (folder / "kept.json").read_json() == 2
    assert not (folder / "new.json").exists()
    first.release()
    assert not fence._checks


def test_storage_that_fails_for_long_costs_nothing_once_it_works(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: lease._File, new: Holder, *, over: bytes) -> None:
        raise RetryableError("the store is away")

    first = held(folder)
    with monkeypatch.context() as patch:
        patch.setattr(lease._File, "write", fail)
        time.sleep(DOUBTFUL + 2 * RENEW)
        with pytest.raises(RetryableError, match="away"):
            (folder / "a.json").write_json(1)
    (folder / "a.json").write_json(2)
    assert (folder / "a.json").read_json() == 2
    first.release()


def test_a_lost_answer_is_not_a_lost_lease(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 1000)
    with Faults(port, seed=3, rate=0.5, kinds=("lost answer",)) as proxy:
        for name, value in {**settings(port), "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}.items():
            monkeypatch.setenv(name, value)
        first = held(Location.parse(f"s3://{BUCKET}/{tmp_path.name}"))
        for _ in range(10):
            first.renew()
        first.release()
        assert proxy.done["lost answer"] > 3
    assert first.lost is None


def test_a_store_that_ignores_conditions_is_noticed(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(folder.filesystem, "write_if_unchanged"):
        pytest.skip("of S3")
    write, pauses = type(folder.filesystem).write_if_unchanged, []

    def ignore(self: object, path: str, data: bytes, etag: str | None) -> str:
        try:
            return str(write(self, path, data, etag))
        except ChangedMeanwhileError:
            now = self.read_with_etag(path)[1]  # type: ignore[attr-defined]
            return str(write(self, path, data, now))

    monkeypatch.setattr(type(folder.filesystem), "write_if_unchanged", ignore)
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.123)
    monkeypatch.setattr(time, "sleep", pauses.append)
    acquire(folder, wait_seconds=0).release()
    assert 0.123 in pauses


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"not json", b'{"token": 1}', b"\xff"])
def test_a_file_that_is_not_a_lease_is_taken_over(folder: Location, content: bytes) -> None:
    (folder / ".lease").write_bytes(content)
    held(folder).release()


def test_the_age_of_a_lease_is_the_stores(folder: Location) -> None:
    assert lease.age(folder) is None
    first = held(folder)
    age = lease.age(folder)
    assert age is None if folder.is_local else 0 <= age < 5  # type: ignore[operator]
    first.release()
    assert lease.age(folder) == float("inf")
