"""README's five-minute tour, as a newcomer types it: every command but `submit`, and the output that is shown.

`submit`, which needs a cluster, is parsed by test_samples.py; tests/jobs/ submits.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import README, ROOT, Page
from tests.docs.shown import assert_shown
from tests.support.command import environment
from tests.support.s3_server import BUCKET, settings

TOUR = Page(README).section("A five-minute tour")
RUNS = Page(ROOT / "docs" / "runs.md")

SMALL = {"MNIST_RAY_RUN_EPOCHS": "2", "MNIST_RAY_RUN_NUM_SHARDS": "2", "MNIST_RAY_RUN_NUM_WORKERS": "1"}
"""The commands stand as they are; the environment makes the work small."""

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.timeout(600)
def test_every_command_of_the_tour_runs_and_prints_what_is_shown(port: int, tmp_path: Path) -> None:
    env = environment(tmp_path / "home", **SMALL, **settings(port))
    (tmp_path / "home").mkdir()
    _make_photos(tmp_path)
    _upload(tmp_path, env, ["new/a.png", "new/b.png", "new/c.png", "old/d.png"])
    (module,) = set(re.findall(r"[Ss]ave this as `(\w+\.py)`", TOUR.prose))
    printed: dict[str, str] = {}
    for block in TOUR.blocks:
        if block.is_python:
            (tmp_path / module).write_text(block.text)
        elif block.info == "console":
            assert_shown(block.text, printed[next(reversed(printed))])
        elif not block.info:
            for line in block.text.splitlines():
                if not line.startswith(("source ", "mnist-ray submit ")):
                    printed[line] = _bash(line, tmp_path, env)
    assert [line.split()[1] for line in printed] == ["run", "run", "score", "score", "verify"]
    (first,) = printed.keys() & {*RUNS.code}
    assert_shown(next(block.text for block in RUNS.blocks if block.info == "console"), printed[first])

    for name in ("photos", "photos-cnn"):
        metrics = json.loads((tmp_path / "storage" / name / "metrics.json").read_text())
        assert metrics["dataset"]["train_images"] == 2000
        assert metrics["after"]["num_seen"] == 500
        assert metrics.keys() == _keys_on_the_page()
        assert (tmp_path / "storage" / name / "report.html").exists()
    verified = _bash(f"mnist-ray verify s3://{BUCKET}/scored", tmp_path, env)
    assert "3 images = 3 scored + 0 quarantined" in verified


def _make_photos(folder: Path) -> None:
    (block,) = [block for block in Page(ROOT / "docs" / "data.md").blocks if block.is_python]
    subprocess.run([sys.executable, "-c", block.text], cwd=folder, check=True)
    for split, count in {"train": 2000, "test": 500}.items():
        assert len([*(folder / "photos" / split).glob("[0-9]/*.png")]) == count


def _upload(folder: Path, env: dict[str, str], names: list[str]) -> None:
    """Put images into the bucket of the tour."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=env["AWS_ENDPOINT_URL"], region_name=env["AWS_REGION"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"], aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    images = sorted((folder / "photos" / "test").rglob("*.png"))
    for name, image in zip(names, images, strict=False):
        client.put_object(Bucket=BUCKET, Key=name, Body=image.read_bytes())


def _bash(line: str, folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (line, done.stderr)
    return done.stdout


def _keys_on_the_page() -> set[str]:
    """Those of metrics.json that docs/runs.md names, in the first column of its table."""
    cells = re.findall(r"^\| ([^|]+) \|", RUNS.section("The result").text, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", " ".join(cells)))
