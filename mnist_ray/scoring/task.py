"""What a scoring is asked for, what its actors are sent, what they find out about the model, and what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mnist_ray.config import ScoreConfig
from mnist_ray.errors import InputError
from mnist_ray.models.build import Recipe
from mnist_ray.models.engines.base import Execution
from mnist_ray.models.engines.openvino import ConvertedClassifier
from mnist_ray.models.outline import Outline
from mnist_ray.models.view import CLASSES, LABELS, View
from mnist_ray.predictions.answers import AnyTally
from mnist_ray.predictions.plan import Plan
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
    output_name: str | None = None
    """The output that is taken of a model with several."""
    output_layer: str | None = None
    """The layer whose output is written as an embedding."""
    kind: str | None = None
    """What the user says that the model gives: classes or labels."""
    by_loss: str | None = None
    """What the loss of its training says."""
    is_unsaid: bool = False
    """Whether neither the user nor the model's file says it."""
    classes: tuple[str, ...] | None = None
    """The names of the model's classes, where the user has given them."""
    thresholds: tuple[float, ...] | None = None
    """The score from which on an image is given a label: one for all labels, or one for each."""
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
    def of(cls, config: ScoreConfig, classes: tuple[str, ...] | None = None) -> Settings:
        """classes: of the file that `--classes` names."""
        return cls(
            limit=config.limit, engine=config.engine, architecture=config.architecture, pixels=config.pixels,
            output_name=config.output_name, output_layer=config.output_layer, kind=config.kind, classes=classes,
            thresholds=config.thresholds(), top_k=config.top_k, precision=config.precision,
            jit=None if config.jit == "auto" else config.jit == "on", batch_size=config.batch_size,
            retry_quarantined=config.retry_quarantined,
        )  # fmt: skip

    def view(self, size: tuple[int, int] | None) -> View:
        """What is used of the model. size: (h, w) of --resize."""
        return View(
            output_name=self.output_name, output_layer=self.output_layer, size=size, kind=self.kind,
            by_loss=self.by_loss,
        )  # fmt: skip

    def knowing(self, known: Outline) -> Settings:
        """With what the model's file tells of its outputs. Those of a run's model are known."""
        kind = None if known.is_of_run else self.kind
        return replace(self, by_loss=known.by_loss, kind=kind, is_unsaid=not (kind or known.by_loss))

    def kind_reason(self, kind: str, gives_logits: bool) -> str | None:
        """Why a model gives that kind, as a clause; None where it is plain."""
        if kind == LABELS:
            by_loss = "was trained with binary cross-entropy" if self.by_loss == LABELS else "ends in sigmoid"
            return "is said to give labels (--kind)" if self.kind else by_loss
        is_guess = kind == CLASSES and gives_logits and self.is_unsaid
        return "gives logits, and its file does not tell of what" if is_guess else None

    @property
    def needs_count(self) -> bool:
        """Whether an option can only be checked against the number of the model's classes."""
        return any(each is not None for each in (self.classes, self.top_k, self.thresholds))

    def require(self, num_classes: int, kind: str | None) -> None:
        """Raises InputError where an option does not fit what the model gives. kind: None where it is not known yet."""
        if self.classes is not None and len(self.classes) != num_classes:
            raise InputError(f"--classes names {len(self.classes)} classes, but the model has {num_classes}")
        if self.top_k is not None and self.top_k > num_classes:
            raise InputError(f"--top-k {self.top_k} is more than the model's {num_classes} classes; give fewer")
        if self.top_k is not None and kind == LABELS:
            raise InputError("--top-k chooses among classes, but the model gives labels; leave it out, use --threshold")
        if self.thresholds is not None and kind == CLASSES:
            raise InputError("--threshold is for models that give labels, but this one gives classes; leave it out")
        if self.thresholds is not None and len(self.thresholds) not in (1, num_classes):
            raise InputError(f"--threshold has {len(self.thresholds)} numbers, but the model has {num_classes} labels")

    def thresholds_of(self, kind: str, num_classes: int) -> tuple[float, ...] | None:
        """One for each of the model's labels; None where it gives none."""
        given = self.thresholds or (THRESHOLD,)
        return (given if len(given) > 1 else given * num_classes) if kind == LABELS else None

    def known(self, known: Outline) -> dict[str, Any]:
        """The fields of the coming plan that follow from the settings and from what the model's file tells."""
        asked: dict[str, Any] = {
            "pixels": self.pixels,
            "precision": self.precision,
            "jit": self.jit,
            "batch_size": self.batch_size,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        given |= {} if self.engine == "auto" else {"engine": self.engine}
        if known.kind is not None:
            given["thresholds"] = self.thresholds_of(known.kind, known.num_classes or 0)
        exact = {"limit": self.limit, "top_k": self.top_k, "classes": known.classes}
        return given | exact | {"output_name": self.output_name, "output_layer": self.output_layer}

    def resuming(self, plan: Plan | None) -> Settings:
        """Compute as a stored plan does, unless asked otherwise (which freezing the plan then refuses)."""
        if plan is None:
            return self
        jit = plan.jit if self.jit is None else self.jit
        engine = plan.engine if self.engine == "auto" else self.engine
        pixels, batch_size = self.pixels or plan.pixels, self.batch_size or plan.batch_size
        return replace(self, engine=engine, pixels=pixels, jit=jit, batch_size=batch_size)

    def following(self, plan: Plan) -> Settings:
        """The same with nothing left open."""
        return replace(
            self, engine=plan.engine, pixels=plan.pixels, precision=plan.precision, jit=plan.jit,
            batch_size=plan.batch_size,
        )  # fmt: skip


DEFAULTS = Settings()

THRESHOLD = 0.5
"""Of a label's score, where the user gives none."""


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

    @property
    def view(self) -> View:
        """What is used of the model."""
        return self.settings.view(self.source.convert.size)

    @property
    def rows_to_choose_by(self) -> int:
        """The rows for which the faster engine is to be found; 0 where the user has chosen."""
        is_open = self.settings.engine == "auto" and self.settings.precision in (None, "float32")
        return self.total_rows if is_open else 0


@dataclass(frozen=True)
class Facts:
    """What only the loaded model tells, and how it is computed."""

    digest: str
    """sha256 of the model's archive."""
    pixels: str
    """0-255 or 0-1."""
    pixels_reason: str | None
    """Why, where that was found in the model's layers."""
    pixels_assumed: bool
    """Whether nothing tells, so that they are only what most models take."""
    kind: str
    """classes, labels or embeddings."""
    num_classes: int
    classes: tuple[str, ...] | None
    """Names, if the model has any."""
    precision: str
    """float64, float32 or bfloat16."""
    execution: Execution
    changed: tuple[int, int] | None
    """(predictions that differ from float32, images compared), where bfloat16 was asked for."""
    kind_reason: str | None
    """Why it is that kind, as a clause, where that is not plain."""
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

    tally: AnyTally
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

    @property
    def warnings(self) -> Iterator[str]:
        """What may make all predictions wrong."""
        if self.plan.pixels_assumed and self.tally.num_seen:
            yield (
                f"pixels {self.plan.pixels} are assumed: neither the model's layers nor the labelled images tell which"
                " it takes, as it is right about as often with others (--pixels decides)"
            )
        elif self.plan.pixels_assumed:
            yield (
                f"nothing tells which pixels this model takes, so pixels {self.plan.pixels} are only ASSUMED: if it was"
                " trained on others, all predictions are wrong. Score again with --pixels 0-255, 0-1 or -1-1, or score"
                " labelled images, which tell"
            )
