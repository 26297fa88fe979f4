"""Damaged inputs by number, read one after the other in this process, with little memory: `python -m tests.fuzz.cases`.

It prints a line of JSON for each: what came of it, and how long it took. `test_inputs.py` judges.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import resource
import shutil
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mnist_ray.errors import UserError
from mnist_ray.models import vetting
from mnist_ray.predictions.verify import verify
from mnist_ray.sources import decoding
from mnist_ray.sources.base import Reading
from mnist_ray.sources.specs import open_inputs
from mnist_ray.storage.location import Location
from tests.support.data_makers import IDX, images, labels, write_folders, write_idx, write_npz, write_parquet
from tests.support.output_maker import make_output
from tests.support.tfrecord_maker import write_tfrecord

ROOM = 1 << 30  # bytes of address space beyond what the imports take
HUGE = struct.pack(">I", 1 << 31), struct.pack("<I", 1 << 31), struct.pack("<Q", 1 << 31), b"\xff" * 8
BOMB = 64 << 20


def encoded(folder: Path) -> list[bytes]:
    files = sorted(write_folders(folder, train=5, test=1).rglob("*.png"))
    made = [file.read_bytes() for file in files[:5]]
    shutil.rmtree(folder)
    return made


def idx(folder: Path) -> str:
    return str(write_idx(folder / "idx", gz=False))


def idx_gz(folder: Path) -> str:
    return str(write_idx(folder / "idx"))


def npz(folder: Path) -> str:
    return str(write_npz(folder / "a.npz"))


def npy(folder: Path) -> str:
    np.save(folder / "a.npy", images(9))
    return str(folder / "a.npy")


def parquet_raw(folder: Path) -> str:
    return str(write_parquet(folder / "a.parquet", rows=9))


def parquet_binary(folder: Path) -> str:
    raw = pa.array([image.tobytes() for image in images(9)], pa.binary())
    return str(write_parquet(folder / "a.parquet", rows=9, image=raw))


def parquet_lists(folder: Path) -> str:
    return str(write_parquet(folder / "a.parquet", rows=9, image=pa.array(images(9).tolist())))


def parquet_encoded(folder: Path) -> str:
    pngs = pa.array([{"bytes": each, "path": None} for each in encoded(folder / "pngs")])
    return str(write_parquet(folder / "a.parquet", rows=5, image=pngs))


def parquet_shards(folder: Path) -> str:
    for number in range(3):
        write_parquet(folder / "many" / f"{number}.parquet", rows=4 + number)
    return str(folder / "many")


def folders(folder: Path) -> str:
    return str(write_folders(folder / "images", train=1, test=6))


def loose(folder: Path) -> str:
    """An image in each of the encodings that are read."""
    (folder / "loose").mkdir()
    for number, kind in enumerate(decoding.FORMATS):
        Image.fromarray(images(len(decoding.FORMATS))[number]).save(folder / "loose" / f"{number}.png", kind)
    return str(folder / "loose")


def tar(folder: Path) -> str:
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number, data in enumerate(encoded(folder / "pngs")):
            for name, content in ((f"{number:03d}.png", data), (f"{number:03d}.cls", b"1")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return str(folder / "a.tar")


def zipped(folder: Path) -> str:
    """Half of it compressed, in folders for training and testing."""
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for number, data in enumerate(encoded(folder / "pngs")):
            method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2]
            archive.writestr(f"mnist/{('train', 'test')[number < 4]}/{number}/a.png", data, method)
    return str(folder / "a.zip")


def listed(folder: Path) -> str:
    found = sorted(write_folders(folder / "images", train=1, test=6).rglob("*.png"))
    # Relative, so that a damaged line is no walk through this machine.
    (folder / "a.txt").write_text("\n".join(str(file.relative_to(folder)) for file in found) + "\n")
    return str(folder / "a.txt")


def pixel_table(folder: Path) -> str:
    rows = np.column_stack([labels(9), images(9).reshape(9, 16)])
    header = ",".join(["label", *(f"pixel{number}" for number in range(16))])
    np.savetxt(folder / "a.csv", rows, "%d", delimiter=",", header=header, comments="")
    return str(folder / "a.csv")


def labelled_list(folder: Path) -> str:
    spec = listed(folder)
    rows = [f"{line},{number % 3}" for number, line in enumerate(Path(spec).read_text().splitlines())]
    Path(spec).unlink()
    (folder / "a.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    return str(folder / "a.csv")


def tfrecord(folder: Path) -> str:
    pngs = [{"image": data, "label": number % 3} for number, data in enumerate(encoded(folder / "pngs"))]
    return str(write_tfrecord(folder / "a.tfrecord", pngs))


SEVERAL = [[0, 2], [1], [], [2, 1, 0], [1, 2], [0], [2], [], [0, 1]]


def parquet_several(folder: Path) -> str:
    return str(write_parquet(folder / "a.parquet", rows=9, label=pa.array(SEVERAL)))


def tfrecord_several(folder: Path) -> str:
    pngs = zip(encoded(folder / "pngs"), SEVERAL, strict=False)
    return str(write_tfrecord(folder / "a.tfrecord", [{"image": data, "label": each} for data, each in pngs]))


def jsonl_several(folder: Path) -> str:
    rows = [{"file_name": f"{row}.png", "label": SEVERAL[row]} for row in range(5)]
    for row, data in enumerate(encoded(folder / "in")):
        (folder / "in").mkdir(exist_ok=True)
        (folder / "in" / f"{row}.png").write_bytes(data)
    (folder / "in" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "in")


def keras_file(folder: Path) -> str:
    """As `model.save` lays it out; what is in it is looked through before Keras sees it."""
    layer = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 3}, "registered_name": None}
    config = {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"layers": [layer]},
        "registered_name": "Sequential",
    }
    with zipfile.ZipFile(folder / "a.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(200))
    return str(folder / "a.keras")


def output(folder: Path) -> str:
    make_output(folder / "out")
    return str(folder / "out")


FORMATS: tuple[Callable[[Path], str], ...] = (
    idx, idx_gz, npz, npy, parquet_raw, parquet_binary, parquet_lists, parquet_encoded, parquet_shards, folders, loose,
    tar, zipped, tfrecord, listed, pixel_table, labelled_list, parquet_several, tfrecord_several, jsonl_several,
    keras_file, output,
)  # fmt: skip


def flip(data: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 3, 20))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def flip_near_an_end(data: bytearray, chance: random.Random) -> bytes:
    where = chance.randrange(min(64, len(data)))
    data[chance.choice((where, -1 - where))] = chance.randrange(256)
    return bytes(data)


def truncate(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.randrange(len(data))])


def claim_much(data: bytearray, chance: random.Random) -> bytes:
    claim = chance.choice(HUGE)
    where = chance.randrange(max(1, min(len(data), chance.choice((32, 512, 1 << 30))) - len(claim)))
    return bytes(data[:where] + claim + data[where + len(claim) :])


def cut_out(data: bytearray, chance: random.Random) -> bytes:
    begin = chance.randrange(len(data))
    return bytes(data[:begin] + data[begin + chance.randrange(1, 64) :])


def repeat(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.randrange(len(data))] + data)


def another(_: bytearray, chance: random.Random) -> bytes:
    return chance.choice(
        (b"", b"\0" * 5000, chance.randbytes(5000), b"[]", b"{}", b"null", b"-1", b"../" * 3000, b"\xff\n")
    )


def bomb(_: bytearray, chance: random.Random) -> bytes:
    """Something small that unpacks to much."""
    kind = chance.randrange(3)
    if kind == 0:
        return gzip.compress(idx_header() + bytes(BOMB), 1)
    packed = io.BytesIO()
    if kind == 1:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in ("x_train.npy", "../../y_train.npy", "/config.json", "config.json", "model.weights.h5"):
                archive.writestr(name, bytes(BOMB // 4))
        return packed.getvalue()
    column = pa.array([bytes(BOMB // 8)] * 8, pa.binary())
    pq.write_table(pa.table({"image": column}), packed, compression="zstd")
    return packed.getvalue()


def idx_header() -> bytes:
    return struct.pack(">HBB3I", 0, 8, 3, 1 << 31, 1, 1)


def path_tricks(_: bytearray, chance: random.Random) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("../../escaped.png", "/tmp/escaped.png", "a/./b.png", "x" * 90 + ".png"):
            member = tarfile.TarInfo(name)
            member.type = chance.choice((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE))
            member.linkname, member.size = "/etc/passwd", 3 if member.isreg() else 0
            archive.addfile(member, io.BytesIO(b"abc"))
    return packed.getvalue()


MUTATORS = (
    flip, flip, flip, flip_near_an_end, truncate, truncate, claim_much, claim_much, cut_out, repeat, another, bomb,
    path_tricks,
)  # fmt: skip


# Made to do harm.


def idx_of_much(folder: Path) -> str:
    file = Path(idx(folder)) / IDX["test", "images"]
    file.write_bytes(idx_header() + file.read_bytes()[16:])
    return str(file.parent)


def npy_of_much(folder: Path) -> str:
    file = Path(npy(folder))
    file.write_bytes(file.read_bytes().replace(b"(9, 4, 4), }         ", b"(2147483648, 4, 4), }"))
    return str(file)


def png_of_much(folder: Path) -> str:
    """A header of 2^31 pixels a side."""
    spec = Path(folders(folder))
    file = sorted(spec.rglob("*.png"))[0]
    data = bytearray(file.read_bytes())
    data[16:24] = HUGE[0] * 2
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    file.write_bytes(data)
    return str(spec)


def tar_of_much(folder: Path) -> str:
    file = Path(tar(folder))
    member = tarfile.TarInfo("000.png")
    member.size = 1 << 35
    file.write_bytes(member.tobuf() + file.read_bytes())
    return str(file)


def tar_that_escapes(folder: Path) -> str:
    file = folder / "a.tar"
    file.write_bytes(path_tricks(bytearray(), random.Random(0)))
    return str(file)


def zip_of_much(folder: Path) -> str:
    """Members that unpack to a gigabyte, and one that says it is small."""
    file = folder / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("0.png", encoded(folder / "pngs")[0])
        for name in ("1.png", "2.png"):
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(16):
                    member.write(bytes(BOMB))
    data = bytearray(file.read_bytes())
    size = data.rindex(b"PK\1\2") + 24  # of the last member, in the directory
    data[size : size + 4] = struct.pack("<I", 1000)
    file.write_bytes(data)
    return str(file)


def zip_that_escapes(folder: Path) -> str:
    file = folder / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("../../escaped.png", "/tmp/escaped.png", "a\\..\\..\\escaped.png", "a/./b.png"):
            archive.writestr(name, encoded(folder / "pngs")[0])
    return str(file)


def npz_that_escapes(folder: Path) -> str:
    file = Path(npz(folder))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("../../x_test.npy", b"abc")
        archive.writestr("/tmp/y_test.npy", b"abc")
    return str(file)


def list_of_devices(folder: Path) -> str:
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "a.txt").write_text("pipe.png\nzero.png\n../../../../../../etc/passwd.png\n")
    return str(folder / "a.txt")


def folders_in_a_circle(folder: Path) -> str:
    spec = Path(folders(folder))
    (spec / "test" / "again").symlink_to(spec)
    return str(spec)


HOSTILE: tuple[Callable[[Path], str], ...] = (
    idx_of_much, npy_of_much, png_of_much, tar_of_much, tar_that_escapes, zip_of_much, zip_that_escapes,
    npz_that_escapes, list_of_devices, folders_in_a_circle,
)  # fmt: skip


def read_all(spec: str) -> str:
    """As an actor reads it; every planned row must be accounted for."""
    source, split = open_inputs([spec], "test", Reading(takes_several=True))
    planned = source.splits[split]
    counted = 0
    for start, stop in source.units(split):
        for begin in range(start, stop, 5):
            end = min(begin + 5, stop)
            batch = source.read(split, begin, end, strict=False)
            good, bad = len(batch.images), len(batch.bad)
            if not good + bad == end - begin or not good == len(batch.ids) == len(batch.labels):
                raise AssertionError(f"{good} + {bad} of {end - begin} rows")
            if not all(begin <= each.row < end for each in batch.bad):
                raise AssertionError("a bad row of elsewhere")
            counted += good + bad
            if counted > 1_000_000:
                return "many"  # what the header says is there
    if counted != planned:
        raise AssertionError(f"{counted} of {planned} rows")
    return f"{counted} rows"


def tried(make: Callable[[Path], str], spec: str) -> str:
    if make is keras_file:
        vetting.vet(Location.parse(spec), Path(spec).read_bytes())
        return "looked through"
    if make is output:
        return str(verify(Location.parse(spec)).images)
    return read_all(spec)


class Damaged(NamedTuple):
    """A case: what was made, and what became of one of its files."""

    make: Callable[[Path], str]
    mutate: Callable[[bytearray, random.Random], bytes]
    spec: str
    victim: Path


def kind_of(number: int, chance: random.Random) -> tuple[Callable[..., str], Callable[..., bytes]]:
    """The format and the damage of a case."""
    return FORMATS[number % len(FORMATS)], chance.choice(MUTATORS)


def damaged(number: int, folder: Path) -> Damaged:
    chance = random.Random(number)
    make, mutate = kind_of(number, chance)
    folder.mkdir()
    spec = make(folder)
    victim = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    if make in (listed, labelled_list) and chance.random() < 0.7:
        victim = Path(spec)
    if make is jsonl_several and chance.random() < 0.7:
        victim = Path(spec) / "metadata.jsonl"
    if make in (idx, idx_gz) and "train" in victim.name:
        victim = victim.parent / (IDX["test", "images"] + victim.suffix)
    victim.write_bytes(mutate(bytearray(victim.read_bytes()), chance))
    return Damaged(make, mutate, spec, victim)


def case(number: int, folder: Path) -> dict[str, object]:
    make, mutate, spec, victim = damaged(number, folder)
    before = sorted(folder.rglob("*"))
    os.chdir(folder)
    began = time.perf_counter()
    try:
        said, kind = tried(make, spec), "read"
    except UserError as error:
        said, kind = str(error), "refused"
    except BaseException as error:
        said, kind = f"{type(error).__name__}: {error}", "ERROR"
    seconds = time.perf_counter() - began
    wrote = sorted(folder.rglob("*")) != before
    os.chdir("/")
    shutil.rmtree(folder)
    return {
        "case": number, "format": make.__name__, "mutator": mutate.__name__, "file": victim.name, "kind": kind,
        "said": said, "seconds": round(seconds, 3), "wrote": wrote,
    }  # fmt: skip


def main(folder: str, first: int, step: int, last: int) -> None:
    labels(1)  # all is imported
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    for number in range(first, last, step):
        print(json.dumps({"begun": number}), flush=True)
        print(json.dumps(case(number, Path(folder) / str(number))), flush=True)
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
