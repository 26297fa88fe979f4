"""What a cluster is given: the manifests against KubeRay's own schemas, and against what they promise."""

from __future__ import annotations

import copy
import functools
import operator
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.support.command import ROOT
from tests.support.manifests import (
    ALL,
    DEPLOY,
    containers,
    entrypoint,
    job_spec,
    of_kind,
    option,
    ray_resource,
    ray_templates,
    rendered,
    templates,
)

CRDS = Path(os.environ.get("MNIST_RAY_CRDS", ROOT.parent / "shared" / "kuberay-crds"))
"""The CRDs of one version of KubeRay, or a folder for each version."""

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()

FILES = {
    "RayJob": "ray.io_rayjobs.yaml",
    "RayCronJob": "ray.io_raycronjobs.yaml",
    "RayCluster": "ray.io_rayclusters.yaml",
}


@pytest.fixture
def job() -> dict[str, Any]:
    return copy.deepcopy(of_kind(rendered("base"), "RayJob"))


@pytest.fixture
def spec(job: dict[str, Any]) -> dict[str, Any]:
    return job_spec(job)


@functools.cache
def validators(kind: str) -> list[Draft202012Validator]:
    """Judge a resource as the API server does, with unknown fields refused as `kubectl apply` refuses them; one for
    each version of KubeRay."""
    files = sorted({*CRDS.glob(FILES[kind]), *CRDS.glob(f"*/{FILES[kind]}")})
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a megabyte: 5 s without libyaml
    found = []
    for file in files:
        versions = yaml.load(file.read_text(), loader)["spec"]["versions"]
        schema = next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
        schema["properties"]["metadata"]["additionalProperties"] = True  # the API server has its own schema for it
        found.append(Draft202012Validator(strict(schema)))
    return found


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


def complaints(document: dict[str, Any]) -> list[str]:
    """Of every version of KubeRay that is at hand, once each."""
    judges = validators(document["kind"])
    if not judges:
        pytest.skip(f"no KubeRay CRDs in {CRDS}: set MNIST_RAY_CRDS to the folder of {FILES[document['kind']]}")
    return sorted({f"{error.json_path}: {error.message}" for judge in judges for error in judge.iter_errors(document)})


@pytest.mark.parametrize("folder", ALL)
def test_kuberay_accepts(folder: str) -> None:
    assert complaints(ray_resource(rendered(folder))) == []


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
    job: dict[str, Any], path: tuple[str | int, ...], value: object, complaint: str
) -> None:
    """The check above can fail: each of these changes one field, or takes it out."""
    *way, last = path
    place: Any = functools.reduce(operator.getitem, way, job["spec"])
    if value is None:
        del place[last]
    else:
        place[last] = value
    (found,) = complaints(job)
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


@pytest.mark.parametrize("folder", ALL)
def test_every_overlay_keeps_what_the_base_promises(folder: str) -> None:
    documents = rendered(folder)
    spec = job_spec(ray_resource(documents))
    cluster = spec["rayClusterSpec"]
    locked = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked
    assert cluster["rayVersion"] == locked[1]
    assert cluster["authOptions"] == {"mode": "token"}
    # The driver stays alone on the head; any of these would let it be placed on a worker.
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert not {"entrypointNumCpus", "entrypointNumGpus", "entrypointResources"} & spec.keys()
    account = of_kind(documents, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    for template in templates(spec):
        pod = template["spec"]
        assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "mnist-ray"
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        names = [volume["name"] for volume in pod["volumes"]]
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= {*names}
    for container in containers(spec):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
        size = container["resources"]
        assert size["requests"]["memory"] == size["limits"]["memory"]
        assert {"cpu", "memory"} <= size["limits"].keys()
    if spec.get("entrypoint"):  # a sidecar that KubeRay adds to the head has no securityContext, and is refused
        assert spec["submissionMode"] == "K8sJobMode"


def test_a_stuck_job_ends_and_a_lost_one_is_tried_again(spec: dict[str, Any]) -> None:
    assert spec["backoffLimit"] >= 1
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    # KubeRay gives a retry a new cluster: what it must find again lies in storage, under a name that does not change.
    assert option(entrypoint(spec), "--name") == "mnist"


def test_workers_drain_and_the_head_does_not(spec: dict[str, Any]) -> None:
    """A head that drains keeps its requests for as long, and delays the next one: nothing on it can move elsewhere."""
    grace = "terminationGracePeriodSeconds"
    head, worker = (
        {variable["name"]: variable["value"] for variable in template["spec"]["containers"][0]["env"]}
        for template in ray_templates(spec)
    )
    assert head["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "0"  # 30 by default
    seconds = float(worker["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert ray_templates(spec)[1]["spec"][grace] > seconds >= 30
    # Ray's drain asks the head, and waits in vain for one that is lost: a retry's workers wait for their room.
    assert seconds <= 45
    assert grace not in ray_templates(spec)[0]["spec"]


def test_a_mended_job_is_a_new_start(spec: dict[str, Any]) -> None:
    """What marks a failure as permanent belongs to one start, which a plain `kubectl apply` does not name."""
    head = ray_templates(spec)[0]["spec"]["containers"][0]
    assert {"name": "MNIST_RAY_JOB_UID", "value": ""} in head["env"]


def test_workers_are_a_fixed_number_and_have_the_cpus_that_training_asks_for(spec: dict[str, Any]) -> None:
    cluster = spec["rayClusterSpec"]
    assert not cluster.get("enableInTreeAutoscaling")
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] == 2
    words = entrypoint(spec)
    assert int(option(words, "--num-workers")) == group["replicas"]
    assert "--cpus-per-worker" not in words  # the default, 1
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "1"


def test_storage_is_one_volume_at_one_path_in_every_ray_container(spec: dict[str, Any]) -> None:
    claim = of_kind(rendered("base"), "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for template in ray_templates(spec):
        pod = template["spec"]
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert claims == {"storage": claim["metadata"]["name"]}
        for container in pod["containers"]:
            paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert paths["storage"] == option(entrypoint(spec), "--storage")


def test_a_bucket_needs_no_claim() -> None:
    documents = rendered("overlays/s3")
    spec = job_spec(ray_resource(documents))
    assert "PersistentVolumeClaim" not in {document["kind"] for document in documents}
    assert option(entrypoint(spec), "--storage").startswith("s3://")
    for template in ray_templates(spec):
        assert not [volume for volume in template["spec"]["volumes"] if "persistentVolumeClaim" in volume]
        assert template["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "mnist-s3"}}]


def test_a_queue_for_cpu_and_memory_is_enough() -> None:
    """Kueue never admits a pod that asks for anything else than its queue has a quota for."""
    spec = job_spec(ray_resource(rendered("overlays/kueue")))
    for container in containers(spec):
        assert {*container["resources"]["requests"]} == {"cpu", "memory"}


def test_the_autoscaler_alone_gets_a_token() -> None:
    """The driver, which runs users' code, is in the same pod."""
    spec = job_spec(ray_resource(rendered("overlays/autoscaling")))
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    token = "/var/run/secrets/kubernetes.io/serviceaccount"
    holders = [
        container["name"]
        for container in containers(spec)
        if token in {mount["mountPath"] for mount in container["volumeMounts"]}
    ]
    assert holders == ["autoscaler"]
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    words = entrypoint(spec)
    assert option(words, "--num-workers") == f"{group['minReplicas']}:{group['maxReplicas']}"


def memory(quantity: str) -> int:
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return int(quantity[:-2]) * units[quantity[-2:]]


def test_small_fits_two_cpus_and_six_gib() -> None:
    spec = job_spec(ray_resource(rendered("overlays/small")))
    worker = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    counts = [1, 1, worker["replicas"]]
    cpus, total = 0, 0
    for template, count in zip(templates(spec), counts, strict=True):
        (container,) = template["spec"]["containers"]
        requests = container["resources"]["requests"]
        cpus += count * int(requests["cpu"].removesuffix("m"))
        total += count * memory(requests["memory"])
    assert cpus <= 1900  # a node keeps some for itself
    assert total <= 6 * 2**30


def test_the_object_store_lies_in_memory(spec: dict[str, Any]) -> None:
    for template in ray_templates(spec):
        pod = template["spec"]
        volume = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
        assert volume["emptyDir"]["medium"] == "Memory"
        # Ray takes up to 30 % of the pod's memory.
        (container,) = pod["containers"]
        assert memory(volume["emptyDir"]["sizeLimit"]) > 0.3 * memory(container["resources"]["limits"]["memory"])
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


@pytest.mark.parametrize("folder", ["base", "overlays/cron", "overlays/dev"])
def test_a_folder_of_ones_own_changes_every_image(folder: str, tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    mine = tmp_path / "deploy" / "mine"
    mine.mkdir()
    images = [{"name": "mnist-ray", "newName": "registry.example/mnist-ray", "newTag": "7"}]
    (mine / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [f"../{folder}"], "images": images}))
    spec = job_spec(ray_resource(rendered(mine)))
    assert {container["image"] for container in containers(spec)} == {"registry.example/mnist-ray:7"}


@pytest.mark.parametrize(
    "names", [("small", "s3", "kueue"), ("s3", "autoscaling"), ("autoscaling", "s3", "gpu"), ("podmonitor",)]
)
def test_components_combine(names: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    mine = tmp_path / "deploy" / "mine"
    mine.mkdir()
    components = [f"../components/{name}" for name in names]
    (mine / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["../base"], "components": components}))
    documents = rendered(mine)
    assert complaints(ray_resource(documents)) == []
    kinds = {document["kind"] for document in documents}
    assert ("PodMonitor" in kinds) == ("podmonitor" in names)
    assert ("PersistentVolumeClaim" in kinds) == ("s3" not in names)


@pytest.mark.parametrize("folder", [folder for folder in ALL if folder != "overlays/dev"])
def test_the_command_line_takes_the_entrypoint(folder: str) -> None:
    from mnist_ray.cli import cli
    from mnist_ray.config import RunConfig, ScoreConfig

    spec = job_spec(ray_resource(rendered(folder)))
    words = entrypoint({"entrypoint": spec["entrypoint"].replace("$(date -ud yesterday +%F)", "2026-01-31")})
    assert not re.search(r"[;&|<>$`\n\\'\"]", " ".join(words))  # it is pasted into a shell line
    assert words[:3] == ["python", "-m", "mnist_ray"]
    config = {"run": RunConfig, "score": ScoreConfig}[words[3]]
    values = cli.commands[words[3]].make_context(words[3], words[4:]).params
    options = config(**{name: value for name, value in values.items() if name != "config"})
    assert options.address == "auto"


def test_the_image_the_manifests_and_the_package_say_the_same_version(spec: dict[str, Any]) -> None:
    from mnist_ray import __version__

    assert f'image.version="{__version__}"' in DOCKERFILE
    assert {container["image"] for container in containers(spec)} == {f"mnist-ray:{__version__}"}
    assert f"image: mnist-ray:{__version__}" in (DEPLOY / "reader.yaml").read_text()
    assert f"mnist-ray:{__version__}\n" in (ROOT / "Makefile").read_text()


def commands(text: str) -> list[str]:
    """The kubectl lines of a page's code blocks, continued lines joined."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+", " ", line).strip() for line in lines if "kubectl " in line]


def test_documented_commands_name_their_namespace() -> None:
    """Without it, they act on whichever namespace is the current one."""
    found = commands((DEPLOY / "README.md").read_text())
    assert len(found) > 5
    for line in found:
        for command in re.findall(r"kubectl [^|&;)]*", line):
            if not re.match(r"kubectl (kustomize|(create|label|delete) namespace|apply --kustomize deploy/)", command):
                assert re.search(r"--namespace mnist\b|-n mnist\b", command), line
