"""A run's model in MLflow's format, with its signature: `mlflow.keras.load_model` and `mlflow.pyfunc` load it.

MLflow's own way to write it needs Keras, and a model that is loaded. Ours is a file already.
"""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ray.models.files import ModelRecord, locate, read
from mnist_ray.runs.folder import versions
from mnist_ray.storage.location import Location
from mnist_ray.storage.records import read_checked

_DIGEST_TAG = "mnist_ray.sha256"


def log_model(client: Any, experiment_id: str, run_id: str, model: Location, *, step: int) -> None:
    """Log the model of a run, if it is not there. model: its folder. step: the epochs that it was trained for."""
    from mlflow.entities import LoggedModelOutput

    archive, meta = locate(model)
    data, digest, _ = read(archive, meta)
    found = client.search_logged_models(
        [experiment_id], filter_string=f"source_run_id = '{run_id}' AND tags.`{_DIGEST_TAG}` = '{digest}'"
    )
    for each in found:
        if each.status == "READY":
            return
        client.delete_logged_model(each.model_id)  # of an attempt that was cut off
    logged = client.create_logged_model(experiment_id, "model", run_id, {_DIGEST_TAG: digest}, model_type="keras")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
    with tempfile.TemporaryDirectory() as scratch:
        described = read_checked(meta, ModelRecord, "train again") if meta else {}
        write_model(Path(scratch), data, described, run_id, logged)
        client.log_model_artifacts(logged.model_id, scratch)
    client.finalize_logged_model(logged.model_id, "READY")


def write_model(folder: Path, data: bytes, described: dict[str, Any], run_id: str, logged: Any) -> None:
    """The files of a model as MLflow's keras flavour lays them out. described: model.json."""
    from mlflow.models import Model

    (folder / "data").mkdir()
    (folder / "data" / "model.keras").write_bytes(data)
    (folder / "data" / "keras_module.txt").write_text("keras")
    packages = versions()
    needs = [f"{name}=={packages[name]}" for name in ("keras", "tensorflow", "numpy")]
    (folder / "requirements.txt").write_text("\n".join([*needs, ""]))
    (folder / "python_env.yaml").write_text(
        f"python: {platform.python_version()}\ndependencies:\n- -r requirements.txt\n"
    )
    model = Model(
        artifact_path=logged.artifact_location,
        run_id=run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
        signature=_signature(described),
        metadata={"classes": described["classes"], "pixels": described["pixels"], "output": "logits"},
        model_size_bytes=len(data),
    )
    model.add_flavor(
        "keras", data="data", keras_version=packages["keras"], keras_backend="tensorflow", save_exported_model=False
    )
    model.add_flavor(
        "python_function",
        loader_module="mlflow.keras",
        python_version=platform.python_version(),
        env={"virtualenv": "python_env.yaml"},
    )
    model.save(str(folder / "MLmodel"))


def _signature(described: dict[str, Any]) -> Any:
    """Pixels in, logits out. A first side of -1 is the number of images."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    sides = [-1 if side is None else side for side in described["input_shape"]]
    pixels = np.uint8 if described["pixels"] == "0-255" else np.float32
    logits = np.float64 if described["recipe"]["precision"] == "float64" else np.float32
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(pixels), (-1, *sides))]),
        outputs=Schema([TensorSpec(np.dtype(logits), (-1, described["num_classes"]))]),
    )
