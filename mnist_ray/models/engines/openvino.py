"""OpenVINO as an engine: a converted classifier, computed by a process that imports neither Keras nor TensorFlow.

Converted (`models/conversion.py`), a classifier is a graph in XML and its weights in bytes. It takes float32 pixel
values as Keras' model does; the conversion from uint8, and the division where the model takes 0 to 1, are added when it
is compiled.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.models.engines.base import Classifier, Compiled, Execution
from mnist_ray.models.pixels import SIGNED, UNIT
from mnist_ray.storage.location import sha256

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def import_openvino() -> Any:
    """The openvino module, which would report its use to its makers and write to HOME: without its package for that it
    has a stub, which does nothing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvertedClassifier(Classifier):
    """A converted classifier."""

    graph: bytes
    """XML."""
    weights: NDArray[np.uint8]
    """The constants that the graph refers to: (bytes,)."""
    computes_in: str = "float32"

    engine = "openvino"
    jits = (False,)

    @property
    def version(self) -> str:
        return version("openvino")

    @property
    def precision(self) -> str:
        return self.computes_in

    @cached_property
    def content_sha256(self) -> str:
        """Of the graph and the weights."""
        return sha256(self.graph + self.weights.tobytes())

    def in_precision(self, precision: str) -> ConvertedClassifier:
        return replace(self, computes_in=precision)

    def read(self) -> Any:
        """The openvino.Model, with a copy of the weights of its own: it cannot share what is not to be written to."""
        openvino = import_openvino()
        return openvino.Core().read_model(self.graph, openvino.Tensor(self.weights))

    def largest_layer(self) -> int:
        shapes = [
            operation.get_output_partial_shape(0)
            for operation in self.read().get_ops()
            if operation.get_type_name() not in ("Constant", "Result")
        ]
        return max(
            int(math.prod(side.get_length() if side.is_static else 1 for side in list(shape)[1:]))
            for shape in shapes
            if shape.rank.is_static
        )

    def compile(self, pixels: str, execution: Execution) -> Compiled:
        openvino = import_openvino()
        model = self.read()
        model.reshape((execution.batch_size, *self.input_shape))
        prepared = openvino.preprocess.PrePostProcessor(model)
        prepared.input().tensor().set_element_type(openvino.Type.u8)
        prepared.input().preprocess().convert_element_type(openvino.Type.f32)
        if pixels == UNIT:
            prepared.input().preprocess().scale(255.0)
        elif pixels == SIGNED:
            prepared.input().preprocess().scale(127.5)
            prepared.input().preprocess().mean(1.0)
        request = openvino.Core().compile_model(prepared.build(), "CPU", self._settings()).create_infer_request()

        def compute(batch: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
            results = request.infer({0: batch}, share_inputs=True, share_outputs=True)
            outputs = results[0]
            return outputs, results[1] if self.gives_logits else outputs

        return compute

    def _settings(self) -> dict[str, Any]:
        return {
            "INFERENCE_PRECISION_HINT": _HINTS[self.computes_in],  # where the CPU can, it would take bfloat16 by itself
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # each process would pin itself to the same core
        }
