"""The driver's view of a training: what it says of the workers that it waits for."""

from __future__ import annotations

import io

from mnist_ray.console import Console
from mnist_ray.steps.train import BackgroundTraining


def test_a_restart_ends_the_wait_for_the_start() -> None:
    """Else the line about it would come every 30 s, until the command ends."""
    training = BackgroundTraining.__new__(BackgroundTraining)
    training._console, training._restarts, training._noted = Console(io.StringIO()), 0, {}
    before = training._waiting = training._console.waiting("train workers start")
    assert training._show_restart({"restarts": 1, "warnings": [], "resumed_from_epoch": 2}, 0) == 2
    assert before._over.is_set()
    assert not training._waiting._over.is_set()
    training._waiting.end()
