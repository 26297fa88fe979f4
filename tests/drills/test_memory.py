"""A node whose memory is full, as Ray's monitor sees it: told in one line, with the node and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.command import environment, mnist_ray
from tests.support.model_maker import make_model

pytestmark = [pytest.mark.ray, pytest.mark.drill]

FULL = r"the memory of node \S+ was full \([\d.]+ of [\d.]+ GiB\); give it more memory \(a pod: its limit\)"


@pytest.mark.parametrize("what", ["shard", "score"])
def test_a_full_memory_is_told_as_such(what: str, tmp_path: Path) -> None:
    if what == "shard":
        command, lost = ("shard", "embedded", tmp_path / "shards"), "a sharding task was lost"
    else:
        model = make_model(28, 10, tmp_path / "model.keras")
        command = ("score", "embedded", "--limit", "500", "--model", model, "--output", tmp_path / "out")
        lost = "scoring actors were lost too often"
    # Every machine uses more than a thousandth of its memory.
    done = mnist_ray(*command, env=environment(tmp_path, RAY_memory_usage_threshold="0.001"))
    assert done.returncode == 1, done
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(f"mnist-ray: {lost}: {FULL}", last), last
    assert "Top 10 memory users" not in done.stdout + done.stderr
