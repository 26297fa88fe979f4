"""Classifiers: built from code and a seed, saved, and loaded without running anything that a file brings along."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnist_ray.backend import POLICIES
from mnist_ray.backend import import_keras as import_keras
from mnist_ray.errors import InputError, one_line
from mnist_ray.storage import Location, sha256
from mnist_ray.vetting import WEIGHTS, look_through, member, pack, try_in_child, unzipped

RAW, UNIT = "0-255", "0-1"
"""What a model takes: raw pixels, or pixels / 255."""

_ARCHIVE, _META = "classifier.keras", "model.json"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that an untrained classifier follows from."""

    architecture: str
    """mlp, cnn, or MODULE:FUNCTION."""
    image_shape: tuple[int, ...]
    """(h, w) or (h, w, 3)."""
    num_classes: int
    dropout: float
    seed: int
    precision: str
    """float32, float64 or bfloat16."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recipe:
        """Raises KeyError or TypeError where it is no recipe."""
        return cls(**{**value, "image_shape": tuple(value["image_shape"])})


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A classifier that is ready to be asked."""

    classifier: Any
    """A keras.Model, not compiled."""
    sha256: str
    """Of its archive; of its recipe where it is untrained."""
    input_shape: tuple[int, ...]
    """(h, w), (h, w, 1) or (h, w, 3)."""
    num_classes: int
    classes: tuple[str, ...] | None
    """Their names, where the model is one of ours."""
    pixels: str
    """0-255 or 0-1."""


# Building.


def check_architecture(architecture: str) -> None:
    """Raises InputError where there is no such architecture. Imports neither keras nor, but for its parents, MODULE."""
    if architecture in _BUILDERS:
        return
    module, colon, function = architecture.partition(":")
    if not (colon and module and function.isidentifier()):
        raise InputError(f"--architecture must be {', '.join(_BUILDERS)} or MODULE:FUNCTION, not {architecture!r}")
    _see_working_directory()
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise InputError(f"--architecture {architecture}: there is no module {module}; start where it can be imported")


def build(recipe: Recipe) -> Any:
    """A keras.Model that takes raw pixels (n, *image_shape) and gives logits (n, num_classes); weights from the seed.

    Raises InputError where MODULE:FUNCTION does not give such a model.
    """
    keras = import_keras(recipe.precision)
    keras.utils.set_random_seed(recipe.seed)
    if recipe.architecture in _BUILDERS:
        return keras.Sequential(
            [keras.Input(recipe.image_shape), *_BUILDERS[recipe.architecture](keras, recipe)], name="classifier"
        )
    check_architecture(recipe.architecture)
    return _checked(keras, _call(recipe), recipe)


def _mlp(keras: Any, recipe: Recipe) -> list[Any]:
    return [keras.layers.Rescaling(1 / 255), *_head(keras, recipe)]


def _cnn(keras: Any, recipe: Recipe) -> list[Any]:
    """197,482 weights for MNIST, of which 0.99 of the test images are right after three or four epochs."""
    layers = keras.layers
    # Without padding the work is half; images of fewer than 16 pixels a side would vanish.
    padding = "valid" if min(recipe.image_shape[:2]) >= 16 else "same"

    def block(filters: int) -> list[Any]:
        return [
            layers.Conv2D(filters, 3, activation="relu", padding=padding),
            layers.Conv2D(filters, 3, activation="relu", padding=padding),
            layers.MaxPooling2D(padding=padding),
            layers.Dropout(recipe.dropout),
        ]

    is_gray = len(recipe.image_shape) == 2
    return [
        layers.Rescaling(1 / 255),
        *([layers.Reshape((*recipe.image_shape, 1))] if is_gray else []),
        *block(32),
        *block(64),
        *_head(keras, recipe),
    ]


def _head(keras: Any, recipe: Recipe) -> list[Any]:
    layers = keras.layers
    return [
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dropout(recipe.dropout),
        # bfloat16 has three digits: too few for a loss.
        layers.Dense(recipe.num_classes, dtype="float32" if recipe.precision == "bfloat16" else None),
    ]


_BUILDERS = {"mlp": _mlp, "cnn": _cnn}


def _see_working_directory() -> None:
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))


def _call(recipe: Recipe) -> Any:
    """What the user's function returns."""
    name, _, attribute = recipe.architecture.partition(":")
    try:
        function = getattr(importlib.import_module(name), attribute, None)
    except Exception as error:
        raise InputError(f"{name} cannot be imported ({one_line(error)})") from error
    if not callable(function):
        raise InputError(f"{name} has no function {attribute}")
    try:
        return function(recipe.image_shape, recipe.num_classes)
    except Exception as error:
        raise InputError(
            f"{recipe.architecture} failed for images {recipe.image_shape} and {recipe.num_classes} classes"
            f" ({one_line(error)})"
        ) from error


def _checked(keras: Any, model: Any, recipe: Recipe) -> Any:
    name = recipe.architecture
    if not isinstance(model, keras.Model):
        raise InputError(f"{name} returned a {type(model).__name__}; it must return a keras.Model")
    if not (isinstance(model, keras.Sequential) and model.built) and not _is_functional(model):
        # Only called, a subclassed model has shapes; an unbuilt Sequential as well.
        try:
            model = keras.Sequential([keras.Input(recipe.image_shape), model])
        except Exception as error:
            raise InputError(f"{name} returned a model that fails for images {recipe.image_shape}"
                             f" ({one_line(error)})") from error  # fmt: skip
    problem = _shape_problem(model)
    takes = () if problem else tuple(model.input_shape[1:])
    if problem is None and not fits(recipe.image_shape, takes):
        problem = f"takes images {takes}, but the dataset has {recipe.image_shape}"
    if problem is None and model.output_shape[1] != recipe.num_classes:
        problem = f"gives {model.output_shape[1]} values an image, but the dataset has {recipe.num_classes} classes"
    if problem is None and ends_in_softmax(model):
        problem = "ends in softmax; it must give logits (leave its last activation out)"
    if problem is None and (ending := _odd_ending(model)):
        problem = f"ends in {ending}; it must give logits (leave its last activation out)"
    if problem is None:
        try:
            keras.saving.serialize_keras_object(model)
        except Exception as error:  # better now than when it is trained
            problem = f"cannot be saved ({one_line(error)})"
    if problem:
        raise InputError(f"{name} returned a model that {problem}")
    return model


def _is_functional(model: Any) -> bool:
    return getattr(model, "outputs", None) is not None and hasattr(model, "input_shape")


def _shape_problem(model: Any) -> str | None:
    """What keeps a model from taking images and giving one row of values each."""
    if getattr(model, "inputs", None) is None or getattr(model, "outputs", None) is None:
        return "is not built; call it with images before it is saved"
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        return f"has {len(model.inputs)} inputs and {len(model.outputs)} outputs; it must have one each"
    takes, gives = tuple(model.inputs[0].shape[1:]), tuple(model.outputs[0].shape[1:])
    if None in takes or len(takes) not in (2, 3) or (len(takes) == 3 and takes[2] not in (1, 3)):
        return f"takes {takes}; it must take images: (h, w), (h, w, 1) or (h, w, 3)"
    if len(gives) != 1 or gives[0] is None:
        return f"gives {gives} an image; it must give one value a class"
    return None


def fits(image_shape: tuple[int, ...], input_shape: tuple[int, ...]) -> bool:
    """Whether a model takes such images; gray ones are given a channel where it wants one."""
    return input_shape == image_shape or (len(image_shape) == 2 and input_shape == (*image_shape, 1))


# Looking at a model.


def ends_in_softmax(model: Any) -> bool:
    """Whether a model's outputs are probabilities already; nested models are looked into."""
    return _ends_in_softmax(model, 0)


def _ends_in_softmax(operation: Any, depth: int) -> bool:
    import keras

    if isinstance(operation, keras.Model):
        outputs = getattr(operation, "outputs", None)
        if outputs:
            return _gives_softmax(outputs[0], depth)
        return bool(operation.layers) and _ends_in_softmax(operation.layers[-1], depth)
    # keras.ops.softmax is an operation of the same name as the layer.
    return type(operation).__name__ == "Softmax" or getattr(operation, "activation", None) is keras.activations.softmax


def _gives_softmax(tensor: Any, depth: int) -> bool:

    operation, node_index, _ = tensor._keras_history
    if _ends_in_softmax(operation, depth):
        return True
    return _passes_on(operation) and _gives_softmax(operation._inbound_nodes[node_index].input_tensors[0], depth)


def _passes_on(operation: Any) -> bool:
    """Whether a layer leaves the values as they are."""
    import keras

    return isinstance(operation, (keras.layers.Identity, keras.layers.Reshape, keras.layers.Flatten)) or (
        isinstance(operation, keras.layers.Activation) and operation.activation is keras.activations.linear
    )


_FITTING = {"linear", "softmax", "log_softmax"}  # Softmax on log_softmax is that softmax
_OTHERS = {"sigmoid", "hardsigmoid", "tanh", "relu", "softplus"}  # as layers or operations of their own


def _odd_ending(model: Any) -> str | None:
    """The activation that a model ends in, where that gives neither logits nor softmax."""
    import keras

    tensor = model.outputs[0]
    while True:
        operation, node_index, _ = tensor._keras_history
        if isinstance(operation, keras.Model) and getattr(operation, "outputs", None):
            tensor = operation.outputs[0]
        elif _passes_on(operation):
            tensor = operation._inbound_nodes[node_index].input_tensors[0]
        else:
            break
    activation = getattr(operation, "activation", None)
    if activation is not None:
        name = getattr(activation, "__name__", type(activation).__name__)
        return None if name in _FITTING else name
    kind = type(operation).__name__.lower()
    return kind if kind in _OTHERS else None


def takes_raw_pixels(model: Any) -> bool:
    """Whether a model rescales pixels itself: it starts with Rescaling or Normalization."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            return takes_raw_pixels(layer)
        if not isinstance(layer, (keras.layers.InputLayer, keras.layers.Reshape, keras.layers.Flatten)):
            return isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization))
    return False


def pixels_of(model: Any) -> str:
    """What a model is trained on and asked with: raw pixels (0-255) if it rescales them itself, else pixels / 255."""
    return RAW if takes_raw_pixels(model) else UNIT


def feed(images: Any, pixels: str) -> Any:
    """A uint8 tensor of images as a model wants it: as it is, or (0-1) divided by 255."""
    import keras
    import tensorflow as tf

    return tf.cast(images, keras.config.floatx()) / 255 if pixels == UNIT else images


def recast(classifier: Any, precision: str) -> Any:
    """The same model and weights, computed in another precision.

    bfloat16 has three digits: neither what scales the pixels (1/255 has more) nor what gives the outputs is in it.
    """
    import keras

    last = classifier
    while hasattr(last, "layers"):
        last = last.outputs[0]._keras_history.operation
    for layer in classifier._flatten_layers(include_self=False, recursive=True):
        exact = layer is last or isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization))
        policy = "float32" if exact and precision == "bfloat16" else POLICIES[precision]
        layer.dtype_policy = keras.dtype_policies.get(policy)
    return classifier


def precision_of(classifier: Any) -> str:
    """Of what it computes; of the narrowest where layers differ on purpose."""
    kinds = {layer.compute_dtype for layer in classifier._flatten_layers(include_self=False, recursive=True)}
    return next(kind for kind in ("float16", "bfloat16", "float64", "float32") if kind in kinds)


def probability_model(classifier: Any) -> Any:
    """The classifier with Softmax on top; unless its outputs are probabilities already."""
    import keras

    if ends_in_softmax(classifier):
        return classifier
    return keras.Sequential([classifier, keras.layers.Softmax()], name="probabilities")


# Saving and loading.


def save(
    classifier: Any,
    folder: Location,
    recipe: Recipe,
    classes: tuple[str, ...],
    trained: Mapping[str, Any],
    *,
    replace: bool = False,
) -> dict[str, Any]:
    """Write classifier.keras and then model.json, whose content comes back. It is asserted that no model lies there.

    The archive holds no optimizer: one of a class of ours inside would break a plain `keras.models.load_model`.
    """
    assert replace or not (folder / _META).exists(), f"{folder} holds a model"
    plain = build(recipe)
    plain.set_weights(classifier.get_weights())
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / _ARCHIVE
        plain.save(path)
        data = path.read_bytes()
    meta = {
        "sha256": sha256(data),
        "input_shape": list(plain.input_shape[1:]),
        "num_classes": recipe.num_classes,
        "classes": list(classes),
        "pixels": pixels_of(plain),
        "recipe": asdict(recipe),
        "trained": dict(trained),
    }
    folder.sweep()  # what a worker left that was killed here
    (folder / _ARCHIVE).write_bytes(data)
    (folder / _META).write_json(meta)
    return meta


def untrained(recipe: Recipe) -> Loaded:
    """The classifier as training begins with it."""
    model = build(recipe)
    return _ours(recipe, model, sha256(json.dumps(asdict(recipe)).encode()), None, pixels_of(model))


def _ours(recipe: Recipe, model: Any, digest: str, classes: tuple[str, ...] | None, pixels: str) -> Loaded:
    return Loaded(
        classifier=model,
        sha256=digest,
        input_shape=tuple(model.input_shape[1:]),
        num_classes=recipe.num_classes,
        classes=classes,
        pixels=pixels,
    )


def locate(location: Location) -> tuple[Location, Location | None]:
    """(archive, model.json or None where it is not ours) of a run's folder, a model's folder or a `.keras` file.

    Raises InputError where there is no model.
    """
    if location.is_file():
        beside = location.parent / _META
        return location, beside if location.name == _ARCHIVE and beside.is_file() else None
    for folder in (location / "model", location):
        if (folder / _META).is_file():
            return folder / _ARCHIVE, folder / _META
    there = "holds no finished model" if location.is_dir() else "does not exist"
    raise InputError(f"{location} {there}; --model takes a run's folder or a .keras file")


def digest(location: Location) -> str:
    """The sha256 of a model's archive, without loading it; InputError where it is not the one in its model.json."""
    return _read(*locate(location))[1]


def _read(archive: Location, meta: Location | None) -> tuple[bytes, str, dict[str, Any] | None]:
    """The archive's bytes, their sha256, and what model.json says, if it is ours."""
    try:
        data = archive.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{archive} is missing, although its {_META} is there; restore it or train again") from error
    found = sha256(data)
    told: dict[str, Any] | None = meta.read_json() if meta else None
    if told is not None and told.get("sha256") != found:
        raise InputError(f"{archive} is damaged: its sha256 is not the one in {_META}; restore it or train again")
    return data, found, told


def load(location: Location, *, vetted: str | None = None) -> Loaded:
    """The classifier of a run's folder, a model's folder or a `.keras` file.

    Ours are built from code and given the archive's weights, once its sha256 is that of model.json. A user's file is
    looked through, then tried in a child process of limited memory, then loaded; layer code within it is refused.

    vetted: the sha256 of a file that went through this before; it is not tried in a child process again.
    Raises InputError that says what is wrong with the file.
    """
    archive, meta = locate(location)
    data, found, told = _read(archive, meta)
    if told is None:
        return _load_foreign(archive, data, found, is_vetted=found == vetted)
    try:
        recipe = Recipe.from_json(told["recipe"])
        classes, pixels = tuple(told["classes"]), str(told["pixels"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{meta} is damaged ({one_line(error)}); restore it or train again") from error
    model = build(recipe)
    weights = member(archive, unzipped(archive, data), WEIGHTS)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / WEIGHTS
        path.write_bytes(weights)
        try:
            model.load_weights(path)
        except Exception as error:
            raise InputError(
                f"the weights in {archive} do not fit {recipe.architecture} ({one_line(error)}); was its code changed?"
            ) from error
    return _ours(recipe, model, found, classes, pixels)


# A user's file.


def _load_foreign(archive: Location, data: bytes, digest: str, *, is_vetted: bool) -> Loaded:
    members = look_through(archive, data)
    keras = import_keras()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.keras"
        pack(members, path)
        if not is_vetted:
            try_in_child(archive, path)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    problem = _shape_problem(model)
    if problem is None and model.output_shape[1] == 1:
        problem = "gives 1 value an image; it must give one value a class"
    if problem is None and (ending := _odd_ending(model)):
        problem = f"ends in {ending}; it must give logits or end in softmax"
    if problem:
        raise InputError(f"the model in {archive} {problem}")
    return Loaded(
        classifier=model,
        sha256=digest,
        input_shape=tuple(model.input_shape[1:]),
        num_classes=int(model.output_shape[1]),
        classes=None,
        pixels=pixels_of(model),
    )
