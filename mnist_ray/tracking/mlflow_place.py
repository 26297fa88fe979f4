"""Which MLflow server or database a run is logged to, checked without asking it."""

from __future__ import annotations

import importlib.util
import os

from mnist_ray.config import Tracking
from mnist_ray.errors import InputError, SetupError
from mnist_ray.report.formatting import without_secrets

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SCHEMES = ("http", "https", "databricks", *_DATABASES)
_DEFAULT_EXPERIMENT = "mnist-ray"
_SEE = "tracking.md#mlflow"


def mlflow_place(config: Tracking) -> tuple[str, str] | None:
    """(URI, name of the experiment); None without `--mlflow`.

    Raises InputError where the URI is none of MLflow's, SetupError where it is unknown or a package is missing.
    """
    if config.mlflow is None:
        if config.mlflow_experiment is not None:
            raise InputError("--mlflow-experiment needs --mlflow", see=_SEE)
        return None
    if config.mlflow == "auto":
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            raise SetupError("--mlflow auto needs MLFLOW_TRACKING_URI, which is not set", see=_SEE)
        _check_uri("MLFLOW_TRACKING_URI", uri)
    else:
        uri = config.mlflow
        _check_uri("--mlflow", uri)
    _require_packages(uri)
    return uri, config.mlflow_experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _DEFAULT_EXPERIMENT


def _scheme(uri: str) -> str:
    """Without the driver of a database: postgresql+psycopg2 is postgresql."""
    return uri.partition(":")[0].partition("+")[0]


def _check_uri(name: str, uri: str) -> None:
    """MLflow keeps runs in folders, too, but only where it is made to: it gives them up."""
    if _scheme(uri) not in _SCHEMES or (":" not in uri and uri != "databricks"):
        shown = without_secrets(uri if "://" in uri else f"://{uri}").removeprefix("://")
        raise InputError(
            f"{name} must be a URI such as http://HOST:5000 or sqlite:///mlflow.db, not {shown!r}", see=_SEE
        )


def _require_packages(uri: str) -> None:
    needed = {"mlflow": "mlflow-skinny"}
    if _scheme(uri) in _DATABASES:
        needed |= {"sqlalchemy": "sqlalchemy", "alembic": "alembic"}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SetupError(f"--mlflow needs packages that are missing: pip install {' '.join(missing)}", see=_SEE)
