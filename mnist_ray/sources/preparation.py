"""How the images of a dataset were made those that a model learns from, as the dataset and the model record it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from mnist_ray.sources.pixels import Conversion
from mnist_ray.storage.records import Rule, one_of

_SIZE, _COLOUR = re.compile("[0-9]{1,4}x[0-9]{1,4}"), re.compile("#[0-9a-f]{6}")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The options of a conversion, each as the command line has it. A model must be given images that were prepared
    like those it has learnt from."""

    resize: Annotated[str, Rule("must be HxW in pixels", lambda text: _SIZE.fullmatch(text) is not None)] | None = None
    gray: bool = False
    rgb: bool = False
    exif: Annotated[str, one_of("apply", "ignore")] = "apply"
    background: Annotated[str, Rule("must be #RRGGBB", lambda text: _COLOUR.fullmatch(text) is not None)] = "#000000"

    @classmethod
    def of(cls, convert: Conversion) -> Preparation:
        return cls(
            resize="{}x{}".format(*convert.size) if convert.size else None,
            gray=convert.gray,
            rgb=convert.rgb,
            exif="apply" if convert.applies_exif else "ignore",
            background=f"#{bytes(convert.background).hex()}",
        )

    def then(self, later: Preparation) -> Preparation:
        """Of images that are converted once more. What decides how files are decoded stays as it was."""
        return Preparation(
            resize=later.resize or self.resize,
            gray=later.gray or (self.gray and not later.rgb),
            rgb=later.rgb or (self.rgb and not later.gray),
            exif=self.exif,
            background=self.background,
        )
