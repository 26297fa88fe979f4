"""Convert a classifier for scoring without TensorFlow, once, where Keras is loaded anyway; keep it, read it back."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError, one_line
from mnist_ray.models.anatomy import fits
from mnist_ray.models.engines.base import Classifier, Execution
from mnist_ray.models.engines.openvino import ConvertedClassifier, import_openvino
from mnist_ray.models.engines.tensorflow import KerasClassifier, with_probabilities
from mnist_ray.models.inference import MIN_JOB_SECONDS, Inference, seconds_of_an_image
from mnist_ray.models.pixels import RAW, feed
from mnist_ray.models.view import CLASSES, WHOLE, View
from mnist_ray.storage.location import Location, sha256
from mnist_ray.storage.records import Kind, Line, NumClasses, Pixels, Rule, Seconds, Sha256, parse_record

MOST_IMAGES = 64
"""On which a converted classifier is compared with its original."""

_TOLERANCE = 1e-4  # of the largest output
_MEASURED_ROWS = 1024  # at once, at most
_CLEARLY = 1.25  # times as fast: less is not worth TensorFlow's memory and start in each actor
_INPUT_SIDES = Rule("must be a model's input: 1 to 3 sides", lambda sides: len(sides) in (1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class NotConverted:
    """Why a classifier is left to TensorFlow, and what is known of it."""

    sha256: Sha256
    """Of its archive, or of its recipe where it is untrained."""
    reason: Line
    """A clause, such as "it computes in float64"."""
    view: Line = ""
    """What is used of the archive, as `View.key`."""


@dataclass(frozen=True, kw_only=True)
class ConversionRecord:
    """What is stored of a converted classifier beside its graph and its weights."""

    sha256: Sha256
    input_shape: Annotated[tuple[NumClasses, ...], _INPUT_SIDES]
    num_classes: NumClasses
    classes: tuple[Line, ...] | None
    pixels: Pixels | None
    pixels_reason: Line | None
    pixels_are_usual: bool = False
    kind: Kind = CLASSES
    gives_logits: bool | None = None
    view: Line = ""
    is_softmax: bool | None = None
    """In place of `gives_logits`, in what earlier versions wrote."""
    graph_sha256: Sha256
    weights_sha256: Sha256
    openvino: Line
    """The version that converted it."""


def convert(
    classifier: KerasClassifier, images: NDArray[np.uint8] | None, *, total_rows: int = 0
) -> ConvertedClassifier | NotConverted:
    """images: of the job, (n, h, w[, 3]), on which both must agree; where there are none that the model takes, they
    must agree on one with every pixel value. total_rows: of a job for which the model is left to TensorFlow where that
    is clearly faster."""
    if classifier.precision != "float32":
        return _left(classifier, f"it computes in {classifier.precision}")
    try:
        converted, images = _converted(classifier), _fitting(images, classifier.input_shape)
        difference = _difference(classifier, converted, images)
    except Exception as error:
        return _left(classifier, f"it cannot be converted ({one_line(error)[:200]})")
    if not difference <= _TOLERANCE:
        return _left(classifier, f"once converted, its outputs differ by {difference:.1g} of the largest")
    pace = Pace.of(classifier, converted, images, total_rows) if total_rows else None
    if pace and (reason := pace.why_tensorflow(total_rows)):
        return _left(classifier, reason)
    return converted


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that an image takes on one core by either engine, where a model was saved."""

    openvino: Seconds
    tensorflow: Seconds

    @classmethod
    def of(
        cls, classifier: KerasClassifier, converted: ConvertedClassifier, images: NDArray[np.uint8] | None,
        total_rows: float = math.inf,
    ) -> Pace | None:  # fmt: skip
        """images: as in `convert`. None where that would take longer than it could save in a job of `total_rows`."""
        pixels, shape = classifier.pixels or RAW, classifier.input_shape
        rows = int(min(total_rows, _MEASURED_ROWS))
        mine, its = (Inference(each, shape, most_rows=rows, pixels=pixels) for each in (converted, classifier))
        found = seconds_of_an_image(mine, its, _fitting(images, shape), total_rows)
        return found and cls(openvino=found[0], tensorflow=found[1])

    def why_tensorflow(self, total_rows: int) -> str | None:
        """Why it is to compute a job of so many images, as a clause; None where OpenVINO is."""
        times = self.openvino / self.tensorflow
        is_worth_it = self.openvino * total_rows >= MIN_JOB_SECONDS
        return f"it takes OpenVINO {times:.1f} times as long" if times > _CLEARLY and is_worth_it else None


def _left(classifier: Classifier, reason: str) -> NotConverted:
    return NotConverted(sha256=classifier.sha256, reason=reason, view=classifier.view)


def _converted(classifier: KerasClassifier) -> ConvertedClassifier:
    import tensorflow as tf

    def forward(images: Any) -> tuple[Any, ...]:
        both = with_probabilities(classifier.model(images, training=False), classifier.gives_logits)
        return both if classifier.gives_logits else both[:1]

    traced = tf.function(forward, autograph=False).get_concrete_function(
        tf.TensorSpec((None, *classifier.input_shape), tf.float32)
    )
    openvino = import_openvino()
    # By default, whatever nothing else uses becomes an output, such as what swish keeps for its gradient: each
    # activation would be copied out, and transposed for that.
    graph = openvino.convert_model(traced, output=[tensor.name for tensor in traced.outputs])
    with tempfile.TemporaryDirectory() as scratch:
        xml, binary = Path(scratch) / "graph.xml", Path(scratch) / "graph.bin"
        openvino.serialize(graph, xml, binary)
        return ConvertedClassifier(**_traits(classifier), graph=xml.read_bytes(), weights=np.fromfile(binary, np.uint8))


def _traits(of: Classifier | ConversionRecord) -> dict[str, Any]:
    """What a classifier has in common with the record of it, by field."""
    traits = {field.name: getattr(of, field.name) for field in fields(Classifier)}
    if isinstance(of, ConversionRecord) and of.gives_logits is None:
        traits["gives_logits"] = not of.is_softmax
    return traits


def _fitting(images: NDArray[np.uint8] | None, input_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Some of the images as the model takes them, else one with every pixel value."""
    if images is not None and len(images) and fits(images.shape[1:], input_shape):
        return images[:MOST_IMAGES].reshape(-1, *input_shape)
    return (np.arange(int(np.prod(input_shape))) % 256).astype(np.uint8).reshape(1, *input_shape)


def _difference(original: KerasClassifier, converted: ConvertedClassifier, images: NDArray[np.uint8]) -> float:
    """The largest difference of an output, relative to the largest output; NaN where one is not finite."""
    pixels = original.pixels or RAW
    expected = np.asarray(original.model(feed(images, pixels), training=False))
    given, _ = converted.compile(pixels, Execution(jit=False, batch_size=len(images)))(images)
    return float(np.abs(given - expected).max() / np.abs(expected).max())


# In storage.


def keep(found: ConvertedClassifier | NotConverted, folder: Location, name: str) -> dict[str, Any]:
    """Write NAME.xml and NAME.bin into a folder, where it is converted, and return the record of it."""
    if isinstance(found, NotConverted):
        return asdict(found)
    weights = found.weights.tobytes()
    (folder / f"{name}.xml").write_bytes(found.graph)
    (folder / f"{name}.bin").write_bytes(weights)
    record = ConversionRecord(
        **_traits(found), graph_sha256=sha256(found.graph), weights_sha256=sha256(weights), openvino=found.version
    )
    return asdict(record)


def read(record: ConversionRecord, folder: Location, name: str) -> ConvertedClassifier:
    """The inverse of `keep`. Raises InputError where a file is missing, or is not the one that was kept."""
    graph, weights = (
        _read_file(folder / f"{name}.{suffix}", digest)
        for suffix, digest in (("xml", record.graph_sha256), ("bin", record.weights_sha256))
    )
    return ConvertedClassifier(**_traits(record), graph=graph, weights=np.frombuffer(weights, np.uint8))


def _read_file(file: Location, digest: str) -> bytes:
    remedy = "restore it, or add --engine tensorflow"
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; {remedy}") from error
    if sha256(data) != digest:
        raise InputError(f"{file} is damaged: its sha256 is not the one that was recorded; {remedy}")
    return data


def keep_beside(found: ConvertedClassifier | NotConverted, folder: Location, name: str) -> None:
    """`keep`, and the record as NAME.json, written last."""
    (folder / f"{name}.json").write_json(keep(found, folder, name))


def read_beside(
    folder: Location, name: str, digest: str, view: View = WHOLE
) -> ConvertedClassifier | NotConverted | None:
    """What `keep_beside` wrote of this view of the model with this sha256; None where there is none."""
    file = folder / f"{name}.json"
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    record = parse(data, file, "remove it")
    if (record.sha256, record.view) != (digest, view.key):
        return None
    return record if isinstance(record, NotConverted) else read(record, folder, name)


def parse(data: bytes, name: object, remedy: str) -> ConversionRecord | NotConverted:
    """A record's bytes. Raises InputError where it is damaged."""
    try:
        kind: Any = NotConverted if "reason" in json.loads(data) else ConversionRecord
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is damaged ({one_line(error)}); {remedy}") from error
    record: ConversionRecord | NotConverted = parse_record(data, kind, name, remedy)
    return record
