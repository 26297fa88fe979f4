"""What users can get wrong: one line, the right exit code, nothing half-written. All of it ends before a Ray starts."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import data_makers as make

IMAGES = "train-images-idx3-ubyte.gz"


# Data. Each maker is given a folder, and gives what `--data` is then told.


def idx_with(file: str, damage: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        whole = make.write_idx(folder / "idx") / file
        whole.write_bytes(damage(whole.read_bytes()))
        return whole.parent

    return made


def file_of(content: bytes, name: str = "file") -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return made


def cut_parquet(folder: Path) -> Path:
    file = make.write_parquet(folder / "cut.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    return file


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


DATA = {
    "missing": (lambda folder: folder / "nowhere", "nowhere does not exist; accepted are embedded (MNIST itself), "),
    "misspelt": (lambda folder: "embeded", "embeded does not exist; accepted are embedded (MNIST itself), "),
    "empty name": (lambda folder: "", "an empty path"),
    "unknown Keras dataset": (lambda folder: "keras:imagenet", "there are keras:mnist, keras:fashion_mnist"),
    "a web address": (lambda folder: "http://127.0.0.1/mnist", "http://127.0.0.1/mnist is a web address; download it"),
    "a scheme of nobody": (lambda folder: "wat://127.0.0.1/mnist", "cannot open 'wat://127.0.0.1/mnist'"),
    "too long a name": (lambda folder: folder / ("x" * 300), "File name too long"),
    "not UTF-8": (lambda folder: "a\udcff", "is not UTF-8; rename it"),
    "below a file": (lambda folder: file_of(b"x")(folder) / "deeper", "does not exist"),
    "a device": (lambda folder: "/dev/null", "/dev/null "),
    "an empty file": (file_of(b""), "is empty"),
    "an empty folder": (empty_folder, "holds no images that mnist-ray can read"),
    "some other file": (file_of(b"%PDF-1.7 ..."), "is not a file that mnist-ray reads"),
    "a table": (file_of(b"path,label\n0.png,7\n", "list.CSV"), "list.CSV: it is no table of pixels"),
    "HDF5": (file_of(b"\x89HDF\r\n\x1a\n", "x.h5"), "x.h5: HDF5 is not read; save its arrays with numpy.savez"),
    "truncated gzip": (idx_with(IMAGES, lambda data: data[:-9]), f"{IMAGES} is truncated or damaged"),
    "a cut Parquet file": (cut_parquet, "cut.parquet is not a Parquet file or is damaged"),
    "Parquet without splits": (lambda folder: make.write_parquet(folder / "all.parquet"), "has no train and no test"),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_read(case: str, call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    maker, message = DATA[case]
    code, line = call("run", "--data", maker(tmp_path), "--storage", tmp_path / "storage")  # type: ignore[no-untyped-call]
    assert code == 2, line
    assert message in line
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda whole: gzip.compress(whole[:-1] + bytes([whole[-1] ^ 1]), 1), "is damaged: its MD5 is not "),
        (lambda whole: gzip.compress(whole, 1)[:-3], "is truncated or damaged"),
        (lambda whole: b"", "is empty"),
        (lambda whole: None, "is missing"),
    ],
)
def test_a_damaged_package(
    content: Callable[[bytes], bytes | None], told: str, call: Callable[..., tuple[int, str]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The embedded files are compared with their checksums: a package whose training images are one pixel off."""
    package = Path(str(resources.files("mnist_ray")))
    (tmp_path / "package" / "data").mkdir(parents=True)
    for file in (package / "data").glob("*.gz"):
        (tmp_path / "package" / "data" / file.name).symlink_to(file)
    broken = tmp_path / "package" / "data" / IMAGES
    changed = content(gzip.decompress(broken.read_bytes()))
    broken.unlink()
    if changed is not None:
        broken.write_bytes(changed)
    monkeypatch.setattr(
        "mnist_ray.sources.formats.idx.resources", SimpleNamespace(files=lambda package: tmp_path / "package")
    )
    code, line = call("run", "--storage", tmp_path / "storage")
    assert code == 2, line
    assert f"{broken} {told}" in line
    assert "install mnist-ray again" in line or told in ("is empty", "is truncated or damaged")
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-workers", "4096"], "4096 train workers x 1 CPU = 4096 CPUs are needed, but this machine has "),
        (["--num-workers", "4096"], "; use --num-workers "),
        (["--cpus-per-worker", "4096"], "2 train workers x 4096 CPU = 8192 CPUs are needed, but this machine has "),
        (["--num-workers", "3", "--num-shards", "2", "--cpus-per-worker", "0.1"],
         "3 train workers need at least as many shards, but there are 2; use fewer --num-workers or more --num-shards"),
        (["--num-workers", "1:3", "--num-shards", "2"], "3 train workers need at least as many shards"),
    ],
)  # fmt: skip
def test_workers_that_do_not_fit_are_refused_before_anything_is_made(
    options: list[str], message: str, call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, line = call("run", "--data", make.write_idx(tmp_path / "idx"), "--storage", tmp_path / "storage", *options)
    assert code == 2
    assert message in line
    assert not (tmp_path / "storage").exists()


# Places.


@pytest.mark.parametrize("place", ["file", "file/deeper", "/proc/mnist-ray", "/proc/self/fd", "x" * 300])
def test_a_storage_that_cannot_be(place: str, call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    code, line = call("run", "--data", make.write_idx(tmp_path / "idx"), "--storage", tmp_path / place)
    assert code == 2
    assert str(tmp_path / place) in line
    assert line.endswith("(see docs/storage.md)")
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "idx"]


def test_a_name_that_is_somebody_elses_folder(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "thesis.tex").write_text("three years")
    for options in ([], ["--fresh"]):
        code, line = call("run", "--data", make.write_idx(tmp_path / "idx"), "--storage", tmp_path, *options)
        assert code == 2
        assert "so it is not a run's folder; use another --name (see docs/runs.md)" in line
    assert [each.name for each in (tmp_path / "mnist").iterdir()] == ["thesis.tex"]


def test_other_commands_given_what_is_not_theirs(call: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    make.write_idx(tmp_path / "idx")
    for command in (
        ("status", tmp_path / "none"),
        ("status", tmp_path),
        ("report", tmp_path / "none"),
        ("report", tmp_path),
        ("report", tmp_path, tmp_path / "none"),
        ("verify", tmp_path / "none"),
        ("verify", tmp_path),
        ("train", tmp_path, "--storage", tmp_path / "made"),
        ("score", tmp_path / "idx", "--model", tmp_path / "none", "--output", tmp_path / "made"),
        ("score", tmp_path / "none", "--model", tmp_path, "--output", tmp_path / "made"),
        ("shard", tmp_path / "none", tmp_path / "made"),
    ):
        code, line = call(*command)
        assert code == 2, (command, line)
        assert str(tmp_path) in line
        assert [each.name for each in tmp_path.iterdir()] == ["idx"], command
