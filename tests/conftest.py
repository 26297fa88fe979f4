"""Shared by all tests: one local Ray, one run on real MNIST, one object store, a room of the session's own, and what it
leaves there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from mnist_ray.storage import fence
from tests.support import session
from tests.support.command import environment, mnist_ray
from tests.support.s3_server import s3_server, settings

ROOM, LEFT = pytest.StashKey[Path](), pytest.StashKey[list[str]]()

NOT_QUICK, BEFORE = ("ray", "tensorflow", "slow", "drill"), pytest.StashKey[set[str]]()


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray of 2 CPUs, shared by the session."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # quietens a warning of Ray's about its own future
    import ray

    from mnist_ray.cluster.ray_private import forget_token

    forget_token()  # that of an earlier test
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def a_fence_of_its_own() -> Iterator[None]:
    """What a test that fails still holds keeps no other test from writing."""
    before = list(fence._checks)
    yield
    fence._checks[:] = [check for check in fence._checks if check in before]


@pytest.fixture(scope="session")
def port() -> Iterator[int]:
    """Of an S3 server with an empty bucket."""
    with s3_server() as started:
        yield started


@pytest.fixture
def here(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, s3:// means that server."""
    for name, value in settings(port).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def client(port: int) -> Any:

    told = settings(port)
    return boto3.client(
        "s3", endpoint_url=told["AWS_ENDPOINT_URL"], region_name=told["AWS_REGION"],
        aws_access_key_id=told["AWS_ACCESS_KEY_ID"], aws_secret_access_key=told["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="session")
def local_run(folder: Path) -> tuple[Path, str]:
    """The command as it stands in the README. The run's folder and what was said."""
    done = mnist_ray("run", "--storage", folder, "--name", "local", env=environment(folder), timeout=400)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "local", done.stdout


# What is not marked so is for `make test-quick`: it starts no Ray and imports no TensorFlow.


def heavy() -> set[str]:
    """What has been started or imported in this process."""
    ray = sys.modules.get("ray")
    return {"tensorflow"} & sys.modules.keys() | ({"ray"} if ray and ray.is_initialized() else set())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those first that need a process without Ray and TensorFlow."""
    items.sort(key=lambda item: any(item.get_closest_marker(name) for name in NOT_QUICK))


def pytest_collection_finish() -> None:
    assert not heavy(), f"test modules import {heavy()}; only tests that need it may"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[BEFORE] = heavy()


@pytest.fixture(autouse=True)
def is_as_quick_as_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    begun = heavy() - request.node.stash[BEFORE]
    if begun and not any(request.node.get_closest_marker(name) for name in NOT_QUICK):
        pytest.fail(f"begins {', '.join(sorted(begun))}, but is not marked so")


# The machine is left as it was found.


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROOM] = session.enter()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Once all fixtures have ended."""
    from multiprocessing import resource_tracker

    from tests.support import ring_processes
    from tests.support import session as of_tests

    ring_processes.end()
    resource_tracker._resource_tracker._stop()  # a process that Python leaves to the end of the one that has started it
    room = session.config.stash[ROOM]
    session.config.stash[LEFT] = of_tests.left(room)
    if session.config.stash[LEFT] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    of_tests.leave(room, keep=session.exitstatus == pytest.ExitCode.TESTS_FAILED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left := config.stash.get(LEFT, []):
        terminalreporter.write_line(f"the tests have left behind ({len(left)}): {'; '.join(left[:9])}", red=True)
    if config.stash[ROOM].exists():
        terminalreporter.write_line(f"what failed has its files in {config.stash[ROOM]}")
