"""What a scoring is asked for, what its actors are sent, what they find out about the model, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mnist_ray.config import ScoreConfig
from mnist_ray.errors import InputError
from mnist_ray.models.build import Recipe
from mnist_ray.models.engines.base import Execution
from mnist_ray.models.engines.openvino import ConvertedClassifier
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.tally import Tally
from mnist_ray.sources.base import Source
from mnist_ray.storage.attempt import Attempt
from mnist_ray.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of a scoring. None leaves the choice to the model, the images and the machine."""

    limit: int | None = None
    """Score only the first images; all if None."""
    engine: str = "auto"
    """auto, openvino or tensorflow."""
    architecture: str | None = None
    """What the user says that a run's model was trained with."""
    pixels: str | None = None
    """What the model is given: 0-255 or 0-1."""
    top_k: int | None = None
    """Keep only the most probable classes of each image; all if None."""
    precision: str | None = None
    """float64, float32 or bfloat16."""
    jit: bool | None = None
    """Compile by XLA."""
    batch_size: int | None = None
    """Images of one call of the model."""
    retry_quarantined: bool = False
    """Score only what is in quarantine: its images have been repaired."""

    @classmethod
    def of(cls, config: ScoreConfig) -> Settings:
        return cls(
            limit=config.limit, engine=config.engine, architecture=config.architecture, pixels=config.pixels,
            top_k=config.top_k, precision=config.precision, jit=None if config.jit == "auto" else config.jit == "on",
            batch_size=config.batch_size, retry_quarantined=config.retry_quarantined,
        )  # fmt: skip

    def require_classes(self, num_classes: int) -> None:
        """Raises InputError where --top-k asks for more."""
        if self.top_k is not None and self.top_k > num_classes:
            raise InputError(f"--top-k {self.top_k} is more than the model's {num_classes} classes; give fewer")

    def known(self) -> dict[str, Any]:
        """The fields of the coming plan that follow from the settings alone."""
        asked = {"pixels": self.pixels, "precision": self.precision, "jit": self.jit, "batch_size": self.batch_size}
        asked["engine"] = None if self.engine == "auto" else self.engine
        given = {name: value for name, value in asked.items() if value is not None}
        return {"limit": self.limit, "top_k": self.top_k, **given}

    def resuming(self, plan: Plan | None) -> Settings:
        """Compute as a stored plan does, unless asked otherwise (which freezing the plan then refuses)."""
        if plan is None:
            return self
        jit = plan.jit if self.jit is None else self.jit
        engine = plan.engine if self.engine == "auto" else self.engine
        return replace(self, engine=engine, jit=jit, batch_size=self.batch_size or plan.batch_size)

    def following(self, plan: Plan) -> Settings:
        """The same with nothing left open."""
        return replace(
            self, engine=plan.engine, pixels=plan.pixels, precision=plan.precision, jit=plan.jit,
            batch_size=plan.batch_size,
        )  # fmt: skip


DEFAULTS = Settings()


@dataclass(frozen=True, kw_only=True)
class Task:
    """What an actor must know of a job. It is sent once, not with each unit."""

    model: Recipe | Location | ConvertedClassifier
    """Where it is not converted, the actors load it with TensorFlow."""
    source: Source
    split: str
    most_rows: int
    """Rows of the largest unit."""
    total_rows: int
    """Rows of all units."""
    settings: Settings = DEFAULTS
    digest: str | None = None
    """sha256 of the model's archive."""
    vetted: bool = False
    """Whether another actor has loaded the archive in a child process before."""
    output: Location | None = None
    attempt: Attempt | None = None
    """The driver's, in which units are committed to the output."""
    again: Mapping[int, str] = field(default_factory=dict)
    """The units of which what is in quarantine is tried again, with the sha256 of their parts as the job found them."""
    plan: Plan | None = None
    """None until the model has been examined, if there was no plan before."""


@dataclass(frozen=True)
class Facts:
    """What only the loaded model tells, and how it is computed."""

    digest: str
    """sha256 of the model's archive."""
    pixels: str
    """0-255 or 0-1."""
    pixels_reason: str | None
    """Why, where that was found in the model's layers."""
    num_classes: int
    classes: tuple[str, ...] | None
    """Names, if the model has any."""
    precision: str
    """float64, float32 or bfloat16."""
    execution: Execution
    changed: tuple[int, int] | None
    """(predictions that differ from float32, images compared), where bfloat16 was asked for."""
    label_note: str | None
    """What the user should know of the labels."""
    is_emulated: bool
    """Whether this machine has no instructions for the precision."""
    engine: str
    engine_version: str
    converted_sha256: str | None
    """Of the converted model, which the archive alone does not determine."""


@dataclass(frozen=True)
class Scored:
    """The result of a scoring."""

    tally: Tally
    images: int
    scored: int
    quarantined: int
    num_actors: int
    seconds: float
    """From the first unit begun to the last committed. If nothing was left to score, those of the earlier command."""
    images_per_second: float
    """Of the images that were scored in these seconds."""
    plan: Plan
    notes: tuple[str, ...] = ()
    """Remarks for the user on how it was computed."""
