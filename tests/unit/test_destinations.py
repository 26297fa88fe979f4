"""What would be destroyed by writing to a folder is refused before anything is written, and stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mnist_ray.errors import InputError
from mnist_ray.steps.exclusive import check_destination
from mnist_ray.storage.location import Location
from tests.support.data_makers import write_npz

Call = Callable[..., tuple[int, str]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A user's own Parquet, named as shards are."""
    for split in ("train", "test"):
        (tmp_path / "mine" / split).mkdir(parents=True)
        for part in range(2):
            (tmp_path / "mine" / split / f"part-0000{part}.parquet").write_bytes(b"a user's own")
    return tmp_path / "mine"


@pytest.mark.parametrize(
    ("source", "destination", "said"),
    [
        ("{npz}", "{mine}", "holds files that mnist-ray did not write, such as test; choose another DEST"),
        ("{mine}", "{mine}", "and the input {mine} overlap; choose a folder apart from it"),
        ("{mine}", "{mine}/shards", "overlap"),
        ("{mine}/train", "{mine}", "overlap"),
    ],
)
def test_shard_spares_what_is_there(
    call: Call, shards: Path, tmp_path: Path, source: str, destination: str, said: str
) -> None:
    names = {"npz": write_npz(tmp_path / "data.npz"), "mine": shards}
    before = contents(tmp_path)
    code, line = call("shard", source.format(**names), destination.format(**names))
    assert code == 2
    assert said.format(**names) in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("marker", "said"),
    [("config.json", "is the folder of a run"), ("dataset.json", "holds shards"), ("_plan.json", "holds predictions")],
)
def test_a_folder_of_another_kind_is_refused(call: Call, tmp_path: Path, marker: str, said: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / marker).write_text("{}")
    data, before = write_npz(tmp_path / "data.npz"), contents(tmp_path / "there")
    for command in ("shard", "score"):
        if {"shard": "dataset.json", "score": "_plan.json"}[command] != marker:
            where = (
                [tmp_path / "there"] if command == "shard" else ["--model", "m.keras", "--output", tmp_path / "there"]
            )
            code, line = call(command, data, *where)
            assert code == 2
            assert f"there {said}; choose another {'DEST' if command == 'shard' else '--output'}" in line
            assert contents(tmp_path / "there") == before


def test_score_does_not_write_into_its_input(call: Call, tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"")
    for output in (tmp_path / "photos", tmp_path / "photos" / "scored", tmp_path):
        code, line = call("score", tmp_path / "photos", "--model", "m.keras", "--output", output)
        assert (code, "overlap" in line) == (2, True)
    assert [*contents(tmp_path)] == ["photos/cat/1.png"]


def test_what_only_begins_alike_does_not_overlap(tmp_path: Path) -> None:
    def check(output: str, *inputs: str) -> None:
        check_destination(Location.parse(tmp_path / output), "--output", inputs, marker="_plan.json", alone=False)

    (tmp_path / "photos").mkdir()
    for output in ("photos2", "photo", "scored"):
        check(output, str(tmp_path / "photos"), "embedded", "*.png")
    with pytest.raises(InputError):
        check("photos/x", f"file://{tmp_path}/photos")
