"""All kinds of reports in a real browser: accessible (axe-core), no wider than the screen, nothing on the console.

Needs Chromium, and npm to fetch axe-core and playwright-core.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.report.images import encode
from mnist_ray.report.page import write_comparison, write_report
from mnist_ray.storage.location import Location
from tests.support.log_maker import log_run
from tests.support.many_classes import make_wide_output
from tests.support.output_maker import NAMES, make_label_output, make_output
from tests.support.report_maker import change, make_run

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (BROWSER and shutil.which("npm")), reason="needs Chromium and npm"),
]


def pages(folder: Path) -> list[Location]:
    """Runs with logs and without, an output with labels, one without, one of 1,000 classes, one of several labels an
    image and the drift since, a comparison, a drift of classes."""
    runs = [Location.parse(make_run(folder / name, error=error)) for name, error in (("a", 0.05), ("b", 0.1))]
    log_run(folder / "a")
    photo = encode(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    outputs = [folder / name for name in ("labelled", "plain", "wide", "now", "several")]
    for each in (outputs[0], outputs[1], outputs[3]):
        make_output(each, units=(60, 50, 70), classes=NAMES)
        change(
            each, dataset={"name": "photos", "classes": list(NAMES), "image_shape": [96, 96, 3]},
            score={"images": 180, "quarantined": 3}, config={"input": ["photos"], "model": "m", "output": "o"},
        )  # fmt: skip
    change(outputs[1], after=None)
    make_wide_output(outputs[2], 1_000, (2_000,))
    log_run(outputs[1])
    for each, mode in ((outputs[4], 3), (folder / "later", 2)):
        make_label_output(each, np.random.default_rng(0).beta(1, mode, (200, 4)), units=(100, 100), names=NAMES)
    written = [write_report(run) for run in runs]
    written += [
        write_report(Location.parse(each), fetch=lambda shown: {one.row: photo for one in shown if one.row is not None})
        for each in (*outputs[:3], outputs[4])
    ]
    for now, before in ((outputs[3], outputs[0]), (folder / "later", outputs[4])):
        written.append(write_report(Location.parse(now), reference=Location.parse(before)))
    return [*written, write_comparison(runs), write_comparison([Location.parse(each) for each in outputs[:2]])]


def test_reports_in_a_browser(tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run(["npm", "install", "--silent", "axe-core", "playwright-core"], cwd=tmp_path, env=env, check=True)
    script = shutil.copy(Path(__file__).parent / "look_at.js", tmp_path)
    files = [each.path for each in pages(tmp_path)]
    done = subprocess.run(["node", script, str(BROWSER), *files], capture_output=True, text=True, check=True, env=env)
    assert len(files) == 10
    assert json.loads(done.stdout) == []
