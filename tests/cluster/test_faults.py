"""What cannot be helped by a retry, on a real cluster: how it ends, and what the user is told. `make rehearse`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.kubernetes import Namespace
from tests.support.manifests import of_kind
from tests.support.rehearsal import TRAIN, Rehearsal, Row, documents_of, log_of, prepared, whole

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(1500)]


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


IMAGES = """
import pathlib, sys
import numpy as np
from PIL import Image
random = np.random.default_rng(0)
for split, count in (("train", 60), ("test", 20)):
    for label in "ab":
        folder = pathlib.Path("/mnt/storage/images", split, label)
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 128, (28, 28), np.uint8) + 127 * (label == "b")
            Image.fromarray(pixels).save(folder / f"{number}.png")
"""
"""Two classes, dark and bright."""


def test_a_mended_image(space: Namespace, rows: list[Row]) -> None:
    """What is wrong is found in the middle of the run. With MNIST_RAY_JOB_UID the retry ends as the attempt before."""
    damaged = "/mnt/storage/images/train/a/7.png"

    def documents(uid: str) -> list[dict[str, Any]]:
        made = documents_of("base", entrypoint=f"{TRAIN} --data /mnt/storage/images --epochs 60", backoffLimit=1)
        (head,) = of_kind(made, "RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
        head["env"] = [{"name": "MNIST_RAY_JOB_UID", "value": uid}]
        return made

    rehearsal = Rehearsal(space, documents("1"))
    space.apply([document for document in rehearsal.documents if document["kind"] == "PersistentVolumeClaim"])
    rehearsal.start_reader()
    rehearsal.ask("python", "-c", IMAGES)
    rehearsal.ask("sh", "-c", f"cp {damaged} /mnt/storage/whole.png; truncate --size=100 {damaged}")
    rehearsal.start()
    status = rehearsal.finished(600)
    assert status["jobStatus"] == "FAILED"
    assert "code 2" in status["message"], status
    ended = log_of(rehearsal)
    assert "as the attempt before" in ended
    result = f"FAILED, exit code 2, {status['failed']} attempts; the second ended with: {ended}"
    rows.append(Row("an image damaged, MNIST_RAY_JOB_UID given", result, rehearsal.seconds))
    space.kubectl("delete", "rayjob", "mnist", seconds=180)
    rehearsal.ask("mv", "/mnt/storage/whole.png", damaged)
    rehearsal.documents = documents("2")
    rehearsal.start()
    whole(rehearsal, rows, "the image mended, applied with another MNIST_RAY_JOB_UID")


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


@pytest.mark.parametrize("first", ["Ray", "the kernel"])
def test_out_of_memory(space: Namespace, rows: list[Row], first: str) -> None:
    """Workers whose limit is below what training needs (680 MiB were enough)."""
    documents = documents_of("base", backoffLimit=0, activeDeadlineSeconds=1200)
    (group,) = of_kind(documents, "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    for sizes in worker["resources"].values():
        sizes["memory"] = "600Mi"
    if first == "the kernel":
        worker["env"].append({"name": "RAY_memory_monitor_refresh_ms", "value": "0"})
    with prepared(space, documents) as rehearsal:
        status = rehearsal.finished(1200)
        assert status["reason"] == "AppFailed", status
        ended = log_of(rehearsal)
        assert "memory" in ended, ended
        what = f"out of memory: 600 MiB a worker, {first} is first to notice"
        rows.append(Row(what, f"Failed: {ended}", rehearsal.seconds))
