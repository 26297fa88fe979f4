"""A run's folder: what lies where, who may write, whether it is new, goes on, or is finished."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from mnist_ray.config import Options, flag
from mnist_ray.errors import InputError, TooManyBadImagesError, UserError
from mnist_ray.runs.driver import sole_driver
from mnist_ray.runs.progress import owner
from mnist_ray.storage.location import Location

PACKAGES = ("mnist-ray", "ray", "tensorflow", "keras", "numpy", "pyarrow")


@dataclass(frozen=True)
class RunFolder:
    """`<storage>/<name>`; DESIGN: see README, layout of a run."""

    root: Location

    @classmethod
    def at(cls, storage: str, name: str) -> RunFolder:
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
    def failure(self) -> Location:
        return self.root / "failure.json"

    def is_finished(self, fingerprint: dict[str, Any]) -> bool:
        """Whether the result of this very configuration is there."""
        there = self._claimed_for()
        return there is not None and there["fingerprint"] == fingerprint and self.metrics.exists()

    def claim(self, config: Options, fingerprint: dict[str, Any], *, fresh: bool) -> list[str]:
        """Make the folder this configuration's, or see that it is; what should be warned of comes back.

        Raises InputError where another configuration has the name, naming what differs.
        """
        there = self._claimed_for()
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
            # The result first, so that what is left is never taken for finished. What is not ours stays.
            for ours in (self.metrics, self.report, self.predictions, self.model, self.root / "ray",
                         self.root / "checkpoints", self.shards, self.progress):  # fmt: skip
                ours.delete()
        self.config.write_json({"config": asdict(config), "fingerprint": fingerprint, "versions": versions()})
        if not self.metrics.exists():
            # A record of an earlier attempt would tell of epochs that are not there.
            self.progress.write_json({"phase": "start", "owner": owner(), "heartbeat": time.time()})
        return warnings

    def _check_same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Raises InputError where a run of another configuration has come so far that something would be lost."""
        differing = {key for key in {*old, *new} if old.get(key) != new.get(key)}
        if differing == {"epochs"} and new["epochs"] > old["epochs"]:
            self._reopen()
        elif differing and self._has_results():
            told = ", ".join(
                f"{flag(key)} {_short(old.get(key))} -> {_short(new.get(key))}" for key in sorted(differing)
            )
            raise InputError(
                f"the run {self.root} was made with another configuration ({told}); choose another --name, or"
                " --fresh to remove it",
                see="Runs",
            )

    def _has_results(self) -> bool:
        """Whether anything is committed that cost more than a moment."""
        results = (self.shards / "dataset.json", self.model, self.metrics)
        return any(result.exists() for result in results) or bool((self.root / "checkpoints").list())

    def _claimed_for(self) -> dict[str, Any] | None:
        """What config.json says; None where the name is free. Raises InputError where the folder is somebody else's."""
        try:
            content = self.config.read_bytes()
        except FileNotFoundError:
            if all(entry.name.startswith(".") for entry in self.root.list()):
                return None
            content = b""
        try:
            there: dict[str, Any] = json.loads(content)
            if isinstance(there["fingerprint"], dict) and isinstance(there["versions"], dict):
                return there
        except (KeyError, TypeError, ValueError):
            pass  # JSON of another program, or no JSON
        raise InputError(
            f"{self.root} holds files but no config.json of mnist-ray, so it is no run's folder; use another --name",
            see="Runs",
        )

    def _reopen(self) -> None:
        """More epochs were asked of a finished run: what came after its training is made again."""
        for old in (self.metrics, self.report, self.predictions, self.model):
            old.delete()

    def mark_failed(self, error: UserError, fingerprint: dict[str, Any]) -> None:
        """Leave word that a retry of the same cannot help."""
        with suppress(UserError):  # the error itself matters more
            self.failure.write_json({"exit_code": error.exit_code, "message": str(error), "fingerprint": fingerprint})

    def _honour_failure(self, fingerprint: dict[str, Any]) -> None:
        """A retry by Kubernetes ends as the first try did; a person's new start removes the mark."""
        if not self.failure.exists():
            return
        mark = self.failure.read_json()
        if os.environ.get("MNIST_RAY_HONOUR_FAILURE") == "1" and mark["fingerprint"] == fingerprint:
            kind = TooManyBadImagesError if mark["exit_code"] == 3 else InputError
            raise kind(f"{mark['message']} (as the attempt before; see {self.failure})")
        self.failure.delete()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One driver a name. Raises RetryableError while another one holds the run, InputError where it is no run."""
        self._claimed_for()  # a folder of somebody else stays as it is
        with sole_driver(self.root, "use another --name", is_finished=self.metrics.exists):
            yield


def _short(value: Any) -> str:
    """For a message: of a digest, the beginning is enough."""
    return f"{value[:8]}…" if isinstance(value, str) and len(value) == 64 else str(value)


def versions() -> dict[str, str]:
    """Of the packages that a result may depend on."""
    return {package: version(package) for package in PACKAGES}
