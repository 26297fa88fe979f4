"""A finished run or output, as the report reads it from its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mnist_ray.errors import InputError
from mnist_ray.predictions.plan import Plan
from mnist_ray.report.formatting import format_pairs
from mnist_ray.report.images import LARGE_SIDE, data_uri, encode, kept
from mnist_ray.report.label_sample import label_sample_of
from mnist_ray.report.reading import DatasetRecord, find_images, read, shards_folder
from mnist_ray.report.sample import Sample, Shown, plan_of, sample_of
from mnist_ray.runs.records import MetricsRecord, ReportedConfig
from mnist_ray.storage.location import Location

Fetch = Callable[[Sequence[Shown]], Mapping[int, bytes]]
"""From images to show to those that there are, encoded, by row."""


@dataclass(frozen=True)
class Result:
    """A finished run or output: its files, as far as there are any."""

    folder: Location
    metrics: dict[str, Any]
    config: dict[str, Any]
    """The options of the command."""
    fingerprint: dict[str, Any]
    shards: Location
    dataset: dict[str, Any] | None
    predictions: Location
    plan: Plan | None

    @classmethod
    def read(cls, folder: Location) -> Result:
        """Raises InputError if there is no metrics.json, or if a file is not as mnist-ray writes it."""
        metrics = read(folder / "metrics.json", MetricsRecord)
        if metrics is None:
            raise InputError(_why_no_result(folder))
        stored = read(folder / "config.json", ReportedConfig) or {}
        config = stored.get("config") or metrics.get("config") or {}
        shards = shards_folder(folder, config)
        predictions = folder / "predictions" if (folder / "predictions").is_dir() else folder
        dataset, plan = read(shards / "dataset.json", DatasetRecord), plan_of(predictions)
        return cls(folder, metrics, config, stored.get("fingerprint") or {}, shards, dataset, predictions, plan)

    @property
    def is_run(self) -> bool:
        return self.dataset is not None or self.predictions != self.folder

    @property
    def classes(self) -> list[str]:
        """The names of the classes, by label: from the dataset, else from the metrics, else none."""
        known = (self.dataset or {}).get("classes") or (self.metrics.get("dataset") or {}).get("classes") or []
        return [str(name) for name in (range(known) if isinstance(known, int) else known)]

    @property
    def num_classes(self) -> int:
        after = self.metrics.get("after") or {}
        counted = max(len(after.get("confusion") or []), len(after.get("per_class") or []))
        return max(len(self.classes), counted, self.plan.num_classes if self.plan else 0)

    @property
    def is_smooth(self) -> bool:
        """Whether images are scaled smoothly, as photos are."""
        shape = (self.dataset or self.metrics.get("dataset") or {}).get("image_shape") or [0]
        return max(shape[:2], default=0) > LARGE_SIDE

    def sample(self) -> Sample:
        if self.plan is not None and self.plan.kind == "labels":
            return label_sample_of(self.predictions, self.plan)
        return sample_of(self.predictions, self.plan, self.num_classes)

    def images(self, shown: Sequence[Shown], fetch: Fetch | None = None) -> dict[Shown, str]:
        """Data URIs of the images that there are: of a run from its shards, of an output those that were kept."""
        if self.is_run:
            found = find_images(self.shards, self.dataset, "test", [each.id for each in shown])
            uris = {each: data_uri(encode(found[each.id])) for each in shown if each.id in found}
        else:
            encoded = fetch(shown) if fetch else kept(self.folder)
            uris = {each: data_uri(encoded[each.row]) for each in shown if each.row is not None and each.row in encoded}
        return {each: uri for each, uri in uris.items() if uri}

    def fingerprints(self) -> list[tuple[str, str]]:
        """What says that another result is of the same input, model and computation."""
        digests = {key: value for key, value in self.fingerprint.items() if isinstance(value, str) and len(value) == 64}
        names = (
            "model_sha256", "input_digest", "converted_sha256", "engine", "engine_version", "precision", "pixels",
            "pixels_reason",
        )  # fmt: skip
        return format_pairs(digests | {name: getattr(self.plan, name, None) for name in names})


def _why_no_result(folder: Location) -> str:
    if not folder.exists():
        return f"{folder} does not exist; report takes the folder of a finished run"
    if (folder / "progress.json").exists():
        return f"{folder} has no metrics.json: the run has not finished; give its command again, and it continues"
    return f"{folder} is not the folder of a run (it has no metrics.json); report takes that of a finished run"
