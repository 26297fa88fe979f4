"""Several inputs as one source."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from mnist_ray.errors import InputError
from mnist_ray.sources import pixels
from mnist_ray.sources.base import Bad, Batch, Source
from mnist_ray.sources.labels import HOT, LISTED, as_rows, renumbered
from mnist_ray.storage.location import sha256


@dataclass(frozen=True, kw_only=True)
class JoinedSource(Source):
    """Several inputs as one, in a single split."""

    parts: tuple[tuple[Source, str], ...]
    """Each source, with the split of it that is read."""

    @classmethod
    def of(cls, parts: Sequence[tuple[Source, str]]) -> JoinedSource:
        """Raises InputError that names the two inputs where image shapes or kinds of ids differ."""
        first = parts[0][0]
        for source, _ in parts[1:]:
            if not set(source.shapes) & set(first.shapes):
                raise InputError(
                    f"{first.name} has images of {first.image_shape}, but {source.name} of {source.image_shape}; they"
                    " cannot be scored together without --resize or --gray"
                )
            if source.id_kind != first.id_kind:
                raise InputError(
                    f"the ids of {first.name} are {_ID_WORDS[first.id_kind]}, but those of {source.name}"
                    f" {_ID_WORDS[source.id_kind]}; score them separately"
                )
        classes = list(dict.fromkeys(source.classes for source, _ in parts if source.classes))
        longest = max(map(len, classes), default=0)
        if len(classes) == 1:
            joined = classes[0]
        elif all(each == pixels.class_names(len(each) - 1) for each in classes):
            joined = pixels.class_names(longest - 1)
        else:
            joined = tuple(pixels.in_order(name for each in classes for name in each))
        several = _several([source for source, _ in parts if source.classes])
        kinds = {source.labels for source, _ in parts if source.classes} or {first.labels}
        shared = [shape for shape in first.shapes if all(shape in source.shapes for source, _ in parts)]
        return cls(
            name=f"{len(parts)} inputs from {first.name} on",
            classes=joined,
            numbered=len(classes) == 1 and all(source.numbered for source, _ in parts if source.classes),
            image_shape=(shared or list(first.shapes))[0],
            splits={"all": sum(source.splits[split] for source, split in parts)},
            several=several,
            labels="auto" if "auto" in kinds else first.labels if len(kinds) > 1 else min(kinds),
            passed_over=_sum(source.passed_over for source, _ in parts),
            remarks=tuple(dict.fromkeys(remark for source, _ in parts for remark in source.remarks)),
            convert=first.convert,
            sampled=tuple(shared),
            parts=tuple(parts),
        )

    @property
    def id_kind(self) -> str:
        return self.parts[0][0].id_kind

    @property
    def is_encoded(self) -> bool:
        return any(source.is_encoded for source, _ in self.parts)

    def units(self, split: str) -> list[tuple[int, int]]:
        return [
            (start + before, stop + before)
            for (source, part), before in zip(self.parts, self._begins(), strict=True)
            for start, stop in source.units(part)
        ]

    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        batches = list(self.stream(split, start, stop, strict=strict))
        return batches[0] if len(batches) == 1 else _concatenated(batches)

    def stream(self, split: str, start: int, stop: int, *, strict: bool = True) -> Iterator[Batch]:
        begins = self._begins()
        number = max(bisect_right(begins, start) - 1, 0)
        while True:
            (source, part), before = self.parts[number], begins[number]
            last = min(stop, before + source.splits[part])
            if source.image_shape != self.image_shape:
                source = replace(source, image_shape=self.image_shape)
            for batch in source.stream(part, start - before, last - before, strict=strict):
                yield self._renumbered(source, batch, before)
            if last >= stop:
                return
            start, number = last, number + 1

    def digest(self) -> str:
        return sha256("".join(f"{part} {source.digest()}\n" for source, part in self.parts).encode())

    def identity(self) -> str:
        return sha256("".join(f"{part} {source.identity()}\n" for source, part in self.parts).encode())

    def _begins(self) -> list[int]:
        """The row at which each part begins."""
        return [0, *accumulate(source.splits[part] for source, part in self.parts)][:-1]

    def _renumbered(self, source: Source, batch: Batch, before: int) -> Batch:
        """A part's batch with the row and class numbers of the whole, and a source for each image."""
        table = np.array([self._numbers[name] for name in source.classes], np.int64)
        labels = renumbered(batch.labels, table, len(self.classes))
        return Batch(
            batch.ids + before if source.id_kind == "row" else batch.ids,
            batch.images,
            as_rows(labels, len(self.classes)) if self.several else labels,
            batch.sources or [source.name] * len(batch.ids),
            tuple(Bad(bad.row + before, bad.source or source.name, bad.reason) for bad in batch.bad),
        )


def _several(sources: Sequence[Source]) -> str:
    """As in `Source`, of all together. Raises InputError where rows of 0 and 1 are of different lengths."""
    hot = [source for source in sources if source.several == HOT]
    for source in hot[1:]:
        if len(source.classes) != len(hot[0].classes):
            raise InputError(
                f"{hot[0].name} has labels of {len(hot[0].classes)} classes, but {source.name} of"
                f" {len(source.classes)}; score them separately"
            )
    is_all_hot = bool(hot) and len(hot) == len(sources)
    return HOT if is_all_hot else LISTED if any(source.several for source in sources) else ""


_ID_WORDS = {"row": "row numbers", "integer": "integers of a column", "text": "text"}


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def _concatenated(batches: Sequence[Batch]) -> Batch:
    return Batch(
        np.concatenate([batch.ids for batch in batches]),
        np.concatenate([batch.images for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
        [source for batch in batches for source in batch.sources or ()],
        tuple(bad for batch in batches for bad in batch.bad),
    )
