"""What `kubectl apply --kustomize` sends, and the pods that KubeRay makes of it."""

from __future__ import annotations

import functools
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.command import ROOT

DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "overlays").iterdir())
ALL = ("base", *(f"overlays/{name}" for name in OVERLAYS))


@functools.cache
def _rendered(folder: Path) -> str:
    command = ["kubectl", "kustomize", str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def rendered(folder: str | Path) -> list[dict[str, Any]]:
    """The documents of a folder of deploy/, or of one elsewhere."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed: the manifests cannot be rendered")
    return list(yaml.safe_load_all(_rendered(DEPLOY / folder)))


def composed(folder: str, *components: str) -> list[dict[str, Any]]:
    """The documents of a folder of one's own, as the page describes it: another folder with components.

    Without the RayJob where a component makes another resource of it, as the overlays have it.
    """
    with tempfile.TemporaryDirectory() as home:
        shutil.copytree(DEPLOY, f"{home}/deploy")
        mine = Path(home, "deploy", "mine")
        mine.mkdir()
        words = {"resources": [f"../{folder}"], "components": [f"../components/{name}" for name in components]}
        (mine / "kustomization.yaml").write_text(yaml.safe_dump(words))
        made = rendered(mine)
    replaced = {"as-cluster", "as-cron"} & {*components}
    return [document for document in made if not (replaced and document["kind"] == "RayJob")]


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def ray_resource(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [document for document in documents if document["apiVersion"] == "ray.io/v1"]
    return found


def job_spec(resource: dict[str, Any]) -> dict[str, Any]:
    """Of a RayJob, or the one that a RayCronJob makes; a RayCluster's as if a job had none but its cluster."""
    spec: dict[str, Any] = resource["spec"]
    return {"RayJob": spec, "RayCronJob": spec.get("jobTemplate", {}), "RayCluster": {"rayClusterSpec": spec}}[
        resource["kind"]
    ]


def ray_templates(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates that run Ray: the head's, then each worker group's."""
    cluster = spec["rayClusterSpec"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def templates(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Those and, of a job, the submitter's."""
    submitter = [spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else []
    return [*submitter, *ray_templates(spec)]


def containers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of those, and the autoscaler's, which KubeRay adds to the head's."""
    for template in templates(spec):
        yield from template["spec"]["containers"]
    if options := spec["rayClusterSpec"].get("autoscalerOptions"):
        yield {"name": "autoscaler", **options}


def entrypoint(spec: dict[str, Any]) -> list[str]:
    return shlex.split(spec["entrypoint"])


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]
