"""What a real API server and a real KubeRay say to the manifests. No node is needed: pods are admitted, or refused.

KUBECONFIG names the cluster; `make test-cluster` runs these.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.kubernetes import Namespace, RefusedError, cluster_or_skip, has_nodes, kubectl, wait_for
from tests.support.manifests import ALL, DEPLOY, job_spec, of_kind, ray_resource, ray_templates, rendered, templates

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def space(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    cluster_or_skip()
    name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_").lower().replace("_", "-"))
    with Namespace(f"mnist-{name}"[:55].strip("-")) as made:
        yield made


def bare_pod(template: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "bare", **template["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def expected_pods(cluster: dict[str, Any]) -> int:
    return 1 + sum(group["replicas"] for group in cluster["workerGroupSpecs"])


@pytest.mark.parametrize("folder", ALL)
def test_it_is_admitted(space: Namespace, folder: str) -> None:
    """By the API server as it stands, and the pods that the operator makes of it by Pod Security."""
    documents = rendered(folder)
    space.apply(documents)
    resource = ray_resource(documents)
    spec = job_spec(resource)
    for template in templates(spec):
        space.kubectl("create", "--dry-run=server", "--filename=-", given=[bare_pod(template)])
    if resource["kind"] == "RayCronJob":
        return  # behind a feature gate; its pods are those of overlays/score
    if spec.get("suspend"):
        kind, name = "rayjob", resource["metadata"]["name"]
        wait_for(lambda: state(space, name) == "Suspended", "suspended", 60)
        assert space.pods() == []
        space.kubectl("patch", kind, name, "--type=merge", '--patch={"spec": {"suspend": false}}')  # as Kueue does
    count = expected_pods(spec["rayClusterSpec"])
    pods = wait_for(lambda: made if len(made := space.pods(is_ray_node="yes")) == count else None, "pods", 60)
    if "autoscalerOptions" in spec["rayClusterSpec"]:
        (head,) = space.pods(node_type="head")
        assert [container["name"] for container in head["spec"]["containers"]] == ["ray-head", "autoscaler"]
    if resource["kind"] == "RayJob" and not has_nodes():
        make_ready(space, pods)
        wait_for(lambda: space.items("pods", f"job-name={resource['metadata']['name']}"), "the submitter", 60)


def state(space: Namespace, name: str) -> str:
    job = space.get("rayjob", name)
    return str(job and job.get("status", {}).get("jobDeploymentStatus"))


def make_ready(space: Namespace, pods: list[dict[str, Any]]) -> None:
    """What a kubelet would say of pods that run."""
    for number, pod in enumerate(pods):
        running = [
            {"name": container["name"], "ready": True, "restartCount": 0, "image": "", "imageID": "", "started": True,
             "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
            for container in pod["spec"]["containers"]
        ]  # fmt: skip
        space.set_status("pod", pod["metadata"]["name"], {
            "phase": "Running", "podIP": f"10.9.9.{number + 1}", "podIPs": [{"ip": f"10.9.9.{number + 1}"}],
            "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": running,
        })  # fmt: skip


def test_the_reader_is_admitted(space: Namespace) -> None:
    space.apply(list(yaml.safe_load_all((DEPLOY / "reader.yaml").read_text())))


@pytest.mark.parametrize(
    ("way", "complaint"),
    [
        (("template", "spec", "securityContext", "runAsNonRoot"), "runAsNonRoot"),
        (("template", "spec", "securityContext", "seccompProfile"), "seccompProfile"),
        (("template", "spec", "containers", 0, "securityContext", "capabilities"), "unrestricted capabilities"),
        (("template", "spec", "containers", 0, "securityContext", "allowPrivilegeEscalation"), "allowPrivilege"),
    ],
)
def test_a_head_with_a_field_less_is_refused(space: Namespace, way: tuple[str | int, ...], complaint: str) -> None:
    documents = copy.deepcopy(rendered("base"))
    place: Any = job_spec(of_kind(documents, "RayJob"))["rayClusterSpec"]["headGroupSpec"]
    for step in way[:-1]:
        place = place[step]
    del place[way[-1]]
    space.apply(documents)
    wait_for(lambda: complaint in space.events(), complaint, 60)
    assert "violates PodSecurity" in space.events()
    assert space.pods(node_type="head") == []


def test_an_autoscaler_without_its_security_is_refused(space: Namespace) -> None:
    documents = copy.deepcopy(rendered("overlays/autoscaling"))
    del of_kind(documents, "RayJob")["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"]
    space.apply(documents)
    wait_for(lambda: 'container "autoscaler" must set' in space.events(), "a refusal", 60)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"backofLimit": 3}, 'unknown field "spec.backofLimit"'),
        ({"preRunningDeadlineSeconds": 0}, "greater than or equal to 1"),
        ({"backoffLimit": "3"}, "must be of type integer"),
    ],
)
def test_a_mistake_is_refused_at_once(space: Namespace, change: dict[str, Any], complaint: str) -> None:
    job = copy.deepcopy(of_kind(rendered("base"), "RayJob"))
    job["spec"] |= change
    with pytest.raises(RefusedError, match=re.escape(complaint)):
        space.apply([job])


def test_the_pods_account_has_no_rights(space: Namespace) -> None:
    space.apply(rendered("base"))
    who = f"--as=system:serviceaccount:{space.name}:mnist-ray"
    for verb, what in [("get", "pods"), ("list", "secrets"), ("create", "pods"), ("patch", "rayclusters.ray.io")]:
        with pytest.raises(RefusedError):
            space.kubectl("auth", "can-i", verb, what, who)


def test_the_autoscalers_account_may_change_its_own_cluster_and_no_secret(space: Namespace) -> None:
    space.apply(rendered("overlays/autoscaling"))
    who = f"--as=system:serviceaccount:{space.name}:mnist-ray"

    def may(verb: str, what: str) -> bool:
        try:
            return "yes" in space.kubectl("auth", "can-i", verb, what, who)
        except RefusedError:
            return False

    wait_for(lambda: may("patch", "rayclusters.ray.io"), "the rights", 60)
    assert not may("list", "secrets")
    assert not may("create", "pods")


def test_the_documented_wait_and_delete_work(space: Namespace) -> None:
    """`logs --follow job/mnist` right after `apply` does not: the Job is made once all pods are ready."""
    space.apply(rendered("base"))
    with pytest.raises(RefusedError, match="not found"):
        space.kubectl("logs", "--follow", "job/mnist")
    pods = wait_for(lambda: made if len(made := space.pods(is_ray_node="yes")) == 3 else None, "pods", 60)
    if not has_nodes():
        make_ready(space, pods)
        space.kubectl("wait", "--for=create", "job/mnist", "--timeout=60s", seconds=70)
    space.kubectl("delete", "rayjob", "mnist", "--wait=false")
    assert kubectl("get", f"--namespace={space.name}", "pvc", "mnist-storage", "--output=name").strip()


def test_apply_alone_does_not_start_a_job_again(space: Namespace) -> None:
    """KubeRay starts a RayJob once; a mended one must be deleted and applied, as the page says."""
    documents = [each for each in copy.deepcopy(rendered("base")) if each["kind"] in ("ServiceAccount", "RayJob")]
    job = of_kind(documents, "RayJob")["spec"]
    job |= {"backoffLimit": 0, "preRunningDeadlineSeconds": 2}
    for template in ray_templates(job):
        template["spec"]["nodeSelector"] = {"no": "node"}
    space.apply(documents)
    wait_for(lambda: state(space, "mnist") == "Failed", "the end", 60)
    job["entrypoint"] += " --epochs 1"
    space.apply(documents)
    time.sleep(5)
    assert state(space, "mnist") == "Failed"
    space.kubectl("delete", "rayjob", "mnist", "--wait=true")
    space.apply(documents)
    wait_for(lambda: state(space, "mnist") in ("Initializing", "Failed"), "a new start", 60)
