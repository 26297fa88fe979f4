"""A run's folder: what lies where, who may write to it, and whether it is new, resumed or finished."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from mnist_ray.errors import InputError, TooManyBadImagesError, UserError
from mnist_ray.options import Options, flag
from mnist_ray.runs.driver import hold
from mnist_ray.runs.progress import owner
from mnist_ray.runs.records import ConfigRecord, FailureRecord
from mnist_ray.storage.lease import Guard
from mnist_ray.storage.location import Location
from mnist_ray.storage.records import parse_checked, read_record

PACKAGES = ("mnist-ray", "ray", "tensorflow", "keras", "numpy", "pyarrow")

_WORDS = {"code": "the code of --architecture"}


@dataclass(frozen=True)
class RunFolder:
    """`<storage>/<name>`. docs/runs.md shows the layout."""

    root: Location

    @classmethod
    def at(cls, storage: str | os.PathLike[str], name: str) -> RunFolder:
        return cls(Location.parse(storage) / name)

    @property
    def config(self) -> Location:
        return self.root / "config.json"

    @property
    def shards(self) -> Location:
        return self.root / "shards"

    @property
    def model(self) -> Location:
        return self.root / "model"

    @property
    def predictions(self) -> Location:
        return self.root / "predictions"

    @property
    def progress(self) -> Location:
        return self.root / "progress.json"

    @property
    def metrics(self) -> Location:
        return self.root / "metrics.json"

    @property
    def report(self) -> Location:
        return self.root / "report.html"

    @property
    def tensorboard(self) -> Location:
        return self.root / "tensorboard"

    @property
    def mlflow(self) -> Location:
        """Which MLflow run it is."""
        return self.root / "mlflow.json"

    @property
    def failure(self) -> Location:
        return self.root / "failure.json"

    def is_finished(self, fingerprint: dict[str, Any]) -> bool:
        """Whether the folder holds the result of this configuration."""
        there = self._made_for()
        return there is not None and there["fingerprint"] == fingerprint and self.metrics.exists()

    @contextmanager
    def hold(self) -> Iterator[Guard | None]:
        """Hold the run for this driver, as `driver.hold` has it.

        Raises RetryableError while another driver holds it, InputError if the folder is not a run's.
        """
        self._made_for()  # another program's folder stays as it is
        with hold(self.root, "use another --name", is_finished=self.metrics.exists) as guard:
            yield guard

    def prepare(self, config: Options, fingerprint: dict[str, Any], *, fresh: bool) -> list[str]:
        """Make the folder that of this configuration. Returns warnings. To be called while it is held.

        Raises InputError, naming what differs, if the folder is a run of another configuration.
        """
        there = self._made_for()
        warnings = []
        if there is not None and not fresh:
            self._check_same(there["fingerprint"], fingerprint)
            warnings = [
                f"{package} was {there['versions'].get(package)} when this run began and is {now} now"
                for package, now in versions().items()
                if there["versions"].get(package) != now
            ]
        self._honour_failure(fingerprint)
        if fresh:
            # The result goes first, so that what is left never counts as finished. Files that are not ours stay.
            for ours in (self.metrics, self.report, self.predictions, self.model, self.root / "ray",
                         self.root / "checkpoints", self.root / "logs", self.shards, self.progress,
                         self.tensorboard, self.mlflow):  # fmt: skip
                ours.delete()
        self.config.write_json({"config": asdict(config), "fingerprint": fingerprint, "versions": versions()})
        if not self.metrics.exists():
            # The record of an earlier attempt would report epochs that no longer exist.
            self.progress.write_json({"phase": "start", "owner": owner(), "heartbeat": time.time()})
        return warnings

    def _check_same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Raises InputError if the run is of another configuration and has results that would be lost."""
        differing = {key for key in {*old, *new} if old.get(key) != new.get(key)}
        if differing == {"epochs"} and new["epochs"] > old["epochs"]:
            self._reopen()
        elif differing and self._has_results():
            changes = ", ".join(
                f"{_WORDS.get(key, flag(key))} {_short(old.get(key))} -> {_short(new.get(key))}"
                for key in sorted(differing)
            )
            raise InputError(
                f"the run {self.root} was made with another configuration ({changes}); choose another --name, or"
                " --fresh to remove it",
                see="runs.md",
            )

    def _has_results(self) -> bool:
        """Whether anything is committed that took more than a moment to compute."""
        results = (self.shards / "dataset.json", self.model, self.metrics)
        return any(result.exists() for result in results) or bool((self.root / "checkpoints").list())

    def _made_for(self) -> dict[str, Any] | None:
        """The content of config.json; None if the name is free. Raises InputError if the folder is not a run's."""
        try:
            content = self.config.read_bytes()
        except FileNotFoundError:
            if all(entry.name.startswith(".") for entry in self.root.list()):
                return None
            content = b""
        try:
            return parse_checked(content, ConfigRecord, self.config, "use another --name")
        except ValueError as error:  # not JSON, or JSON of another program
            raise InputError(
                f"{self.root} holds files but no config.json of mnist-ray, so it is not a run's folder; use another"
                " --name",
                see="runs.md",
            ) from error

    def _reopen(self) -> None:
        """Remove what follows the training of a finished run, which continues with more epochs."""
        for old in (self.metrics, self.report, self.predictions, self.model):
            old.delete()

    def mark_failed(self, error: UserError, fingerprint: dict[str, Any]) -> None:
        """Mark the run as failed if a retry of the same job cannot help, because of its input or options."""
        if not isinstance(error, InputError | TooManyBadImagesError):
            return
        mark = {"exit_code": error.exit_code, "message": str(error), "fingerprint": fingerprint, "job_uid": job_uid()}
        with suppress(UserError):  # the error itself matters more than the mark
            self.failure.write_json(mark)

    def _honour_failure(self, fingerprint: dict[str, Any]) -> None:
        """End another attempt of the same job as the attempt before; remove the mark in any other start."""
        if not self.failure.exists():
            return
        if uid := job_uid():
            mark = read_record(self.failure, FailureRecord, "remove it and start again")
            if (mark.job_uid, mark.fingerprint) == (uid, fingerprint):
                kind = TooManyBadImagesError if mark.exit_code == 3 else InputError
                raise kind(f"{mark.message} (as the attempt before; see {self.failure})")
        self.failure.delete()


def job_uid() -> str | None:
    """What all attempts of one job have in common, such as the retries of a RayJob, and no other job has.

    None where the environment has no MNIST_RAY_JOB_UID: then every start is a person's.
    """
    return os.environ.get("MNIST_RAY_JOB_UID") or None


def _short(value: Any) -> str:
    """A value for a message: the beginning of a digest is enough."""
    return f"{value[:8]}…" if isinstance(value, str) and len(value) == 64 else repr(str(value)[:100])[1:-1]


def versions() -> dict[str, str]:
    """Versions of the packages that a result may depend on."""
    return {package: version(package) for package in PACKAGES}
