"""Computing with a model: what Keras gives, however it is done."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.models import anatomy, build, files, inference, runtime, users
from mnist_ray.models.build import Recipe
from mnist_ray.models.conversion import convert
from mnist_ray.models.engines import tensorflow
from mnist_ray.models.engines.base import Classifier, Execution
from mnist_ray.models.engines.openvino import ConvertedClassifier
from mnist_ray.models.inference import Inference
from mnist_ray.models.view import WHOLE
from tests.support.data_makers import images, labels
from tests.support.scored import RECIPE, SHAPE

ENGINES = ["tensorflow", "openvino"]


def classifier_of(model: Any, pixels: str = "0-255", engine: str = "tensorflow") -> Classifier:
    classifier = replace(users.classifier(model, "", WHOLE), pixels=pixels)
    if engine == "tensorflow":
        return classifier
    converted = convert(classifier, None)
    assert isinstance(converted, ConvertedClassifier), converted
    return converted


@pytest.mark.tensorflow
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 41])
@pytest.mark.parametrize(
    ("engine", "precision"), [("tensorflow", "float32"), ("tensorflow", "float64"), ("openvino", "float32")]
)
def test_batches_and_tails_are_what_keras_gives(rows: int, engine: str, precision: str) -> None:
    recipe = Recipe(**{**RECIPE.__dict__, "precision": precision})
    loaded = files.untrained(recipe)
    ask = Inference(classifier_of(loaded.model, engine=engine), SHAPE, most_rows=8)
    assert ask.execution.batch_size == 8
    given, probabilities = ask(images(rows, SHAPE))
    assert given.dtype == precision
    assert probabilities.dtype == precision
    if rows:
        expected = np.asarray(loaded.model(images(rows, SHAPE)))
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)
        assert (given.argmax(1) == expected.argmax(1)).all()
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)


@pytest.mark.tensorflow
@pytest.mark.parametrize(("engine", "jit"), [("tensorflow", False), ("tensorflow", True), ("openvino", False)])
def test_every_way_gives_the_same_but_for_rounding(engine: str, jit: bool) -> None:
    loaded = classifier_of(files.untrained(RECIPE).model, engine=engine)
    raw = images(41, SHAPE)
    usual = Inference(loaded, SHAPE, most_rows=64)
    for batch_size in (1, 7, 64):
        given, chances = usual.recompiled(Execution(jit=jit, batch_size=batch_size))(raw)
        np.testing.assert_allclose(given, usual(raw)[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(chances, usual(raw)[1], rtol=1e-5, atol=1e-6)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("engine", "jit", "most"),  # weights of a variable that becomes a constant: none, some, all
    [*(("tensorflow", jit, most) for jit in (False, True) for most in (0, 300, 1 << 16)), ("openvino", False, 0)],
)
def test_folded_layers_give_what_keras_gives(
    engine: str, jit: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keras, raw = runtime.import_keras(), images(9, (12, 12))
    keras.utils.set_random_seed(1)
    layers, given = keras.layers, keras.Input((12, 12))
    told = layers.BatchNormalization()(layers.Conv2D(8, 3, use_bias=False)(layers.Reshape((12, 12, 1))(given)))
    shared = layers.Dense(8, activation="relu")
    told = shared(shared(layers.GlobalAveragePooling2D()(layers.ReLU()(told))))
    inner = keras.Sequential([layers.Dropout(0.5), layers.BatchNormalization(), layers.Dense(3)])
    made = keras.Model(given, inner(told))
    generator = np.random.default_rng(5)
    made.set_weights([generator.uniform(0.1, 1, each.shape).astype(each.dtype) for each in made.get_weights()])
    monkeypatch.setattr(tensorflow, "_MAX_CONSTANT", most)
    ask = Inference(
        classifier_of(made, engine=engine), (12, 12), most_rows=9, execution=Execution(jit=jit, batch_size=4)
    )
    expected = made.predict(raw, verbose=0)
    assert np.ptp(expected, axis=0).min() > 1e-3
    np.testing.assert_allclose(ask(raw)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.tensorflow
def test_the_fastest_way_is_measured_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, raw = Inference(files.untrained(RECIPE), SHAPE, most_rows=2000), images(9, SHAPE)
    executions = {Execution(jit=jit, batch_size=size) for jit in (False, True) for size in (1024, 512, 2048)}
    small = inference.fastest(usual, raw, most_rows=2000, total_rows=1000)
    assert small.execution == usual.execution == Execution(jit=False, batch_size=1024)  # half a second's work
    slow = Execution(jit=True, batch_size=2048)

    def asked(self: Inference, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tried.append(self.execution)
        time.sleep(0.002 if self.execution == slow else 0.01)
        return raw, raw

    tried: list[Execution] = []
    monkeypatch.setattr(Inference, "__call__", asked)
    assert inference.fastest(usual, raw, most_rows=2000, total_rows=10**9).execution == slow
    assert set(tried) == executions
    tried.clear()
    assert inference.fastest(usual, raw, most_rows=2000, total_rows=10**9, jit=True).execution == slow
    assert set(tried) == {execution for execution in executions if execution.jit}
    given = inference.fastest(usual, raw, most_rows=2000, total_rows=10**9, jit=False, batch_size=3)
    assert given.execution == Execution(jit=False, batch_size=3)


@pytest.mark.tensorflow
def test_two_ways_are_compared_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [Inference(files.untrained(RECIPE), SHAPE, most_rows=rows) for rows in (64, 32)]

    def asked(self: Inference, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert len(raw) in (1, 64)
        tried.append(ways.index(self))
        time.sleep(0.008 if self is ways[0] else 0.002)
        return raw, raw

    tried: list[int] = []
    monkeypatch.setattr(Inference, "__call__", asked)
    assert inference.seconds_of_an_image(*ways, images(9, SHAPE), 64 * 2000) is None  # 16 seconds' work
    assert set(tried) == {0}
    for rows in (64 * 4000, math.inf):
        found = inference.seconds_of_an_image(*ways, images(9, SHAPE), rows)
        assert found is not None
        assert 0.008 / 64 <= found[0] < 0.016 / 64
        assert 3 < found[0] / found[1] < 5
        assert set(tried) == {0, 1}


@pytest.mark.tensorflow
@pytest.mark.parametrize("layers", ["ours", "softmax"])
def test_bfloat16_changes_the_computation_but_not_the_weights(layers: str) -> None:
    keras, raw = runtime.import_keras(), images(200, SHAPE)
    made = build.build(RECIPE)
    if layers == "softmax":
        made = keras.Sequential([made, keras.layers.Softmax()])
    before, weights = np.asarray(made(raw)), made.get_weights()
    assert anatomy.precision_of(made) == "float32"
    anatomy.recast(made, "bfloat16")
    assert anatomy.precision_of(made) == "bfloat16"
    exact = [type(each).__name__ for each in tensorflow._leaves(made) if each.compute_dtype == "float32"]
    assert exact == ["Rescaling", "Softmax" if layers == "softmax" else "Dense"]
    narrow = Inference(classifier_of(made), SHAPE, most_rows=64)(raw)[0]
    assert narrow.dtype == np.float32
    assert 1e-6 < np.abs(narrow - before).max() < 0.1
    anatomy.recast(made, "float32")
    np.testing.assert_array_equal(np.asarray(made(raw)), before)
    for array, same in zip(made.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(array, same)


@pytest.mark.tensorflow
@pytest.mark.parametrize("trained", ["float32", "float64"])
@pytest.mark.parametrize("scored", ["float32", "float64", "bfloat16"])
def test_a_convolution_computes_in_another_precision_than_it_was_trained_in(trained: str, scored: str) -> None:
    """TensorFlow multiplies matrices of mixed precisions, but refuses to convolve them."""
    made = build.build(replace(RECIPE, architecture="cnn", precision=trained))
    raw, weights = images(20, SHAPE), made.get_weights()
    before = np.asarray(made(raw))
    anatomy.recast(made, scored)
    assert anatomy.precision_of(made) == scored
    given = Inference(classifier_of(made), SHAPE, most_rows=64)(raw)[0]
    assert given.dtype == ("float64" if scored == "float64" else "float32")
    np.testing.assert_allclose(given, before, atol=0.1 if scored == "bfloat16" else 1e-5)
    for array, same in zip(made.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(array, same)


@pytest.mark.tensorflow
@pytest.mark.parametrize("engine", ENGINES)
def test_losses_are_keras_losses(engine: str) -> None:
    keras = runtime.import_keras()
    numbers = labels(50).astype(np.int64)
    classifier = build.build(RECIPE)
    softmax = keras.Sequential([classifier, keras.layers.Softmax()])
    for made, from_logits in ((classifier, True), (softmax, False)):
        ask = Inference(classifier_of(made, engine=engine), SHAPE, most_rows=64)
        assert ask.classifier.gives_logits == from_logits
        given, probabilities = ask(images(50, SHAPE))
        expected = keras.losses.sparse_categorical_crossentropy(numbers, made(images(50, SHAPE)), from_logits)
        np.testing.assert_allclose(
            ask.losses(given, probabilities, given.argmax(axis=1), numbers), np.asarray(expected), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(probabilities, np.asarray(softmax(images(50, SHAPE))), rtol=1e-4, atol=1e-7)
    assert ask.losses(given, probabilities, given.argmax(axis=1), np.full(50, -1)).tolist() == [0.0] * 50


@pytest.mark.tensorflow
@pytest.mark.parametrize("engine", ENGINES)
def test_pixels_are_divided_where_the_model_wants_it(engine: str) -> None:
    keras = runtime.import_keras()
    made = keras.Sequential([keras.Input((*SHAPE, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    raw = images(9, SHAPE)
    for pixels, divisor in (("0-255", 1.0), ("0-1", 255.0)):
        given, _ = Inference(classifier_of(made, pixels, engine), SHAPE, most_rows=9)(raw)
        np.testing.assert_allclose(given, np.asarray(made(raw[..., None] / divisor)), rtol=1e-5, atol=1e-5)


@pytest.mark.tensorflow
def test_other_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"the images are \(5, 6\), but the model takes \(6, 5\)"):
        Inference(files.untrained(RECIPE), (5, 6), most_rows=1)


@pytest.mark.tensorflow
def test_blocks_fit_the_model() -> None:
    assert inference.default_batch_size(files.untrained(RECIPE), 1) == 1
    assert inference.default_batch_size(files.untrained(RECIPE), 208) == 256
    assert inference.default_batch_size(files.untrained(RECIPE), 1 << 17) == 1024
    cnn = Recipe(**{**RECIPE.__dict__, "architecture": "cnn", "image_shape": (28, 28)})
    assert inference.default_batch_size(files.untrained(cnn), 1 << 17) == 128
