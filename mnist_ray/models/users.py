"""A user's model file: vetted, tried in a child process, and loaded; or converted there, and never loaded here."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.models import conversion
from mnist_ray.models.anatomy import shape_problem, unsuitable_ending
from mnist_ray.models.child import in_child, limited_memory, refusing
from mnist_ray.models.conversion import NotConverted
from mnist_ray.models.engines.openvino import ConvertedClassifier, import_openvino
from mnist_ray.models.engines.tensorflow import KerasClassifier
from mnist_ray.models.legacy import converted, is_hdf5
from mnist_ray.models.pixels import find_pixels
from mnist_ray.models.runtime import import_keras
from mnist_ray.models.vetting import check_output, check_weights, vet, write_archive
from mnist_ray.storage.location import Location

_TRY = "from mnist_ray.models.users import _try; _try()"
_NAME = "converted"  # of the child's files
_UNKNOWN = "0" * 64  # to the child: the digest of the archive
_UNSUITABLE = "unsuitable: "


def load(
    archive: Location, data: bytes, digest: str, *, is_vetted: bool, precision: str = "float32"
) -> KerasClassifier:
    """The model of an archive's bytes. Raises InputError where it is refused, or is no classifier."""
    if is_hdf5(data):
        data, is_vetted = converted(archive, data), True  # in a child process
    members = vet(archive, data)
    keras = import_keras(precision)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.keras"
        write_archive(members, path)
        if not is_vetted:
            in_child(archive, _TRY, path)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    if problem := _problem(model):
        raise InputError(f"the model in {archive} {problem}")
    return _classifier(model, digest)


def convert(
    archive: Location, data: bytes, digest: str, images: NDArray[np.uint8]
) -> ConvertedClassifier | NotConverted:
    """The converted model of an archive's bytes, which are loaded in a child process alone.

    images: of the job, (n, h, w[, 3]). Raises InputError as `load`.
    """
    if is_hdf5(data):
        data = converted(archive, data)
    members = vet(archive, data)
    with tempfile.TemporaryDirectory() as scratch:
        path, sample = Path(scratch) / "model.keras", Path(scratch) / "images.npy"
        write_archive(members, path)
        np.save(sample, images)
        in_child(archive, _TRY, path, sample)
        found = conversion.read_beside(Location.parse(scratch), _NAME, _UNKNOWN)
    if found is None:
        raise InputError(f"{archive} cannot be loaded (its process gave no result)")
    if isinstance(found, NotConverted) and found.reason.startswith(_UNSUITABLE):
        raise InputError(f"the model in {archive} {found.reason.removeprefix(_UNSUITABLE)}")
    return replace(found, sha256=digest)


def _problem(model: Any) -> str | None:
    """Why a model is no classifier of images, as the end of a sentence."""
    problem = shape_problem(model)
    if problem is None and model.output_shape[1] == 1:
        problem = "gives 1 value per image; it must give one value per class"
    if problem is None and (ending := unsuitable_ending(model)):
        problem = f"ends in {ending}; it must give logits or end in softmax"
    return problem


def _classifier(model: Any, digest: str) -> KerasClassifier:
    pixels = find_pixels(model)
    return KerasClassifier(
        model=model, sha256=digest, input_shape=tuple(model.input_shape[1:]), num_classes=int(model.output_shape[1]),
        classes=None, pixels=pixels.range, pixels_reason=pixels.reason,
    )  # fmt: skip


# In the child process.


def _try() -> None:
    """Load the file that the command line names, and compute with it once. Where it names images, too, convert it."""
    path, *samples = map(Path, sys.argv[1:])
    with refusing():
        with limited_memory(path):
            check_weights(path)
        keras = import_keras(threads=1)
        if samples:
            import_openvino()
        with limited_memory(path):
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
            check_output(keras, model)
            for sample in samples:
                conversion.keep_beside(_converted(model, sample), Location.parse(str(path.parent)), _NAME)


def _converted(model: Any, sample: Path) -> ConvertedClassifier | NotConverted:
    if problem := _problem(model):
        return NotConverted(sha256=_UNKNOWN, reason=_UNSUITABLE + problem)
    return conversion.convert(_classifier(model, _UNKNOWN), np.load(sample, allow_pickle=False))
