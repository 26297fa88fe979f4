"""Long listings of files: made once, kept, and known again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.sources import listing
from mnist_ray.sources.listing import Listing
from mnist_ray.storage.location import Location
from tests.support import data_makers as make
from tests.support.reading import LENIENT, opened, read


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "BATCH_ROWS", 3)
    monkeypatch.setattr(listing, "LONG", 4)
    monkeypatch.setattr(listing, "_NOTIFY_SECONDS", 0)


def test_a_long_listing_is_made_once(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    make.write_folders(tmp_path / "in", 7, 5)
    told: list[str] = []
    file = Location.parse(tmp_path / "out" / "_files.arrow")
    reading = replace(LENIENT, list_file=file, notify=told.append)
    plain, first = opened(tmp_path / "in"), opened(tmp_path / "in", reading=reading)
    assert told[0] == f"listing {tmp_path}/in/train/class-0: 0 files …"
    assert told[-1] == f"listing {tmp_path}/in/test/class-2: 11 files …"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_files.arrow"]
    assert first.identity() == plain.identity()
    with monkeypatch.context() as patch:
        patch.setattr("mnist_ray.sources.listing.children", lambda folder: pytest.fail("listed again"))
        again = opened(tmp_path / "in", reading=replace(reading, reuse_listing=True))
    for split in ("train", "test"):
        for source in (first, again):
            assert read(source, split).ids.tolist() == read(plain, split).ids.tolist()
            np.testing.assert_array_equal(read(source, split).images, read(plain, split).images)
    assert (again.identity(), again.classes, again.splits) == (plain.identity(), plain.classes, plain.splits)
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert Listing.load(file, f"{tmp_path}/in") is None  # half of it is none
    file.write_bytes(whole)
    assert Listing.load(file, "of something else") is None


def test_a_glob_of_images_is_gone_through_once(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    make.write_folders(tmp_path / "in", 7, 5)
    pattern, file = f"{tmp_path}/in/train/**/*.png", Location.parse(tmp_path / "_files.arrow")
    first = opened(pattern, reading=replace(LENIENT, list_file=file))
    resumed = replace(LENIENT, list_file=file, reuse_listing=True)
    with monkeypatch.context() as patch:
        patch.setattr("mnist_ray.sources.listing.children", lambda folder: pytest.fail("listed again"))
        again = opened(pattern, reading=resumed)
    assert (again.identity(), again.classes) == (first.identity(), ("class-0", "class-1", "class-2"))
    assert read(again).ids.tolist() == read(first).ids.tolist()
    whole = file.read_bytes()
    assert opened(tmp_path / "in", reading=resumed).splits == {"train": 7, "test": 5}
    assert file.read_bytes() == whole  # a scoring goes by it
    opened(tmp_path / "in", reading=replace(resumed, reuse_listing=False))
    with pytest.raises(InputError, match=r"_files\.arrow now lists another input"):
        again.read("all", 0, 1)


def test_a_changed_file_is_another_input(tmp_path: Path) -> None:
    make.write_folders(tmp_path, 7, 5)
    first = opened(tmp_path).identity()
    assert opened(tmp_path).identity() == first
    os.utime(tmp_path / "test" / "class-0" / "000.png", ns=(1, 1))
    assert opened(tmp_path).identity() != first
