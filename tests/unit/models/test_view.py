"""What is used of a model: an output, a layer, images of a size; and what it gives for an image. By both engines."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.models import build, conversion, files, users
from mnist_ray.models.conversion import convert
from mnist_ray.models.engines.base import Classifier
from mnist_ray.models.engines.openvino import ConvertedClassifier
from mnist_ray.models.inference import Inference
from mnist_ray.models.outline import outline
from mnist_ray.models.view import WHOLE, UnsuitableError, View
from mnist_ray.storage.location import Location
from tests.support.data_makers import images
from tests.support.models import CLASSES, RECIPE

pytestmark = pytest.mark.tensorflow

SHAPE = (5, 4)
IMAGES = images(9, SHAPE)
SCALED = IMAGES.astype(np.float32)


def both(model: Any, view: View = WHOLE) -> list[Classifier]:
    """A model as each engine computes it."""
    found = users.classifier(model, "", view)
    converted = convert(found, IMAGES)
    assert isinstance(converted, ConvertedClassifier), converted
    return [found, converted]


def outputs(classifier: Classifier, given: Any = IMAGES) -> Any:
    return Inference(classifier, given.shape[1:], most_rows=4, pixels="0-255")(given)[1]


def headed(keras: Any, *last: Any, shape: tuple[Any, ...] = SHAPE) -> Any:
    return keras.Sequential([keras.Input(shape), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), *last])


def test_sigmoids_are_labels_of_their_own(keras: Any) -> None:
    model = headed(keras, keras.layers.Dense(3, "sigmoid"))
    for found in both(model):
        assert (found.kind, found.num_classes, found.gives_logits) == ("labels", 3, False)
        np.testing.assert_allclose(outputs(found), model(SCALED), atol=1e-6)


def test_one_sigmoid_is_the_second_of_two_classes(keras: Any) -> None:
    model = headed(keras, keras.layers.Dense(1, "sigmoid"))
    for found in both(model):
        assert (found.kind, found.num_classes, found.gives_logits) == ("classes", 2, False)
        second = np.asarray(model(SCALED))[:, 0]
        np.testing.assert_allclose(outputs(found), np.stack([1 - second, second], axis=1), atol=1e-6)


@pytest.mark.parametrize("is_dictionary", [True, False])
def test_one_of_several_outputs(keras: Any, is_dictionary: bool) -> None:
    layers = keras.layers
    pixels = keras.Input(SHAPE)
    hidden = layers.Flatten()(layers.Rescaling(1 / 255)(pixels))
    digit, odd = layers.Dense(3, "softmax", name="first")(hidden), layers.Dense(2, name="second")(hidden)
    model = keras.Model(pixels, {"digit": digit, "odd": odd} if is_dictionary else [digit, odd])
    names = ["digit", "odd"] if is_dictionary else ["first", "second"]
    expected = dict(zip(names, (digit, odd), strict=True))
    for name, is_logits in zip(names, (False, True), strict=True):
        for found in both(model, View(output_name=name)):
            assert (found.kind, found.gives_logits, found.view) == ("classes", is_logits, f"output {name}")
            given = Inference(found, SHAPE, most_rows=4)(IMAGES)[0]
            np.testing.assert_allclose(given, keras.Model(pixels, expected[name])(SCALED), atol=1e-5)
    for view, said in (
        (WHOLE, f"has 2 outputs; choose one by --output-name: {', '.join(names)}"),
        (View(output_name="none"), f"has no output none; --output-name takes {', '.join(names)}"),
    ):
        with pytest.raises(UnsuitableError, match=said):
            users.classifier(model, "", view)


def test_a_layer_as_an_embedding(keras: Any) -> None:
    layers = keras.layers
    inner = keras.Sequential([keras.Input((*SHAPE, 1)), layers.Conv2D(6, 3, name="maps"),
                              layers.GlobalAveragePooling2D(name="pooled"), layers.Dense(2)], name="inner")  # fmt: skip
    layer = layers.Dense(4, "relu", name="features")
    pixels = keras.Input((*SHAPE, 1))
    model = keras.Model(pixels, layers.Dense(3, "softmax")(layer(inner(layers.Rescaling(1 / 255)(pixels)))))
    within = keras.Model(inner.inputs[0], inner.get_layer("pooled").output)
    scaled = SCALED[..., None]
    expected = {
        "features": layer(inner(scaled / 255)),
        "inner": inner(scaled / 255),
        "pooled": within(scaled / 255),  # in a model within the model
    }
    for name, vectors in expected.items():
        for found in both(model, View(output_layer=name)):
            assert (found.kind, found.num_classes, found.pixels) == ("embeddings", vectors.shape[1], "0-255")
            np.testing.assert_allclose(outputs(found), vectors, atol=1e-5)
    for name, said in (
        ("featurs", "has no layer featurs; --output-layer takes one of its layers, such as features"),
        (
            "maps",
            r"gives \(3, 2, 6\) per image at its layer maps; --output-layer takes one that gives a vector, such as",
        ),
    ):
        with pytest.raises(UnsuitableError, match=said):
            users.classifier(model, "", View(output_layer=name))


def test_images_are_fed_flat(keras: Any) -> None:
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(3, "softmax")])
    for found in both(model):
        assert (found.input_shape, found.pixels) == ((20,), "0-1")
        np.testing.assert_allclose(outputs(found), model(SCALED.reshape(9, 20)), atol=1e-5)
        with pytest.raises(InputError, match=r"the images are \(5, 5\), but the model takes \(20,\)"):
            Inference(found, (5, 5), most_rows=1)


def test_any_size_is_fed_in_the_one_that_is_chosen(keras: Any) -> None:
    layers = keras.layers
    model = keras.Sequential([keras.Input((None, None, 1)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3),
                              layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax")])  # fmt: skip
    for found in both(model, View(size=SHAPE)):
        assert found.input_shape == (5, 4, 1)
        np.testing.assert_allclose(outputs(found), model(SCALED[..., None]), atol=1e-5)
    with pytest.raises(UnsuitableError, match=r"cannot take images of \(2, 2, 1\) \(.*; choose another"):
        users.classifier(model, "", View(size=(2, 2)))  # smaller than the kernel
    with pytest.raises(UnsuitableError, match="takes images of any size; choose one by --resize HxW"):
        users.classifier(model, "", WHOLE)


def test_an_ensemble_gives_what_its_members_give(keras: Any) -> None:
    """Behind the average of probabilities there is no second softmax, behind that of logits one."""
    layers = keras.layers

    def average(activation: str | None) -> Any:
        pixels = keras.Input(SHAPE)
        hidden = layers.Flatten()(layers.Rescaling(1 / 255)(pixels))
        return keras.Model(pixels, layers.Average()([layers.Dense(3, activation)(hidden) for _ in range(2)]))

    probable = average("softmax")
    for found in both(probable):
        assert not found.gives_logits
        np.testing.assert_allclose(outputs(found), probable(SCALED), atol=1e-6)
    for found in both(average(None)):
        assert found.gives_logits
        np.testing.assert_allclose(outputs(found).sum(axis=1), 1, atol=1e-6)
    with pytest.raises(UnsuitableError, match="gives values from 0 to 1 that do not add up to 1: neither logits nor"):
        users.classifier(average("sigmoid"), "", WHOLE)


def test_a_view_of_a_file_and_of_a_run(keras: Any, tmp_path: Path) -> None:
    """In a child process, and beside what a run has kept converted."""
    whole = build.build(RECIPE)
    files.save(whole, Location.parse(tmp_path), RECIPE, CLASSES, {})
    place = Location.parse(tmp_path)
    with zipfile.ZipFile(tmp_path / "classifier.keras") as archive:
        saved = json.loads(archive.read("config.json"))["config"]["layers"]
    view = View(output_layer=saved[3]["config"]["name"])  # the Input is saved, too
    expected = keras.Sequential([keras.Input(SHAPE), *whole.layers[:3]])(IMAGES)
    assert files.load_converted(place, view=view) is None
    mine = tmp_path / "mine.keras"
    shutil.copy(tmp_path / "classifier.keras", mine)
    for given in (place, Location.parse(mine)):
        loaded = files.load(given, vetted=files.digest(given), view=view)
        converted = files.convert(given, IMAGES, view=view)
        assert isinstance(converted, ConvertedClassifier)
        for found in (loaded, converted):
            assert (found.kind, found.classes, found.pixels, found.view) == ("embeddings", None, "0-255", view.key)
            np.testing.assert_allclose(outputs(found), expected, atol=1e-5)
    rebuilt = build.build(RECIPE)
    files._name_as_saved(rebuilt, place, (tmp_path / "classifier.keras").read_bytes())
    assert rebuilt.layers[2].name == view.output_layer
    conversion.keep_beside(converted, place, "_model")
    assert conversion.read_beside(place, "_model", converted.sha256) is None  # of a part, not of the whole
    assert conversion.read_beside(place, "_model", converted.sha256, view) is not None
    for use in (files.load, lambda place, view: files.convert(place, IMAGES, view=view)):
        with pytest.raises(InputError, match=r"the model in .*mine\.keras has no layer none; --output-layer takes one"):
            use(Location.parse(mine), view=View(output_layer="none"))


def sigmoid(values: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(values, np.float64)))


@pytest.mark.parametrize("view", [View(by_loss="labels"), View(kind="labels"), View(kind="labels", by_loss="classes")])
def test_logits_of_labels_get_a_sigmoid(keras: Any, view: View) -> None:
    model = headed(keras, keras.layers.Dense(3))
    for found in both(model, view):
        assert (found.kind, found.num_classes, found.gives_logits) == ("labels", 3, False)
        np.testing.assert_allclose(outputs(found), sigmoid(model(SCALED)), atol=1e-6)
    for found in both(model, View(kind="classes", by_loss="labels")):
        assert (found.kind, found.gives_logits) == ("classes", True)


@pytest.mark.parametrize("view", [View(by_loss="labels"), View(kind="classes")])
def test_one_logit_is_the_second_of_two_classes(keras: Any, view: View) -> None:
    model = headed(keras, keras.layers.Dense(1))
    for found in both(model, view):
        assert (found.kind, found.num_classes) == ("classes", 2)
        second = sigmoid(model(SCALED))[:, 0]
        np.testing.assert_allclose(outputs(found), np.stack([1 - second, second], axis=1), atol=1e-6)


def test_an_average_of_sigmoids_is_scores_where_the_user_says_so(keras: Any) -> None:
    images_ = keras.Input(SHAPE)
    hidden = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images_))
    two = [keras.layers.Dense(3, "sigmoid")(hidden) for _ in range(2)]
    model = keras.Model(images_, keras.layers.Average()(two))
    for found in both(model, View(kind="labels")):
        np.testing.assert_allclose(outputs(found), model(SCALED), atol=1e-6)


def test_what_a_file_gives_is_found_before_anything_loads_it_here(keras: Any, tmp_path: Path) -> None:
    """Where its layers alone do not tell: it ends in a pooling."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((5, 4, 1)), layers.Conv2D(6, 2), layers.GlobalAveragePooling2D()])
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        place = Location.parse(tmp_path / name)
        assert outline(place).num_classes is None
        known = outline(place, View(kind="labels"), counts=True)
        assert (known.kind, known.num_classes) == ("labels", 6)
    keras.Sequential([keras.Input((5, 4)), layers.Flatten(), layers.ReLU()]).save(tmp_path / "m.keras")
    with pytest.raises(
        InputError, match=r"the model in .*m\.keras ends in relu; it must give logits, or end in softmax"
    ):
        outline(Location.parse(tmp_path / "m.keras"), counts=True)


def test_a_layer_or_an_output_that_a_runs_model_does_not_have(keras: Any, tmp_path: Path) -> None:
    files.save(build.build(RECIPE), Location.parse(tmp_path), RECIPE, CLASSES, {})
    for view, said in (
        (View(output_layer="nope"), "has no layer nope; --output-layer takes one of its layers, such as"),
        (View(output_name="nope"), "has no output nope; --output-name takes"),
        (View(kind="labels"), "was trained to tell one class of several; leave out --kind"),
    ):
        with pytest.raises(InputError, match=f"the model in .*classifier.keras {said}"):
            outline(Location.parse(tmp_path), view)
