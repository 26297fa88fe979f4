"""What a user's module defines beside the model, `optimizer` and `callbacks`; tried before a cluster is started."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from mnist_ray.config import Training
from mnist_ray.errors import InputError, users_code_failed
from mnist_ray.models.build import Recipe
from mnist_ray.models.child import refusing
from mnist_ray.models.runtime import import_keras
from mnist_ray.models.trial import build_of, in_own_process
from mnist_ray.training import callbacks


def optimizer_of(keras: Any, config: Training) -> Any:
    """The user's, else Adam. Raises InputError where it is none."""
    try:
        optimizer = _function(config, "optimizer", keras.optimizers.Adam)(config.learning_rate)
    except Exception as error:
        raise users_code_failed(f"optimizer() of {config.architecture} failed", error) from error
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise InputError(
            f"optimizer() of {config.architecture} must return a Keras optimizer, not {type(optimizer).__name__}"
        )
    return optimizer


def callbacks_of(keras: Any, config: Training) -> list[Any]:
    """The user's. Raises InputError where one cannot work."""
    return callbacks.load(keras, config, _function(config, "callbacks", list))


def _function(config: Training, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the user's module of models, else the default."""
    module, _, function = config.architecture.partition(":")
    return getattr(importlib.import_module(module), name, default) if function else default


def try_training(config: Training, recipe: Recipe) -> str | None:
    """Raise InputError where the model, the optimizer or a callback of the user's cannot be trained with. Returns what
    users should know of their model; None for ours."""
    if recipe.is_ours:
        return None
    given = {
        "recipe": asdict(recipe),
        "training": {each.name: getattr(config, each.name) for each in fields(Training)},
    }
    return in_own_process(recipe.architecture, "from mnist_ray.training.users import _try; _try()", given)


# In the child process.


def _try() -> None:
    given = json.loads(sys.argv[1])
    with refusing():
        config = Training(**given["training"])
        build_of(given["recipe"])
        keras = import_keras(config.precision)
        optimizer_of(keras, config)
        callbacks_of(keras, config)
