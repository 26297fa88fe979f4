"""Shards on disk: the manifest, plain Parquet, and damage of either."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mnist_ray import sharding
from mnist_ray.errors import InputError
from mnist_ray.sources.base import Reading, Source
from mnist_ray.sources.formats.shards import Manifest, ShardedSource, read_shard
from mnist_ray.sources.open import open_source
from mnist_ray.storage.attempt import Attempt
from mnist_ray.storage.location import Location
from tests.support import data_makers as make


def written(tmp_path: Path, rows: int = 7, source: Source | None = None) -> tuple[Location, Manifest]:
    """One shard a split, without Ray."""
    folder = Location.parse(tmp_path / "shards")
    source = source or open_source(str(make.write_npz(tmp_path / "f.npz", rows, 5)))
    parts = [sharding._Range(f"{split}/part-00000.parquet", split, 0, n) for split, n in source.splits.items()]
    with Attempt.begun(folder) as attempt:
        train, test = sharding._write(source, attempt, parts, False, "run")
    manifest = Manifest("f", (4, 4), source.classes, source.digest(), {"train": (train,), "test": (test,)})
    (folder / "dataset.json").write_json(manifest.to_json())
    return folder, manifest


def test_the_manifest_file_has_the_promised_keys(tmp_path: Path) -> None:
    folder, manifest = written(tmp_path)
    value = json.loads((tmp_path / "shards" / "dataset.json").read_text())
    assert sorted(value) == ["absent", "classes", "counts", "digest", "image_shape", "name", "preparation", "shards"]
    assert value["counts"] == {"train": 7, "test": 5}
    file = tmp_path / "shards" / "train" / "part-00000.parquet"
    assert value["shards"]["train"] == [
        {"path": "train/part-00000.parquet", "rows": 7, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    ]
    assert Manifest.load(folder) == manifest


def test_shards_are_plain_parquet(tmp_path: Path) -> None:
    written(tmp_path)
    table = pq.read_table(tmp_path / "shards" / "train" / "part-00000.parquet")
    assert [f"{field.name} {field.type}" for field in table.schema] == [
        "id int64", "image fixed_size_binary[16]", "label int64",
    ]  # fmt: skip
    assert table.schema.metadata[b"image_shape"] == b"[4, 4]"
    assert open_source(str(tmp_path / "shards")).digest()  # without its manifest too


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_shard_is_named(damage: str, tmp_path: Path) -> None:
    folder, manifest = written(tmp_path)
    file = tmp_path / "shards" / "train" / "part-00000.parquet"
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(whole[:-1] if damage == "truncated" else whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    with pytest.raises(
        InputError, match=r"train/part-00000\.parquet is (damaged|missing).*dataset\.json and start again"
    ):
        read_shard(folder, manifest.shards["train"][0], (4, 4))
    with pytest.raises(InputError, match=r"train/part-00000\.parquet"):  # and by the page's checksum
        ShardedSource.open(folder).read("train", 0, 7)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"sha256"', '"sha1"'),
        lambda text: text.replace('"rows": 7', '"rows": 6'),
        lambda text: text.replace('"digest"', '"digits"'),
        lambda text: "[]",
    ],
)
def test_a_damaged_manifest_is_named(change: Any, tmp_path: Path) -> None:
    folder, _ = written(tmp_path)
    file = tmp_path / "shards" / "dataset.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(InputError, match=r"dataset\.json is (damaged|not JSON)") as raised:
        Manifest.load(folder)
    assert "\n" not in str(raised.value)


def test_shards_are_a_format_like_others(tmp_path: Path) -> None:
    """So that `run --data SHARDS` keeps the names of the classes, which the Parquet files do not have."""
    written(tmp_path, source=open_source(str(make.write_folders(tmp_path / "in"))))
    source = open_source(str(tmp_path / "shards"))
    assert isinstance(source, ShardedSource)
    assert source.classes == ("class-0", "class-1", "class-2")
    source.require_training()
    for reading, words in (
        (Reading(id_column="x"), "have their ids in `id`"),
        (Reading(image_field="png"), "and .*shards is not one"),
    ):
        with pytest.raises(InputError, match=words):
            open_source(str(tmp_path / "shards"), reading)
