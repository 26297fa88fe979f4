"""Keras as a user's settings would have it: they change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray.errors import InputError
from mnist_ray.scoring.process import ScoringActor

pytestmark = pytest.mark.tensorflow

SETTINGS = {"floatx": "float64", "epsilon": 0.5, "backend": "torch", "image_data_format": "channels_first"}

COMPUTE = """
import sys
import numpy as np
from mnist_ray.models import build
from mnist_ray.models.files import untrained
from mnist_ray.models.runtime import import_keras
keras = import_keras(threads=1)
recipe = build.Recipe(architecture="cnn", image_shape=(16, 16, 3), num_classes=4, dropout=0.2, seed=3,
                      precision="float32")
model = untrained(recipe).model
model = keras.Sequential([model, keras.layers.BatchNormalization(epsilon=keras.config.epsilon())])
images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
history = model.fit(images, np.arange(5) % 4, epochs=3, batch_size=2, verbose=0, shuffle=False).history["loss"]
print([len(history), *map(float, history), *np.asarray(model(images), np.float64).ravel().tolist()])
"""


def computed(home: Path, settings: object = None, **environment: str) -> subprocess.CompletedProcess[str]:
    (home / ".keras").mkdir(parents=True)
    if settings is not None:
        (home / ".keras" / "keras.json").write_text(json.dumps(settings))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KERAS_")}
    return subprocess.run(
        [sys.executable, "-c", COMPUTE], env={**clean, "HOME": str(home), **environment}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_users_settings_of_keras_change_no_result(tmp_path: Path) -> None:
    plain = computed(tmp_path / "plain")
    limits = {"KERAS_MAX_EPOCHS": "1", "KERAS_MAX_STEPS_PER_EPOCH": "1", "KERAS_BACKEND": "jax"}
    changed = computed(tmp_path / "changed", SETTINGS, **limits)
    assert plain.stdout.startswith("[3, "), plain.stderr
    assert changed.stdout == plain.stdout, changed.stderr


def test_settings_that_keras_refuses_are_named(tmp_path: Path) -> None:
    done = computed(tmp_path, {"floatx": "bfloat16"})
    assert done.stderr.splitlines()[-1].startswith(
        "mnist_ray.errors.SetupError: Keras refuses its settings in ~/.keras/keras.json"
    )


def test_an_actor_says_so_and_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(threads: int) -> None:
        raise InputError("Keras refuses its settings")

    monkeypatch.setattr("mnist_ray.models.runtime.import_keras", refuse)
    actor = ScoringActor(1, "tensorflow")
    with pytest.raises(InputError, match="Keras refuses its settings"):
        actor.ping()
