"""Where a run is logged to is known, and can be, before anything starts."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import pipeline
from mnist_ray.config import RunConfig, ScoreConfig
from mnist_ray.console import Console
from mnist_ray.errors import InputError, SetupError
from mnist_ray.tracking.mlflow_place import mlflow_place
from tests.support.data_makers import write_npz


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


@pytest.mark.parametrize(
    ("given", "env", "place"),
    [
        ({}, {"MLFLOW_TRACKING_URI": "http://h"}, None),
        ({"mlflow": "http://h:5000"}, {}, ("http://h:5000", "mnist-ray")),
        ({"mlflow": "databricks"}, {}, ("databricks", "mnist-ray")),
        ({"mlflow": "postgresql+psycopg2://h/db"}, {}, ("postgresql+psycopg2://h/db", "mnist-ray")),
        ({"mlflow": "sqlite:///a.db"}, {"MLFLOW_EXPERIMENT_NAME": "e"}, ("sqlite:///a.db", "e")),
        ({"mlflow": "https://h", "mlflow_experiment": "x"}, {"MLFLOW_EXPERIMENT_NAME": "e"}, ("https://h", "x")),
        ({"mlflow": "auto"}, {"MLFLOW_TRACKING_URI": "http://me:secret@h"}, ("http://me:secret@h", "mnist-ray")),
    ],
)
def test_the_server_and_the_experiment(
    given: dict[str, Any], env: dict[str, str], place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert mlflow_place(RunConfig(**given)) == place


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"mlflow_experiment": "x"}, InputError, "--mlflow-experiment needs --mlflow"),
        ({"mlflow": "auto"}, SetupError, "--mlflow auto needs MLFLOW_TRACKING_URI, which is not set"),
        *(
            ({"mlflow": wrong}, InputError,
             f"--mlflow must be a URI such as http://HOST:5000 or sqlite:///mlflow.db, not {wrong!r}")
            for wrong in ("mlruns", "./mlruns", "file:///mlruns", "localhost:5000", "htp://h", "sqlite", "")
        ),
    ],
)  # fmt: skip
def test_anything_else_is_refused(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        mlflow_place(RunConfig(**given))
    assert type(error.value) is kind
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("uri", "absent", "missing"),
    [
        ("http://h", ["mlflow", "sqlalchemy"], "mlflow-skinny"),
        ("sqlite:///a.db", ["sqlalchemy"], "sqlalchemy"),
        ("sqlite:///a.db", ["mlflow", "sqlalchemy", "alembic"], "mlflow-skinny sqlalchemy alembic"),
    ],
)
def test_a_missing_package_is_told_before_anything_is_made(
    uri: str, absent: list[str], missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else known(name))
    config = RunConfig(data=str(write_npz(tmp_path / "data.npz")), storage=str(tmp_path / "runs"), mlflow=uri)
    with pytest.raises(SetupError, match=f"^--mlflow needs packages that are missing: pip install {missing}$"):
        pipeline.run(config, Console(io.StringIO()))
    score = ScoreConfig(str(tmp_path / "data.npz"), model="none.keras", output=str(tmp_path / "out"), mlflow=uri)
    with pytest.raises(SetupError, match=r"^--mlflow needs packages"):
        pipeline.score(score, Console(io.StringIO()))
    assert [file.name for file in tmp_path.iterdir()] == ["data.npz"]


@pytest.mark.parametrize("uri", ["htp://me:secret@h", "me:secret@h", "htp://h?password=secret"])
def test_a_wrong_uri_of_the_environment_is_shown_without_its_password(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=r"^MLFLOW_TRACKING_URI must be a URI") as error:
        mlflow_place(RunConfig(mlflow="auto"))
    assert "secret" not in str(error.value)
