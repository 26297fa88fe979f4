"""What this package needs of Keras that is not public; everything else here uses Keras' public interface."""

from __future__ import annotations

from typing import Any


def step_counter(optimizer: Any) -> Any:
    """The optimizer's count of gradient steps, a variable.

    The public `iterations` counts updates of the weights, fewer with `gradient_accumulation_steps`:
    https://github.com/keras-team/keras/blob/v3.15.1/keras/src/optimizers/base_optimizer.py#L195-L202
    """
    return optimizer._iterations
