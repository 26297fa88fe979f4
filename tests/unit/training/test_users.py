"""What a user's module defines is tried before a cluster is started for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mnist_ray.config import RunConfig
from mnist_ray.errors import InputError, SetupError
from mnist_ray.models.build import Recipe
from mnist_ray.training.users import try_training

MODULE = """
import keras

def model(shape, classes):
    return keras.Sequential([keras.Input(shape), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
                             keras.layers.Dense(classes)])

def callbacks():
    return [keras.callbacks.EarlyStopping(monitor="val_loss")]
"""
RECIPE = Recipe(
    architecture="tried_callbacks:model", image_shape=(4, 4), num_classes=3, dropout=0.2, seed=0, precision="float32"
)


@pytest.mark.tensorflow
def test_a_callback_that_cannot_work_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tried_callbacks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"^callbacks\(\) of tried_callbacks: EarlyStopping uses 'val_loss', but"
    ) as told:
        try_training(RunConfig(architecture=RECIPE.architecture), RECIPE)
    assert told.value.see == "runs.md#your-own-callbacks"
    (tmp_path / "tried_optimizer.py").write_text(f"{MODULE}\ndef optimizer(rate):\n    import no_such_package\n")
    recipe = replace(RECIPE, architecture="tried_optimizer:model")
    with pytest.raises(SetupError, match=r"^optimizer\(\) of tried_optimizer:model failed \(ModuleNotFoundError"):
        try_training(RunConfig(architecture=recipe.architecture), recipe)
    note = try_training(RunConfig(architecture=RECIPE.architecture, validation_fraction=0.5, num_workers="9"), RECIPE)
    assert note == "the model is given pixels 0-255, because its first layers turn 0 and 255 into 0 and 1"
