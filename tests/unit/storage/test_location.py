"""Locations: atomic writes, listing, URIs, and what is said when a filesystem refuses."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from mnist_ray.errors import InputError, RetryableError, SetupError
from mnist_ray.storage.location import Location, io_errors, sha256


def mock(*files: str) -> Location:
    """A filesystem that is not local, in memory."""
    filesystem = fs._MockFileSystem()
    for file in files:
        filesystem.create_dir(file.rsplit("/", 1)[0], recursive=True)
        filesystem.open_output_stream(file).close()
    return Location(filesystem, "bucket", "mock://")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Location:
    """A folder behind a filesystem that is not pyarrow's local one."""
    return Location(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "", "sub://")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = Location.parse(tmp_path) / "a" / "b.bin"
    file.write_bytes(b"\0\xff" * 5)
    assert (file.read_bytes(), file.size(), file.is_file(), file.is_dir()) == (b"\0\xff" * 5, 10, True, False)
    file.write_bytes(memoryview(b"other"))
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"other"
    (file.parent / "c.json").write_json({"x": [1, None, "é"]})
    assert (file.parent / "c.json").read_json() == {"x": [1, None, "é"]}
    assert [child.name for child in file.parent.list()] == ["b.bin", "c.json"]
    with file.open_file() as opened:
        opened.seek(2)
        assert opened.read() == b"her"
    file.parent.delete()
    file.parent.delete()  # nothing there: nothing happens
    assert not file.parent.exists()
    assert file.parent.list() == []
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class Contested(fs.LocalFileSystem):
    """Another process is always a moment quicker with a file, and with one file of a folder."""

    def delete_file(self, path: str) -> None:
        Path(path).unlink()
        super().delete_file(path)

    def delete_dir(self, path: str) -> None:
        for file in sorted(Path(path).iterdir())[:1]:
            file.unlink()
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(file))
        super().delete_dir(path)


def test_what_vanishes_while_it_is_removed_is_gone(tmp_path: Path) -> None:
    files = [tmp_path / "a" / name for name in (".x.0123abcd.tmp", "b", "c")]
    files[0].parent.mkdir()
    for file in files:
        file.write_text("x")
    folder = Location(Contested(), str(tmp_path / "a"))
    folder.sweep()
    assert sorted((tmp_path / "a").iterdir()) == files[1:]
    folder.delete()
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_emptied_is_not_tried_for_ever(tmp_path: Path) -> None:
    class Refilled(fs.LocalFileSystem):
        def delete_dir(self, path: str) -> None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", f"{path}/x")

    with pytest.raises(SetupError, match=f"cannot remove {tmp_path}"):
        Location(Refilled(), str(tmp_path)).delete()


def test_a_temporary_file_that_is_swept_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may work the next time: no reason to end a job for good."""

    def swept(descriptor: int) -> None:
        for file in tmp_path.glob(".x.*.tmp"):
            file.unlink()

    monkeypatch.setattr("mnist_ray.storage.location.os.fsync", swept)
    with pytest.raises(RetryableError, match=f"cannot write {tmp_path}/x: another process removed"):
        (Location.parse(tmp_path) / "x").write_bytes(b"1")


def test_a_name_that_looks_compressed_is_not_decompressed(tmp_path: Path) -> None:
    file = Location.parse(tmp_path) / "raw.gz"
    file.write_bytes(b"plain")
    assert file.read_bytes() == b"plain"


def test_file_uris_are_local_paths(tmp_path: Path) -> None:
    location = Location.parse(f"file://{tmp_path}") / "x"
    location.write_bytes(b"1")
    assert (str(location), location.is_local) == (f"{tmp_path}/x", True)
    assert location == Location.parse(tmp_path / "x")


def test_paths_are_absolute_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    relative = Location.parse("a/b")
    monkeypatch.chdir("/")
    assert str(relative) == f"{tmp_path}/a/b"
    assert str(Location.parse("~/x")) == "/home/somebody/x"
    assert (relative.name, str(relative.parent), str(Location.parse("/").parent)) == ("b", f"{tmp_path}/a", "/")
    assert pickle.loads(pickle.dumps(relative)) == relative


def test_other_filesystems_keep_their_scheme() -> None:
    root = mock("bucket/run/one", "bucket/run/.two")
    assert [str(child) for child in (root / "run").list()] == ["mock://bucket/run/.two", "mock://bucket/run/one"]
    (root / "run" / "new.json").write_json(1)
    assert (root / "run" / "new.json").read_json() == 1
    assert not root.is_local
    (root / "run").delete()
    assert (root / "run").list() == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "an empty path"),
        ("nope://x", "cannot open 'nope://x'"),
        ("file://relative/x", "cannot open 'file://relative/x'"),
        ("a\0b", r"the path 'a\\x00b' is not UTF-8"),
        ("a\udcff", r"the path 'a\\udcff' is not UTF-8"),
        ("~nobody-of-this-name/x", "cannot expand '~nobody-of-this-name/x'"),
    ],
)
def test_what_can_be_no_location(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Location.parse(uri)


def test_a_missing_file_is_the_readers_business(tmp_path: Path, elsewhere: Location) -> None:
    for root in (Location.parse(tmp_path), elsewhere, mock()):
        with pytest.raises(FileNotFoundError):
            (root / "none.json").read_json()


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x\.json is not JSON .*; it was not written by mnist-ray"):
        Location.parse(tmp_path / "x.json").read_json()
    with pytest.raises(ValueError, match="not JSON compliant"):
        Location.parse(tmp_path / "y.json").write_json(float("nan"))
    assert not (tmp_path / "y.json").exists()


def test_below_a_file_there_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper", Path("/proc/none"), tmp_path / ("x" * 300)):
        with pytest.raises(SetupError, match=f"cannot .* {place}.*choose another --storage") as caught:
            Location.parse(place).check_writable()
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "x"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file"]


def test_a_full_disk_may_have_room_later_and_keeps_what_it_has(small_disk: Path) -> None:
    file = Location.parse(small_disk / "x")
    file.write_bytes(b"old")
    with pytest.raises(RetryableError, match=f"no space left to write {file}; make room or choose another --storage"):
        file.write_bytes(bytes(2 << 20))
    assert [(each.name, each.read_bytes()) for each in small_disk.iterdir()] == [("x", b"old")]


def test_a_read_only_disk_is_wrong_input(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(SetupError, match="Read-only file system"):
        Location.parse(small_disk).check_writable()


@pytest.mark.parametrize("code", [errno.EIO, errno.ETIMEDOUT, errno.ESTALE])
def test_other_troubles_may_pass(tmp_path: Path, code: int) -> None:
    with (
        pytest.raises(RetryableError, match=f"cannot write {tmp_path}: "),
        io_errors(Location.parse(tmp_path), "write"),
    ):
        raise OSError(code, os.strerror(code))


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    file, ended = Location.parse(tmp_path / "x"), threading.Event()
    contents = {bytes([letter]) * 500_000 for letter in b"abcdef"}
    file.write_bytes(next(iter(contents)))

    def write() -> None:
        while not ended.is_set():
            for content in contents:
                file.write_bytes(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {file.read_bytes() for _ in range(300)}
    finally:
        ended.set()
        writer.join()
    assert seen <= contents
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    """Whenever it strikes; only temporary names, which start with a dot, may be left."""
    code = (
        "import sys; from mnist_ray.storage.location import Location\n"
        "file = Location.parse(sys.argv[1])\n"
        "print(flush=True)\n"
        "while True: file.write_bytes(b'x' * 3_000_000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x")], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(0.2)
    writer.kill()
    writer.wait()
    assert (tmp_path / "x").read_bytes() == b"x" * 3_000_000
    assert all(each.name.startswith(".") for each in tmp_path.iterdir() if each.name != "x")
