"""Images are prepared for scoring as those that the model has learnt from, where the user does not say otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mnist_ray.config import Images, ScoreConfig
from mnist_ray.console import Console
from mnist_ray.models.files import preparation_of
from mnist_ray.sources.preparation import Preparation
from mnist_ray.storage.location import Location


def as_trained(config: ScoreConfig, model: Location, console: Console) -> ScoreConfig:
    """The configuration with the options of the training of a run's model; of any other model nothing is known."""
    trained = preparation_of(model)
    if trained is None:
        return config
    given, learnt, usual = _chosen(config), _chosen(trained), _chosen(Preparation())
    for kind, options in learnt.items():
        if options and given[kind] and given[kind] != options:
            console.warn(
                f"the model was trained with {_words(options)}: with {_words(given[kind])} it is given other pixels"
                " than it has learnt from"
            )
    taken = [options for kind, options in learnt.items() if not given[kind] and options not in ({}, usual[kind])]
    if taken:
        console.print(f"as in training: {' '.join(map(_words, taken))}")
    return replace(config, **{name: value for options in taken for name, value in options.items()})


def _chosen(of: Images | Preparation) -> dict[str, dict[str, Any]]:
    """The options that are given, by what they decide."""
    background = f"#{bytes(of.background_rgb()).hex()}" if isinstance(of, Images) and of.background else of.background
    kinds: dict[str, dict[str, Any]] = {
        "size": {"resize": of.resize and of.resize.lower()},
        "channels": {"gray": of.gray, "rgb": of.rgb},
        "orientation": {"exif": of.exif},
        "transparency": {"background": background},
    }
    return {kind: {name: value for name, value in each.items() if value} for kind, each in kinds.items()}


def _words(options: dict[str, Any]) -> str:
    return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in options.items())
