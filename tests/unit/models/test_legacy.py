"""`.h5` files are read as `.keras` files are, and as carefully; weights alone and SavedModels are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.models import files, legacy, vetting
from mnist_ray.storage.location import Location, sha256
from tests.support.models import IMAGES

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def model(keras: Any) -> Any:
    layers = keras.layers
    images = keras.Input((5, 4))
    inner = keras.Sequential([keras.Input((5, 4)), layers.Rescaling(1 / 255), layers.Flatten()])
    hidden = layers.Dense(6, "relu", kernel_regularizer="l2")(inner(images))
    made = keras.Model(images, layers.Softmax()(layers.Dense(3)(hidden)))
    made.compile("adam", "sparse_categorical_crossentropy")
    return made


def changed(path: Path, change: Callable[[Any], None]) -> None:
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config)
        file.attrs["model_config"] = json.dumps(config)


def older(config: Any) -> None:
    """As versions of Keras before 3 write it: no DTypePolicy, no modules, `batch_input_shape`."""
    for layer in config["config"]["layers"]:
        layer["config"] = json.loads(json.dumps(layer["config"]), object_hook=_without_modules)


def _without_modules(value: dict[str, Any]) -> Any:
    if value.get("class_name") == "DTypePolicy":
        return value["config"]["name"]
    if "batch_shape" in value:
        value["batch_input_shape"] = value.pop("batch_shape")
    return {key: inner for key, inner in value.items() if key not in ("module", "registered_name")}


@pytest.mark.parametrize("age", ["new", "old"])
def test_an_h5_file(model: Any, age: str, tmp_path: Path) -> None:
    path = tmp_path / ("model.h5" if age == "new" else "model.bin")  # the content decides
    model.save(tmp_path / "model.h5")
    (tmp_path / "model.h5").rename(path)
    if age == "old":
        changed(path, older)
    location = Location.parse(path)
    loaded = files.load(location, vetted=files.digest(location))
    assert (loaded.input_shape, loaded.num_classes, loaded.pixels) == ((5, 4), 3, "0-255")
    assert loaded.sha256 == sha256(path.read_bytes())
    np.testing.assert_array_equal(loaded.model(IMAGES), model(IMAGES))


def test_an_h5_file_of_keras_2_with_a_depthwise_convolution(keras: Any, tmp_path: Path) -> None:
    """As Teachable Machine writes it."""
    layers = keras.layers
    made = keras.Sequential([keras.Input((5, 4, 1)), layers.DepthwiseConv2D(3), layers.Flatten(), layers.Dense(3)])
    made.save(tmp_path / "model.h5")

    def grouped(config: Any) -> None:
        config["config"]["layers"][1]["config"]["groups"] = 1

    changed(tmp_path / "model.h5", grouped)
    location = Location.parse(tmp_path / "model.h5")
    loaded = files.load(location, vetted=files.digest(location))
    np.testing.assert_array_equal(loaded.model(IMAGES[..., None]), made(IMAGES[..., None]))


def test_weights_alone(model: Any, tmp_path: Path) -> None:
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(
        InputError, match=r"it has weights alone, .*: model\.load_weights\(\.\.\.\); model\.save"
    ) as told:
        files.load(Location.parse(tmp_path / "model.weights.h5"))
    assert "\n" not in str(told.value)


def as_layer(class_name: str, **more: Any) -> Callable[[Any], None]:
    def change(config: Any) -> None:
        config["config"]["layers"][2] |= {"class_name": class_name, **more}

    return change


def as_initializer(config: Any) -> None:
    config["config"]["layers"][2]["config"]["kernel_initializer"] = {"class_name": "get_file", "config": {}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (as_layer("Lambda"), "it has a Lambda layer, which brings code along"),
        (as_layer("TFSMLayer"), "it has a TFSMLayer layer, which brings code along"),
        (as_layer("deserialize"), "it has a custom object, deserialize of another package"),
        (as_layer("Mine>Own"), "it has a custom object, Mine>Own of another package"),
        (as_layer("call", module="subprocess"), "it has a custom object, call of subprocess"),
        (as_layer("Dense", registered_name="Mine>Dense"), "it has a custom object, Mine>Dense"),
        (as_initializer, "it has a custom object, get_file of another package"),
    ],
)
def test_code_in_an_h5_file_is_refused(
    keras: Any, model: Any, change: Callable[[Any], None], said: str, tmp_path: Path
) -> None:
    model.save(tmp_path / "model.h5")
    changed(tmp_path / "model.h5", change)
    objects = vetting.serialized_objects(json.loads(legacy._config(tmp_path / "model.h5")))
    with pytest.raises(InputError, match=said):
        [legacy._check_legacy_object(keras, each) for each in objects]


def test_weights_that_lie_in_another_file(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        file["model_weights/more"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(InputError, match="its weights are stored elsewhere: model_weights/more"):
        legacy._config(tmp_path / "model.h5")


def test_a_saved_model(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    with pytest.raises(
        InputError, match=r"is a SavedModel, .*; save the model again .* model\.save\(\"model\.keras\"\)"
    ):
        files.digest(Location.parse(tmp_path))
    (tmp_path / "keras_metadata.pb").write_bytes(b"layers")
    with pytest.raises(InputError, match=r"python -c \"import tf_keras; .*\.save\('model\.h5'\)\", and give model\.h5"):
        files.digest(Location.parse(tmp_path))
