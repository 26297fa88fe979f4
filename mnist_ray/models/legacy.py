"""Models in Keras' older formats: `.h5` files become `.keras` files; others are refused by what they are."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from mnist_ray.errors import InputError
from mnist_ray.models.child import in_child, limited_memory, refusing
from mnist_ray.models.runtime import import_keras
from mnist_ray.models.vetting import check_config, check_object, check_output, count_stored, serialized_objects
from mnist_ray.storage.location import Location

_HDF5 = b"\x89HDF\r\n\x1a\n"


def refuse_saved_model(folder: Location) -> None:
    """Raise InputError, with the way out, where a folder is a TensorFlow SavedModel."""
    if not (folder / "saved_model.pb").is_file():
        return
    if (folder / "keras_metadata.pb").is_file():
        remedy = (
            f'convert it with the tf_keras package: python -c "import tf_keras;'
            f" tf_keras.models.load_model('{folder}').save('model.h5')\", and give model.h5"
        )
    else:
        remedy = 'save the model again where it was trained: model.save("model.keras")'
    raise InputError(f"{folder} is a SavedModel, a TensorFlow graph without Keras layers; {remedy}")


def is_hdf5(data: bytes) -> bool:
    return data.startswith(_HDF5)


def converted(archive: Location, data: bytes) -> bytes:
    """An `.h5` file as a `.keras` file, made in a child process. Raises InputError where it cannot be loaded."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "model.h5", Path(scratch) / "model.keras"
        source.write_bytes(data)
        in_child(archive, "from mnist_ray.models.legacy import _convert; _convert()", source, target)
        return target.read_bytes()


def vetted_config(archive: Location, data: bytes) -> tuple[dict[str, Any], Any]:
    """The config and the loss of the model in an `.h5` file, read in a child process without Keras. Raises InputError
    where there is none, or where it has code. Whether classes without a module are Keras' shows when it is converted.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "model.h5", Path(scratch) / "config.json"
        source.write_bytes(data)
        in_child(archive, "from mnist_ray.models.legacy import _keep_config; _keep_config()", source, target)
        return check_config(archive, target.read_bytes(), module="keras.layers")


# In the child process.


def _keep_config() -> None:
    """Write the config of the first file that the command line names into the second."""
    source, target = map(Path, sys.argv[1:])
    with refusing(), limited_memory(source):
        config = json.loads(_config(source))
        if isinstance(config, dict):  # whoever reads it says what else is wrong with it
            config["compile_config"] = json.loads(_attribute(source, "training_config") or "null")
        target.write_text(json.dumps(config))


def _convert() -> None:
    """Load the first file that the command line names, compute with it once, and save it as the second."""
    source, target = map(Path, sys.argv[1:])
    with refusing():
        with limited_memory(source):
            config = json.loads(_config(source))
        keras = import_keras(threads=1)
        for each in serialized_objects(config):
            _check_legacy_object(keras, each)
        _without_groups(source, config)
        with limited_memory(source):
            model = keras.saving.load_model(source, compile=False, safe_mode=True)
            check_output(keras, model)
            model.save(target)


def _config(source: Path) -> str:
    """The config of the model in an `.h5` file. Raises InputError where there is none, or weights lie elsewhere."""
    count_stored(source.read_bytes())
    config = _attribute(source, "model_config")
    if config is None:
        raise InputError(
            "it has weights alone, not the layers; where the model was built, load them and save it whole:"
            ' model.load_weights(...); model.save("model.keras")'
        )
    return config


def _attribute(source: Path, name: str) -> str | None:
    """JSON in text; None where there is none."""
    import h5py  # type: ignore[import-untyped]

    with h5py.File(source, "r") as file:
        value = file.attrs.get(name)
    return None if value is None else str(value)


def _without_groups(source: Path, config: Any) -> None:
    """Keras 2 wrote `groups`: 1 for every DepthwiseConv2D, which Keras 3 refuses, so it is left out of the file:
    https://github.com/keras-team/keras/issues/19151
    """
    import h5py

    of_old = [each for each in serialized_objects(config) if each["class_name"] == "DepthwiseConv2D"]
    if any(each["config"].pop("groups", None) is not None for each in of_old):
        with h5py.File(source, "r+") as file:
            file.attrs["model_config"] = json.dumps(config)


def _check_legacy_object(keras: Any, serialized: dict[str, Any]) -> None:
    """Raise InputError where an object is not one of Keras' harmless own. Most of this format have no module."""
    if serialized.get("module") is None and serialized.get("registered_name") is None:
        name = str(serialized.get("class_name"))
        kinds = (keras.Layer, keras.Initializer, keras.Regularizer, keras.constraints.Constraint)
        rooms = (keras.layers, keras.models, keras.initializers, keras.regularizers, keras.constraints)
        found = [getattr(room, name, None) for room in rooms]
        is_keras = name == "Functional" or any(isinstance(kind, type) and issubclass(kind, kinds) for kind in found)
        serialized = {**serialized, "module": "keras.layers" if is_keras else "another package"}
    check_object("it", serialized)
