"""IDX files, gzipped or not, and the embedded MNIST."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.sources.formats import idx
from mnist_ray.sources.open import open_source
from tests.support import data_makers as make
from tests.support.reading import assert_said, read_all


def test_embedded_mnist_is_the_original() -> None:
    source = open_source("embedded")
    assert dict(source.splits) == {"train": 60_000, "test": 10_000}
    assert (source.image_shape, source.classes) == ((28, 28), tuple("0123456789"))
    batch = read_all(source, "test")
    original = gzip.decompress((resources.files("mnist_ray") / "data" / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert batch.images.tobytes() == original[16:]
    assert batch.labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    assert batch.ids.tolist() == list(range(10_000))


# --- IDX


def _replaced(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("train-images-idx3-ubyte", lambda data: b"", "train-images-idx3-ubyte is empty"),
        ("train-images-idx3-ubyte", lambda data: data[:-1], "truncated: its header promises 112 bytes.*and 111 follow"),
        ("train-images-idx3-ubyte", lambda data: data[:9], "truncated within its header"),
        ("train-images-idx3-ubyte", lambda data: data + b"x", "too long"),
        ("t10k-labels-idx1-ubyte", lambda data: b"\0\0\x0d\x01" + data[4:], "begins with 00000d01, not 00000801"),
        ("t10k-labels-idx1-ubyte", lambda data: make.idx_bytes(make.labels(4)), "5 test images but 4 labels"),
        ("t10k-images-idx3-ubyte", lambda data: make.idx_bytes(make.images(5, (4, 5))), "one size"),
        ("t10k-images-idx3-ubyte", lambda data: gzip.compress(data)[:-5], "truncated or damaged"),
        ("t10k-images-idx3-ubyte", lambda data: gzip.compress(data)[:-8] + b"12345678", "truncated or damaged"),
        (
            "train-images-idx3-ubyte",
            lambda data: gzip.compress(data)[:-8] + bytes(4) + gzip.compress(data)[-4:],
            "CRC check failed",
        ),
        ("train-images-idx3-ubyte", lambda data: b"hello", "begins with 68656c6c, not 00000803"),
    ],
)
def test_damaged_idx(name: str, change: Callable[[bytes], bytes], said: str, tmp_path: Path) -> None:
    make.write_idx(tmp_path, gz=False)
    _replaced(tmp_path / name, change)
    assert_said(str(tmp_path), said)


def test_idx_with_a_file_missing_or_no_rows(tmp_path: Path) -> None:
    assert_said(str(make.write_idx(tmp_path / "empty", 0, 0)), "holds no train images")
    (make.write_idx(tmp_path / "less") / "t10k-images-idx3-ubyte.gz").unlink()
    assert_said(str(tmp_path / "less"), r"t10k-images-idx3-ubyte\[\.gz\] is missing beside its labels")


@pytest.mark.parametrize("spelling", ["{}", "{}.gz", "kaggle", "kaggle.gz"])
def test_idx_files_of_one_split_with_and_without_labels(spelling: str, tmp_path: Path) -> None:
    for content, array in (("images", make.images(5)), ("labels", make.labels(5))):
        name = make.IDX["test", content]
        name = spelling.format(name) if "{" in spelling else spelling.replace("kaggle", name.replace("-idx", ".idx"))
        data = make.idx_bytes(array)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    (tmp_path / "notes.txt").write_text("not read")
    source = open_source(str(tmp_path))
    assert (dict(source.splits), source.classes) == ({"test": 5}, ("0", "1", "2"))
    assert source.passed_over == {".txt": 1}
    batch = source.read("test", 0, 5)
    assert batch.labels.tolist() == make.labels(5).tolist()
    np.testing.assert_array_equal(batch.images, make.images(5))
    alone = open_source(str(next(tmp_path.glob("*images*"))))
    assert alone.read("all", 0, 5).labels.tolist() == make.labels(5).tolist()
    (tmp_path / name).unlink()
    assert open_source(str(next(tmp_path.glob("*images*")))).read("all", 0, 5).labels.tolist() == [-1] * 5
    unlabelled = open_source(str(tmp_path))
    assert (unlabelled.classes, unlabelled.read("test", 0, 5).labels.tolist()) == ((), [-1] * 5)


def test_checksums_in_the_readme_are_those_that_are_checked() -> None:
    readme = (resources.files("mnist_ray") / "data" / "README.md").read_text()
    assert "CC BY-SA 3.0" in readme
    for name, md5 in idx._MNIST_MD5.items():
        data = gzip.decompress((resources.files("mnist_ray") / "data" / f"{name}.gz").read_bytes())
        assert hashlib.md5(data).hexdigest() == md5
        assert f"| `{name}.gz` | {md5} |" in readme
