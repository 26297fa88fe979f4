"""The command that makes a run or an output again, from the options that were kept."""

from __future__ import annotations

import shlex
from typing import Any

from mnist_ray.config import RunConfig, ScoreConfig, TrainConfig
from mnist_ray.options import Options, flag
from mnist_ray.report.formatting import without_secrets

_LEFT_OUT = (
    "fresh", "overwrite", "retry_quarantined", "quiet", "log_format", "wait_for_resources", "tensorboard", "mlflow",
    "mlflow_experiment",
)  # fmt: skip
"""What is about the folder that was there, or about watching."""


def command_of(config: dict[str, Any]) -> str | None:
    """The command line without what is the default. None where the options are not those of a command.

    config: the options as config.json has them, or metrics.json of an output.
    """
    kinds: tuple[tuple[str, str, type[Options]], ...] = (
        ("run", "data", RunConfig), ("train", "shards", TrainConfig), ("score", "input", ScoreConfig),
    )  # fmt: skip
    for name, sign, kind in kinds:
        if config.get(sign):
            return " ".join(["mnist-ray", name, *_words(kind, config)])
    return None


def _words(kind: type[Options], config: dict[str, Any]) -> list[str]:
    words = []
    for option in kind.options():
        value = config.get(option.name, option.default)
        if value is None or value == option.default or option.name in _LEFT_OUT:
            continue
        if option.rules.group is None:
            words += [_word(each) for each in (value if isinstance(value, list | tuple) else [value])]
        elif isinstance(value, bool):
            words.append(flag(option.name))
        else:
            words += [flag(option.name), _word(value)]
    return words


def _word(value: Any) -> str:
    return shlex.quote(without_secrets(value))
