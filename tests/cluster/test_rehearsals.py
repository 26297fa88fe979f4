"""Whole jobs on a real cluster: `make rehearse`.

KUBECONFIG names the cluster, and MNIST_RAY_IMAGE the image as its nodes find it. Each fits 1.9 CPUs.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import moto
import pytest
import yaml

from tests.support.command import BIN, free_port
from tests.support.kubernetes import Namespace, RefusedError, kubectl, wait_for
from tests.support.manifests import job_spec, ray_resource, rendered
from tests.support.rehearsal import ENDED, IMAGE, LONG, TRAIN, Rehearsal, Row, documents_of, prepared, whole

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(1500)]


def test_small(space: Namespace, rows: list[Row]) -> None:
    """As it stands, but for the image."""
    with prepared(space, documents_of("base")) as rehearsal:
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
    documents = documents_of("overlays/s3", entrypoint=TRAIN.replace("/mnt/storage", runs))
    for policy in (each for each in documents if each["metadata"]["name"] == "mnist-ray-nodes"):
        policy["spec"]["egress"].append({"ports": [{"port": 5000}]})  # of the endpoint, as components/s3 says
    rehearsal = Rehearsal(space, documents)
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
    documents = documents_of("base", "as-cluster")
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

        run = ("run", "--storage", "/mnt/storage", "--name", "mnist")
        refused = submit("x" * 64, *run)
        assert refused.returncode == 2, refused
        assert "another token" in refused.stderr, refused
        rows.append(Row("wrong token", f"exit code 2: {refused.stderr.strip()[:200]}", time.monotonic() - begun))
        begun = time.monotonic()
        done = submit(token, *run)
    took = time.monotonic() - begun
    assert done.returncode == 0, done
    lost, duplicated = rehearsal.verified()
    rows.append(Row("dev and submit", f"exit code 0, {rehearsal.correct()} correct", took, "0", lost, duplicated))


def crd_or_skip(name: str) -> None:
    try:
        kubectl("get", "crd", name)
    except RefusedError:
        pytest.skip(f"the cluster has no {name}")


def test_kueue(space: Namespace, rows: list[Row]) -> None:
    """It waits, suspended and without pods, until its queue has room; the queue knows of CPU and memory alone."""
    crd_or_skip("clusterqueues.kueue.x-k8s.io")
    name = space.name

    def queue(cpus: int) -> list[dict[str, Any]]:
        quotas = [{"name": "cpu", "nominalQuota": cpus}, {"name": "memory", "nominalQuota": "12Gi"}]
        group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": quotas}]}
        kueue = {"apiVersion": "kueue.x-k8s.io/v1beta2", "metadata": {"name": name}}
        chosen = {"matchLabels": {"kubernetes.io/metadata.name": name}}
        return [
            {**kueue, "kind": "ResourceFlavor"},
            {**kueue, "kind": "ClusterQueue", "spec": {"namespaceSelector": chosen, "resourceGroups": [group]}},
            {**kueue, "kind": "LocalQueue", "metadata": {"name": "mnist"}, "spec": {"clusterQueue": name}},
        ]

    space.apply(queue(cpus=1))
    rehearsal = Rehearsal(space, documents_of("base", "kueue"))
    rehearsal.start()
    try:
        wait_for(lambda: "insufficient" in json.dumps(space.items("workloads")), "Kueue's refusal", 60)
        assert rehearsal.status()["jobDeploymentStatus"] == "Suspended"
        assert space.pods() == []
        space.apply(queue(cpus=4))
        rehearsal.start_reader()
        whole(rehearsal, rows, "kueue: first no quota, then enough")
    finally:
        kubectl("delete", "clusterqueue,resourceflavor", name, "--wait=false")


def test_cron(space: Namespace, rows: list[Row]) -> None:
    """A job each minute here; it scores the folder of the day before."""
    crd_or_skip("raycronjobs.ray.io")
    with prepared(space, documents_of("base")) as training:
        assert training.finished(900)["jobStatus"] == "SUCCEEDED"
        training.ask("python", "-c", SOME_IMAGES)
    documents = documents_of(
        "overlays/score", "as-cron", entrypoint=job_spec(ray_resource(rendered("overlays/cron")))["entrypoint"]
    )
    cron = ray_resource(documents)
    cron["spec"]["schedule"] = "* * * * *"
    scoring = Rehearsal(space, documents)
    scoring.start()

    def made() -> list[str]:
        return [name for each in space.items("rayjobs") if (name := each["metadata"]["name"]).startswith("mnist-score")]

    deadline = time.monotonic() + 130
    while not made():
        if time.monotonic() > deadline:
            pytest.skip("the operator makes no job of a RayCronJob: its feature gate RayCronJob is off")
        time.sleep(1)
    suspend = '--patch={"spec": {"suspend": true}}'
    space.kubectl("patch", "raycronjob", cron["metadata"]["name"], "--type=merge", suspend)
    (scoring.name,) = made()
    status = scoring.finished(600)
    assert status["jobStatus"] == "SUCCEEDED", status
    took = scoring.seconds
    lost, duplicated = scoring.verified(scoring.ask("sh", "-c", "ls -d /mnt/storage/scored/*").strip())
    rows.append(Row("cron: made by its schedule", "SUCCEEDED, 40 images", took, "0", lost, duplicated))


SOME_IMAGES = """
import datetime, pathlib
import numpy as np
from PIL import Image
yesterday = datetime.datetime.now(datetime.timezone.utc).date() - datetime.timedelta(days=1)
folder = pathlib.Path("/mnt/storage/images", str(yesterday))
folder.mkdir(parents=True)
for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)):
    Image.fromarray(pixels).save(folder / f"{number}.png")
"""
