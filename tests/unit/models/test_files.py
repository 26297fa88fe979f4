"""Classifiers: the same from the same seed, saved and loaded to the bit, refused where not to be trusted."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.models import build, files, runtime
from mnist_ray.storage.location import Location, sha256
from tests.support.models import CLASSES, IMAGES, RECIPE, same

pytestmark = pytest.mark.tensorflow


# Saving and loading ours.


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    """A run with a model that has learnt something: other weights than the seed's, and compiled with an optimizer."""
    made = build.build(RECIPE)
    made.compile(optimizer="adam", loss="mse")
    made.set_weights([weight + 0.25 for weight in made.get_weights()])
    files.save(made, Location.parse(tmp_path / "run") / "model", RECIPE, CLASSES, {"epochs": []})
    return Location.parse(tmp_path / "run")


def test_saved_and_loaded(folder: Location, keras: Any) -> None:
    told = (folder / "model" / "model.json").read_json()
    archive = folder / "model" / "classifier.keras"
    assert told["sha256"] == files.digest(folder)
    assert (told["input_shape"], told["classes"], told["pixels"]) == ([5, 4], ["a", "b", "c"], "0-255")
    assert told["trained"] == {"epochs": []}
    expected = [weight + 0.25 for weight in build.build(RECIPE).get_weights()]
    for place in (folder, folder / "model", archive):
        loaded = files.load(place)
        assert all(np.array_equal(a, b) for a, b in zip(loaded.classifier.get_weights(), expected, strict=True))
        assert (loaded.sha256, loaded.classes, loaded.pixels) == (told["sha256"], CLASSES, "0-255")
        assert (loaded.input_shape, loaded.num_classes) == ((5, 4), 3)
    plain = keras.saving.load_model(archive.path)  # anyone can read it, without our package
    assert not plain.compiled
    assert np.array_equal(np.asarray(plain(IMAGES)), np.asarray(loaded.classifier(IMAGES)))


def test_a_model_is_never_saved_over(folder: Location) -> None:
    before = files.digest(folder)
    other = build.build(replace(RECIPE, seed=9))
    with pytest.raises(AssertionError):
        files.save(other, folder / "model", RECIPE, CLASSES, {})
    assert files.digest(folder) == before
    (folder / "model" / ".classifier.keras.0123abcd.tmp").write_bytes(b"of one that was killed")
    files.save(other, folder / "model", RECIPE, CLASSES, {}, replace=True)
    assert [file.name for file in (folder / "model").list()] == ["classifier.keras", "model.json"]
    assert same(files.load(folder).classifier, other)


def test_ours_is_checked_before_it_is_used(folder: Location) -> None:
    archive = folder / "model" / "classifier.keras"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"is damaged: its sha256 is not the one in model\.json"):
        files.load(folder)
    archive.delete()
    with pytest.raises(InputError, match=r"classifier\.keras is missing"):
        files.load(folder)


def test_where_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished model"):
        files.load(Location.parse(tmp_path))
    with pytest.raises(InputError, match="nowhere does not exist"):
        files.load(Location.parse(tmp_path / "nowhere"))


def test_a_layer_in_our_archives_config_is_not_loaded(folder: Location) -> None:
    """Only the weights of ours are read, so that nothing else in it matters even to one who can write model.json."""
    archive = folder / "model" / "classifier.keras"
    archive.write_bytes(edited(archive.read_bytes(), lambda config: {"class_name": "Evil", "module": "os"}))
    told = (folder / "model" / "model.json").read_json()
    (folder / "model" / "model.json").write_json({**told, "sha256": sha256(archive.read_bytes())})
    assert files.load(folder).num_classes == 3


# A user's own file.


def edited(archive: bytes, change: Callable[[Any], Any], *, drop: str | None = None) -> bytes:
    """The archive with another config.json."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(sink, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                data = json.dumps(change(json.loads(data))).encode()
            if name != drop:
                new.writestr(name, data)
    return sink.getvalue()


@pytest.fixture(scope="module")
def users_file(tmp_path_factory: pytest.TempPathFactory, keras: Any) -> Path:
    """As Keras users save one: compiled, with softmax, for pixels / 255."""
    runtime.import_keras()
    layers = keras.layers
    made = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu", kernel_regularizer="l2"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    made.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    path = tmp_path_factory.mktemp("user") / "users.keras"
    made.save(path)
    return path


def test_a_users_file(users_file: Path, keras: Any) -> None:
    loaded = files.load(Location.parse(users_file))  # goes through the child process
    assert (loaded.input_shape, loaded.num_classes, loaded.classes, loaded.pixels) == ((8, 8, 1), 3, None, "0-1")
    assert not loaded.classifier.compiled
    assert same(loaded.classifier, keras.saving.load_model(users_file, compile=False))
    assert loaded.sha256 == files.digest(Location.parse(users_file))


def test_a_compiled_model_within_a_users_file(tmp_path: Path, keras: Any) -> None:
    """Its optimizer goes unused, as that of the whole does."""
    inner = keras.Sequential([keras.Input((5, 4)), keras.layers.Flatten(), keras.layers.Dense(8)])
    inner.compile(optimizer="adam", loss="mse")
    made = keras.Sequential([keras.Input((5, 4)), inner, keras.layers.Dense(3)])
    made.save(tmp_path / "nested.keras")
    location = Location.parse(tmp_path / "nested.keras")
    loaded = files.load(location, vetted=files.digest(location))
    assert same(loaded.classifier, made)
    assert not loaded.classifier.layers[0].compiled


def grow(config: Any) -> Any:
    config["config"]["layers"][-1]["config"]["units"] = 2_000_000_000
    return config


def garble(config: Any) -> Any:
    config["config"]["layers"][-1]["config"]["units"] = "many"
    return config


def as_lambda(config: Any) -> Any:
    config["config"]["layers"][-1] |= {"class_name": "Lambda", "config": {"function": "x"}}
    return config


def as_custom(config: Any) -> Any:
    config["config"]["layers"][-1] |= {"module": "evil", "registered_name": "evil>Layer", "class_name": "Layer"}
    return config


def as_function(config: Any) -> Any:
    """The shape of CVE-2025-8747: a function of Keras' own that writes files."""
    config["config"]["layers"][-1] |= {"module": "keras.utils", "class_name": "get_file", "registered_name": None}
    return config


def nested_function(config: Any) -> Any:
    config["config"]["layers"][-1]["config"]["activation"] = {
        "module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function",
    }  # fmt: skip
    return config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (grow, "a layer needs 288,000,000,000 weights, but the file has"),
        (garble, "the config of a layer is invalid: ValueError"),
        (as_lambda, "has a Lambda layer, which brings code along"),
        (as_custom, "has a custom object, evil>Layer of evil"),
        (as_function, "has a custom object, get_file of keras.utils"),
        (nested_function, "has a custom object, function of builtins"),
        (lambda _: [1, 2], "its config.json is not a model's"),
    ],
)
def test_a_users_file_is_refused_before_it_is_loaded(
    users_file: Path, tmp_path: Path, change: Callable[[Any], Any], said: str
) -> None:
    path = tmp_path / "changed.keras"
    path.write_bytes(edited(users_file.read_bytes(), change))
    with pytest.raises(InputError, match=said) as refusal:
        files.load(Location.parse(path))
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_file_that_is_no_model_is_refused(users_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.keras"
    cases = {
        "is not a .keras file, or is damaged": b"not a zip at all",
        "it has no model.weights.h5": edited(users_file.read_bytes(), lambda same: same, drop="model.weights.h5"),
        "it has no config.json": edited(users_file.read_bytes(), lambda same: same, drop="config.json"),
    }
    for said, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(InputError, match=said):
            files.load(Location.parse(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("config.json", b" " * 10_000_000)
    with pytest.raises(InputError, match="bytes unpack to more than 50 times"):
        files.load(Location.parse(path))
    # A byte within the weights: zip's own checksum tells.
    damaged = bytearray(users_file.read_bytes())
    damaged[damaged.index(b"\x89HDF") + 500] ^= 255
    path.write_bytes(bytes(damaged))
    with pytest.raises(InputError, match=r"is damaged at model\.weights\.h5"):
        files.load(Location.parse(path))


def test_what_the_look_does_not_see_fails_in_the_child(users_file: Path, tmp_path: Path) -> None:
    """A layer of 40 GB that the archive has no weights for."""

    def change(config: Any) -> Any:
        # Embedding's weights are not counted by the look, so the child has to meet them.
        config["config"]["layers"].insert(
            1,
            {
                "module": "keras.layers", "class_name": "Embedding", "registered_name": None,
                "config": {"name": "huge", "input_dim": 10_000_000_000, "output_dim": 1},
                "build_config": {"input_shape": [None, 8, 8, 1]},
            },
        )  # fmt: skip
        return config

    path = tmp_path / "huge.keras"
    path.write_bytes(edited(users_file.read_bytes(), change))
    with pytest.raises(InputError, match="cannot be loaded") as refusal:
        files.load(Location.parse(path))
    assert "\n" not in str(refusal.value)


def test_what_is_not_for_images_is_refused(tmp_path: Path, keras: Any) -> None:
    path = tmp_path / "flat.keras"
    keras.Sequential([keras.Input((20,)), keras.layers.Dense(3)]).save(path)
    digest = files.digest(Location.parse(path))
    with pytest.raises(InputError, match=r"takes \(20,\); it must take images"):
        files.load(Location.parse(path), vetted=digest)
