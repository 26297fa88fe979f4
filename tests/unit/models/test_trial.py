"""A user's function is tried before a cluster is started for it, in a process of its own."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.models.trial import try_architecture
from tests.support.models import RECIPE

MODULE = """
import keras

print("refused: by nobody; a line of the user's")

def model(shape, classes, ending=None):
    layers = [keras.Input(shape), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(classes, ending)])

def softmax(shape, classes):
    return model(shape, classes, "softmax")
"""


@pytest.mark.tensorflow
def test_what_build_refuses_is_refused_before_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tried_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    try_architecture(replace(RECIPE, architecture="tried_models:model"))
    ending = r"^tried_models:softmax returned a model that ends in softmax; it must give logits \(leave its last"
    with pytest.raises(InputError, match=ending):
        try_architecture(replace(RECIPE, architecture="tried_models:softmax"))
    assert "tried_models" not in sys.modules


def test_a_process_that_just_ends_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    try_architecture(replace(RECIPE, architecture="users:model"))
    monkeypatch.setattr(sys, "executable", "/nowhere")
    with pytest.raises(RetryableError, match="cannot start a process to try users:model in"):
        try_architecture(replace(RECIPE, architecture="users:model"))
    try_architecture(RECIPE)  # ours is not tried
