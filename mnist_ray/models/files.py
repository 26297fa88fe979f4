"""Models in storage: save, find and load them, without running any code that a file contains."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError, one_line, require
from mnist_ray.models import conversion, users
from mnist_ray.models.anatomy import fits
from mnist_ray.models.build import Recipe, build
from mnist_ray.models.conversion import ConversionRecord, NotConverted, Pace
from mnist_ray.models.engines.base import Classifier
from mnist_ray.models.engines.openvino import ConvertedClassifier
from mnist_ray.models.engines.tensorflow import KerasClassifier
from mnist_ray.models.legacy import refuse_saved_model
from mnist_ray.models.pixels import find_pixels, pixels_of
from mnist_ray.models.vetting import CONFIG, WEIGHTS, count_stored, open_archive, read_member, vet
from mnist_ray.models.view import WHOLE, View
from mnist_ray.sources.preparation import Preparation
from mnist_ray.storage.location import Location, sha256
from mnist_ray.storage.records import Line, Pixels, Sha256, read_record

T = TypeVar("T", bound=Classifier)

_ARCHIVE, _META = "classifier.keras", "model.json"
_CONVERTED, _UNTRAINED = "classifier", "untrained"  # .xml and .bin


# Our models.


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What is read back of model.json."""

    sha256: Sha256
    recipe: Recipe
    classes: tuple[Line, ...]
    pixels: Pixels
    converted: ConversionRecord | NotConverted | None = None
    """None in what earlier versions wrote."""
    pace: Pace | None = None
    """None where it was not measured."""
    preparation: Preparation | None = None
    """Of the images that it was trained on; None where it is not known."""

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
    images: NDArray[np.uint8] | None = None,
    *,
    preparation: Preparation | None = None,
    measures: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write classifier.keras, the same converted, and then model.json. Returns the content of the latter.

    trained: `train` of metrics.json. images: some of the dataset, on which the converted model must agree; None for
    one with every pixel value. preparation: of all of them. measures: whether to find out which engine is the faster,
    where the user has built the model: in a process of one core, as those have that score.

    Without `overwrite` the folder must not hold a model yet. The archive has no optimizer: one of a class of ours would
    break a plain `keras.models.load_model`.
    """
    require(overwrite or not is_saved(folder), f"{folder} holds a model")
    plain = build(recipe)
    pixels = pixels_of(plain)  # as in training, which may have changed what it follows from
    plain.set_weights(classifier.get_weights())
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / _ARCHIVE
        plain.save(path)
        data = path.read_bytes()
    digest = sha256(data)
    folder.sweep()  # of what a worker that was killed here has left
    (folder / _ARCHIVE).write_bytes(data)
    ready = _ours(recipe, plain, digest, classes, pixels)
    converted = conversion.convert(ready, images)
    pace = None
    if measures and not recipe.is_ours and isinstance(converted, ConvertedClassifier):
        pace = Pace.of(ready, converted, images)
    meta = {
        "sha256": digest,
        "input_shape": list(plain.input_shape[1:]),
        "num_classes": recipe.num_classes,
        "classes": list(classes),
        "pixels": pixels,
        "pixels_reason": find_pixels(plain).reason,
        "preparation": preparation and asdict(preparation),
        "recipe": asdict(recipe),
        "converted": conversion.keep(converted, folder, _CONVERTED),
        "pace": pace and asdict(pace),
        "trained": dict(trained),
    }
    (folder / _META).write_json(meta)
    return meta


def untrained(recipe: Recipe) -> KerasClassifier:
    """The classifier that training begins with."""
    return _untrained(recipe, build(recipe))


def _untrained(recipe: Recipe, model: Any) -> KerasClassifier:
    return _ours(recipe, model, _digest_of(recipe), None, pixels_of(model))


def _digest_of(recipe: Recipe) -> str:
    return sha256(json.dumps(asdict(recipe)).encode())


def save_untrained(recipe: Recipe, model: Any, folder: Location, images: NDArray[np.uint8]) -> None:
    """Write a classifier that has just been built into a model's folder, converted."""
    conversion.keep_beside(conversion.convert(_untrained(recipe, model), images), folder, _UNTRAINED)


def load_untrained(recipe: Recipe, folder: Location) -> ConvertedClassifier | NotConverted | None:
    """What `save_untrained` wrote; None before."""
    return conversion.read_beside(folder, _UNTRAINED, _digest_of(recipe))


def _ours(recipe: Recipe, model: Any, digest: str, classes: tuple[str, ...] | None, pixels: str) -> KerasClassifier:
    return KerasClassifier(
        model=model,
        sha256=digest,
        input_shape=tuple(model.input_shape[1:]),
        num_classes=recipe.num_classes,
        classes=classes,
        pixels=pixels,
        gives_logits=True,
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


def preparation_of(location: Location) -> Preparation | None:
    """How the images were prepared that a run's model was trained on; None where it is not known."""
    record = _record(locate(location)[1])
    return record.preparation if record else None


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
    record = _record(meta)
    if record is not None and record.sha256 != found:
        raise InputError(f"{archive} is damaged: its sha256 is not the one in {_META}; restore it or train again")
    return data, found, record


def _record(meta: Location | None) -> ModelRecord | None:
    return read_record(meta, ModelRecord, "restore it or train again") if meta else None


def load(
    location: Location, *, architecture: str | None = None, vetted: str | None = None, view: View = WHOLE
) -> KerasClassifier:
    """The classifier of a run's folder, a model's folder, a `.keras` or an `.h5` file.

    mlp and cnn are built from our code and given the archive's weights, once its sha256 is that of model.json; so is
    the model of any other architecture that the user has named, and of no other: model.json may come from anywhere. Any
    other file is vetted, then tried in a child process of limited memory, then loaded; code in it is refused.

    architecture: what the user says that a run's model was trained with; None leaves it open.
    vetted: the sha256 of a file that has been loaded before; it is not tried in a child process again.
    view: what is used of it.
    Raises InputError that says what is wrong with the file.
    """
    archive, meta = locate(location)
    data, found, record = read(archive, meta)
    if record is None:
        _refuse_architecture(archive, architecture)
        return users.load(archive, data, found, is_vetted=found == vetted, view=view)
    recipe = record.recipe
    _check_architecture(location, recipe, architecture)
    if architecture is None and not (recipe.is_ours and view.is_whole):  # layers are named as they were saved
        with _hinting(recipe):
            loaded = users.load(
                archive, data, found, is_vetted=found == vetted, precision=recipe.precision, view=view
            )  # fmt: skip
        return _as_recorded(loaded, archive, record)
    model = _rebuild(recipe, archive, data)
    if view.is_whole:
        return _ours(recipe, model, found, record.classes, record.pixels)
    _name_as_saved(model, archive, data)
    with users.naming(archive):
        return _as_recorded(users.classifier(model, found, view), archive, record)


def load_converted(
    location: Location, *, architecture: str | None = None, view: View = WHOLE, total_rows: int = 0
) -> ConvertedClassifier | NotConverted | None:
    """What was converted when a run's model was saved; None for a user's file, for a part of a model, and where an
    earlier version saved it.

    total_rows: of a job for which it is left to TensorFlow where that was clearly faster.

    A converted model is a graph and its weights: no code, whoever wrote the folder.
    """
    archive, meta = locate(location)
    record = _record(meta)
    if record is None or record.converted is None or not view.is_whole:
        return None
    _check_architecture(location, record.recipe, architecture)
    if isinstance(record.converted, NotConverted):
        return record.converted
    reason = record.pace.why_tensorflow(total_rows) if record.pace and total_rows else None
    if reason and _can_be_built(archive, architecture):
        return NotConverted(sha256=record.sha256, reason=reason)
    found = conversion.read(record.converted, archive.parent, _CONVERTED)
    return _as_recorded(found, archive, record)


def _can_be_built(archive: Location, architecture: str | None) -> bool:
    """Whether TensorFlow can compute a user's model: by the code that is named, or as the file has its layers."""
    if architecture is None:
        try:
            vet(archive, archive.read_bytes())
        except InputError:
            return False
    return True


def convert(
    location: Location,
    images: NDArray[np.uint8],
    *,
    architecture: str | None = None,
    view: View = WHOLE,
    total_rows: int = 0,
) -> ConvertedClassifier | NotConverted:
    """Convert a user's file, or of a run's model what was not kept, in a child process. Raises InputError as `load`.

    images: of the job, (n, h, w[, 3]). total_rows: as in `conversion.convert`.
    """
    archive, meta = locate(location)
    data, digest, record = read(archive, meta)
    if record is None:
        _refuse_architecture(archive, architecture)
        return users.convert(archive, data, digest, images, view, total_rows)
    _check_architecture(location, record.recipe, architecture)
    if architecture is not None and not record.recipe.is_ours:
        return NotConverted(sha256=digest, reason=f"it is built by {architecture}", view=view.key)
    with _hinting(record.recipe):
        found = users.convert(archive, data, digest, images, view, total_rows)
    return found if isinstance(found, NotConverted) else _as_recorded(found, archive, record)


def _as_recorded(found: T, archive: Location, record: ModelRecord) -> T:
    """With what model.json tells of it. A part of a model may have other classes, or none."""
    if not found.view:
        _check_shapes(record.recipe, archive, found)
        found = replace(found, classes=record.classes)
    return replace(
        found, sha256=record.sha256, pixels=record.pixels, pixels_reason=None, pixels_are_usual=False
    )  # fmt: skip


def check_named(location: Location, archive: Location, record: ModelRecord | None, architecture: str | None) -> None:
    """Raise InputError where the user has named an architecture that the model does not have."""
    if record is None:
        _refuse_architecture(archive, architecture)
    else:
        _check_architecture(location, record.recipe, architecture)


def _refuse_architecture(archive: Location, architecture: str | None) -> None:
    if architecture is not None:
        raise InputError(f"{archive} has its own layers; leave out --architecture, which is for the model of a run")


def _check_architecture(location: Location, recipe: Recipe, architecture: str | None) -> None:
    if architecture not in (None, recipe.architecture):
        raise InputError(f"{location} was not trained with --architecture {architecture}")


@contextmanager
def _hinting(recipe: Recipe) -> Iterator[None]:
    """Name the way out where a model's own layers cannot be loaded, and its code was not named."""
    try:
        yield
    except InputError as error:
        if recipe.is_ours:
            raise
        raise InputError(
            f"{error}; or give the --architecture that you trained it with",
            see="models.md#scoring-with-a-model",
        ) from error


def _check_shapes(recipe: Recipe, archive: Location, found: Classifier) -> None:
    if not fits(recipe.image_shape, found.input_shape) or found.num_classes != recipe.num_classes:
        raise InputError(f"{archive} takes other images or gives other classes than its {_META} says; train again")


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


def _name_as_saved(model: Any, archive: Location, data: bytes) -> None:
    """Keras numbers the layers of a process, so a model that is built again has other names."""
    saved = json.loads(read_member(archive, open_archive(archive, data), CONFIG))["config"]["layers"]
    for layer, config in zip(reversed(model.layers), reversed(saved), strict=False):  # one may begin with its Input
        layer.name = config["config"]["name"]
