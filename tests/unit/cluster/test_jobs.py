"""Jobs of a dashboard that is not Ray's: their log, their end, and what is told of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from mnist_ray.cluster import jobs
from mnist_ray.cluster.dashboard import Dashboard
from mnist_ray.errors import Interrupted, RetryableError, SetupError

UNKNOWN = "Request failed with status code 404: Job j does not exist."
BROKEN = """Request failed with status code 500: Traceback (most recent call last):
  File "job_head.py", line 1, in submit_job
ValueError: Job with submission_id j already exists. Please use a different submission_id.
."""


def info(value: str, code: int | None = None, message: str = "", **metadata: str) -> SimpleNamespace:
    is_terminal = value in ("SUCCEEDED", "FAILED", "STOPPED")
    status = SimpleNamespace(value=value, is_terminal=lambda: is_terminal)
    return SimpleNamespace(status=status, driver_exit_code=code, message=message, metadata=metadata)


class Client:
    """A dashboard whose connections end after so many parts of the log."""

    def __init__(self, parts: list[str], connections: list[int], end: SimpleNamespace) -> None:
        self.parts, self.connections, self.end = parts, connections, end
        self.submitted: dict[str, Any] = {}

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for part in self.parts[: self.connections.pop(0)]:
            yield part

    def get_job_info(self, job: str) -> SimpleNamespace:
        return info("RUNNING") if self.connections else self.end

    def submit_job(self, **given: Any) -> str:
        self.submitted = given
        return "j"

    def stop_job(self, job: str) -> bool:
        self.connections = []
        return True


class Refusing:
    """A dashboard that answers each request with an error."""

    def __init__(self, message: str) -> None:
        self.message = message

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError(self.message)

        return refuse


def dashboard(client: Any) -> Dashboard:
    return Dashboard("http://h:8265", "2.60.0", True, client)


def followed(client: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    printed: list[str] = []
    return jobs.Follower(dashboard(client), "j", printed.append).follow(), printed


@pytest.mark.parametrize("connections", [[3], [0, 3], [1, 3], [2, 2, 3], [1, 0, 2, 3]])
@pytest.mark.parametrize(
    ("state", "code", "result"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", None, 1), ("FAILED", -9, 1), ("FAILED", 0, 1),
     ("STOPPED", None, 1), ("STOPPED", 0, 1), ("STOPPED", 130, 130)],
)  # fmt: skip
def test_each_line_once_and_the_jobs_exit_code(
    connections: list[int], state: str, code: int | None, result: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(["one\ntwo\n", "three\n", "four\n"], list(connections), info(state, code))
    ended, printed = followed(client, monkeypatch)
    assert ended == result
    assert "\n".join(printed[:-1]) == "one\ntwo\nthree\nfour"
    assert printed[-1].startswith(f"job j: {state}")


def test_a_job_that_never_began_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    end = info("FAILED", None, "runtime_env setup failed: no space left\nTraceback …")
    assert followed(Client([], [0], end), monkeypatch) == (
        1, ["job j: FAILED: runtime_env setup failed: no space left"],
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["/usr/bin/python: No module named mnist_ray", "ModuleNotFoundError: No module named 'mnist_ray'"],
)
def test_an_image_without_the_package(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match="the cluster's Python has no mnist_ray; give the nodes an image that has it"):
        followed(Client([f"{text}\n"], [1], info("FAILED", 1)), monkeypatch)


def test_what_is_not_the_package_is_not_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(["No module named mnist_ray_extras\n"], [1], info("FAILED", 1))
    assert followed(client, monkeypatch)[0] == 1


def test_following_goes_on_where_it_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    client, printed = Client(["one\n", "two\n"], [1, 2], info("SUCCEEDED", 0)), list[str]()
    follower = jobs.Follower(dashboard(client), "j", printed.append)

    def interrupt(seconds: float) -> None:
        raise Interrupted

    monkeypatch.setattr(jobs.time, "sleep", interrupt)
    with pytest.raises(Interrupted):
        follower.follow()
    assert printed == ["one"]
    assert follower.follow() == 0
    assert printed == ["one", "two", "job j: SUCCEEDED"]


@pytest.mark.parametrize(
    ("call", "message", "expected"),
    [
        (lambda told: jobs.ask(told, "j"), UNKNOWN, "the cluster at http://h:8265 knows no job j; a new cluster"),
        (lambda told: jobs.log_of(told, "j"), UNKNOWN, "knows no job j"),
        (lambda told: jobs.stop(told, "j"), UNKNOWN, "knows no job j"),
        (lambda told: jobs.Follower(told, "j", print).follow(), UNKNOWN, "knows no job j"),
        (lambda told: jobs.log_of(told, "j"), "Request failed with status code 500: gone.",
         "cannot ask http://h:8265 for the job j: Request failed with status code 500: gone"),
        (lambda told: jobs.submit(told, ["run"], working_dir=None, metadata={}), BROKEN,
         "cannot submit to http://h:8265: ValueError: Job with submission_id j already exists."),
    ],
)  # fmt: skip
def test_what_a_dashboard_refuses_is_one_line(call: Any, message: str, expected: str) -> None:
    with pytest.raises(RetryableError) as raised:
        call(dashboard(Refusing(message)))
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_job_gets_the_options_of_its_command_that_the_environment_has(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client([], [0], info("SUCCEEDED", 0))
    for name in ("MNIST_RAY_RUN_EPOCHS", "MNIST_RAY_SCORE_LIMIT", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "3")
    metadata = jobs.metadata_of("run --name a", "0.1.0", "s3://b/r/a", {"epochs": 3})
    assert jobs.submit(dashboard(client), ["run", "--name", "a b"], working_dir="/w", metadata=metadata) == "j"
    assert client.submitted == {
        "entrypoint": "python -m mnist_ray run --name 'a b'",
        "runtime_env": {"env_vars": {"MNIST_RAY_RUN_EPOCHS": "3"}, "working_dir": "/w"},
        "metadata": {"mnist_ray": "0.1.0", "command": "run --name a", "run": "s3://b/r/a", "options_sha256":
                     "543da7abb83f0bf92083abbd0ac52b61964151704a7fd05a96114d646c052eb1"},
    }  # fmt: skip


def test_stopping_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs.stop(dashboard(Client([], [0], info("STOPPED"))), "j") == "STOPPED"
    assert jobs.stop(dashboard(Client([], [], info("SUCCEEDED", 0))), "j") == "SUCCEEDED"
    monkeypatch.setattr(jobs, "STOPPING_SECONDS", 0.0)
    monkeypatch.setattr(Client, "stop_job", lambda self, job: True)
    with pytest.raises(RetryableError, match="job j has not stopped within 0 s"):
        jobs.stop(dashboard(Client([], [0], info("STOPPED"))), "j")
