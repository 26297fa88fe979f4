"""What is known of a model's file before it is loaded, and what is refused by it. Without Keras."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import pytest

from mnist_ray.errors import InputError
from mnist_ray.models.outline import outline
from mnist_ray.models.view import View
from mnist_ray.storage.location import Location


def layer(kind: str, name: str = "", **config: Any) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": kind, "config": {"name": name or kind.lower(), **config}}


def written(
    folder: Path, kind: str, layers: list[dict[str, Any]], *, compile_config: Any = None, **config: Any
) -> Location:
    """A .keras file with a config as Keras writes it, and weights that nobody reads."""
    model = {"module": "keras", "class_name": kind, "config": {"layers": layers, **config}}
    model |= {"compile_config": compile_config} if compile_config else {}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("config.json", json.dumps(model))
        archive.writestr("model.weights.h5", b"")
    (folder / "m.keras").write_bytes(data.getvalue())
    return Location.parse(folder / "m.keras")


IMAGE, DENSE = layer("InputLayer", batch_shape=[None, 28, 28, 1]), layer("Dense", units=7)


@pytest.mark.parametrize(
    ("kind", "layers", "config", "shape", "num_classes"),
    [
        ("Sequential", [IMAGE, DENSE], {}, (28, 28, 1), 7),
        ("Sequential", [IMAGE, DENSE, layer("Softmax")], {}, (28, 28, 1), 7),
        ("Sequential", [IMAGE, layer("Dense", units=9), layer("Flatten")], {}, (28, 28, 1), None),
        ("Sequential", [DENSE], {}, None, 7),
        ("Sequential", [layer("InputLayer", batch_shape=[None, None, None, 1]), DENSE], {}, (None, None, 1), 7),
        ("Sequential", [layer("InputLayer", batch_shape=[None, 784]), DENSE], {}, (784,), 7),
        ("Sequential", [IMAGE, layer("Dense", units=1, activation="sigmoid")], {}, (28, 28, 1), 2),
        ("Functional", [IMAGE, DENSE, layer("Dense", "other", units=2)], {"output_layers": ["dense", 0, 0]},
         (28, 28, 1), 7),
        ("Functional", [IMAGE, IMAGE, DENSE], {"output_layers": {"a": ["dense", 0, 0]}}, None, 7),
        ("Functional", [{**IMAGE, "config": 3}], {}, None, None),
        ("Sequential", [], {}, None, None),
    ],
)  # fmt: skip
def test_shape_and_classes_as_far_as_they_are_clear(
    kind: str, layers: Any, config: Any, shape: Any, num_classes: int | None, tmp_path: Path
) -> None:
    known = outline(written(tmp_path, kind, layers, **config))
    assert (known.input_shape, known.num_classes, known.classes) == (shape, num_classes, None)
    assert len(known.sha256) == 64


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([layer("InputLayer", batch_shape=[None, 7, 7, 3, 3]), DENSE], r"m\.keras takes \(7, 7, 3, 3\); it must take"),
        ([IMAGE, layer("Dense", units=1)], r"gives 1 value per image; .* two classes, add --kind classes\)"),
        ([IMAGE, layer("Lambda")], "has a Lambda layer, which brings code along"),
        ([IMAGE, {**DENSE, "module": "mine"}], "has a custom object, Dense of mine"),
    ],
)
def test_what_cannot_be_scored_is_refused(layers: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        outline(written(tmp_path, "Sequential", layers))


def write_h5(folder: Path, layers: list[dict[str, Any]] | None) -> Location:
    with h5py.File(folder / "m.h5", "w") as file:
        if layers is not None:
            file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": layers}})
    return Location.parse(folder / "m.h5")


def test_an_h5_file_is_known_as_well(tmp_path: Path) -> None:
    known = outline(write_h5(tmp_path, [{**each, "module": None} for each in (IMAGE, DENSE)]))
    assert (known.input_shape, known.num_classes) == ((28, 28, 1), 7)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (None, r"m\.h5 cannot be loaded \(it has weights alone, not the layers; .* model\.save\(\"model\.keras\"\)\)"),
        ([IMAGE, {**layer("Lambda"), "module": None}], r"m\.h5 has a Lambda layer, which brings code along"),
        ([IMAGE, {**DENSE, "module": "mine"}], r"m\.h5 has a custom object, Dense of mine"),
    ],
)
def test_an_h5_file_is_refused_for_the_same_reasons(layers: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        outline(write_h5(tmp_path, layers))


MANY = {"output_layers": {"digit": ["dense", 0, 0], "odd": ["other", 0, 0]}}
TWO = [IMAGE, DENSE, layer("Dense", "other", units=2, activation="sigmoid")]


def test_outputs_and_layers_by_name(tmp_path: Path) -> None:
    inner = {**layer("Sequential", "inner"), "config": {"name": "inner", "layers": [layer("Dense", "within", units=3)]}}
    odd = layer("Dense", "a\n\x1b[2J", units=3)
    place = written(tmp_path, "Functional", [*TWO, inner, odd], **MANY)
    for view, expected in (
        (View(output_name="digit"), ("classes", 7)),
        (View(output_name="odd"), ("labels", 2)),
        (View(output_layer="within"), ("embeddings", None)),
        (View(output_layer="other"), ("embeddings", None)),
    ):
        known = outline(place, view)
        assert (known.kind, known.num_classes) == expected
    for view, said in (
        (View(), "has 2 outputs; choose one by --output-name: digit, odd"),
        (View(output_name="even"), "has no output even; --output-name takes digit, odd"),
        (View(output_layer="withn"), "has no layer withn; --output-layer takes one of its layers, such as within"),
        (
            View(output_layer="a[2J"),
            r"has no layer a\[2J; --output-layer takes one of its layers, such as 'a\\n\\x1b\[2J'",
        ),
    ):
        with pytest.raises(InputError, match=rf"the model in .*m\.keras {said}"):
            outline(place, view)


BINARY = {"class_name": "BinaryCrossentropy", "config": {"from_logits": True}}
SPARSE = {"class_name": "SparseCategoricalCrossentropy", "config": {"from_logits": True}}


@pytest.mark.parametrize(
    ("loss", "by_loss"),
    [
        (BINARY, "labels"),
        ({**BINARY, "class_name": "BinaryFocalCrossentropy"}, "labels"),
        ({**BINARY, "config": {"from_logits": False}}, None),  # of probabilities, which logits are not
        ("binary_crossentropy", None),
        (SPARSE, "classes"),
        ("sparse_categorical_crossentropy", "classes"),
        ({"module": "builtins", "class_name": "function", "config": "categorical_crossentropy"}, "classes"),
        ({"module": "mine", "class_name": "Mine", "config": {}}, None),
        ([BINARY], "labels"),
        ({"dense": SPARSE}, "classes"),
        ({"class_name": []}, None),
        ([], None),
        (7, None),
        (None, None),
    ],
)
@pytest.mark.parametrize("form", ["keras", "h5"])
def test_the_loss_tells_logits_of_labels_from_those_of_classes(
    loss: Any, by_loss: str | None, form: str, tmp_path: Path
) -> None:
    if form == "keras":
        place = written(tmp_path, "Sequential", [IMAGE, DENSE], compile_config={"loss": loss})
    else:
        place = write_h5(tmp_path, [{**each, "module": None} for each in (IMAGE, DENSE)])
        with h5py.File(place.path, "r+") as file:
            file.attrs["training_config"] = json.dumps({"loss": loss})
    known = outline(place)
    assert (known.by_loss, known.kind, known.num_classes) == (by_loss, by_loss or "classes", 7)


@pytest.mark.parametrize(
    ("units", "activation", "loss", "kind", "expected"),
    [
        (1, "linear", BINARY, None, ("classes", 2)),
        (1, "linear", BINARY, "labels", ("labels", 1)),
        (1, "linear", None, "classes", ("classes", 2)),
        (7, "linear", BINARY, "classes", ("classes", 7)),
        (7, "linear", SPARSE, "labels", ("labels", 7)),
        (7, "softmax", BINARY, None, ("classes", 7)),
        (7, "sigmoid", SPARSE, None, ("labels", 7)),
        (7, None, None, None, ("classes", 7)),
    ],
)
def test_the_user_is_right_about_logits(
    units: int, activation: str | None, loss: Any, kind: str | None, expected: tuple[str, int], tmp_path: Path
) -> None:
    layers = [IMAGE, layer("Dense", units=units, activation=activation)]
    known = outline(written(tmp_path, "Sequential", layers, compile_config={"loss": loss}), View(kind=kind))
    assert (known.kind, known.num_classes) == expected


def test_losses_of_several_outputs(tmp_path: Path) -> None:
    layers = [IMAGE, DENSE, layer("Dense", "other", units=2)]
    for loss in ({"digit": SPARSE, "odd": BINARY}, [SPARSE, BINARY]):
        place = written(tmp_path, "Functional", layers, compile_config={"loss": loss}, **MANY)
        assert outline(place, View(output_name="digit")).kind == "classes"
        assert outline(place, View(output_name="odd")).kind == "labels"


def test_a_model_within_a_model_ends_it(tmp_path: Path) -> None:
    """As Teachable Machine writes its models."""
    head = {**layer("Sequential", "head"), "config": {"name": "head", "layers": [layer("Dense", units=3)]}}
    known = outline(written(tmp_path, "Sequential", [IMAGE, head]))
    assert (known.kind, known.num_classes) == ("classes", 3)
