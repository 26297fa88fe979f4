"""Following a job's log: each character once, whatever happens to the connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from mnist_ray.cluster import jobs


class Client:
    """A dashboard whose connections end after so many parts of the log."""

    def __init__(self, parts: list[str], connections: list[int], code: int | None) -> None:
        self.parts, self.connections, self.code = parts, connections, code

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for part in self.parts[: self.connections.pop(0)]:
            yield part

    def get_job_status(self, job: str) -> SimpleNamespace:
        ended = not self.connections
        value = "SUCCEEDED" if self.code == 0 else "FAILED"
        return SimpleNamespace(value=value, is_terminal=lambda: ended)

    def get_job_info(self, job: str) -> SimpleNamespace:
        return SimpleNamespace(driver_exit_code=self.code)


@pytest.mark.parametrize(
    ("given", "environment", "url"),
    [
        ("http://a:1", {"RAY_API_SERVER_ADDRESS": "http://b:1"}, "http://a:1"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://b:1", "RAY_ADDRESS": "http://c:1"}, "http://b:1"),
        (None, {"RAY_ADDRESS": "http://c:1"}, "http://c:1"),
        (None, {"RAY_ADDRESS": "c:6379"}, "http://127.0.0.1:8265"),  # a head, not a dashboard
        (None, {}, "http://127.0.0.1:8265"),
    ],
)
def test_the_dashboard_that_is_asked(
    given: str | None, environment: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert jobs.dashboard(given) == url


@pytest.mark.parametrize("connections", [[3], [0, 3], [1, 3], [2, 2, 3], [1, 0, 2, 3]])
@pytest.mark.parametrize(("code", "result"), [(0, 0), (3, 3), (None, 1), (-9, 1)])
def test_each_line_once_and_the_jobs_exit_code(
    connections: list[int], code: int | None, result: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    printed: list[str] = []
    client = Client(["one\ntwo\n", "three\n", "four\n"], list(connections), code)
    assert jobs.follow(client, "j", printed.append) == result
    assert "\n".join(printed[:-1]) == "one\ntwo\nthree\nfour"
    assert printed[-1] == f"job j: {'SUCCEEDED' if code == 0 else 'FAILED'}"
