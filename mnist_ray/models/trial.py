"""A user's MODULE:FUNCTION, tried in a process of its own before a cluster is started for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from mnist_ray.errors import InputError, RetryableError, one_line
from mnist_ray.models.build import Recipe, build
from mnist_ray.models.child import reason_of, refusing


def try_architecture(recipe: Recipe) -> None:
    """Raise InputError where `build` would. For a function of the user's, that takes seconds: it imports TensorFlow.

    Where the process just ends, nothing is raised: this machine may have too little memory, and the workers more.
    """
    if recipe.is_ours:
        return
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    code = "from mnist_ray.models.trial import _build; _build()"
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-P", "-c", code, json.dumps(asdict(recipe))], stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "-1"}, capture_output=True, text=True,
            errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise RetryableError(f"cannot start a process to try {recipe.architecture} in ({one_line(error)})") from error
    if done.returncode == 1 and (reason := reason_of(done.stdout)):
        raise InputError(reason)


# In the child process.


def _build() -> None:
    """Build the recipe that the command line holds."""
    fields = json.loads(sys.argv[1])
    with refusing():
        build(Recipe(**{**fields, "image_shape": tuple(fields["image_shape"])}))
