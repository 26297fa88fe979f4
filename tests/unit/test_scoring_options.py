"""What `score` refuses before a Ray is started: options that do not fit the model, names that are not its classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.models.test_outline import layer, written

ANY = layer("InputLayer", batch_shape=[None, None, None, 1])
FLAT = layer("InputLayer", batch_shape=[None, 784])
IMAGE = layer("InputLayer", batch_shape=[None, 28, 28])
CLASSES = layer("Dense", units=10, activation="softmax")
LABELS = layer("Dense", "labels", units=10, activation="sigmoid")
TWO = {"output_layers": {"digit": ["dense", 0, 0], "odd": ["labels", 0, 0]}}


@pytest.mark.parametrize(
    ("layers", "options", "said"),
    [
        ([ANY, CLASSES], [], "images of any size; choose one by --resize HxW, such as --resize 28x28, the size of"),
        ([FLAT, CLASSES], ["--resize", "20x20"], "the images are (20, 20), but the model takes (784,); give --resize"),
        ([IMAGE, CLASSES], ["--rgb"], "are (28, 28, 3), but the model takes (28, 28); leave out --rgb"),
        ([IMAGE, CLASSES], ["--rgb", "--resize", "9x9"], "takes (28, 28); give --resize 28x28 and leave out --rgb"),
        ([IMAGE, CLASSES, LABELS], [], "m.keras has 2 outputs; choose one by --output-name: digit, odd"),
        ([IMAGE, CLASSES, LABELS], ["--output-name", "x"], "m.keras has no output x; --output-name takes digit, odd"),
        (
            [IMAGE, CLASSES],
            ["--output-layer", "dens"],
            "no layer dens; --output-layer takes one of its layers, such as",
        ),
        (
            [IMAGE, CLASSES],
            ["--threshold", "0.4"],
            "--threshold is for models that give labels, but this one gives classes",
        ),
        ([IMAGE, LABELS], ["--threshold", "0.4,0.5"], "--threshold has 2 numbers, but the model has 10 labels"),
        ([IMAGE, LABELS], ["--top-k", "3"], "--top-k chooses among classes, but the model gives labels; leave it out"),
        ([IMAGE, CLASSES], ["--kind", "labels"], "ends in softmax, which does not give labels their scores; leave out"),
        ([IMAGE, LABELS], ["--kind", "classes"], "ends in sigmoid: its scores are no probabilities of classes; leave"),
        ([IMAGE, CLASSES], ["--classes", "{}/nine"], "nine names 9 classes, but the model has 10; give one for each"),
        (
            [IMAGE, CLASSES],
            ["--classes", "{}/ten"],
            "the input's classes (3, 7, zebra) are not the model's (a, b, c, d",
        ),
    ],
)
def test_what_does_not_fit_the_model(
    layers: list[Any], options: list[str], said: str, call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "ten").write_text("\n".join("abcdefghij"))
    (tmp_path / "nine").write_text("\n".join("abcdefghi"))
    kind = ("Functional", TWO) if len(layers) == 3 else ("Sequential", {})
    model = written(tmp_path, kind[0], layers, **kind[1])
    labels = np.array(["3", "7", "zebra"])  # text, which a column may hold
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 28, 28), np.uint8), y=labels)
    given = [option.format(tmp_path) for option in options]
    named = ["--labels", "none"] if "{}/ten" not in options else []
    code, line = call(
        "score", tmp_path / "data.npz", "--model", model.path, "--output", tmp_path / "out", *given, *named
    )
    assert code == 2
    assert said in line
    assert not (tmp_path / "out").exists()


HOT = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]])


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (CLASSES, "y_all has the shape (3, 3): an image may have several labels, but training needs one, and so"),
        (LABELS, "the input tells 3 labels of each image, by 0 or 1, but the model gives 10; add --labels none"),
    ],
)
def test_several_labels_that_do_not_fit_the_model(
    layers: Any, said: str, call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    model = written(tmp_path, "Sequential", [IMAGE, layers])
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 28, 28), np.uint8), y=HOT)
    code, line = call("score", tmp_path / "data.npz", "--model", model.path, "--output", tmp_path / "out")
    assert code == 2
    assert said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["run", "--data", "{}", "--storage", "{}.out"], ["shard", "{}", "{}.out"]])
def test_training_takes_one_label_an_image(
    command: list[str], call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    images = np.zeros((3, 28, 28), np.uint8)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=HOT, x_test=images, y_test=HOT)
    code, line = call(*(option.format(tmp_path / "data.npz") for option in command))
    assert code == 2
    assert "y_train has the shape (3, 3): an image may have several labels, but training needs one" in line
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]
