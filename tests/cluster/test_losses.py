"""What it costs to lose a part of a job on a real cluster: `make rehearse`.

Where the operator is no Deployment as Helm makes it, MNIST_RAY_OPERATOR is a command that takes `down` or `up`.
MNIST_RAY_FULL_CLASS names a storage class whose ReadWriteMany volumes are small enough to be filled, 1 GB at most.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.support.kubernetes import Namespace, RefusedError, kubectl, wait_for
from tests.support.manifests import of_kind
from tests.support.rehearsal import ENDED, LONG, TRAIN, Rehearsal, Row, documents_of, log_of, prepared

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(1500)]

CNN = f"{TRAIN} --architecture cnn --epochs 1"
SLOW_SCORE = (
    "python -m mnist_ray score embedded --split train --model /mnt/storage/mnist --address auto --num-actors 1"
    " --engine tensorflow --jit off --batch-size 4 --wait-for-resources 300"
)
DOWN_SECONDS = 60
"""So long, no operator looks after the cluster."""


def delete_worker(job: Rehearsal) -> None:
    job.space.kubectl("delete", "pod", job.worker(), "--wait=false")


def force_delete_worker(job: Rehearsal) -> None:
    job.space.kubectl("delete", "pod", job.worker(), "--grace-period=0", "--force")


def delete_head(job: Rehearsal) -> None:
    job.space.kubectl("delete", "pod", job.head(), "--wait=false")


def force_delete_head(job: Rehearsal) -> None:
    job.space.kubectl("delete", "pod", job.head(), "--grace-period=0", "--force")


def kill(job: Rehearsal, pod: str, chosen: str) -> None:
    """End the processes of a pod whose words, as bytes, fit an expression."""
    program = (
        "import os, pathlib\n"
        "for each in pathlib.Path('/proc').glob('[0-9]*'):\n"
        "    words = (each / 'cmdline').read_bytes().split(b'\\0')\n"
        f"    if {chosen}: os.kill(int(each.name), 9)\n"
    )
    job.space.kubectl("exec", pod, "--", "python", "-c", program)


def kill_driver(job: Rehearsal) -> None:
    kill(job, job.head(), "words[1:3] == [b'-m', b'mnist_ray']")


def kill_agent(job: Rehearsal) -> None:
    """As a kernel may that finds the pod's memory full: Ray's node process then ends, and its container goes on."""
    kill(job, job.worker(), "words[0] == b'ray::DashboardAgent'")


def kill_agent_of_head(job: Rehearsal) -> None:
    kill(job, job.head(), "words[0] == b'ray::DashboardAgent'")


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
    "worker's agent killed": kill_agent,
    "head's agent killed": kill_agent_of_head,
    "submitter deleted": delete_submitter,
    "node drained": drain,
    "suspended and resumed": suspend_and_resume,
}


def broken(
    rehearsal: Rehearsal, rows: list[Row], what: str, lose: Callable[[Rehearsal], None], at: tuple[str, float],
    output: str | None = None,
) -> None:  # fmt: skip
    highest = rehearsal.reached(*at)
    phase = highest[0]
    begun = since = time.monotonic()
    lose(rehearsal)
    standstill = repeated = 0.0
    while (status := rehearsal.status()).get("jobDeploymentStatus") not in ENDED:
        now = rehearsal.progress()
        if now > highest:
            if highest[0] == phase:
                standstill = max(standstill, time.monotonic() - since)
            highest, since = now, time.monotonic()
        elif now[0] == highest[0] and now[1]:  # it begins at 0, before it has looked at what is there
            repeated = max(repeated, highest[1] - now[1])
        assert time.monotonic() < begun + 900
        time.sleep(1)
    took = rehearsal.seconds
    assert status["jobStatus"] == "SUCCEEDED", status
    lost, duplicated = rehearsal.verified(output)
    again = f"{repeated:.1f} epochs" if at[0] == "train" else f"{repeated:,.0f} images"
    attempts = 1 + (status.get("failed") or 0)
    result = f"SUCCEEDED, {rehearsal.correct()} correct, {attempts} attempt{'s' if attempts > 1 else ''}"
    result += rehearsal.restarts()
    rows.append(Row(what, result, took, again, lost, duplicated, f"{standstill:.0f} s"))


@pytest.mark.parametrize("what", LOSSES)
def test_a_loss_in_training(space: Namespace, rows: list[Row], what: str) -> None:
    with prepared(space, documents_of("base", entrypoint=LONG)) as rehearsal:
        broken(rehearsal, rows, f"{what}, in training", LOSSES[what], ("train", 1.2))


IN_SCORING = ("worker deleted", "worker force-deleted", "head deleted", "head force-deleted", "driver killed")


def test_losses_in_scoring(space: Namespace, rows: list[Row]) -> None:
    """One model, scored once for each loss."""
    with prepared(space, documents_of("base", entrypoint=CNN)) as training:
        assert training.finished(900)["jobStatus"] == "SUCCEEDED"
    for number, what in enumerate(IN_SCORING):
        output = f"/mnt/storage/scored-{number}"
        scoring = Rehearsal(space, documents_of("overlays/score", entrypoint=f"{SLOW_SCORE} --output {output}"), output)
        scoring.start()
        broken(scoring, rows, f"{what}, in scoring", LOSSES[what], ("score", 5000), output)
        space.kubectl("delete", "rayjob", scoring.name, seconds=180)


def operator(direction: str) -> None:
    """`down` or `up`: the operator of the whole cluster."""
    if command := os.environ.get("MNIST_RAY_OPERATOR"):
        subprocess.run(f"{command} {direction}", shell=True, check=True, timeout=60)
        return
    chosen = ("--all-namespaces", "--selector=app.kubernetes.io/name=kuberay-operator")
    where = "--output=jsonpath={.items[*].metadata.namespace}"
    if not (namespace := kubectl("get", "deployment", *chosen, where).strip()):
        pytest.skip("the operator is no Deployment here: MNIST_RAY_OPERATOR names a command that takes `down` or `up`")
    count = {"down": 0, "up": 1}[direction]
    kubectl("scale", "deployment", f"--namespace={namespace}", *chosen[1:], f"--replicas={count}")


def test_a_worker_lost_while_the_operator_is_down(space: Namespace, rows: list[Row]) -> None:
    """Nobody replaces it until the operator is back; the job waits for it, and nothing else is lost."""

    def lose(job: Rehearsal) -> None:
        operator("down")
        try:
            force_delete_worker(job)
            time.sleep(DOWN_SECONDS)
            assert len(job.space.pods(node_type="worker")) == 1
            assert job.status()["jobStatus"] == "RUNNING"
        finally:
            operator("up")

    with prepared(space, documents_of("base", entrypoint=LONG)) as rehearsal:
        what = f"worker force-deleted, the operator down for {DOWN_SECONDS} s, in training"
        broken(rehearsal, rows, what, lose, ("train", 1.2))


def test_full_storage(space: Namespace, rows: list[Row]) -> None:
    """Something else fills the volume in the middle of training, and goes after the first attempt has failed."""
    if not (name := os.environ.get("MNIST_RAY_FULL_CLASS")):
        pytest.skip("MNIST_RAY_FULL_CLASS names no storage class whose volumes can be filled")
    documents = documents_of("base", entrypoint=LONG)
    of_kind(documents, "PersistentVolumeClaim")["spec"] |= {
        "storageClassName": name, "resources": {"requests": {"storage": "1Mi"}}
    }  # fmt: skip

    last = ""

    def has_failed(job: Rehearsal) -> bool:
        """Its last words are kept, as its submitter is soon gone."""
        nonlocal last
        if (line := log_of(job)).startswith("mnist-ray: "):
            last = line
        return bool(job.status().get("failed"))

    def lose(job: Rehearsal) -> None:
        fill = "dd if=/dev/zero of=/mnt/storage/ballast bs=64k count=16384 2>&1; sync; df /mnt/storage"
        assert "No space left" in job.ask("sh", "-c", fill)
        wait_for(lambda: has_failed(job), "the end of the first attempt", 300)
        job.ask("rm", "/mnt/storage/ballast")

    with prepared(space, documents) as rehearsal:
        broken(rehearsal, rows, "storage full, in training", lose, ("train", 1.2))
    assert "no space left" in last
    rows[-1].result += f"; the first attempt ended with: {last}"
