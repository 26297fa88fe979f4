"""Rehearsals: a namespace for each, and the table of what was seen.

MNIST_RAY_ABOUT says above the table what Kubernetes cannot be asked, such as the version of KubeRay. MNIST_RAY_ON says
in each row in what they differ from that.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import pytest
import yaml

from tests.support.kubernetes import Namespace, RefusedError, cluster_or_skip, has_nodes, kubectl
from tests.support.manifests import DEPLOY
from tests.support.rehearsal import Row, write_table


@pytest.fixture
def space(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    cluster_or_skip()
    if not has_nodes():
        pytest.skip("the cluster has no node: nothing would run")
    name = request.node.name.removeprefix("test_").lower()
    with Namespace("rehearse-" + "".join(c if c.isalnum() else "-" for c in name)[:40].strip("-")) as made:
        yield made
        with contextlib.suppress(RefusedError):  # the next one needs the room
            made.kubectl("delete", "rayjob,raycluster,pod", "--all", "--grace-period=5", seconds=180)


@pytest.fixture
def rows() -> Iterator[list[Row]]:
    """What was seen; written in the end, whatever failed."""
    seen: list[Row] = []
    yield seen
    if seen:
        versions = yaml.safe_load(kubectl("version", "--output=yaml"))
        if on := os.environ.get("MNIST_RAY_ON"):
            for row in seen:
                row.what += f", on {on}"
        about = (f"Kubernetes {versions['serverVersion']['gitVersion']}", os.environ.get("MNIST_RAY_ABOUT"))
        dated = f"{', '.join(filter(None, about))}, {time.strftime('%Y-%m-%d')}."
        write_table(DEPLOY / "REHEARSED.md", seen, dated)
