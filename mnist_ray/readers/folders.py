"""A directory of class folders of PNG or JPEG files: DIR/train/7/00001.png. A file is opened when its row is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mnist_ray.errors import InputError
from mnist_ray.readers import pixels
from mnist_ray.sources import Bad, Batch, Source
from mnist_ray.storage import Location

_REQUESTS_AT_ONCE = 16
_FILES_AHEAD = 1024  # held in memory


@dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """`files` has each split's paths relative to `folder`: class folder by class folder, by name."""

    folder: Location
    files: Mapping[str, tuple[str, ...]]

    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        assert 0 <= start <= stop <= self.splits[split], (start, stop)
        numbers = {name: number for number, name in enumerate(self.classes)}
        ids, images, labels, bad = [], [], [], []
        names = self.files[split][start:stop]
        for row, name, data in zip(range(start, stop), names, self._contents(names), strict=True):
            try:
                images.append(pixels.decode(data, self.image_shape))
            except ValueError as error:
                bad.append(Bad(row, str(self.folder / name), str(error)))
                continue
            ids.append(name)
            labels.append(numbers.get(_class(name), -1))
        batch = Batch(
            np.array(ids, dtype=object),
            np.stack(images) if images else np.empty((0, *self.image_shape), np.uint8),
            np.array(labels, np.int64),
            [str(self.folder / name) for name in ids],
            tuple(bad),
        )
        return self._settled(split, batch, strict)

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        total = hashlib.sha256()
        for split, names in self.files.items():
            for name, data in zip(names, self._contents(names), strict=True):
                total.update(f"{split}/{name}\0".encode())
                total.update(hashlib.sha256(data).digest())
        return total.hexdigest()

    def _contents(self, names: Sequence[str]) -> Iterator[bytes]:
        """Each file's bytes, in order; many requests at once where each is a round trip to an object store."""
        if self.folder.is_local:
            yield from (_bytes(self.folder / name) for name in names)
            return
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            for start in range(0, len(names), _FILES_AHEAD):
                yield from pool.map(lambda name: _bytes(self.folder / name), names[start : start + _FILES_AHEAD])


def open_folders(folder: Location, files: Mapping[str, list[str]], *, split_folders: bool) -> FolderSource:
    """`files` has each split's paths within its folder; the first that can be read tells the shape of all."""
    relative = {
        split: tuple(f"{split}/{name}" if split_folders else name for name in names) for split, names in files.items()
    }
    shape, first_reason = None, "is missing"
    for name in (name for names in relative.values() for name in names):
        try:
            shape = pixels.decode(_bytes(folder / name)).shape
            break
        except ValueError as error:
            first_reason = first_reason if first_reason != "is missing" else f"{folder / name} {error}"
    if shape is None:
        raise InputError(f"{folder} holds no image that can be read: {first_reason}")
    return FolderSource(
        name=str(folder),
        classes=tuple(sorted({_class(name) for names in relative.values() for name in names} - {""})),
        image_shape=shape,
        splits={split: len(names) for split, names in relative.items()},
        folder=folder,
        files=relative,
    )


def _class(name: str) -> str:
    """`7` of train/7/1.png or 7/1.png; nothing for an image that is in no class folder."""
    parts = name.split("/")
    if parts[0] in ("train", "test"):
        parts = parts[1:]
    return parts[0] if len(parts) == 2 else ""


def _bytes(file: Location) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{file} was there when its folder was listed and is gone; start anew") from error
