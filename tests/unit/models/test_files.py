"""Classifiers: the same from the same seed, saved and loaded to the bit, refused where not to be trusted."""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.models import build, files, runtime
from mnist_ray.models.inference import Inference
from mnist_ray.storage.location import Location, sha256
from tests.support.models import CLASSES, IMAGES, RECIPE, same

pytestmark = pytest.mark.tensorflow


# Saving and loading ours.


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = build.build(RECIPE)
    made.compile(optimizer="adam", loss="mse")
    made.set_weights([weight + 0.25 for weight in made.get_weights()])
    folder = tmp_path_factory.mktemp("saved")
    files.save(made, Location.parse(folder) / "model", RECIPE, CLASSES, {"epochs": []})
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Location:
    """A run with a model that has learnt something: other weights than the seed's, and compiled with an optimizer."""
    return Location.parse(shutil.copytree(saved, tmp_path / "run"))


def test_saved_and_loaded(folder: Location, keras: Any) -> None:
    told = (folder / "model" / "model.json").read_json()
    archive = folder / "model" / "classifier.keras"
    assert told["sha256"] == files.digest(folder)
    assert (told["input_shape"], told["classes"], told["pixels"]) == ([5, 4], ["a", "b", "c"], "0-255")
    assert told["trained"] == {"epochs": []}
    expected = [weight + 0.25 for weight in build.build(RECIPE).get_weights()]
    for place in (folder, folder / "model", archive):
        loaded = files.load(place)
        assert all(np.array_equal(a, b) for a, b in zip(loaded.model.get_weights(), expected, strict=True))
        assert (loaded.sha256, loaded.classes, loaded.pixels) == (told["sha256"], CLASSES, "0-255")
        assert (loaded.input_shape, loaded.num_classes) == ((5, 4), 3)
    plain = keras.saving.load_model(archive.path)  # anyone can read it, without our package
    assert not plain.compiled
    assert np.array_equal(np.asarray(plain(IMAGES)), np.asarray(loaded.model(IMAGES)))


def test_a_model_is_never_saved_over(folder: Location) -> None:
    before = files.digest(folder)
    other = build.build(replace(RECIPE, seed=9))
    with pytest.raises(AssertionError):
        files.save(other, folder / "model", RECIPE, CLASSES, {})
    assert files.digest(folder) == before
    (folder / "model" / ".classifier.keras.0123abcd.tmp").write_bytes(b"of one that was killed")
    files.save(other, folder / "model", RECIPE, CLASSES, {}, overwrite=True)
    assert [file.name for file in (folder / "model").list()] == [
        "classifier.bin",
        "classifier.keras",
        "classifier.xml",
        "model.json",
    ]
    assert same(files.load(folder).model, other)


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


# A model's folder that comes from somebody else.


def rewritten(folder: Location, **recipe: Any) -> Path:
    """The run whose model.json says something else, in a recipe that is whole otherwise."""
    meta = folder / "model" / "model.json"
    told = meta.read_json()
    meta.write_json({**told, "recipe": {**told["recipe"], **recipe}})
    return Path(folder.path)


@pytest.mark.parametrize("place", ["", "model", "model/classifier.keras"])
@pytest.mark.parametrize("shape", [["touch", "ran"], ["touch", "ran", 3], [5, 4]])
def test_a_command_in_model_json_is_not_run(
    folder: Location, place: str, shape: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = rewritten(folder, architecture="subprocess:call", image_shape=shape)
    location = Location.parse(run / place)
    if shape == [5, 4]:  # nothing is wrong with the archive: its own layers are used
        assert files.load(location, vetted=files.digest(location)).num_classes == 3
    else:
        with pytest.raises(InputError, match=r"model\.json is damaged: `recipe\.image_shape") as refusal:
            files.digest(location)
        assert "\n" not in str(refusal.value)
        with pytest.raises(InputError, match="is damaged"):
            files.load(location)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "recipe",
    [
        {"image_shape": 5}, {"image_shape": []}, {"image_shape": [5, 0]}, {"image_shape": [5, True]},
        {"image_shape": [5.0, 4]}, {"num_classes": "3"}, {"num_classes": -1}, {"num_classes": 4}, {"precision": "int8"},
        {"architecture": ["mlp"]}, {"architecture": None},
    ],
)  # fmt: skip
def test_a_recipe_of_the_wrong_kind(folder: Location, recipe: dict[str, Any]) -> None:
    rewritten(folder, **recipe)
    with pytest.raises(InputError, match=r"model\.json is damaged") as refusal:
        files.digest(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_a_recipe_that_asks_for_more_weights_than_there_are(folder: Location, architecture: str) -> None:
    rewritten(folder, architecture=architecture, image_shape=[4096, 4096])  # 8 GB
    with pytest.raises(InputError, match=r"do not fit .* and images \(4096, 4096\): there are 3,075"):
        files.load(folder)


def test_code_of_a_run_is_called_only_where_its_user_names_it(
    folder: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keras: Any
) -> None:
    """Its own layer can be built only by its own code."""
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    for name in ("plain", "layered"):
        recipe = replace(RECIPE, architecture=f"own_code:{name}")
        made = build.build(recipe)
        files.save(made, folder / name, recipe, CLASSES, {})
        loaded = files.load(folder / name, architecture=f"own_code:{name}")
        np.testing.assert_array_equal(loaded.model(IMAGES), made(IMAGES))
    monkeypatch.setattr("builtins.print", None)  # what the code would call
    loaded = files.load(folder / "plain", vetted=files.digest(folder / "plain"))
    assert (loaded.classes, loaded.pixels) == (CLASSES, "0-1")
    with pytest.raises(
        InputError, match=r"has a custom object, Own of own_code; .*; or give the --architecture that you"
    ) as told:
        files.load(folder / "layered")
    assert "own_code:" not in str(told.value)  # nobody is told to name what a file names
    with pytest.raises(InputError, match="was not trained with --architecture own_code:layered"):
        files.load(folder / "plain", architecture="own_code:layered")
    with pytest.raises(InputError, match="was not trained with --architecture own_code:plain"):
        files.load(folder, architecture="own_code:plain")


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_the_layers_of_a_runs_file_compute_what_its_code_does(
    folder: Location, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "precise_code.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = replace(RECIPE, architecture="precise_code:plain", precision=precision)
    files.save(build.build(recipe), folder / precision, recipe, CLASSES, {})
    by_code = files.load(folder / precision, architecture=recipe.architecture)
    expected = Inference(by_code, (5, 4), most_rows=8)(IMAGES)
    by_file = files.load(folder / precision, vetted=by_code.sha256)
    np.testing.assert_array_equal(Inference(by_file, (5, 4), most_rows=8)(IMAGES), expected)
    assert expected[0].dtype == ("float64" if precision == "float64" else "float32")


OWN_CODE = """
import keras

class Own(keras.layers.Dense):
    pass

def plain(shape, classes):
    print("called")
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(classes)])

def layered(shape, classes):
    print("called")
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), Own(classes)])
"""


def test_weights_of_ours_that_lie_in_another_file(folder: Location, tmp_path: Path) -> None:
    archive, sink = folder / "model" / "classifier.keras", io.BytesIO()
    with h5py.File(sink, "w") as file:
        file["layers"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
    with zipfile.ZipFile(out := io.BytesIO(), "w") as new:
        new.writestr("model.weights.h5", sink.getvalue())
    archive.write_bytes(out.getvalue())
    meta = folder / "model" / "model.json"
    meta.write_json({**meta.read_json(), "sha256": sha256(out.getvalue())})
    with pytest.raises(InputError, match="its weights are stored elsewhere: layers"):
        files.load(folder)


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
    assert not loaded.model.compiled
    assert same(loaded.model, keras.saving.load_model(users_file, compile=False))
    assert loaded.sha256 == files.digest(Location.parse(users_file))


def test_a_compiled_model_within_a_users_file(tmp_path: Path, keras: Any) -> None:
    """Its optimizer goes unused, as that of the whole does."""
    inner = keras.Sequential([keras.Input((5, 4)), keras.layers.Flatten(), keras.layers.Dense(8)])
    inner.compile(optimizer="adam", loss="mse")
    made = keras.Sequential([keras.Input((5, 4)), inner, keras.layers.Dense(3)])
    made.save(tmp_path / "nested.keras")
    location = Location.parse(tmp_path / "nested.keras")
    loaded = files.load(location, vetted=files.digest(location))
    assert same(loaded.model, made)
    assert not loaded.model.layers[0].compiled


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
    path = tmp_path / "pairs.keras"
    keras.Sequential([keras.Input((20, 2, 2)), keras.layers.Flatten(), keras.layers.Dense(3)]).save(path)
    digest = files.digest(Location.parse(path))
    with pytest.raises(InputError, match=r"takes \(20, 2, 2\); it must take images"):
        files.load(Location.parse(path), vetted=digest)
