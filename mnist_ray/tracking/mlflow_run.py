"""A run on an MLflow server, or in a database of MLflow's, made like what the folder of a run or an output holds.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnist_ray import __version__
from mnist_ray.report.formatting import without_secrets
from mnist_ray.runs.folder import RunFolder
from mnist_ray.storage import fence
from mnist_ray.storage.location import Location
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
_OF_THE_END = ("test", "score")  # splits


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
    """mlflow.json in the folder of a run or an output."""

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
    params: dict[str, str]
    logged: dict[tuple[str, int], float]
    """(metric, step) → the newest value"""


class MLflowRun:
    """The MLflow run of a folder."""

    def __init__(
        self, folder: RunFolder, uri: str, experiment: str, params: Mapping[str, Any], shown_as: Location | None = None
    ) -> None:
        """folder: of a run, or of an output, which has no model. uri: of the tracking server. experiment: its name.
        params: what is asked for. shown_as: the place that the folder takes in the end, if it is another."""
        self._folder, self._uri, self._experiment = folder, uri, experiment
        self._server = without_secrets(uri).replace("…@", "")  # a link that works in a browser
        self._params, self._shown_as = params, shown_as or folder.root
        self._run: _Attached | None = None
        self._logged: dict[tuple[str, int], float] | None = None
        self._has_files = False

    @property
    def label(self) -> str:
        return f"MLflow at {self._server}"

    @property
    def place(self) -> tuple[str, str] | None:
        if self._run is None:
            return None
        uri, run = self._server, self._run
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
            _log_params(run, snapshot.settings())
            self._log_files(run, snapshot)
        self._run = run

    @_settings()
    def end(self, status: str) -> None:
        if self._run is not None and self._run.status != status:
            self._run.client.set_terminated(self._run.run_id, status)

    def lacking(self, snapshot: Snapshot) -> str:
        if self._logged is None:
            return "what this attempt has done is not logged"
        epochs = sorted({each.epoch for each in _new(snapshot, self._logged) if each.split not in _OF_THE_END})
        missing = (
            [f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {epochs[0]} to {epochs[-1]}"] if epochs else []
        )
        if snapshot.metrics and not self._has_files:
            missing.append("the result")
        return f"{' and '.join(missing) or 'how the run has ended'} may not be logged"

    # The run, and what is in it.

    def _attach(self) -> _Attached:
        from mlflow import MlflowClient

        client = MlflowClient(self._uri)
        experiment_id = self._experiment_id(client)
        found = self._find(client, experiment_id)
        logged = {}
        for name in found.data.metrics:
            for metric in sorted(client.get_metric_history(found.info.run_id, name), key=lambda each: each.timestamp):
                logged[name, metric.step] = metric.value
        run = _Attached(client, experiment_id, found.info.run_id, found.info.status, dict(found.data.params), logged)
        _log_params(run, self._params)
        return run

    def _experiment_id(self, client: Any) -> str:
        found = client.get_experiment_by_name(self._experiment)
        return str(found.experiment_id if found else client.create_experiment(self._experiment))

    def _find(self, client: Any, experiment_id: str) -> Any:
        """The MLflow run of this folder, made if there is none."""
        file = self._folder.mlflow
        kept = read_record(file, MLflowRecord, "remove it") if file.exists() else MLflowRecord(key=secrets.token_hex(8))
        place = {"server": self._server, "experiment": self._experiment}
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
        tags = {_KEY_TAG: key, "mnist_ray.folder": str(self._shown_as), "mnist_ray.version": __version__,
                "mlflow.source.name": "mnist-ray"}  # fmt: skip
        return client.create_run(experiment_id, run_name=self._shown_as.name, tags=tags)

    def _log_metrics(self, run: _Attached, snapshot: Snapshot) -> None:
        from mlflow.entities import Metric

        new = _new(snapshot, run.logged)
        for start in range(0, len(new), _MOST_METRICS):
            some = new[start : start + _MOST_METRICS]
            metrics = [Metric(_name(each), each.value, round(1000 * each.unix_time), each.epoch) for each in some]
            run.client.log_batch(run.run_id, metrics=metrics)
            run.logged.update((_key(each), each.value) for each in some)

    def _log_files(self, run: _Attached, snapshot: Snapshot) -> None:
        """The model, the report and metrics.json. Files take the place of those that are there."""
        if self._folder.model.is_dir():
            log_model(run.client, run.experiment_id, run.run_id, self._folder.model, step=len(snapshot.epochs))
        with tempfile.TemporaryDirectory() as scratch:
            for file in (self._folder.report, self._folder.metrics):
                if (data := file.read_if_there()) is not None:
                    path = Path(scratch) / file.name
                    path.write_bytes(data)
                    run.client.log_artifact(run.run_id, str(path))
        self._has_files = True


def _log_params(run: _Attached, params: Mapping[str, Any]) -> None:
    """MLflow changes no parameter: one that is another now becomes a tag."""
    from mlflow.entities import Param, RunTag

    texts = {name: without_secrets(value)[:_MOST_LETTERS] for name, value in params.items()}
    new = {name: text for name, text in texts.items() if name not in run.params}
    changed = {name: text for name, text in texts.items() if run.params.get(name, text) != text}
    run.client.log_batch(
        run.run_id,
        params=[Param(name, text) for name, text in new.items()],
        tags=[RunTag(f"mnist_ray.{name}", text) for name, text in changed.items()],
    )
    run.params |= new


def _new(snapshot: Snapshot, logged: Mapping[tuple[str, int], float]) -> list[Scalar]:
    """What is to be logged. Results may change, as by --retry-quarantined; an epoch is logged once."""
    return [
        each for each in snapshot.scalars()
        if _key(each) not in logged or (each.split in _OF_THE_END and logged[_key(each)] != each.value)
    ]  # fmt: skip


def _key(scalar: Scalar) -> tuple[str, int]:
    return _name(scalar), scalar.epoch


def _name(scalar: Scalar) -> str:
    """MLflow takes few punctuation marks, and refuses the whole batch with another."""
    return re.sub(r"[^\w./: -]", "_", scalar.full_name)


def _not_found() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    found: type[Exception] = MlflowException
    return found
