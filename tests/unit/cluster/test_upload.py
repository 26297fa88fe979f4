"""What `--working-dir` would send: the files that Ray's own packaging takes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from mnist_ray.cluster import upload
from mnist_ray.cluster.upload import Upload
from mnist_ray.errors import InputError


@pytest.fixture
def code(tmp_path: Path) -> Path:
    files = {
        "model.py": "x" * 2048, "package/__init__.py": "", "package/layer.py": "yy", "data/big.npz": "z" * 5000,
        ".gitignore": "data/\nsecret.py\n", "secret.py": "s", ".git/config": "g", ".venv/lib.py": "v",
        "package/.rayignore": "notes.txt", "package/notes.txt": "n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_files_are_those_that_ray_packs(code: Path, tmp_path: Path) -> None:
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import create_package

    told = Upload.of(str(code))
    assert str(told) == f"{code}: 5 files, 2.0 KiB"
    packed = tmp_path.parent / f"{tmp_path.name}.zip"
    excludes = ray_constants.get_runtime_env_default_excludes()
    create_package(str(code), packed, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(packed) as archive:
        assert told.sizes == {each.filename: each.file_size for each in archive.infolist()}


def test_gitignore_counts_only_where_ray_looks_at_it(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert {"data/big.npz", "secret.py"} <= Upload.of(str(code)).sizes.keys()


def test_a_module_that_would_stay_here(code: Path) -> None:
    told = Upload.of(str(code))
    for module in ("model", "package", "package.layer", "elsewhere"):
        told.require_module(module)
    with pytest.raises(InputError, match=r"secret.py would not be sent: .gitignore or .rayignore names it"):
        told.require_module("secret")


def test_too_much(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload.ray_private, "upload_limit", lambda: 2000)
    with pytest.raises(
        InputError, match=r"is 2.0 KiB, more than the 2.0 KiB that Ray takes; the largest files are model"
    ):
        Upload.of(str(code))
