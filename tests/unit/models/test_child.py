"""The process in which a file is tried: what it cannot reach, and what it says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray.errors import InputError, SetupError, UserError
from mnist_ray.models import child
from mnist_ray.storage.location import Location

WHERE = Location.parse("/somewhere/a.keras")

TRY = """
import json, os, socket, sys
from pathlib import Path

def possible(action):
    try:
        action()
    except OSError:
        return False
    return True

scratch, secret, port, parent = sys.argv[1:]
done = {
    "secret in the environment": "SECRET_TOKEN" in os.environ,
    "read its folder": possible(lambda: Path(scratch).read_bytes()),
    "write its folder": possible(lambda: Path(scratch).with_name("new").write_text("new")),
    "read a file": possible(lambda: Path(secret).read_bytes()),
    "list a folder": possible(lambda: os.listdir(os.path.dirname(secret))),
    "write a file": possible(lambda: Path(secret).write_text("changed")),
    "make a file": possible(lambda: Path(secret).with_name("made").write_text("made")),
    "remove a file": possible(lambda: os.unlink(secret)),
    "read another process's environment": possible(lambda: Path(f"/proc/{parent}/environ").read_bytes()),
    "connect": possible(lambda: socket.create_connection(("127.0.0.1", int(port)), 2)),
}
Path(scratch).with_name("done").write_text(json.dumps(done))
"""


def closed() -> set[str]:
    """What this system can close."""
    code = "import os; from mnist_ray.models.child import confine; print(*confine())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_child_has_no_network_files_or_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "others").mkdir()
    ours, secret = tmp_path / "scratch" / "model.keras", tmp_path / "others" / "secret"
    ours.write_text("model")
    secret.write_text("secret")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        more = [Path(str(number)) for number in (server.getsockname()[1], os.getpid())]
        child.in_child(WHERE, f"exec({TRY!r})", ours, secret, *more)
    done = json.loads((tmp_path / "scratch" / "done").read_text())
    possible = {name for name, was_done in done.items() if was_done}
    expected = {"read its folder", "write its folder"}
    kept_open = set(done) - expected - {"secret in the environment"}
    if "files" in closed():
        kept_open = {"connect"}
        assert secret.read_text() == "secret"
        assert [path.name for path in secret.parent.iterdir()] == ["secret"]
    if "network" in closed():
        kept_open -= {"connect"}
    assert expected <= possible
    assert possible <= expected | kept_open


def test_where_the_system_closes_nothing_the_file_is_tried_all_the_same(tmp_path: Path) -> None:
    code = (
        "import ctypes; from mnist_ray.models import child; real = ctypes.CDLL;"
        "No = type('No', (), {'unshare': lambda *a: -1, 'syscall': lambda *a: -1, 'prctl': lambda *a: -1});"
        "ctypes.CDLL = lambda *a, **k: No(); assert child.confine() == set(); print(open('/etc/hostname').read())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", r"a\.keras cannot be loaded \(loading it crashed: status -6\)"),
        ("print('refused: [false, \"no\\\\nmore\", null]'); raise SystemExit(1)", r"a\.keras cannot be loaded \(no\)"),
        ("print('refused: 5'); raise SystemExit(1)", r"a\.keras cannot be loaded \(loading it crashed: status 1\)"),
    ],
)
def test_how_the_child_ends(code: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        child.in_child(WHERE, code, tmp_path / "model.keras")


def test_the_child_may_not_take_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "SECONDS", 1)
    with pytest.raises(InputError, match="could not be loaded within 1 s"):
        child.in_child(WHERE, "import time; time.sleep(60)", tmp_path / "model.keras")


@pytest.mark.parametrize("error", [SetupError("needs the package x", see="a.md"), InputError("is damaged")])
def test_what_the_child_refuses_is_of_the_same_kind_here(error: UserError, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), child.refusing():
        raise error
    found = child.refusal_in(capfd.readouterr().out)
    assert (type(found), str(found), found and found.see) == (type(error), error.message, error.see)
