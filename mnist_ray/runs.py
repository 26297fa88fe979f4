"""A run's folder: what lies where, who may write, whether it is new, goes on, or is finished."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mnist_ray.config import Options, flag
from mnist_ray.errors import InputError, RetryableError, TooManyBadImagesError, UserError
from mnist_ray.progress import HEARTBEAT_SECONDS, owner
from mnist_ray.storage import Location

FOREIGN_DRIVER_SECONDS = 30.0
"""So long a heartbeat of another driver is watched before the run is refused."""

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

    def claim(self, config: Options, fingerprint: dict[str, Any], *, fresh: bool) -> list[str]:
        """Make the folder this configuration's, or see that it is; what should be warned of comes back.

        Raises InputError where another configuration has the name, naming what differs.
        """
        held = [entry for entry in self.root.list() if not entry.name.startswith(".")]
        if held and not self.config.exists():
            raise InputError(
                f"{self.root} holds files but no config.json, so it is no run's folder; use another --name"
            )
        if fresh:
            for entry in held:
                entry.delete()
        warnings = []
        if self.config.exists():
            there = self.config.read_json()
            old = there["fingerprint"]
            differing = {key for key in {*old, *fingerprint} if old.get(key) != fingerprint.get(key)}
            if differing == {"epochs"} and fingerprint["epochs"] > old["epochs"]:
                self._reopen()
            elif differing:
                told = ", ".join(f"{flag(key)} {old.get(key)} -> {fingerprint.get(key)}" for key in sorted(differing))
                raise InputError(
                    f"the run {self.root} was made with another configuration ({told}); choose another --name, or"
                    " --fresh to remove it",
                    see="runs",
                )
            warnings = [
                f"{package} was {there['versions'].get(package)} when this run began and is {now} now"
                for package, now in versions().items()
                if there["versions"].get(package) != now
            ]
        self._honour_failure(fingerprint)
        self.config.write_json({"config": asdict(config), "fingerprint": fingerprint, "versions": versions()})
        # A record of an earlier attempt would tell of epochs that are not there.
        self.progress.write_json({"phase": "start", "owner": owner(), "heartbeat": time.time()})
        return warnings

    def _reopen(self) -> None:
        """More epochs were asked of a finished run: what came after its training is made again."""
        for old in (self.metrics, self.report, self.predictions, self.model):
            old.delete()

    def mark_failed(self, error: UserError, fingerprint: dict[str, Any]) -> None:
        """Leave word that a retry of the same cannot help."""
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
        """One driver a name. Raises RetryableError while another one holds the run."""
        if not self.root.is_local:
            self._wait_for_foreign_heartbeat()
            yield
            return
        import fcntl

        self.root.make_dir()
        with (Path(self.root.path) / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RetryableError(f"another mnist-ray works on {self.root}; wait for it or use --name") from error
            yield

    def _wait_for_foreign_heartbeat(self) -> None:
        """Object storage has no locks: a heartbeat that still beats belongs to a living driver."""
        deadline = time.monotonic() + FOREIGN_DRIVER_SECONDS
        while self.progress.exists():
            record = self.progress.read_json()
            age = time.time() - record.get("heartbeat", 0)
            if record.get("phase") == "done" or age > 10 * HEARTBEAT_SECONDS or _is_dead(record.get("owner", {})):
                return
            if time.monotonic() > deadline:
                raise RetryableError(f"another mnist-ray ({record['owner']}) works on {self.root}; wait or use --name")
            time.sleep(1)


def _is_dead(other: dict[str, Any]) -> bool:
    """Whether the owner was a process of this host that is gone."""
    if other.get("host") != platform.node():
        return False
    return other == owner() or not Path(f"/proc/{other.get('pid')}").exists()


def versions() -> dict[str, str]:
    """Of the packages that a result may depend on."""
    return {package: version(package) for package in PACKAGES}
