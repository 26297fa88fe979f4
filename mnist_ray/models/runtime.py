"""Keras on TensorFlow, set up before anything is computed. Importing it takes seconds, so only what computes does."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mnist_ray.errors import SetupError, one_line

POLICIES = {"float32": "float32", "float64": "float64", "bfloat16": "mixed_bfloat16"}
"""Keras' dtype policy of each precision."""


def import_keras(precision: str = "float32", threads: int | None = None) -> Any:
    """The keras module on TensorFlow, set up for a precision. The first call takes seconds.

    precision: float32, float64 or bfloat16. threads: in each of TensorFlow's two pools; it can be changed only before
    TensorFlow has computed anything. None leaves it as it is. Raises SetupError where keras.json is invalid.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its C++ code logs every CPU feature
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # the processes of a node share its GPU
    with _naming_settings():
        if "tensorflow" not in sys.modules:
            with _quiet_stderr():
                importlib.import_module("tensorflow")
        import keras
    if threads is not None:
        from tensorflow import config

        if config.threading.get_intra_op_parallelism_threads() != threads:
            config.threading.set_intra_op_parallelism_threads(threads)
            config.threading.set_inter_op_parallelism_threads(threads)
    # Whatever keras.json and the environment say: it would change results.
    keras.config.set_image_data_format("channels_last")
    keras.config.set_epsilon(1e-7)
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)
    keras.config.set_floatx("float64" if precision == "float64" else "float32")
    keras.config.set_dtype_policy(POLICIES[precision])
    return keras


@contextmanager
def _naming_settings() -> Iterator[None]:
    """Raise SetupError where the import fails because of a user's settings; TensorFlow reads that file, too."""
    try:
        yield
    except (ValueError, AssertionError) as error:
        raise SetupError(
            f"Keras refuses its settings in ~/.keras/keras.json ({one_line(error)}); correct or remove that file"
        ) from error


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what C++ code writes before its log level can be set. Where an exception is raised, write it after all."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
