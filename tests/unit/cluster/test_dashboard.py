"""Dashboards: which one is asked, and what it means when it refuses, is something else, or does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray.cluster import dashboard, tokens
from mnist_ray.cluster.ray_private import forget_token
from mnist_ray.errors import RetryableError, SetupError
from tests.support.command import free_port
from tests.support.http_server import http_server

TOKEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", *TOKEN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    forget_token()  # what Ray has read for the tests before
    yield
    forget_token()


@pytest.mark.parametrize(
    ("given", "environment", "url"),
    [
        ("http://a:1", {"RAY_API_SERVER_ADDRESS": "http://b:1"}, "http://a:1"),
        ("https://a:1/", {}, "https://a:1"),
        ("a:1", {}, "http://a:1"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://b:1", "RAY_ADDRESS": "http://c:1"}, "http://b:1"),
        (None, {"RAY_ADDRESS": "http://c:1"}, "http://c:1"),
        (None, {"RAY_ADDRESS": "c:6379"}, "http://127.0.0.1:8265"),  # a head, not a dashboard
        (None, {}, "http://127.0.0.1:8265"),
    ],
)
def test_the_dashboard_that_is_asked(
    given: str | None, environment: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert dashboard.url_of(given) == url


def test_nobody_there() -> None:
    with pytest.raises(RetryableError, match=r"\(Connection refused\); is the cluster up and the --address right\?"):
        dashboard.reach(f"127.0.0.1:{free_port()}")
    with pytest.raises(RetryableError, match=r"no Ray dashboard answers at http://nowhere\.invalid:8265"):
        dashboard.reach("http://nowhere.invalid:8265")
    with pytest.raises(RetryableError, match=r"that is the port of the head: the dashboard's is 8265"):
        dashboard.reach("nowhere.invalid:6379")


@pytest.mark.parametrize("answer", [b"hi", b"[]", b'{"ray_version": 2}', b"{}"])
def test_a_server_that_is_not_rays(answer: bytes) -> None:
    with (
        http_server({"/api/version": (200, answer)}) as url,
        pytest.raises(RetryableError, match="is not a Ray dashboard"),
    ):
        dashboard.reach(url)


@pytest.mark.parametrize(
    ("environment", "status", "message"),
    [
        ({}, 401, "requires a token; export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN": "x"}, 403, "requires another token than that in RAY_AUTH_TOKEN; export the cluster's"),
        ({"RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "disabled"}, 401,
         "requires a token, and RAY_AUTH_MODE=disabled sends none; export RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN_PATH": "/t"}, 403, "requires another token than that in the file /t (RAY_AUTH_TOKEN_PATH)"),
    ],
)  # fmt: skip
def test_a_refused_token(
    environment: dict[str, str], status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dashboard.ray_private, "use_token_if_available", lambda: None)
    monkeypatch.setattr(dashboard.ray_private, "auth_headers", dict)
    with http_server({"/api/version": (status, b"no")}) as url, pytest.raises(SetupError) as raised:
        dashboard.reach(url)
    assert str(raised.value).startswith(f"{url} {message}")


def test_a_token_in_a_file(tmp_path: Path) -> None:
    assert tokens.token_source() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    assert tokens.token_source() == f"the file {tmp_path}/.ray/auth_token"
