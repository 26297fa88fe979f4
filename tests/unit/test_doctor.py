"""What `doctor` finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from mnist_ray.doctor import examine


def test_doctor_finds_a_sound_machine_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = list(examine(None, str(tmp_path / "a" / "b" / "storage")))
    assert [line.split(" ")[0].rstrip(":") for _, line in found] == ["python", "packages", "machine", "storage"]
    assert found[0][0]
    assert found[1][0]
    assert found[3] == (True, f"storage: {tmp_path}/a/b/storage is writable")
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_what_is_wrong_with_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tensorflow.py").touch()
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'d' * 60}")
    _, packages, machine, _ = examine(None, str(tmp_path))
    assert packages[0] is machine[0] is False
    assert packages[1].startswith(f"packages: Python would import tensorflow.py in {tmp_path}")
    assert machine[1].startswith(f"machine: Ray's temporary folder /tmp/{'d' * 60}/ray (from RAY_TMPDIR) has a path of")


def test_doctor_names_what_would_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "file").write_text("x")
    *_, storage, cluster = examine("127.0.0.1:1", str(tmp_path / "file" / "storage"))
    assert not storage[0]
    assert f"cannot write {tmp_path}/file/storage/" in storage[1] or "cannot make the folder" in storage[1]
    assert not cluster[0]
    assert cluster[1].startswith("cluster: nothing listens at 127.0.0.1:1 ")
