"""A run on an MLflow server, or in a database of MLflow's, made like what the run's folder holds.

The folder keeps which MLflow run it is. What that has is asked for before anything is added, so a restart, a retry, or
a request whose answer was lost logs nothing twice.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mnist_ray import __version__
from mnist_ray.report.formatting import without_secrets
from mnist_ray.runs.folder import RunFolder
from mnist_ray.storage import fence
from mnist_ray.storage.records import Line, read_record
from mnist_ray.tracking.mlflow_model import log_model
from mnist_ray.tracking.scalars import Scalar, Snapshot

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it would report home
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # ours ask first what has arrived
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds without an answer, in place of 120
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Of MLflow's client, where the user has set nothing else."""

_KEY_TAG = "mnist_ray.key"
_MOST_METRICS = 1000  # that a request may have
_MOST_LETTERS = 500  # of a parameter


@contextmanager
def _settings() -> Iterator[None]:
    """Set them for the time of a call: MLflow reads them each time, and the process may be one of the user's own."""
    ours = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@dataclass(frozen=True, kw_only=True)
class MLflowRecord:
    """mlflow.json in a run's folder."""

    key: Line
    """Random; a tag of the MLflow run, by which it is found where its id was not kept."""
    server: Line = ""
    experiment: Line = ""
    run_id: Line = ""
    """In that experiment of that server."""


@dataclass
class _Attached:
    """The MLflow run, and what it has."""

    client: Any
    experiment_id: str
    run_id: str
    status: str
    logged: set[tuple[str, int]] = field(default_factory=set)
    """(metric, step)"""


class MLflowRun:
    """The MLflow run of a run's folder."""

    def __init__(self, folder: RunFolder, uri: str, experiment: str, params: Mapping[str, Any]) -> None:
        """uri: of the tracking server. experiment: its name. params: what the run is made with."""
        self._folder, self._uri, self._experiment = folder, uri, experiment
        self._params = {name: without_secrets(value)[:_MOST_LETTERS] for name, value in params.items()}
        self._run: _Attached | None = None
        self._logged: set[tuple[str, int]] | None = None
        self._has_files = False

    @property
    def label(self) -> str:
        return f"MLflow at {without_secrets(self._uri)}"

    @property
    def place(self) -> tuple[str, str] | None:
        if self._run is None:
            return None
        uri, run = without_secrets(self._uri), self._run
        page = f"{uri.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
        return "mlflow", page if uri.startswith("http") else f"{uri}, run {run.run_id}"

    @_settings()
    def sync(self, snapshot: Snapshot) -> None:
        """Log what is new. Asks anew what is there after anything has failed, as it may have arrived all the same."""
        fence.check()  # another driver may have the folder now, and with it the MLflow run
        run, self._run = self._run, None
        if run is None:
            run = self._attach()
            self._logged = run.logged
        if run.status != "RUNNING" and not snapshot.metrics:
            run.client.update_run(run.run_id, status="RUNNING")
            run.status = "RUNNING"
        self._log_metrics(run, snapshot)
        if snapshot.metrics and not self._has_files:
            self._log_files(run, snapshot)
        self._run = run

    @_settings()
    def end(self, status: str) -> None:
        if self._run is not None and self._run.status != status:
            self._run.client.set_terminated(self._run.run_id, status)

    def lacking(self, snapshot: Snapshot) -> str:
        if self._logged is None:
            return "what this attempt has done is not logged"
        new = (each for each in snapshot.scalars() if _key(each) not in self._logged)
        epochs = sorted({each.epoch for each in new if each.split != "test"})
        missing = (
            [f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {epochs[0]} to {epochs[-1]}"] if epochs else []
        )
        if snapshot.metrics and not self._has_files:
            missing.append("the result")
        return f"{' and '.join(missing) or 'how the run has ended'} may not be logged"

    # The run, and what is in it.

    def _attach(self) -> _Attached:
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        client = MlflowClient(self._uri)
        experiment_id = self._experiment_id(client)
        run = self._find(client, experiment_id)
        there = run.data.params
        client.log_batch(
            run.info.run_id,
            params=[Param(name, value) for name, value in self._params.items() if name not in there],
            # MLflow changes no parameter.
            tags=[
                RunTag(f"mnist_ray.{name}", value)
                for name, value in self._params.items()
                if there.get(name, value) != value
            ],
        )
        logged = {
            (name, metric.step)
            for name in run.data.metrics
            for metric in client.get_metric_history(run.info.run_id, name)
        }
        return _Attached(client, experiment_id, run.info.run_id, run.info.status, logged)

    def _experiment_id(self, client: Any) -> str:
        found = client.get_experiment_by_name(self._experiment)
        return str(found.experiment_id if found else client.create_experiment(self._experiment))

    def _find(self, client: Any, experiment_id: str) -> Any:
        """The MLflow run of this folder, made if there is none."""
        file = self._folder.mlflow
        kept = read_record(file, MLflowRecord, "remove it") if file.exists() else MLflowRecord(key=secrets.token_hex(8))
        place = {"server": without_secrets(self._uri), "experiment": self._experiment}
        run = None
        if kept.run_id and {"server": kept.server, "experiment": kept.experiment} == place:
            with suppress(_not_found()):
                run = client.get_run(kept.run_id)
        if run is None or run.info.lifecycle_stage != "active":
            if not file.exists():
                file.write_json(asdict(kept))  # before the MLflow run, which is found by it if this process ends now
            run = self._search(client, experiment_id, kept.key) or self._create(client, experiment_id, kept.key)
        record = MLflowRecord(key=kept.key, run_id=run.info.run_id, **place)
        if record != kept:
            file.write_json(asdict(record))
        return run

    @staticmethod
    def _search(client: Any, experiment_id: str, key: str) -> Any | None:
        found = client.search_runs([experiment_id], f"tags.`{_KEY_TAG}` = '{key}'", max_results=1)
        return found[0] if found else None

    def _create(self, client: Any, experiment_id: str, key: str) -> Any:
        root = self._folder.root
        tags = {_KEY_TAG: key, "mnist_ray.folder": str(root), "mnist_ray.version": __version__}
        return client.create_run(experiment_id, run_name=root.name, tags={**tags, "mlflow.source.name": "mnist-ray"})

    def _log_metrics(self, run: _Attached, snapshot: Snapshot) -> None:
        from mlflow.entities import Metric

        new = [scalar for scalar in snapshot.scalars() if _key(scalar) not in run.logged]
        for start in range(0, len(new), _MOST_METRICS):
            some = new[start : start + _MOST_METRICS]
            metrics = [Metric(_name(each), each.value, round(1000 * each.unix_time), each.epoch) for each in some]
            run.client.log_batch(run.run_id, metrics=metrics)
            run.logged.update(map(_key, some))

    def _log_files(self, run: _Attached, snapshot: Snapshot) -> None:
        """The model, the report and metrics.json. Files take the place of those that are there."""
        log_model(run.client, run.experiment_id, run.run_id, self._folder.model, step=len(snapshot.epochs))
        with tempfile.TemporaryDirectory() as scratch:
            for file in (self._folder.report, self._folder.metrics):
                if (data := file.read_if_there()) is not None:
                    path = Path(scratch) / file.name
                    path.write_bytes(data)
                    run.client.log_artifact(run.run_id, str(path))
        self._has_files = True


def _key(scalar: Scalar) -> tuple[str, int]:
    return _name(scalar), scalar.epoch


def _name(scalar: Scalar) -> str:
    """MLflow takes few punctuation marks, and refuses the whole batch with another."""
    return re.sub(r"[^\w./: -]", "_", scalar.full_name)


def _not_found() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    found: type[Exception] = MlflowException
    return found
