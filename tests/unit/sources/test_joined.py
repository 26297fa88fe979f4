"""Several inputs as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from PIL import Image

from mnist_ray.errors import InputError
from mnist_ray.sources.joined import JoinedSource
from tests.support import data_makers as make
from tests.support.reading import opened, read

# Many inputs.


def test_inputs_follow_each_other_as_one(tmp_path: Path) -> None:
    first = make.write_npz(tmp_path / "a.npz", 7, 5)
    second = make.write_parquet(tmp_path / "b.parquet", 4, label=pa.array([0, 5, None, 1]))
    third = make.write_parquet(tmp_path / "c" / "d.parquet", 3, label=None)
    source = opened(first, second, third.parent)
    assert isinstance(source, JoinedSource)
    assert (source.splits, source.classes, source.image_shape) == ({"all": 12}, tuple("012345"), (4, 4))
    assert source.units("all") == [(0, 5), (5, 9), (9, 12)]
    batch = read(source)
    assert batch.ids.tolist() == list(range(12))
    assert batch.labels.tolist() == [0, 1, 2, 0, 1, 0, 5, -1, 1, -1, -1, -1]
    np.testing.assert_array_equal(batch.images, np.concatenate([make.images(n) for n in (5, 4, 3)]))
    assert batch.sources == [str(first)] * 5 + [str(second)] * 4 + [str(third.parent)] * 3
    assert (
        source.identity() == opened(first, second, third.parent).identity() != opened(second, first, third).identity()
    )


def test_classes_of_inputs_are_matched_by_name(tmp_path: Path) -> None:
    for place, names in (("one", "bd"), ("two", "ab")):
        for name in names:
            (tmp_path / place / name).mkdir(parents=True)
            Image.fromarray(make.images(1)[0]).save(tmp_path / place / name / "x.png")
    source = opened(tmp_path / "one", tmp_path / "two")
    assert source.classes == ("a", "b", "d")
    assert read(source).labels.tolist() == [1, 2, 0, 1]


def test_inputs_that_do_not_go_together(tmp_path: Path) -> None:
    first, other = (
        make.write_parquet(tmp_path / "a.parquet"),
        make.write_npz(tmp_path / "b.npz", x_test=make.images(5, (3, 4)), x_train=make.images(7, (3, 4))),
    )
    with pytest.raises(InputError, match=r"a\.parquet has images of \(4, 4\), but .*b\.npz of \(3, 4\)"):
        opened(first, other)
    make.write_folders(tmp_path / "c")
    with pytest.raises(
        InputError, match=r"ids of .*a\.parquet are row numbers, but those of .*/c text; score them separately"
    ):
        opened(first, tmp_path / "c")
