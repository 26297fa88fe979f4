"""Addresses: what is none, where nobody listens, and where something else than Ray does."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mnist_ray.cluster import connect
from mnist_ray.cluster.capacity import too_few
from mnist_ray.config import Cluster
from mnist_ray.errors import RetryableError, SetupError
from tests.support import data_makers as make
from tests.support.command import (
    environment,
    one_after_the_other,
    one_line,
)

# Addresses.


@contextlib.contextmanager
def listening(answer: bytes | None = None, *, accept: bool = True) -> Iterator[int]:
    """A port where something listens that is not Ray: it answers with `answer`, says nothing, or drops all."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0 if not accept else 100) as server,
        contextlib.ExitStack() as kept,
    ):
        port = server.getsockname()[1]

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    kept.enter_context(client)
                    if answer is not None:
                        client.recv(4096)
                        client.sendall(answer)
                        client.close()

        if accept:
            threading.Thread(target=serve, daemon=True).start()
        else:
            for _ in range(3):  # they fill the queue; who comes next waits for ever
                client = kept.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))
        yield port
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("address", "code", "message"),
    [
        ("127.0.0.1:1", 1, "nothing listens at 127.0.0.1:1 "),
        ("ray://127.0.0.1:1", 1, "nothing listens at 127.0.0.1:1 "),
        ("[::1]:1", 1, "nothing listens at [::1]:1 "),
        ("127.0.0.1", 2, "--address must be auto, HOST:PORT or ray://HOST:PORT, not '127.0.0.1'"),
        ("127.0.0.1:99999", 2, "--address must be auto, HOST:PORT"),
        ("http://127.0.0.1:8265", 2, "'http://127.0.0.1:8265', a dashboard's URL, which `mnist-ray submit` takes"),
        (":6379", 2, "--address must be auto, HOST:PORT"),
        ("atuo", 2, "--address must be auto, HOST:PORT"),
    ],
)
def test_an_address_that_is_none(
    address: str, code: int, message: str, call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    data = make.write_idx(tmp_path / "idx")
    for command in (
        ("run", "--data", data, "--storage", tmp_path / "made"),
        ("shard", data, tmp_path / "made"),
    ):
        began = time.monotonic()
        found, line = call(*command, "--address", address)
        assert time.monotonic() - began < 6
        assert found == code
        assert message in line
        assert line.endswith("(see docs/clusters.md#ways-to-start)")
        assert not (tmp_path / "made").exists()


def test_a_variable_that_holds_the_address_of_a_dashboard(
    call: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    code, line = call("shard", make.write_idx(tmp_path / "idx"), tmp_path / "made")
    assert code == 2
    assert "RAY_ADDRESS is http://10.0.0.1:8265, a dashboard's URL" in line
    assert "unset it, or give --address" in line


def test_an_address_that_is_given_counts_before_such_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.init("auto")` itself prefers the variable."""
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    seen = []

    def init(**_: object) -> None:
        seen.append(os.environ.get("RAY_ADDRESS"))
        raise ConnectionError

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(connect, "_greet", lambda address: None)
    with pytest.raises(RetryableError, match="cannot join the Ray cluster at auto"):
        connect._join("auto")
    assert seen == [None]


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_auto_is_looked_for_where_ray_leaves_its_address(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv(variable, str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert connect.target_of("auto") == "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("heads", "target"), [([], None), (["10.0.0.1:6379"], "10.0.0.1:6379"), (["10.0.0.1:1", "10.0.0.1:2"], None)]
)
def test_auto_finds_a_head_that_has_its_files_elsewhere(
    heads: list[str], target: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `ray start --temp-dir` has. It may require a token, which has to be found out before Ray tries for minutes."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(connect.ray_private, "running_heads", lambda: heads)
    assert connect.target_of("auto") == target


def test_a_local_ray_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because\nsome")  # as Ray does

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(RetryableError, match=r"Ray has not started on this machine: The current node timed out .*; if"),
        connect.connect(Cluster()),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (
            "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.12.1\n"
            "This process on node 10.0.0.9 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n",
            SetupError,
            "the cluster at h:6379 has Ray 2.9.0 and Python 3.12.1, but this command Ray 2.60.0 and Python 3.11.7,"
            " which must be equal; install the cluster's versions here, or use `mnist-ray submit`",
        ),
        ("no\nmore", RetryableError, "cannot join the Ray cluster at h:6379: no"),
    ],
)
def test_a_cluster_that_ray_refuses_to_join(
    text: str, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(connect, "_greet", lambda address: None)
    with pytest.raises(kind) as raised:
        connect._join("h:6379")
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_host_that_drops_what_it_is_sent(
    call: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_ray.cluster.connect.PROBE_SECONDS", 0.5)
    data = make.write_idx(tmp_path / "idx")
    with listening(accept=False) as port:
        began = time.monotonic()
        code, line = call("run", "--data", data, "--storage", tmp_path / "made", "--address", f"127.0.0.1:{port}")
        assert 0.4 < time.monotonic() - began < 3
    assert code == 1
    assert f"nothing listens at 127.0.0.1:{port} (timed out)" in line
    assert not (tmp_path / "made").exists()


@pytest.mark.timeout(120)
@pytest.mark.drill
def test_a_port_of_some_other_program(tmp_path: Path) -> None:
    data, env = make.write_idx(tmp_path / "idx"), environment(tmp_path)
    for answer in (None, b"", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi"):
        with listening(answer) as port:
            address = f"127.0.0.1:{port}"
            began = time.monotonic()
            joining, submitting = one_after_the_other(
                ("run", "--data", data, "--storage", tmp_path / "made", "--address", address),
                ("submit", "--address", f"http://{address}", "--", "run", "--storage", "/s"),
                env=env,
            )
            assert time.monotonic() - began < 60  # twice 3 s of waiting, and imports
        assert joining[0] == 1
        assert f"what listens at {address} is not a Ray head" in one_line(joining[2])
        assert submitting[:2] == (1, "")
        assert "Ray dashboard" in one_line(submitting[2]) or "Ray's dashboard" in submitting[2]


@pytest.mark.parametrize(
    ("workers", "each", "cpus", "fits"),
    [
        (99, 1.0, 2.0, "--num-workers 2"),  # not the share of a CPU that each of 99 would get
        (3, 1.0, 2.0, "--num-workers 2 or --cpus-per-worker 0.66"),
        (2, 1.0, 1.0, "--num-workers 1 or --cpus-per-worker 0.5"),
        (1, 4.0, 2.0, "--cpus-per-worker 2"),
        (2, 0.8, 1.5, "--num-workers 1 or --cpus-per-worker 0.75"),
    ],
)
def test_what_fits_is_named(workers: int, each: float, cpus: float, fits: str) -> None:
    message = too_few(workers, each, cpus, "this machine has")
    assert message.endswith(f"but this machine has {cpus:g}; use {fits}")
