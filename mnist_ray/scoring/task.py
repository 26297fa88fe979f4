"""What a scoring actor is asked to do, and what it answers about the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mnist_ray.config import ScoreConfig
from mnist_ray.models.build import Recipe
from mnist_ray.models.inference import Execution
from mnist_ray.predictions.plan import Plan
from mnist_ray.sources.base import Source
from mnist_ray.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What may be asked of a scoring. None leaves it to the model, the images and the machine."""

    limit: int | None = None
    """Only the first images of the split."""
    pixels: str | None = None
    """0-255 or 0-1."""
    top_k: int | None = None
    """Keep only so many classes of an image."""
    precision: str | None = None
    """float64, float32 or bfloat16."""
    jit: bool | None = None
    batch_size: int | None = None
    retry_quarantined: bool = False
    """Of units that are done, score what they have quarantined; its owner has mended it."""

    @classmethod
    def of(cls, config: ScoreConfig) -> Settings:
        return cls(
            limit=config.limit, pixels=config.pixels, top_k=config.top_k, precision=config.precision,
            jit=None if config.jit == "auto" else config.jit == "on", batch_size=config.batch_size,
            retry_quarantined=config.retry_quarantined,
        )  # fmt: skip

    def known(self) -> dict[str, Any]:
        """The fields of the plan to come that follow from the settings alone."""
        asked = {"pixels": self.pixels, "precision": self.precision, "jit": self.jit, "batch_size": self.batch_size}
        given = {name: value for name, value in asked.items() if value is not None}
        return {"limit": self.limit, "top_k": self.top_k, **given}


DEFAULTS = Settings()


@dataclass(frozen=True, kw_only=True)
class Task:
    """What an actor must know of a job. It gets it once, not with each unit."""

    model: Recipe | Location
    source: Source
    split: str
    most_rows: int
    """Of a unit."""
    total_rows: int
    """Of the job."""
    settings: Settings = DEFAULTS
    digest: str | None = None
    """Of the model's archive."""
    vetted: bool = False
    """Whether another actor has tried the archive in a child process already."""
    output: Location | None = None
    plan: Plan | None = None


@dataclass(frozen=True)
class Facts:
    """What only the loaded model tells."""

    digest: str
    pixels: str
    num_classes: int
    classes: tuple[str, ...] | None
    precision: str
    execution: Execution
    changed: tuple[int, int] | None
    is_emulated: bool
    """Whether this machine has no instructions for the precision."""
