"""Each format, scored by the command line from S3 into S3, gives what it gives from a disk."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import fs

from mnist_ray.sources.open import FORMATS
from mnist_ray.storage.location import Location
from tests.support import data_makers as make
from tests.support.command import one_after_the_other
from tests.support.drilling import Drill
from tests.support.model_maker import make_model
from tests.support.s3_server import ROOT, put, s3_server, settings
from tests.support.tfrecord_maker import write_tfrecord

pytestmark = [pytest.mark.drill, pytest.mark.timeout(400)]

IMAGES, LABELS = make.images(9), make.labels(9)


def write_inputs(folder: Path) -> dict[str, str]:
    """The spec of each input in a folder, by its format and a word of how it differs."""
    pngs = [make.png(image) for image in IMAGES]
    by_class = {f"{label}/{row}.png": data for row, (label, data) in enumerate(zip(LABELS, pngs, strict=True))}
    examples: list[dict[str, bytes | int]] = [
        {"image": data, "label": int(label)} for data, label in zip(pngs, LABELS, strict=True)
    ]
    make.write_folders(folder / "images")
    make.write_idx(folder / "idx")
    make.write_npz(folder / "a.npz")
    np.save(folder / "a.npy", IMAGES)
    make.write_parquet(folder / "parquet" / "0.parquet", 9)
    make.write_parquet(folder / "parquet" / "1.parquet", 4)
    make.write_parquet(folder / "hive" / "label=2" / "part-00000", 4, label=None)
    pq.write_table(pa.table({"image": pngs, "label": LABELS}), folder / "encoded.parquet")
    make.write_tar(folder / "a.tar", make.webdataset(9))
    make.write_zip(folder / "a.zip", {f"data/{name}": data for name, data in by_class.items()})
    packed = write_tfrecord(folder / "tfrecord" / "a.tfrecord", examples)
    (folder / "a.tfrecord.gz").write_bytes(gzip.compress(packed.read_bytes()))
    np.savetxt(folder / "a.csv.gz", np.column_stack([LABELS, IMAGES.reshape(9, 16)]), "%d", delimiter=",")
    (folder / "list.csv").write_text(
        "path,label\n" + "".join(f"images/train/class-0/{row:03d}.png,1\n" for row in (0, 3))
    )
    (folder / "list.txt").write_text("images/train/class-0/000.png\n# more\nimages/test/class-1/*.png\n")
    Image.fromarray(IMAGES[0]).save(folder / "one.webp", lossless=True)
    return {
        "images": "images", "images: a glob": "images/test/**/*.png", "images: one": "one.webp",
        "images: a list": "list.txt", "images: a table": "list.csv", "idx": "idx", "npz": "a.npz", "npy": "a.npy",
        "parquet": "parquet", "parquet: encoded": "encoded.parquet", "parquet: partitions": "hive",
        "parquet: a glob": "parquet/*.parquet", "tar": "a.tar", "zip": "a.zip", "tfrecord": "tfrecord",
        "tfrecord: compressed": "a.tfrecord.gz", "csv": "a.csv.gz", "shards": "shards",
    }  # fmt: skip


def rows(output: str) -> pa.Table:
    place = Location.parse(output)
    files = [info.path for info in place.filesystem.get_file_info(fs.FileSelector(place.path))]
    parts = [pq.read_table(file, filesystem=place.filesystem) for file in sorted(files) if file.endswith(".parquet")]
    return pa.concat_tables(parts).drop_columns([name for name in parts[0].column_names if name == "source"])


def test_each_format_is_scored_from_s3_as_from_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = write_inputs(tmp_path / "in")
    assert {name.partition(":")[0] for name in specs} == {*FORMATS} - {"embedded", "keras"}
    model = make_model(4, 3, tmp_path / "model")
    drill = Drill(tmp_path)
    with s3_server() as port:
        for name, value in settings(port).items():
            monkeypatch.setenv(name, value)
        put(tmp_path / "in", "in")
        put(model, "model")
        try:
            cluster = drill.cluster()
            env = cluster.env | cluster.joined
            commands: list[tuple[str | Path, ...]] = []
            for place in (str(tmp_path), ROOT):
                commands.append(("shard", f"{place}/in/images", f"{place}/in/shards", "--num-shards", "2"))
                commands += [
                    ("score", f"{place}/in/{spec}", "--model", f"{place}/model", "--output", f"{place}/out/{number}",
                     "--labels", "column" if name in ("images: a table",) else "auto", "--num-actors", "1")
                    for number, (name, spec) in enumerate(specs.items())
                ]  # fmt: skip
            commands += [("verify", f"{ROOT}/out/{number}") for number in range(len(specs))]
            done = one_after_the_other(*commands, env=env, timeout=390)
        finally:
            drill.remove()
        failed = [(command, code, err) for command, (code, _, err) in zip(commands, done, strict=True) if code]
        assert not failed
        for number, name in enumerate(specs):
            here, there = rows(f"{tmp_path}/out/{number}"), rows(f"{ROOT}/out/{number}")
            if name == "images: one":  # its id is its path from the root, or in the bucket
                assert there["id"].to_pylist() == ["in/one.webp"]
                here, there = here.drop_columns("id"), there.drop_columns("id")
            assert here.num_rows > 0, name
            assert there.equals(here), name
