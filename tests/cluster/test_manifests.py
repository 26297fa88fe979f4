"""What a cluster is given: the manifests against KubeRay's own schema, the image's recipe, and the scripts in jobs/."""

from __future__ import annotations

import copy
import functools
import operator
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.support.command import ROOT

CRDS = Path(os.environ.get("MNIST_RAY_CRDS", ROOT.parent / "shared" / "kuberay-crds"))

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


@pytest.fixture(scope="session")
def manifests() -> dict[str, Any]:
    """What `kubectl apply --kustomize deploy/base` sends, by kind."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed: the manifests cannot be rendered")
    command = ["kubectl", "kustomize", str(ROOT / "deploy" / "base")]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    documents = list(yaml.safe_load_all(rendered))
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents)
    return by_kind


@pytest.fixture
def job(manifests: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(manifests["RayJob"])


@pytest.fixture(scope="session")
def validator() -> Draft202012Validator:
    """Judges a RayJob as the API server does, with unknown fields refused as `kubectl apply` refuses them."""
    file = CRDS / "ray.io_rayjobs.yaml"
    if not file.exists():
        pytest.skip(f"no KubeRay CRDs in {CRDS}: set MNIST_RAY_CRDS to the folder of ray.io_rayjobs.yaml")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a megabyte: 5 s without libyaml
    versions = yaml.load(file.read_text(), loader)["spec"]["versions"]
    schema = next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    schema["properties"]["metadata"]["additionalProperties"] = True  # the API server has its own schema for it
    return Draft202012Validator(strict(schema))


def strict(schema: Any) -> Any:
    """A structural schema in which objects have no properties but those it names."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {
        # The keys below `properties` are names, not keywords.
        key: {name: strict(value) for name, value in item.items()} if key == "properties" else strict(item)
        for key, item in schema.items()
    }
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    return schema


def complaints(validator: Draft202012Validator, document: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def ray_templates(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates that run Ray: the head's, then each worker group's."""
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def pod_specs(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Those and the submitter's."""
    return [template["spec"] for template in (job["spec"]["submitterPodTemplate"], *ray_templates(job))]


def containers(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for spec in pod_specs(job):
        yield from spec["containers"]


def entrypoint(job: dict[str, Any]) -> list[str]:
    return shlex.split(job["spec"]["entrypoint"])


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_kuberay_accepts_the_job(validator: Draft202012Validator, job: dict[str, Any]) -> None:
    assert complaints(validator, job) == []


WORKERS = ("rayClusterSpec", "workerGroupSpecs", 0)

HEAD = ("rayClusterSpec", "headGroupSpec")

CONTAINER = (*HEAD, "template", "spec", "containers", 0)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("backofLimit",), 3, "'backofLimit' was unexpected"),
        ((*CONTAINER, "volumeMount"), [], "'volumeMount' was unexpected"),
        ((*CONTAINER, "securityContext", "readOnlyRootFileSystem"), True, "'readOnlyRootFileSystem' was unexpected"),
        (("backoffLimit",), "3", "'3' is not of type 'integer'"),
        ((*HEAD, "rayStartParams", "num-cpus"), 0, "0 is not of type 'string'"),
        (("rayClusterSpec", "authOptions", "mode"), "tokens", "'tokens' is not one of ['disabled', 'token']"),
        (("preRunningDeadlineSeconds",), 0, "0 is less than the minimum of 1"),
        ((*WORKERS, "maxReplicas"), None, "'maxReplicas' is a required property"),
        (HEAD, None, "'headGroupSpec' is a required property"),
    ],
)
def test_kuberay_refuses_mistakes(
    validator: Draft202012Validator, job: dict[str, Any], path: tuple[str | int, ...], value: object, complaint: str
) -> None:
    """The check above can fail: each of these changes one field, or takes it out."""
    *way, last = path
    place: Any = functools.reduce(operator.getitem, way, job["spec"])
    if value is None:
        del place[last]
    else:
        place[last] = value
    (found,) = complaints(validator, job)
    assert complaint in found


def test_unknown_fields_pass_only_where_the_schema_says_so() -> None:
    inner = {"type": "object", "properties": {"a": {"type": "integer"}}}
    schema = {
        "type": "object",
        "properties": {
            "open": {**inner, "x-kubernetes-preserve-unknown-fields": True},
            "map": {"type": "object", "additionalProperties": inner},
            "properties": inner,  # a field may have a keyword's name
        },
    }
    validator = Draft202012Validator(strict(schema))
    assert validator.is_valid({"open": {"b": 1}, "map": {"anything": {"a": 1}}, "properties": {"a": 1}})
    assert not validator.is_valid({"open": {"a": "x"}})
    assert not validator.is_valid({"map": {"anything": {"b": 1}}})
    assert not validator.is_valid({"properties": {"b": 1}})


def test_the_cluster_is_closed_and_of_the_locked_ray(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    locked = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked
    assert cluster["rayVersion"] == locked[1]
    assert cluster["authOptions"] == {"mode": "token"}


def test_a_stuck_job_ends_and_a_lost_one_is_tried_again(job: dict[str, Any]) -> None:
    spec = job["spec"]
    assert spec["backoffLimit"] >= 1
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    # KubeRay gives a retry a new cluster: what it must find again lies in storage, under a name that does not change.
    assert option(entrypoint(job), "--name") == "mnist"
    for template in ray_templates(job):
        environment = {variable["name"]: variable["value"] for variable in template["spec"]["containers"][0]["env"]}
        assert environment["MNIST_RAY_HONOUR_FAILURE"] == "1"
        drain = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert template["spec"]["terminationGracePeriodSeconds"] > drain


def test_the_driver_stays_alone_on_the_head(job: dict[str, Any]) -> None:
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    # Any of these would let the driver be placed on a worker.
    assert not {"entrypointNumCpus", "entrypointNumGpus", "entrypointResources"} & job["spec"].keys()


def test_workers_are_a_fixed_number_and_have_the_cpus_that_training_asks_for(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert not cluster.get("enableInTreeAutoscaling")
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] == 2
    words = entrypoint(job)
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert int(option(words, "--num-workers")) == group["replicas"]
    assert float(option(words, "--cpus-per-worker")) == cpus


def test_requests_equal_limits(job: dict[str, Any]) -> None:
    for container in containers(job):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}


def test_storage_is_one_volume_at_one_path_in_every_container(manifests: dict[str, Any], job: dict[str, Any]) -> None:
    claim = manifests["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for spec in pod_specs(job):
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in spec["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert claims == {"storage": claim["metadata"]["name"]}
        for container in spec["containers"]:
            paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert paths["storage"] == option(entrypoint(job), "--storage")
            assert paths.keys() <= {volume["name"] for volume in spec["volumes"]}


def test_the_restricted_pod_security_standard_is_met(job: dict[str, Any]) -> None:
    for spec in pod_specs(job):
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all("emptyDir" in volume or "persistentVolumeClaim" in volume for volume in spec["volumes"])
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in containers(job):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert {"/tmp", "/home/ray"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    # A sidecar that KubeRay 1.7 adds to the head has no securityContext, and is refused in such a namespace.
    assert job["spec"]["submissionMode"] == "K8sJobMode"


def test_the_object_store_lies_in_memory(job: dict[str, Any]) -> None:
    for template in ray_templates(job):
        spec = template["spec"]
        volume = next(volume for volume in spec["volumes"] if volume["name"] == "shm")
        assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}  # more than 30 % of the pod's memory …
        assert spec["containers"][0]["resources"]["limits"]["memory"] == "4Gi"  # … which is what Ray takes
        assert {"name": "shm", "mountPath": "/dev/shm"} in spec["containers"][0]["volumeMounts"]


def test_an_overlay_changes_every_image(tmp_path: Path, manifests: dict[str, Any]) -> None:
    shutil.copytree(ROOT / "deploy" / "base", tmp_path / "base")
    overlay = tmp_path / "mine"
    overlay.mkdir()
    images = [{"name": "mnist-ray", "newName": "registry.example/mnist-ray", "newTag": "7"}]
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["../base"], "images": images}))
    rendered = subprocess.run(["kubectl", "kustomize", overlay], check=True, capture_output=True, text=True).stdout
    job = next(document for document in yaml.safe_load_all(rendered) if document["kind"] == "RayJob")
    assert [container["image"] for container in containers(job)] == ["registry.example/mnist-ray:7"] * 3


def test_the_command_line_takes_the_entrypoint(job: dict[str, Any]) -> None:
    import click

    from mnist_ray.cli import cli
    from mnist_ray.config import RunConfig

    words = entrypoint(job)
    assert words[:4] == ["python", "-m", "mnist_ray.cli", "run"]
    assert not re.search(r"[;&|<>$`\n\\'\"]", job["spec"]["entrypoint"])  # it is pasted into a shell line
    values = cli.commands["run"].make_context("run", words[4:]).params
    options = RunConfig(**{name: value for name, value in values.items() if name != "config"})
    assert (options.storage, options.name, options.address) == ("/mnt/storage", "mnist", "auto")
    assert (options.worker_range(), options.cpus_per_worker) == ((2, 2), 2.0)
    with pytest.raises(click.NoSuchOption):
        cli.commands["run"].make_context("run", [*words[4:], "--no-such-option"])


def test_the_image_the_manifests_and_the_package_say_the_same_version(job: dict[str, Any]) -> None:
    from mnist_ray import __version__

    assert f'image.version="{__version__}"' in DOCKERFILE
    assert {container["image"] for container in containers(job)} == {f"mnist-ray:{__version__}"}
