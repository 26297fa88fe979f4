"""A whole job on a real cluster: applied as users apply it, watched from storage, broken on purpose, and checked."""

from __future__ import annotations

import copy
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Any

import yaml

from tests.support.kubernetes import Namespace, RefusedError, wait_for
from tests.support.manifests import DEPLOY, composed, containers, job_spec, ray_resource, rendered

IMAGE = os.environ.get("MNIST_RAY_IMAGE", "mnist-ray:0.1.0")
"""As the cluster's nodes find it."""

TRAIN = str(job_spec(ray_resource(rendered("base")))["entrypoint"]) if which("kubectl") else ""
"""As the base has it."""

LONG = f"{TRAIN} --epochs 30"
"""Long enough for a pod to come back in the middle of it."""

ENDED = ("Complete", "Failed")

PHASES = ("start", "shard", "train", "score", "done")


def documents_of(folder: str, *components: str, entrypoint: str | None = None, **spec: Any) -> list[dict[str, Any]]:
    """A folder of deploy/ in the sizes of components/small, with the image of the rehearsal and some fields changed."""
    documents = copy.deepcopy(composed(folder, "small", *components))
    job = job_spec(ray_resource(documents))
    for container in containers(job):
        container["image"] = IMAGE
    if "submissionMode" in job:
        job |= {"ttlSecondsAfterFinished": 1, **spec}
        job["entrypoint"] = entrypoint or job["entrypoint"]
    return documents


def reader() -> list[dict[str, Any]]:
    pod = yaml.safe_load((DEPLOY / "reader.yaml").read_text())
    pod["spec"]["containers"][0]["image"] = IMAGE
    return [pod]


@dataclass
class Row:
    """A line of the table."""

    what: str
    result: str
    seconds: float
    repeated: str = ""
    lost: str = ""
    duplicated: str = ""
    recovered: str = ""
    load: str = field(default_factory=lambda: f"{os.getloadavg()[0]:.1f}")


class Rehearsal:
    """One RayJob in a namespace of its own, with a reader beside its claim."""

    def __init__(self, space: Namespace, documents: list[dict[str, Any]], run: str = "/mnt/storage/mnist"):
        self.space, self.documents, self.run = space, documents, run
        self.name = ray_resource(documents)["metadata"]["name"]
        self.started = time.monotonic()

    def start(self) -> None:
        self.space.apply(self.documents)
        self.started = time.monotonic()

    def start_reader(self) -> None:
        self.space.apply(reader())
        self.space.kubectl("wait", "--for=condition=Ready", "pod/reader", "--timeout=180s", seconds=200)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def status(self) -> dict[str, Any]:
        job = self.space.get("rayjob", self.name)
        return dict(job.get("status", {})) if job else {}

    def finished(self, seconds: float) -> dict[str, Any]:
        """The RayJob's status once it has ended for good."""
        found: dict[str, Any] = wait_for(
            lambda: now if (now := self.status()).get("jobDeploymentStatus") in ENDED else None, "the end", seconds
        )
        return found

    def ask(self, *words: str, seconds: float = 60) -> str:
        """What a command in the reader prints."""
        return self.space.kubectl("exec", "reader", "--", *words, seconds=seconds)

    def record(self, file: str) -> dict[str, Any]:
        with suppress(RefusedError, ValueError):
            content: dict[str, Any] = json.loads(self.ask("cat", f"{self.run}/{file}"))
            return content
        return {}

    def progress(self) -> tuple[int, float]:
        """(phase, position): greater is further. The position is in epochs, or in images."""
        now = self.record("progress.json")
        phase = PHASES.index(now["phase"]) if now.get("phase") in PHASES else 0
        done, total = now.get("done") or 0, now.get("total") or 1
        # `epoch` counts the finished ones; of the one that has just ended, `done` is still `total`.
        return (phase, (now.get("epoch") or 0) + done / total % 1) if phase == 2 else (phase, float(done))

    def reached(self, phase: str, position: float, seconds: float = 300) -> tuple[int, float]:
        """The progress once the job is so far."""
        goal = (PHASES.index(phase), position)
        found: tuple[int, float] = wait_for(lambda: now if (now := self.progress()) >= goal else None, phase, seconds)
        return found

    def head(self) -> str:
        return str(self.space.pods(node_type="head")[0]["metadata"]["name"])

    def worker(self) -> str:
        return str(self.space.pods(node_type="worker")[0]["metadata"]["name"])

    def verified(self, output: str | None = None) -> tuple[str, str]:
        """(lost, duplicated) of an output, by recounting it; the command fails on any."""
        told = self.ask("mnist-ray", "verify", output or f"{self.run}/predictions", seconds=120)
        found = re.search(r"verified; ([\d,]+) images = ([\d,]+) scored \+ ([\d,]+) quarantined.*each once", told)
        assert found, told
        images, scored, quarantined = (int(number.replace(",", "")) for number in found.groups())
        assert images == scored + quarantined
        return "0", "0"

    def restarts(self) -> str:
        """How often the workers began again from a checkpoint, of a run."""
        count = self.record("metrics.json").get("train", {}).get("restarts")
        return "" if count is None else f", {count} restart{'' if count == 1 else 's'} of the workers"

    def correct(self) -> str:
        after = self.record("metrics.json")["after"]
        return f"{after['num_correct']:,} of {after['num_seen']:,}"


@contextmanager
def prepared(space: Namespace, documents: list[dict[str, Any]], run: str = "/mnt/storage/mnist") -> Iterator[Rehearsal]:
    """Applied, with its reader beside it."""
    rehearsal = Rehearsal(space, documents, run)
    rehearsal.start()
    rehearsal.start_reader()
    yield rehearsal


def whole(rehearsal: Rehearsal, rows: list[Row], what: str, seconds: float = 900) -> None:
    """A row for a job that ends well."""
    status = rehearsal.finished(seconds)
    took = rehearsal.seconds
    assert status["jobStatus"] == "SUCCEEDED", status
    lost, duplicated = rehearsal.verified()
    rows.append(Row(what, f"SUCCEEDED, {rehearsal.correct()} correct", took, "0", lost, duplicated))


def log_of(job: Rehearsal) -> str:
    """The last line of ours in what the newest submitter shows."""
    lines = job.space.kubectl("logs", f"--selector=job-name={job.name}", "--tail=20").strip().splitlines()
    return next((line for line in reversed(lines) if line.startswith("mnist-ray: ")), lines[-1] if lines else "")[:500]


HEADER = """# Rehearsed

What whole jobs did on a real cluster, and what it cost to lose a part of one. `make rehearse` makes this table; a row
that stands here was seen, and what does not stand here was not: among it GPUs and a bucket of a real provider. Network
policies were stored alone, except where a row has them enforced.

All ran in the sizes of `components/small`, in a namespace with the restricted standard. Lost and duplicated: images, as
`mnist-ray verify` counts them. Repeated: the steps back in progress, the work since the last checkpoint or committed
part. Recovered: the longest time in the phase of the loss in which the job came no further, whatever the reason.
Seconds depend on the machine and on what else it did (load, on 2 CPUs).

"""

COLUMNS = ("what", "result", "seconds", "repeated", "lost", "duplicated", "recovered", "load")


def write_table(file: Path, rows: list[Row], about: str) -> None:
    """Put the rows into the file's table; rows of other rehearsals stay, and so does what stands below `about`."""
    table: dict[str, str] = {}
    if file.exists():
        old = file.read_text()
        for line in re.findall(r"^\| (?!what|---)(.*) \|$", old, re.MULTILINE):
            table[line.split(" | ")[0]] = line
        if notes := re.search(r"^Kubernetes .*\n((?:.+\n)+)\n\|", old, re.MULTILINE):
            about += f"\n{notes[1].rstrip()}"
    for row in rows:
        cells = [
            row.what,
            row.result,
            f"{row.seconds:.0f}",
            row.repeated,
            row.lost,
            row.duplicated,
            row.recovered,
            row.load,
        ]
        table[row.what] = " | ".join(cell or " " for cell in cells)
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS), *table.values()]
    file.write_text(HEADER + about + "\n\n" + "".join(f"| {line} |\n" for line in lines))
