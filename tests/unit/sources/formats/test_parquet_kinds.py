"""Parquet as pandas, polars, DuckDB, Spark, Ray Data and the Hugging Face Hub write it: every type of column."""

from __future__ import annotations

import base64
import datetime
import json
import uuid
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import InputError
from mnist_ray.models.labels import match_labels
from mnist_ray.sources.base import Reading
from mnist_ray.sources.open import open_source
from tests.support import data_makers as make
from tests.support.data_makers import png
from tests.support.reading import assert_said, opened, read

IMAGES, LABELS = make.images(7), make.labels(7)
RAW = [image.tobytes() for image in IMAGES]
PNGS = [png(image) for image in IMAGES]
COLOURS = make.images(7, (4, 6, 3))


def write(file: Path, **columns: Any) -> Path:
    return make.write_parquet(file, **columns)


def in_dictionary(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind).dictionary_encode()


IMAGE_COLUMNS = {
    "dictionary": lambda: in_dictionary(RAW, pa.binary()),
    "binary view": lambda: pa.array(PNGS, pa.binary_view()),
    "fixed shape tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(IMAGES),
    "tensor with a channel": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(IMAGES[..., None]),
    "channel first": lambda: pa.array(IMAGES[:, None].tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
    "base64": lambda: pa.array([base64.b64encode(each).decode() for each in PNGS]),
    "data URI": lambda: pa.array(["data:image/png;base64," + base64.b64encode(each).decode() for each in PNGS]),
    "large lists": lambda: pa.array(IMAGES.reshape(7, 16).tolist(), pa.large_list(pa.uint8())),
    "struct in a dictionary": lambda: pa.StructArray.from_arrays([in_dictionary(PNGS, pa.binary())], ["bytes"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", IMAGE_COLUMNS)
def test_image_columns(kind: str, tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.parquet", image=IMAGE_COLUMNS[kind]()))
    assert source.image_shape == (4, 4)
    batch = read(source)
    np.testing.assert_array_equal(batch.images, IMAGES)
    assert batch.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_tensors_of_colours(nested: bool, channels_first: bool, tmp_path: Path) -> None:
    stored = np.ascontiguousarray(COLOURS.transpose(0, 3, 1, 2)) if channels_first else COLOURS
    kind = pa.list_(pa.list_(pa.list_(pa.uint8())))
    column = pa.array(stored.tolist(), kind) if nested else pa.FixedShapeTensorArray.from_numpy_ndarray(stored)
    source = opened(write(tmp_path / "a.parquet", image=column))
    assert source.image_shape == (4, 6, 3)
    np.testing.assert_array_equal(read(source).images, COLOURS)
    told = (f"{tmp_path}/a.parquet: the images' channels come first; they are read as (4, 6, 3)",)
    assert source.remarks == (told if channels_first else ())


def test_permuted_tensors_are_refused(tmp_path: Path) -> None:
    kind = pa.fixed_shape_tensor(pa.uint8(), (4, 4), permutation=(1, 0))
    storage = pa.FixedSizeListArray.from_arrays(pa.array(IMAGES.ravel()), 16)
    file = write(tmp_path / "a.parquet", image=pa.ExtensionArray.from_storage(kind, storage))
    assert_said(str(file), "`image` holds tensors whose axes are permuted; write them in the order of the axes")


def test_ray_datas_tensors(tmp_path: Path) -> None:
    """Their extension type is known only where Ray Data is imported; the field says what it is."""
    metadata = {b"ARROW:extension:name": b"ray.data.arrow_tensor_v2", b"ARROW:extension:metadata": b"[4, 6, 3]"}
    kind = pa.large_list(pa.uint8())
    schema = pa.schema([pa.field("image", kind, metadata=metadata), ("label", pa.int64())])
    table = pa.table([pa.array(COLOURS.reshape(7, -1).tolist(), kind), LABELS], schema=schema)
    pq.write_table(table, tmp_path / "a.parquet")
    np.testing.assert_array_equal(read(opened(tmp_path / "a.parquet")).images, COLOURS)


@pytest.mark.parametrize(
    ("column", "classes", "numbers"),
    [
        (pa.array([True, False, None, True]), "01", [1, 0, -1, 1]),
        (pa.nulls(4), "", [-1] * 4),
        (pa.array(["cow", "ant", None, "cow"]), ("ant", "cow"), [1, 0, -1, 1]),
        (pa.array(["cow", "", "ant", "cow"], pa.large_string()), ("ant", "cow"), [1, -1, 0, 1]),
        (pa.array(["cow", "ant", "ant", "cow"], pa.string_view()), ("ant", "cow"), [1, 0, 0, 1]),
        (in_dictionary(["cow", "ant", None, "cow"], pa.string()), ("ant", "cow"), [1, 0, -1, 1]),
        (in_dictionary([2, 0, None, 1], pa.int64()), "012", [2, 0, -1, 1]),
        (pa.array(["2", "00", "01", None]), "012", [2, 0, 1, -1]),
        (pa.array([2.0, 0.0, float("nan"), 1.0]), "012", None),
        (pa.array([2, 0, None, 1], pa.uint8()), "012", [2, 0, -1, 1]),
    ],
)
def test_label_columns(column: pa.Array, classes: Any, numbers: list[int] | None, tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.parquet", image=pa.array(RAW[:4]), label=column))
    batch = read(source)
    assert source.classes == tuple(classes)
    if numbers is None:  # not a number is no label
        assert ([bad.row for bad in batch.bad], batch.labels.tolist()) == ([2], [2, 0, 1])
    else:
        assert batch.labels.tolist() == numbers


KEY = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        (in_dictionary(["b", "a"], pa.string()), ["b", "a"]),
        (pa.array(["b", "a"], pa.string_view()), ["b", "a"]),
        (pa.array([b"\0\xff", b"a"]), ["00ff", "61"]),
        (pa.array([KEY.bytes] * 2, pa.binary(16)), [KEY.hex] * 2),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([KEY.bytes] * 2, pa.binary(16))), [KEY.hex] * 2),
        (pa.array([datetime.date(2024, 1, 31)] * 2), ["2024-01-31"] * 2),
        (pa.array([datetime.datetime(2024, 1, 31, 7)] * 2, pa.timestamp("s")), ["2024-01-31 07:00:00.000"] * 2),
        (pa.array([2, 1], pa.uint16()), [2, 1]),
    ],
)  # fmt: skip
def test_id_columns(column: pa.Array, ids: list[Any], tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.parquet", image=pa.array(RAW[:2]), label=None, id=column))
    assert read(source).ids.tolist() == ids
    assert source.id_kind == ("integer" if ids == [2, 1] else "text")


def test_files_whose_types_differ_only_in_size(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", label=pa.array(LABELS, pa.int32()), image=pa.array(RAW), id=pa.array("abcdefg"))
    large = pa.array(list("abcdefg"), pa.large_string())
    write(tmp_path / "b.parquet", label=pa.array(LABELS), image=pa.array(RAW, pa.large_binary()), id=large)
    write(tmp_path / "c.parquet", label=pa.nulls(7), image=in_dictionary(RAW, pa.binary()), id=large)
    batch = read(opened(tmp_path))
    np.testing.assert_array_equal(batch.images, np.concatenate([IMAGES] * 3))
    assert batch.labels.tolist() == [*LABELS, *LABELS, *[-1] * 7]
    write(tmp_path / "d.parquet", label=pa.array(["a"] * 7), image=pa.array(RAW), id=large)
    with pytest.raises(InputError, match=r"d\.parquet has .*label string.*, but .*a\.parquet .*; make them alike"):
        opened(tmp_path)


def test_what_pandas_polars_and_duckdb_write(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": PNGS, "label": pd.Categorical(LABELS.astype(str)), "id": list("abcdefg")})
    frame.set_index("id", drop=False).to_parquet(tmp_path / "pandas.parquet")
    pl.DataFrame({"image": PNGS, "label": LABELS, "id": list("abcdefg")}).with_columns(
        pl.col("id").cast(pl.Categorical)
    ).write_parquet(tmp_path / "polars.parquet")
    pl.DataFrame({"image": IMAGES, "label": LABELS, "id": list("abcdefg")}).write_parquet(tmp_path / "array.parquet")
    with duckdb.connect() as database:
        database.register("frame", frame)
        database.execute(f"COPY frame TO '{tmp_path}/duckdb.parquet' (FORMAT parquet)")
    for name in ("pandas", "polars", "array", "duckdb"):
        batch = read(opened(tmp_path / f"{name}.parquet"))
        np.testing.assert_array_equal(batch.images, IMAGES)
        assert (batch.labels.tolist(), batch.ids.tolist()) == (LABELS.tolist(), list("abcdefg"))


@pytest.mark.parametrize("name", ["a.pq", "A.PARQUET", "a.parq", "part-00000", "part-00000-tid-1_c000"])
def test_names_of_files(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    (tmp_path / "_SUCCESS").write_text("")
    source = opened(tmp_path)
    assert (source.splits, source.passed_over) == ({"all": 7}, {"no suffix": 1})
    assert opened(tmp_path / name).splits == {"all": 7}


def test_class_names_of_the_hub(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["zero", "one", "two"]}, "image": {"_type": "Image"}}
    table = pq.read_table(write(tmp_path / "a.parquet", image=pa.array(PNGS)))
    named = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "hub").mkdir()
    for split, rows in (("train", 7), ("test", 2)):
        pq.write_table(named.slice(0, rows), tmp_path / "hub" / f"{split}.parquet")
    source = open_source(str(tmp_path / "hub"))
    assert (source.classes, source.numbered) == (("zero", "one", "two"), True)
    assert source.absent == {"train": (), "test": ("two",)}
    assert read(source, "test").labels.tolist() == [0, 1]
    for model, expected in (
        (None, [0, 1, 2]), (("0", "1", "2"), [0, 1, 2]), (("one", "two", "zero"), [2, 0, 1]),
    ):  # fmt: skip
        found = match_labels(source.classes, source.labels, model, 3, numbered=source.numbered)
        assert found.table.tolist() == expected
    with pytest.raises(InputError, match=r"the input's classes \(zero, one, two\) are not the model's"):
        match_labels(source.classes, source.labels, ("cat", "cow", "dog"), 3, numbered=True)
    for wrong in (["zero", "one"], ["zero", "zero", "one"], ["zero", 1, "two"], "zero one", None):
        damaged = {"info": {"features": {"label": {"names": wrong}}}}
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(damaged)}), tmp_path / "a.parquet")
        assert opened(tmp_path / "a.parquet").classes == ("0", "1", "2")


def test_other_names_of_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", image=None, label=None, img=pa.array(PNGS), fine_label=pa.array(LABELS))
    assert_said(
        str(file), r"a\.parquet has no column `image`, only img, fine_label; name the images' by --image-column$"
    )
    source = opened(file, reading=Reading(image_column="img", label_column="fine_label"))
    assert read(source).labels.tolist() == LABELS.tolist()
    assert source.fingerprint() != opened(file, reading=Reading(image_column="img")).fingerprint()
