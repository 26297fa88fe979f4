"""A user's MODULE:FUNCTION, tried in a process of its own before a cluster is started for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mnist_ray.errors import RetryableError, one_line
from mnist_ray.models.build import Recipe, build
from mnist_ray.models.child import refusal_in, refusing
from mnist_ray.models.pixels import find_pixels

_NOTE = "note: "


def try_architecture(recipe: Recipe) -> None:
    """Raise InputError where `build` would. For a function of the user's, that takes seconds: it imports TensorFlow."""
    if not recipe.is_ours:
        in_own_process(recipe.architecture, "from mnist_ray.models.trial import _build; _build()", asdict(recipe))


def in_own_process(architecture: str, code: str, fields: dict[str, Any]) -> str | None:
    """Run our own code, which is `refusing()` and tries a user's, in another process. Raises InputError as it says.
    Returns what it has noted.

    fields: what the code finds in sys.argv, as JSON. Where the process just ends, nothing is raised: this machine may
    have too little memory, and the workers more.
    """
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-P", "-c", code, json.dumps(fields)], stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "-1"}, capture_output=True, text=True,
            errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise RetryableError(f"cannot start a process to try {architecture} in ({one_line(error)})") from error
    if done.returncode == 1 and (refusal := refusal_in(done.stdout)):
        raise refusal
    notes = [line.removeprefix(_NOTE) for line in done.stdout.splitlines() if line.startswith(_NOTE)]
    return notes[-1] if notes else None


# In the child process.


def _build() -> None:
    with refusing():
        build_of(json.loads(sys.argv[1]))


def build_of(fields: dict[str, Any]) -> None:
    """Build the recipe of these fields, and note which pixels the model is given."""
    pixels = find_pixels(build(Recipe(**{**fields, "image_shape": tuple(fields["image_shape"])})))
    print(f"{_NOTE}the model is given pixels {pixels.range}, because {pixels.reason}", flush=True)  # noqa: T201
