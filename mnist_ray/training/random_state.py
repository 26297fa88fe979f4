"""Random state is derived from where a training stands, not saved: Keras stores no SeedGenerator's state."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnist_ray.collective.variables import is_seed


def derive_random_state(model: Any, *, seed: int, rank: int, step: int) -> None:
    """Set the model's random generators for a global step, so that a resumed training draws the same numbers."""
    for index, variable in enumerate(v for v in model.variables if is_seed(v)):
        drawn = np.random.SeedSequence([seed, rank, step, index]).generate_state(2)
        variable.assign(drawn.astype(variable.dtype))
