"""A trained model as MLflow loads it: raw pixels in, logits out, and nothing else is taken."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mnist_ray.models.build import Recipe, build
from mnist_ray.models.files import save
from mnist_ray.storage.location import Location
from mnist_ray.tracking.mlflow_model import write_model

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*type hint:UserWarning"),  # when MLflow's pyfunc is imported
]


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_mlflow_loads_it(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    recipe = Recipe(
        architecture="mlp", image_shape=(6, 5), num_classes=3, dropout=0.0, seed=1, precision=precision
    )  # fmt: skip
    trained = build(recipe)
    save(trained, Location.parse(tmp_path / "model"), recipe, ("a", "b", "c"), {})
    archive, described = (tmp_path / "model" / name for name in ("classifier.keras", "model.json"))
    logged = SimpleNamespace(artifact_location="there", model_id="m-1")
    (tmp_path / "logged").mkdir()
    write_model(tmp_path / "logged", archive.read_bytes(), json.loads(described.read_text()), "r", logged)

    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5), np.uint8)
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "logged"))
    logits = loaded.predict(images)
    assert logits.dtype == precision
    np.testing.assert_allclose(logits, np.asarray(trained(images)), rtol=1e-5)
    with pytest.raises(mlflow.exceptions.MlflowException, match="Failed to enforce schema"):
        loaded.predict(images[:, :5])
