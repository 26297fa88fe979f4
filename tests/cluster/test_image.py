"""The container image: of the lock, of one version, and of files that are there."""

from __future__ import annotations

import re

from tests.support.command import ROOT

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def test_the_image_is_made_of_the_lock() -> None:
    base = re.search(r"^ARG BASE=python:3\.(\d+)-slim$", DOCKERFILE, re.MULTILINE)
    supported = re.search(
        r'^requires-python = ">=3\.(\d+),<3\.(\d+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert base
    assert supported
    assert int(supported[1]) <= int(base[1]) < int(supported[2])
    assert "ARG LOCK=requirements.lock\n" in DOCKERFILE
    assert "--require-hashes --requirement ${LOCK}" in DOCKERFILE
    assert "UV_COMPILE_BYTECODE=1" in DOCKERFILE
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["1000:1000"]
    makefile = re.search(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert makefile
    assert f"ARG UV_VERSION={makefile[1]}\n" in DOCKERFILE


def test_what_the_image_copies_is_in_its_context() -> None:
    copied = {
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    }
    admitted = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert {name for name in copied if "*" not in name} == {name for name in admitted if ".lock" not in name}
    assert "requirements*.lock" in copied
    assert {name for name in admitted if ".lock" in name} == {"requirements.lock", "requirements-gpu.lock"}
    assert all((ROOT / name).exists() for name in admitted)


def test_the_image_reports_nothing_home() -> None:
    assert "RAY_USAGE_STATS_ENABLED=0" in DOCKERFILE


def test_the_gpu_lock_is_the_lock_with_cuda() -> None:
    """The same versions, so that results can be compared."""

    def pinned(name: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9-]+==[^ ]+)", (ROOT / name).read_text(), re.MULTILINE))

    more = pinned("requirements-gpu.lock") - pinned("requirements.lock")
    assert more
    assert all(each.startswith("nvidia-") for each in more)
    assert pinned("requirements.lock") <= pinned("requirements-gpu.lock")
