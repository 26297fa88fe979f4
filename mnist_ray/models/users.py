"""A user's model file: vetted, tried in a child process, and loaded; or converted there, and never loaded here."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.models import conversion
from mnist_ray.models.child import in_child, limited_memory, refusing
from mnist_ray.models.conversion import NotConverted
from mnist_ray.models.engines.openvino import ConvertedClassifier, import_openvino
from mnist_ray.models.engines.tensorflow import KerasClassifier
from mnist_ray.models.legacy import converted, is_hdf5
from mnist_ray.models.pixels import find_pixels
from mnist_ray.models.runtime import import_keras
from mnist_ray.models.vetting import check_output, check_weights, vet, write_archive
from mnist_ray.models.view import WHOLE, UnsuitableError, View, head_of, input_shape
from mnist_ray.storage.location import Location

_TRY = "from mnist_ray.models.users import _try; _try()"
_NAME = "converted"  # of the child's files
_UNKNOWN = "0" * 64  # to the child: the digest of the archive
_UNSUITABLE = "unsuitable: "


def load(
    archive: Location, data: bytes, digest: str, *, is_vetted: bool, precision: str = "float32", view: View = WHOLE
) -> KerasClassifier:
    """The model of an archive's bytes. Raises InputError where it is refused, or is no classifier."""
    with _unpacked(archive, data) as path:
        keras = import_keras(precision)
        if not (is_vetted or is_hdf5(data)):  # which a child process has converted
            in_child(archive, _TRY, path)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    with naming(archive):
        return classifier(model, digest, view)


def convert(
    archive: Location, data: bytes, digest: str, images: NDArray[np.uint8], view: View = WHOLE, total_rows: int = 0
) -> ConvertedClassifier | NotConverted:
    """The converted model of an archive's bytes, which are loaded in a child process alone.

    images: of the job, (n, h, w[, 3]). total_rows: as in `conversion.convert`. Raises InputError as `load`.
    """
    with _unpacked(archive, data) as path:
        sample, job = path.with_name("images.npy"), path.with_name("job.json")
        np.save(sample, images)
        job.write_text(json.dumps({"view": asdict(view), "total_rows": total_rows}))
        in_child(archive, _TRY, path, job, sample)
        found = conversion.read_beside(Location.parse(str(path.parent)), _NAME, _UNKNOWN, view)
    if found is None:
        raise InputError(f"{archive} cannot be loaded (its process gave no result)")
    if isinstance(found, NotConverted) and found.reason.startswith(_UNSUITABLE):
        raise InputError(f"the model in {archive} {found.reason.removeprefix(_UNSUITABLE)}")
    return replace(found, sha256=digest)


def look(archive: Location, data: bytes, view: View) -> tuple[str, int]:
    """(kind, number) of what a view of an archive's model gives, as in `Head`. It is loaded in a child process, which
    takes seconds. Raises InputError as `load`."""
    with _unpacked(archive, data) as path:
        used, seen = path.with_name("view.json"), path.with_name("head.json")
        used.write_text(json.dumps(asdict(view)))
        in_child(archive, "from mnist_ray.models.users import _look; _look()", path, used, seen)
        found = json.loads(seen.read_text())
    with naming(archive):
        if "unsuitable" in found:
            raise UnsuitableError(str(found["unsuitable"]))
    return str(found["kind"]), int(found["num_outputs"])


@contextmanager
def _unpacked(archive: Location, data: bytes) -> Iterator[Path]:
    """The file of an archive's model, vetted, in a folder of its own; an .h5 file is converted in a child process."""
    members = vet(archive, converted(archive, data) if is_hdf5(data) else data)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.keras"
        write_archive(members, path)
        yield path


@contextmanager
def naming(archive: Location) -> Iterator[None]:
    """Raise InputError where a model cannot be used as it is asked for."""
    try:
        yield
    except UnsuitableError as error:
        raise InputError(f"the model in {archive} {error}") from error


def classifier(model: Any, digest: str, view: View) -> KerasClassifier:
    """What is used of a model, as its layers tell. Raises UnsuitableError."""
    used = view.of(model)
    shape = input_shape(used)
    used, head = head_of(used, view)
    pixels = find_pixels(used)
    return KerasClassifier(
        model=used, sha256=digest, input_shape=shape, num_classes=head.num_outputs, classes=None,
        pixels=pixels.range, pixels_reason=pixels.reason, pixels_are_usual=pixels.is_usual,
        kind=head.kind, gives_logits=head.gives_logits,
        view=view.key,
    )  # fmt: skip


# In the child process.


def _try() -> None:
    """Load the file that the command line names, and compute with it once. Where it names a job and images, too,
    convert it for them."""
    path, *more = map(Path, sys.argv[1:])
    with refusing():
        with limited_memory(path):
            check_weights(path)
        keras = import_keras(threads=1)
        if more:
            import_openvino()
        with limited_memory(path):
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
            check_output(keras, model)
            if more:
                conversion.keep_beside(_converted(model, *more), Location.parse(str(path.parent)), _NAME)


def _look() -> None:
    """Load the file that the command line names, and write what the view of it gives into the last."""
    path, used, seen = map(Path, sys.argv[1:])
    with refusing():
        with limited_memory(path):
            check_weights(path)
        keras = import_keras(threads=1)
        with limited_memory(path):
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
            view = _view(json.loads(used.read_text()))
            try:
                found = asdict(head_of(view.of(model), view)[1])
            except UnsuitableError as error:
                found = {"unsuitable": str(error)}
        seen.write_text(json.dumps(found))


def _view(fields: dict[str, Any]) -> View:
    return View(**fields | {"size": fields["size"] and tuple(fields["size"])})


def _converted(model: Any, described: Path, sample: Path) -> ConvertedClassifier | NotConverted:
    job = json.loads(described.read_text())
    view, images = _view(job["view"]), np.load(sample, allow_pickle=False)
    try:
        return conversion.convert(classifier(model, _UNKNOWN, view), images, total_rows=job["total_rows"])
    except UnsuitableError as error:
        return NotConverted(sha256=_UNKNOWN, reason=f"{_UNSUITABLE}{error}", view=view.key)
