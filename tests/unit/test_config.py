"""Options: their help, their defaults, and where their values come from."""

from __future__ import annotations

from dataclasses import fields

import pytest

from mnist_ray.config import RunConfig, ScoreConfig, ShardConfig, TrainConfig


@pytest.mark.parametrize("kind", [RunConfig, ShardConfig, TrainConfig, ScoreConfig])
def test_every_option_has_help_and_one_default(kind: type) -> None:
    assert all(spec.metadata["help"] for spec in fields(kind))
    shared = {spec.name: spec.default for spec in fields(RunConfig)}
    if kind is ScoreConfig:  # those of run are of the training
        del shared["batch_size"], shared["precision"]
    assert all(shared.get(spec.name, spec.default) == spec.default for spec in fields(kind))
