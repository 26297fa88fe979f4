"""Models in storage: save, find and load them, without running any code that a file contains."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnist_ray.errors import InputError, one_line
from mnist_ray.models.anatomy import fits, shape_problem, unsuitable_ending
from mnist_ray.models.build import Recipe, build
from mnist_ray.models.legacy import converted, is_hdf5, refuse_saved_model
from mnist_ray.models.pixels import find_pixels, pixels_of
from mnist_ray.models.runtime import import_keras
from mnist_ray.models.vetting import WEIGHTS, count_stored, open_archive, read_member, try_in_child, vet, write_archive
from mnist_ray.storage.location import Location, sha256
from mnist_ray.storage.records import Line, Pixels, Sha256, read_record

_ARCHIVE, _META = "classifier.keras", "model.json"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A classifier that is ready to compute."""

    classifier: Any
    """A keras.Model, not compiled."""
    sha256: str
    """Of its archive, or of its recipe where it is untrained."""
    input_shape: tuple[int, ...]
    """(h, w), (h, w, 1) or (h, w, 3)."""
    num_classes: int
    classes: tuple[str, ...] | None
    """Their names; None where the model is not one of ours."""
    pixels: str | None
    """What the model takes: 0-255 or 0-1; None where that cannot be known."""
    pixels_reason: str | None = None
    """Why, where it was found and not stored."""


# Our models.


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What is read back of model.json."""

    sha256: Sha256
    recipe: Recipe
    classes: tuple[Line, ...]
    pixels: Pixels

    def __post_init__(self) -> None:
        if len(self.classes) != self.recipe.num_classes:
            raise ValueError(f"has {len(self.classes)} classes, but a recipe for {self.recipe.num_classes}")


def is_saved(folder: Location) -> bool:
    """Whether `save` has written a whole model there."""
    return (folder / _META).exists()


def save(
    classifier: Any,
    folder: Location,
    recipe: Recipe,
    classes: tuple[str, ...],
    trained: Mapping[str, Any],
    *,
    replace: bool = False,
) -> dict[str, Any]:
    """Write classifier.keras and then model.json, and return the content of the latter.

    trained: `train` of metrics.json. Without `replace` the folder must not hold a model yet.
    The archive has no optimizer: one of a class of ours would break a plain `keras.models.load_model`.
    """
    assert replace or not is_saved(folder), f"{folder} holds a model"
    plain = build(recipe)
    pixels = pixels_of(plain)  # as in training, which may have changed what it follows from
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
        "pixels": pixels,
        "recipe": asdict(recipe),
        "trained": dict(trained),
    }
    folder.sweep()  # of what a worker that was killed here has left
    (folder / _ARCHIVE).write_bytes(data)
    (folder / _META).write_json(meta)
    return meta


def untrained(recipe: Recipe) -> Loaded:
    """The classifier that training begins with."""
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
    """(archive, its model.json) of a run's folder, a model's folder or a file; (archive, None) for a user's file.

    Raises InputError where there is no model.
    """
    if location.is_file():
        beside = location.parent / _META
        return location, beside if location.name == _ARCHIVE and beside.is_file() else None
    for folder in (location / "model", location):
        if (folder / _META).is_file():
            return folder / _ARCHIVE, folder / _META
    refuse_saved_model(location)
    problem = "holds no finished model" if location.is_dir() else "does not exist"
    raise InputError(f"{location} {problem}; --model takes a run's folder, a .keras file or an .h5 file")


def digest(location: Location) -> str:
    """The sha256 of a model's archive, without loading it. Raises InputError where its model.json has another."""
    return read(*locate(location))[1]


def read(archive: Location, meta: Location | None) -> tuple[bytes, str, ModelRecord | None]:
    """(the archive's bytes, their sha256, model.json if the model is ours). Raises InputError as `digest` does."""
    try:
        data = archive.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{archive} is missing, although its {_META} exists; restore it or train again") from error
    found = sha256(data)
    record = read_record(meta, ModelRecord, "restore it or train again") if meta else None
    if record is not None and record.sha256 != found:
        raise InputError(f"{archive} is damaged: its sha256 is not the one in {_META}; restore it or train again")
    return data, found, record


def load(location: Location, *, architecture: str | None = None, vetted: str | None = None) -> Loaded:
    """The classifier of a run's folder, a model's folder, a `.keras` or an `.h5` file.

    mlp and cnn are built from our code and given the archive's weights, once its sha256 is that of model.json; so is
    the model of any other architecture that the user has named, and of no other: model.json may come from anywhere. Any
    other file is vetted, then tried in a child process of limited memory, then loaded; code in it is refused.

    architecture: what the user says that a run's model was trained with; None leaves it open.
    vetted: the sha256 of a file that has been loaded before; it is not tried in a child process again.
    Raises InputError that says what is wrong with the file.
    """
    archive, meta = locate(location)
    data, found, record = read(archive, meta)
    if record is None:
        if architecture is not None:
            raise InputError(f"{archive} has its own layers; leave out --architecture, which is for the model of a run")
        return _load_users(archive, data, found, is_vetted=found == vetted)
    recipe = record.recipe
    if architecture not in (None, recipe.architecture):
        raise InputError(f"{location} was not trained with --architecture {architecture}")
    if recipe.is_ours or architecture is not None:
        model = _rebuild(recipe, archive, data)
    else:
        model = _load_unnamed(recipe, archive, data, is_vetted=found == vetted)
    return _ours(recipe, model, found, record.classes, record.pixels)


def _rebuild(recipe: Recipe, archive: Location, data: bytes) -> Any:
    weights = read_member(archive, open_archive(archive, data), WEIGHTS)
    misfit = f"the weights in {archive} do not fit {recipe.architecture}"
    try:
        stored = count_stored(weights)
    except InputError as error:
        raise InputError(f"{archive} is damaged ({error}); restore it or train again") from error
    if recipe.is_ours and recipe.fewest_weights() > stored:
        raise InputError(f"{misfit} and images {recipe.image_shape}: there are {stored:,}; train again")
    model = build(recipe)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / WEIGHTS
        path.write_bytes(weights)
        try:
            model.load_weights(path)
        except Exception as error:
            raise InputError(f"{misfit} ({one_line(error)}); was its code changed?") from error
    return model


def _load_unnamed(recipe: Recipe, archive: Location, data: bytes, *, is_vetted: bool) -> Any:
    """A model whose code the user has not named, from the archive's own config."""
    try:
        loaded = _load_users(archive, data, "", is_vetted=is_vetted, precision=recipe.precision)
    except InputError as error:
        raise InputError(
            f"{error}; or give the --architecture that you trained it with",
            see="models.md#scoring-with-a-model",
        ) from error
    if not fits(recipe.image_shape, loaded.input_shape) or loaded.num_classes != recipe.num_classes:
        raise InputError(f"{archive} takes other images or gives other classes than its {_META} says; train again")
    return loaded.classifier


# A user's file.


def _load_users(archive: Location, data: bytes, digest: str, *, is_vetted: bool, precision: str = "float32") -> Loaded:
    if is_hdf5(data):
        data, is_vetted = converted(archive, data), True  # in a child process
    members = vet(archive, data)
    keras = import_keras(precision)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.keras"
        write_archive(members, path)
        if not is_vetted:
            try_in_child(archive, path)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    problem = shape_problem(model)
    if problem is None and model.output_shape[1] == 1:
        problem = "gives 1 value per image; it must give one value per class"
    if problem is None and (ending := unsuitable_ending(model)):
        problem = f"ends in {ending}; it must give logits or end in softmax"
    if problem:
        raise InputError(f"the model in {archive} {problem}")
    pixels = find_pixels(model)
    return Loaded(
        classifier=model,
        sha256=digest,
        input_shape=tuple(model.input_shape[1:]),
        num_classes=int(model.output_shape[1]),
        classes=None,
        pixels=pixels.range,
        pixels_reason=pixels.reason,
    )
