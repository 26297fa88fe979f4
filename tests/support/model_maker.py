"""Untrained models, made in a process of their own: `python -m tests.support.model_maker SIDE CLASSES PATH`.

A folder of a run's model, or, where PATH ends in .keras, a user's file.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mnist_ray.models import build, files
from mnist_ray.storage.location import Location
from tests.support.command import ROOT, environment


def make_model(side: int, num_classes: int, path: Path) -> Path:
    command = [sys.executable, "-m", __name__, str(side), str(num_classes), str(path)]
    subprocess.run(command, cwd=ROOT, env=environment(path.parent), check=True, capture_output=True)
    return path


def main(side: int, num_classes: int, path: str) -> None:
    recipe = build.Recipe(
        architecture="mlp", image_shape=(side, side), num_classes=num_classes, dropout=0.2, seed=0, precision="float32"
    )
    classifier = build.build(recipe)
    if path.endswith(".keras"):
        classifier.save(path)
    else:
        files.save(classifier, Location.parse(path), recipe, [f"class-{number}" for number in range(num_classes)], {})


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
