"""The Kubernetes cluster that KUBECONFIG names, by kubectl."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest


class RefusedError(Exception):
    """What kubectl wrote to stderr."""


def kubectl(*words: str, given: list[dict[str, Any]] | None = None, seconds: float = 60) -> str:
    """Its stdout. Raises RefusedError if it fails."""
    command = ["kubectl", "--cache-dir=/dev/null", *words]  # it would leave a folder in HOME
    text = "\n---\n".join(map(json.dumps, given)) if given else None  # `--raw` wants JSON
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise RefusedError(done.stderr.strip())
    return done.stdout


def cluster_or_skip() -> None:
    """Only a cluster that somebody has named: the tests make namespaces in it."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster")
    try:
        # In a cluster that has just come up, the API server may not serve them yet.
        kinds = [f"crd/{kind}.ray.io" for kind in ("rayjobs", "rayclusters")]
        kubectl("wait", "--for=condition=Established", *kinds, "--timeout=30s", "--request-timeout=40s")
    except (RefusedError, OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"the cluster that KUBECONFIG names does not answer, or has no KubeRay: {error}")


def has_nodes() -> bool:
    return bool(kubectl("get", "nodes", "--output=name").strip())


class Namespace:
    """A namespace in which Pod Security is enforced as restricted. `with` makes and removes it.

    No two have the same name: one that is removed lingers for as long as its pods.
    """

    def __init__(self, name: str):
        self.name = f"{name}-{secrets.token_hex(2)}"

    def __enter__(self) -> Namespace:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        kubectl("apply", "--filename=-", given=[
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name, "labels": labels}}
        ])  # fmt: skip
        wait_for(lambda: self.get("serviceaccount", "default"), "the namespace", 30)
        return self

    def __exit__(self, *_: object) -> None:
        kubectl("delete", "namespace", self.name, "--wait=false")

    def kubectl(self, *words: str, given: list[dict[str, Any]] | None = None, seconds: float = 60) -> str:
        return kubectl(*words[:1], f"--namespace={self.name}", *words[1:], given=given, seconds=seconds)

    def apply(self, documents: list[dict[str, Any]]) -> None:
        """Unknown fields are refused, as kubectl does by itself."""
        self.kubectl("apply", "--filename=-", given=documents)

    def get(self, *words: str) -> dict[str, Any] | None:
        """A resource by kind and name; None if there is none."""
        with suppress(RefusedError):
            found: dict[str, Any] = json.loads(self.kubectl("get", *words, "--output=json"))
            return found
        return None

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        listed = json.loads(self.kubectl("get", kind, f"--selector={selector}", "--output=json"))
        return list(listed["items"])

    def pods(self, **labels: str) -> list[dict[str, Any]]:
        """By the labels of ray.io, such as node_type="head"."""
        return self.items("pods", ",".join(f"ray.io/{key.replace('_', '-')}={value}" for key, value in labels.items()))

    def events(self) -> str:
        return "\n".join(event.get("message") or "" for event in self.items("events"))

    def set_status(self, kind: str, name: str, status: dict[str, Any]) -> None:
        patch = json.dumps({"status": status})
        self.kubectl("patch", kind, name, "--subresource=status", "--type=merge", f"--patch={patch}")


def wait_for(found: Callable[[], Any], what: str, seconds: float) -> Any:
    """What `found` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds:g} s")
        time.sleep(0.5)
    return result
