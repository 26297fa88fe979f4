"""Whole jobs on a real cluster, and what it costs to lose a part of one: `make rehearse`.

KUBECONFIG names the cluster; MNIST_RAY_IMAGE is the image as its nodes find it. Small on purpose: each fits 1.9 CPUs.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import moto
import pytest
import yaml

from tests.support.command import BIN, free_port
from tests.support.kubernetes import Namespace, RefusedError, cluster_or_skip, has_nodes, kubectl, wait_for
from tests.support.manifests import DEPLOY, job_spec, ray_resource, rendered
from tests.support.rehearsal import ENDED, IMAGE, Rehearsal, Row, documents_of, prepared, write_table

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(1500)]

TRAIN = str(job_spec(ray_resource(rendered("base")))["entrypoint"]) if which("kubectl") else ""
"""As the base has it."""
LONG = f"{TRAIN} --epochs 8"
CNN = f"{TRAIN} --architecture cnn --epochs 1"
SLOW_SCORE = (
    "python -m mnist_ray score embedded --split train --model /mnt/storage/mnist --output /mnt/storage/scored"
    " --address auto --num-actors 1 --precision float64 --wait-for-resources 300"
)


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
        about = f"Kubernetes {versions['serverVersion']['gitVersion']}, {time.strftime('%Y-%m-%d')}."
        write_table(DEPLOY / "REHEARSED.md", seen, about)


def whole(rehearsal: Rehearsal, rows: list[Row], what: str, seconds: float = 900) -> None:
    status = rehearsal.finished(seconds)
    took = rehearsal.seconds
    assert status["jobStatus"] == "SUCCEEDED", status
    lost, duplicated = rehearsal.verified()
    rows.append(Row(what, f"SUCCEEDED, {rehearsal.correct()} correct", took, "0", lost, duplicated))


def test_small(space: Namespace, rows: list[Row]) -> None:
    """As it stands, but for the image."""
    documents = documents_of("overlays/small")
    with prepared(space, documents) as rehearsal:
        whole(rehearsal, rows, "small")
        assert "REPORT" not in rehearsal.ask("head", "-c", "100", "/mnt/storage/mnist/report.html")


def test_score(space: Namespace, rows: list[Row]) -> None:
    with prepared(space, documents_of("base")) as training:
        assert training.finished(900)["jobStatus"] == "SUCCEEDED"
    scoring = Rehearsal(space, documents_of("overlays/score"))
    scoring.start()
    status = scoring.finished(600)
    assert status["jobStatus"] == "SUCCEEDED", status
    took = scoring.seconds
    lost, duplicated = scoring.verified("/mnt/storage/scored")
    scoring.run = "/mnt/storage/scored"
    rows.append(Row("score", f"SUCCEEDED, {scoring.correct()} correct", took, "0", lost, duplicated))


S3 = ("AWS_ENDPOINT_URL=http://moto:5000", "AWS_REGION=us-east-1", "AWS_ACCESS_KEY_ID=key", "AWS_SECRET_ACCESS_KEY=no")

MOTO = """
apiVersion: v1
kind: Pod
metadata: {name: moto, labels: {app: moto}}
spec:
  enableServiceLinks: false # moto would read the variable MOTO_PORT of its own Service
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 1000, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: moto
      image: IMAGE
      command: [sh, -c, "until [ -e /tmp/ready ]; do sleep 1; done; exec python -m moto.server -H 0.0.0.0 -p 5000"]
      env: [{name: PYTHONPATH, value: /tmp/moto}]
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      readinessProbe: {tcpSocket: {port: 5000}}
      resources: {requests: {cpu: 50m, memory: 1Gi}, limits: {cpu: "1", memory: 1Gi}}
---
apiVersion: v1
kind: Service
metadata: {name: moto}
spec: {selector: {app: moto}, ports: [{port: 5000}]}
---
apiVersion: v1
kind: Secret
metadata: {name: mnist-s3}
stringData: SETTINGS
"""

MOTO_NEEDS = ("blinker", "flask", "flask_cors", "itsdangerous", "moto", "responses", "werkzeug", "xmltodict")
"""What this machine has and the image has not."""


def start_moto(space: Namespace) -> None:
    """An S3 server in a pod of its own, with an empty bucket."""
    settings = json.dumps(dict(each.split("=") for each in S3))
    space.apply(list(yaml.safe_load_all(MOTO.replace("IMAGE", IMAGE).replace("SETTINGS", settings))))
    running = "--for=jsonpath={.status.phase}=Running"
    space.kubectl("wait", running, "pod/moto", "--timeout=120s", seconds=130)
    packages = Path(moto.__file__).parents[1]
    unpack = "mkdir /tmp/moto && tar -C /tmp/moto -xz && touch /tmp/ready"
    names = [
        found.name
        for name in MOTO_NEEDS
        for what in ("", ".py", "-*.dist-info")
        for found in packages.glob(name + what)
    ]
    pack = f"tar -C {packages} --exclude=__pycache__ -cz {' '.join(names)}"
    copy = f"{pack} | kubectl --cache-dir=/dev/null -n {space.name} exec -i moto -- sh -c '{unpack}'"
    subprocess.run(["bash", "-o", "pipefail", "-c", copy], check=True, timeout=300)
    space.kubectl("wait", "--for=condition=Ready", "pod/moto", "--timeout=120s", seconds=130)
    make = "import urllib.request as u; u.urlopen(u.Request('http://moto:5000/bucket', method='PUT'))"
    space.kubectl("exec", "moto", "--", "python", "-c", make)


def test_s3(space: Namespace, rows: list[Row]) -> None:
    """No claim at all: runs lie in a bucket."""
    start_moto(space)
    runs = "s3://bucket/runs"
    rehearsal = Rehearsal(space, documents_of("overlays/s3", entrypoint=TRAIN.replace("/mnt/storage", runs)))
    rehearsal.start()
    status = rehearsal.finished(900)
    took = rehearsal.seconds
    assert status["jobStatus"] == "SUCCEEDED", status
    verify = ("mnist-ray", "verify", f"{runs}/mnist/predictions")
    told = space.kubectl("exec", "moto", "--", "env", "PYTHONPATH=", *S3, *verify, seconds=120)
    assert "each once" in told
    correct = told.split("; ")[-1].split(" correct")[0].strip()
    rows.append(Row("s3 (moto in a pod)", f"SUCCEEDED, {correct} correct", took, "0", "0", "0"))


def test_autoscaling(space: Namespace, rows: list[Row]) -> None:
    """It starts with one worker, asks for more, and gets as many as there is room for."""
    documents = documents_of("overlays/autoscaling", entrypoint=LONG.replace("--num-workers 2", "--num-workers 1:2"))
    most = 0
    with prepared(space, documents) as rehearsal:
        deadline = time.monotonic() + 900
        while (status := rehearsal.status()).get("jobDeploymentStatus") not in ENDED:
            most = max(
                most, len([pod for pod in space.pods(node_type="worker") if pod["status"]["phase"] == "Running"])
            )
            assert time.monotonic() < deadline
            time.sleep(2)
        took = rehearsal.seconds
        assert status["jobStatus"] == "SUCCEEDED", status
        lost, duplicated = rehearsal.verified()
        workers = rehearsal.record("metrics.json")["train"]["num_workers"]
        result = f"SUCCEEDED, {rehearsal.correct()} correct; 1 worker, then {most}; trained on {workers}"
        rows.append(Row("autoscaling", result, took, "", lost, duplicated))


@contextlib.contextmanager
def forwarded(space: Namespace, service: str) -> Iterator[int]:
    """A local port that leads to the service's 8265, as the page says."""
    port = free_port()
    target = (f"--namespace={space.name}", "port-forward", f"service/{service}", f"{port}:8265")
    process = subprocess.Popen(["kubectl", "--cache-dir=/dev/null", *target], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert "Forwarding" in process.stdout.readline()
        yield port
    finally:
        process.kill()
        process.wait()


def test_dev_and_submit(space: Namespace, rows: list[Row]) -> None:
    """The token comes from the cluster's Secret; another one is refused in seconds."""
    documents = documents_of("overlays/dev")
    rehearsal = Rehearsal(space, documents)
    rehearsal.start()
    rehearsal.start_reader()
    wait_for(
        lambda: ((space.get("raycluster", "mnist-dev") or {}).get("status") or {}).get("state") == "ready", "ready", 300
    )
    template = "--output=go-template={{.data.auth_token | base64decode}}"
    token = space.kubectl("get", "secret", "mnist-dev", template)
    begun = time.monotonic()
    with forwarded(space, "mnist-dev-head-svc") as port:

        def submit(token: str, *words: str) -> subprocess.CompletedProcess[str]:
            command = [BIN / "mnist-ray", "submit", "--address", f"http://127.0.0.1:{port}", "--", *words]
            return subprocess.run(
                command, env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, capture_output=True,
                text=True, timeout=600, check=False,
            )  # fmt: skip

        refused = submit("x" * 64, "run")
        assert refused.returncode == 2, refused
        rows.append(Row("wrong token", f"exit code 2: {refused.stderr.strip()[:200]}", time.monotonic() - begun))
        begun = time.monotonic()
        done = submit(token, "run", "--storage", "/mnt/storage", "--name", "mnist")
    took = time.monotonic() - begun
    assert done.returncode == 0, done
    lost, duplicated = rehearsal.verified()
    rows.append(Row("dev and submit", f"exit code 0, {rehearsal.correct()} correct", took, "0", lost, duplicated))


def delete_worker(job: Rehearsal) -> None:
    job.space.kubectl("delete", "pod", job.worker(), "--wait=false")


def force_delete_worker(job: Rehearsal) -> None:
    job.space.kubectl("delete", "pod", job.worker(), "--grace-period=0", "--force")


def delete_head(job: Rehearsal) -> None:
    job.space.kubectl("delete", "pod", job.head(), "--wait=false")


def force_delete_head(job: Rehearsal) -> None:
    job.space.kubectl("delete", "pod", job.head(), "--grace-period=0", "--force")


def kill_driver(job: Rehearsal) -> None:
    program = (
        "import os, pathlib\n"
        "for each in pathlib.Path('/proc').glob('[0-9]*'):\n"
        "    words = (each / 'cmdline').read_bytes().split(b'\\0')\n"
        "    if words[1:3] == [b'-m', b'mnist_ray']: os.kill(int(each.name), 9)\n"
    )
    job.space.kubectl("exec", job.head(), "--container=ray-head", "--", "python", "-c", program)


def delete_submitter(job: Rehearsal) -> None:
    job.space.kubectl("delete", "pod", f"--selector=job-name={job.name}", "--wait=false")


def drain(job: Rehearsal) -> None:
    """Cordon, evict a worker, and let new pods in again; the head is not to be had."""
    node = job.space.pods(node_type="worker")[0]["spec"]["nodeName"]
    kubectl("cordon", node)
    try:
        for pod, allowed in ((job.head(), False), (job.worker(), True)):
            eviction = {
                "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": job.space.name}
            }  # fmt: skip
            evict = ("create", f"--raw=/api/v1/namespaces/{job.space.name}/pods/{pod}/eviction", "--filename=-")
            if allowed:
                kubectl(*evict, given=[eviction])
            else:
                with pytest.raises(RefusedError, match="disruption budget"):
                    kubectl(*evict, given=[eviction])
    finally:
        kubectl("uncordon", node)


def suspend_and_resume(job: Rehearsal) -> None:
    def set_suspended(value: str) -> None:
        job.space.kubectl("patch", "rayjob", job.name, "--type=merge", f'--patch={{"spec": {{"suspend": {value}}}}}')

    set_suspended("true")
    wait_for(lambda: job.status().get("jobDeploymentStatus") == "Suspended", "suspended", 180)
    set_suspended("false")


LOSSES: dict[str, Callable[[Rehearsal], None]] = {
    "worker deleted": delete_worker,
    "worker force-deleted": force_delete_worker,
    "head deleted": delete_head,
    "head force-deleted": force_delete_head,
    "driver killed": kill_driver,
    "submitter deleted": delete_submitter,
    "node drained": drain,
    "suspended and resumed": suspend_and_resume,
}


def broken(
    rehearsal: Rehearsal, rows: list[Row], what: str, lose: Callable[[Rehearsal], None], at: tuple[str, float],
    output: str | None = None,
) -> None:  # fmt: skip
    highest = rehearsal.reached(*at)
    begun = since = time.monotonic()
    lose(rehearsal)
    standstill = repeated = 0.0
    while (status := rehearsal.status()).get("jobDeploymentStatus") not in ENDED:
        now = rehearsal.progress()
        if now > highest:
            standstill, since = max(standstill, time.monotonic() - since), time.monotonic()
            highest = now
        elif now[0] == highest[0] and now[1]:  # it begins at 0, before it has looked at what is there
            repeated = max(repeated, highest[1] - now[1])
        assert time.monotonic() < begun + 900
        time.sleep(1)
    took = rehearsal.seconds
    assert status["jobStatus"] == "SUCCEEDED", status
    lost, duplicated = rehearsal.verified(output)
    unit = "epochs" if at[0] == "train" else "images"
    attempts = 1 + (status.get("failed") or 0)
    result = f"SUCCEEDED, {rehearsal.correct()} correct, {attempts} attempt{'s' if attempts > 1 else ''}"
    rows.append(Row(what, result, took, f"{repeated:.1f} {unit}", lost, duplicated, f"{standstill:.0f} s"))


@pytest.mark.parametrize("what", LOSSES)
def test_a_loss_in_training(space: Namespace, rows: list[Row], what: str) -> None:
    with prepared(space, documents_of("base", entrypoint=LONG)) as rehearsal:
        broken(rehearsal, rows, f"{what}, in training", LOSSES[what], ("train", 1.2))


@pytest.mark.parametrize("what", ["worker deleted", "head deleted", "head force-deleted"])
def test_a_loss_in_scoring(space: Namespace, rows: list[Row], what: str) -> None:
    with prepared(space, documents_of("base", entrypoint=CNN)) as training:
        assert training.finished(900)["jobStatus"] == "SUCCEEDED"
    scoring = Rehearsal(space, documents_of("overlays/score", entrypoint=SLOW_SCORE), "/mnt/storage/scored")
    scoring.start()
    broken(scoring, rows, f"{what}, in scoring", LOSSES[what], ("score", 5000), "/mnt/storage/scored")


def test_a_mended_job(space: Namespace, rows: list[Row]) -> None:
    """Wrong input ends each attempt with exit code 2; what is applied after it starts anew."""
    wrong = documents_of("base", entrypoint=f"{TRAIN} --data /mnt/storage/nothing", backoffLimit=1)
    with prepared(space, wrong) as rehearsal:
        status = rehearsal.finished(600)
        assert status["jobStatus"] == "FAILED"
        assert "code 2" in status["message"], status
        rows.append(Row("wrong input", f"FAILED, exit code 2, {status['failed']} attempts", rehearsal.seconds))
        space.kubectl("delete", "rayjob", "mnist", seconds=180)
        rehearsal.documents = documents_of("base")
        rehearsal.start()
        whole(rehearsal, rows, "the mended job, applied")


def test_a_missing_image(space: Namespace, rows: list[Row]) -> None:
    documents = documents_of("base", backoffLimit=1, preRunningDeadlineSeconds=30)
    job: dict[str, Any] = next(document for document in documents if document["kind"] == "RayJob")
    for group in (job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]):
        group["template"]["spec"]["containers"][0]["image"] = "localhost/no-such-image:1"
    rehearsal = Rehearsal(space, documents)
    rehearsal.start()
    status = rehearsal.finished(300)
    assert status["reason"] == "PreRunningDeadlineExceeded", status
    shown = "preRunningDeadlineSeconds (30 s here) for each attempt; `kubectl get pods` shows ErrImagePull"
    rows.append(Row("missing image", f"Failed, {status['failed']} attempts: {shown}", rehearsal.seconds))


def test_out_of_memory(space: Namespace, rows: list[Row]) -> None:
    """A worker whose limit is below what training needs."""
    documents = documents_of("base", backoffLimit=0)
    job: dict[str, Any] = next(document for document in documents if document["kind"] == "RayJob")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    for sizes in group["template"]["spec"]["containers"][0]["resources"].values():
        sizes["memory"] = "600Mi"
    with prepared(space, documents) as rehearsal:
        status = rehearsal.finished(900)
        log = space.kubectl("logs", f"--selector=job-name={rehearsal.name}", "--tail=3").strip().splitlines()
        told = next((line for line in reversed(log) if line.startswith("mnist-ray: ")), log[-1] if log else "")
        rows.append(Row("out of memory", f"{status['jobStatus']}: {told[:200]}", rehearsal.seconds))
