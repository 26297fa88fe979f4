"""Who reaches whom where network policies are enforced: `make rehearse`, with MNIST_RAY_POLICIES=enforced."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from tests.support.kubernetes import Namespace
from tests.support.manifests import rendered
from tests.support.rehearsal import Row, reader

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(600)]

PORTS = (6379, 8080, 8265)

LISTEN = f"""
import asyncio
async def answer(reader, writer): writer.close()
async def main():
    for port in {PORTS}: await asyncio.start_server(answer, port=port)
    await asyncio.sleep(3600)
asyncio.run(main())
"""

PART = {"app.kubernetes.io/part-of": "mnist-ray"}
NODE = PART | {"ray.io/is-ray-node": "yes"}
LABELS = {
    "head": NODE | {"ray.io/node-type": "head"},
    "worker": NODE | {"ray.io/node-type": "worker"},
    "submitter": PART | {"app.kubernetes.io/component": "submitter"},
    "stranger": {"app": "stranger"},
    "prometheus": {"app.kubernetes.io/name": "prometheus"},
    "operator": {"app.kubernetes.io/name": "kuberay-operator"},
}

ALLOWED = {
    *(("head", "worker", port) for port in PORTS),
    *(("worker", "head", port) for port in PORTS),
    ("submitter", "head", 8265),
    ("operator", "head", 8265),
    ("operator", "worker", 8265),
    ("prometheus", "head", 8080),
    ("prometheus", "worker", 8080),
    *(("prometheus", "stranger", port) for port in PORTS),
    *(("operator", "stranger", port) for port in PORTS),
}


def pod(name: str) -> dict[str, Any]:
    """A pod of the image that listens, and mounts nothing."""
    (made,) = reader()
    (container,) = made["spec"]["containers"]
    made["metadata"] = {"name": name, "labels": LABELS[name]}
    made["spec"]["volumes"], container["volumeMounts"] = [], []
    container["command"] = ["python", "-c", LISTEN]
    container["resources"] = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}}
    return dict(made)


def test_who_reaches_whom(space: Namespace, rows: list[Row]) -> None:
    if os.environ.get("MNIST_RAY_POLICIES") != "enforced":
        pytest.skip("MNIST_RAY_POLICIES is not `enforced`: this cluster may only store network policies")
    begun = time.monotonic()
    space.apply([each for each in rendered("base") if each["kind"] == "NetworkPolicy"])
    space.apply([pod(name) for name in LABELS])
    space.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s", seconds=130)
    addresses = {each["metadata"]["name"]: each["status"]["podIP"] for each in space.items("pods")}
    reached = set()
    for source in LABELS:
        goals = [(name, port) for name in ("head", "worker", "stranger") if name != source for port in PORTS]
        program = f"""
import socket
for name, address, port in {[(name, addresses[name], port) for name, port in goals]}:
    try: socket.create_connection((address, port), 2).close(); print(name, port)
    except OSError: pass
"""
        told = space.kubectl("exec", source, "--", "python", "-c", program, seconds=90)
        reached |= {(source, name, int(port)) for name, port in map(str.split, told.splitlines())}
    assert reached == ALLOWED
    asked = sum(len(PORTS) * (3 - (name in ("head", "worker", "stranger"))) for name in LABELS)
    result = f"{len(reached)} connections of {asked} are let through, as network.yaml has it; the others are refused"
    rows.append(Row("network policies enforced: who reaches whom", result, time.monotonic() - begun))
