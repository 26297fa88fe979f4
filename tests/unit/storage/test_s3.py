"""Object storage, by a real S3 server in a process of its own: the whole job, every reader, and requests that fail."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import botocore
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from mnist_ray import sharding
from mnist_ray.cli import cli
from mnist_ray.errors import InputError, RetryableError
from mnist_ray.predictions import parts
from mnist_ray.predictions import replace as replacement
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.verify import verify
from mnist_ray.sources import listing
from mnist_ray.sources.base import Reading
from mnist_ray.sources.open import open_source
from mnist_ray.sources.specs import open_inputs
from mnist_ray.storage import location
from mnist_ray.storage.location import Location
from tests.support.command import environment, mnist_ray
from tests.support.data_makers import images, webdataset, write_folders, write_npz, write_parquet, write_tar
from tests.support.output_maker import make_output
from tests.support.s3_server import BUCKET, FAULTS, Faults, s3_server, settings

ROOT = f"s3://{BUCKET}"


@pytest.fixture(scope="session")
def port() -> Iterator[int]:
    with s3_server() as started:
        yield started


@pytest.fixture(autouse=True)
def here(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings(port).items():
        monkeypatch.setenv(name, value)


def put(file: Path, name: str) -> str:
    """The URI under which a local file, or a folder's, now lies in the store."""
    for each in [file] if file.is_file() else sorted(path for path in file.rglob("*") if path.is_file()):
        within = "" if each == file else f"/{each.relative_to(file)}"
        Location.parse(f"{ROOT}/{name}{within}").write_bytes(each.read_bytes())
    return f"{ROOT}/{name}"


@pytest.fixture(scope="session")
def client(port: int) -> Any:
    told = settings(port)
    return boto3.client(
        "s3", endpoint_url=told["AWS_ENDPOINT_URL"], region_name=told["AWS_REGION"],
        aws_access_key_id=told["AWS_ACCESS_KEY_ID"], aws_secret_access_key=told["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip


def begin(client: Any, *keys: str) -> None:
    for key in keys:
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"x")


def begun(client: Any, under: str) -> set[str]:
    """The keys of the uploads of several parts that nobody completed."""
    listed = client.list_multipart_uploads(Bucket=BUCKET, Prefix=under).get("Uploads", [])
    return {upload["Key"].removeprefix(under) for upload in listed}


# A location.


@pytest.mark.parametrize("size", [0, 1, 6_000_000, 10_500_000])
def test_an_object_is_what_was_written(size: int, client: Any) -> None:
    file, data = Location.parse(f"{ROOT}/objects/{size}"), np.random.default_rng(0).bytes(size)
    file.write_bytes(b"older")
    file.write_bytes(data)
    assert (file.read_bytes() == data, file.size()) == (True, size)
    with file.open_file() as opened:
        opened.seek(size // 2)
        assert opened.read() == data[size // 2 :]
    file.delete()
    assert not file.exists()
    assert begun(client, "objects/") == set()


def test_a_record_that_is_replaced_while_it_is_read_is_not_torn() -> None:
    """pyarrow asks for the size, and then for so many bytes."""
    record, ended = Location.parse(f"{ROOT}/record.json"), threading.Event()
    values = [{"done": "x" * size} for size in (10, 1000)]
    record.write_json(values[0])

    def write() -> None:
        for value in itertools.cycle(values):
            if ended.wait(0.02):
                return
            record.write_json(value)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(record.read_json() in values for _ in range(100))
    finally:
        ended.set()
        writer.join()


def test_it_is_the_same_in_another_process_and_takes_no_credentials_along() -> None:
    location = Location.parse(f"{ROOT}/pickled?region=eu-west-1&anonymous=true")
    sent = pickle.dumps(location)
    again = pickle.loads(sent)
    assert (again == location, str(again)) == (True, f"{ROOT}/pickled")
    for each in (location, again):
        options = each.filesystem.__reduce__()[1][0]
        told = [options[name] for name in ("anonymous", "region", "connect_timeout", "request_timeout")]
        assert told == [True, "eu-west-1", 5.0, 20.0]
        assert options["endpoint_override"] == os.environ["AWS_ENDPOINT_URL"]
    assert b"of-a-test" not in sent + pickle.dumps(Location.parse(ROOT))
    signed = pickle.loads(pickle.dumps(Location.parse(f"{ROOT}/pickled")))
    signed.write_bytes(b"x")
    assert signed.read_bytes() == b"x"
    with pytest.raises(InputError, match=r"ACCESS_DENIED .* correct the path or its permissions"):
        again.read_bytes()  # a stranger may not


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match=r"a URI with a password \(s3://...@bucket\) would be stored") as caught:
        Location.parse("s3://AKIA:geheim@bucket/x?region=us-east-1")
    assert "geheim" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [("s3://bucket/x?anonymus=true", "Unexpected query parameter"), ("s3://[x/y", "cannot open 's3://\\[x/y'")],
)
def test_what_can_be_no_uri(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Location.parse(uri)


def test_a_bucket_that_is_not_there_is_wrong_input() -> None:
    with pytest.raises(InputError, match=r"cannot write s3://nobodys-bucket/x/.* does not exist .*choose another"):
        Location.parse("s3://nobodys-bucket/x").check_writable()


# Uploads of several parts that nobody completed.


def test_going_on_and_finishing_end_the_uploads_of_an_output_and_no_others(client: Any) -> None:
    make_output(f"{ROOT}/swept/out")
    output = Location.parse(f"{ROOT}/swept/out")
    ours = ("out/part-00001.parquet", "out/quarantine/part-00001.parquet", "out/_plan.json", "out/_files.arrow")
    others = {"out/film.mov", "out/more/part-00001.parquet", "out2/part-00001.parquet", "part-00001.parquet"}
    begin(client, *(f"swept/{key}" for key in [*ours, ours[0], *others]))
    assert begun(client, "swept/") == {*ours, *others}
    plan = Plan.load(output)
    assert plan is not None
    done = parts.resume(output, plan)
    assert begun(client, "swept/") == others
    begin(client, *(f"swept/{key}" for key in ours))
    parts.write_manifest(output, plan, done)
    assert begun(client, "swept/") == others
    assert verify(output).images == 18


def test_uploads_are_ended_by_whoever_writes_the_folder_again(client: Any) -> None:
    folder = Location.parse(f"{ROOT}/again")
    begin(
        client, "again/train/part-00000.parquet", "again/train/mine.txt", "again/step-1.npz", "again/train/step-1.npz"
    )
    sharding._clear(folder, set())
    assert begun(client, "again/") == {"train/mine.txt", "step-1.npz", "train/step-1.npz"}
    folder.sweep()
    assert begun(client, "again/") == {"train/mine.txt", "train/step-1.npz"}


def test_a_store_that_refuses_to_list_uploads_does_not_matter(
    client: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(client, "refused/a")
    Location.parse("s3://nobodys-bucket/refused").sweep()
    with Faults(port, seed=0, rate=1, kinds=("501",)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        Location.parse(f"{ROOT}/refused").sweep()
        assert proxy.done == {"501": 1}
    assert begun(client, "refused/") == {"a"}


def test_uploads_are_ended_by_the_way_that_objects_are_written(
    client: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    begin(client, "way/a")
    folder = Location.parse(f"{ROOT}/way?endpoint_override=127.0.0.1:{port}&scheme=http&region=eu-west-1")
    pickle.loads(pickle.dumps(folder)).sweep()
    assert begun(client, "way/") == set()
    used = folder.filesystem._client.meta
    assert (used.endpoint_url, used.region_name) == (f"http://127.0.0.1:{port}", "eu-west-1")
    assert used.config.signature_version == "s3v4"
    nobody = Location.parse(f"{ROOT}/way?region=eu-west-1&anonymous=true").filesystem._client.meta
    assert nobody.config.signature_version is botocore.UNSIGNED
    assert (nobody.config.connect_timeout, nobody.config.read_timeout) == (5.0, 20.0)
    assert nobody.config.retries["total_max_attempts"] == 5


@pytest.mark.drill
def test_a_writer_whose_upload_is_ended_fails_and_leaves_the_old_object(client: Any) -> None:
    file = Location.parse(f"{ROOT}/ended/part")
    file.write_bytes(b"old")
    stream = file.filesystem.open_output_stream(file.path, compression=None)
    location._failed_streams.append(stream)
    stream.write(bytes(11_000_000))
    assert begun(client, "ended/") == {"part"}
    file.parent.sweep()
    with pytest.raises(OSError, match="UploadPart"):
        stream.close()
    assert (file.read_bytes(), begun(client, "ended/")) == (b"old", set())


# Replacing an output.


class CutError(Exception):
    """The process is gone."""


@pytest.mark.parametrize("cut", [pytest.param(cut, marks=() if cut == 12 else pytest.mark.drill) for cut in range(14)])
def test_an_output_is_replaced_and_at_any_moment_one_is_whole(
    cut: int, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"replaced/{cut}/"
    output, job = Location.parse(f"{ROOT}/{root}out+1"), {"input_digest": "ef" * 32}  # a + that headers must escape
    make_output(str(output), input_digest="cd" * 32)
    new = replacement.target(output, job)
    assert new.name == ".out+1.new"
    make_output(str(new), **job, units=(9, 9), bad=(2,), seed=1)
    (output / "progress.json").write_json({"phase": "score"})
    begin(client, f"{root}out+1/part-00002.parquet")

    old_files, new_files = digests(client, output), digests(client, new)
    seen, steps = [], itertools.count()

    def stepping(action: Any) -> Any:
        def step(*args: Any) -> None:
            there = digests(client, output)
            seen.append("old" if there == old_files else "new" if there == new_files else "unfinished")
            assert seen[-1] == "new" or digests(client, new) == new_files
            assert seen[-1] != "unfinished" or "_manifest.json" not in there
            if next(steps) == cut:
                raise CutError
            action(*args)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(replacement, "_copy", stepping(replacement._copy))
        patch.setattr(Location, "delete", stepping(Location.delete))
        with pytest.raises(CutError):
            replacement.replace(output, new)
        assert replacement.target(output, job) == new
        replacement.replace(output, new)
    assert [*dict.fromkeys(seen)] == ["old", "unfinished", "new"]
    assert (digests(client, output), digests(client, new)) == (new_files, {})
    assert verify(output).quarantined == 1
    assert replacement.target(output, job) == output
    assert begun(client, root) == set()


@pytest.mark.drill
def test_the_command_replaces_an_output_in_the_store(finished: tuple[Location, str], tmp_path: Path) -> None:
    run, _ = finished
    output = Location.parse(f"{ROOT}/scored/out")
    make_output(str(output))
    command = ("score", f"{ROOT}/small.npz", "--model", str(run), "--output", str(output), "--overwrite")
    done = mnist_ray(*command, env=environment(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (
        f"{output} holds another job's predictions; {ROOT}/scored/.out.new will replace it when it is complete"
        in done.stdout
    )
    assert verify(output).images == 21
    assert [place.name for place in output.parent.list()] == ["out"]


def digests(client: Any, output: Location) -> dict[str, str]:
    """Of the files of an output, by one request: as they are at a moment."""
    root = f"{output.path.partition('/')[2]}/"
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=root).get("Contents", [])
    names = {each["Key"].removeprefix(root): each["ETag"] for each in listed}
    return {name: digest for name, digest in names.items() if name and not name.endswith(("/", "progress.json"))}


# What users have.


def test_inputs_are_read_as_from_a_disk(tmp_path: Path) -> None:
    for name, local in {
        "a.npz": write_npz(tmp_path / "a.npz"),
        "parquet": write_parquet(tmp_path / "parquet" / "0.parquet", rows=11).parent,
        "folders": write_folders(tmp_path / "folders"),
    }.items():
        there, source = open_source(put(local, name)), open_source(str(local))
        assert (there.splits, there.classes, there.image_shape) == (source.splits, source.classes, source.image_shape)
        for split, rows in source.splits.items():
            read, expected = there.read(split, 1, rows), source.read(split, 1, rows)
            np.testing.assert_array_equal(read.images, expected.images)
            np.testing.assert_array_equal(read.labels, expected.labels)
            assert read.ids.tolist() == expected.ids.tolist()


# The whole job.


@pytest.fixture(scope="session")
def finished(port: int, client: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Location, str]:
    """A run whose data, and everything else, lies in the store; and what was said. By the command line.

    It finds uploads that an attempt before did not finish, wherever an object can be so large.
    """
    folder = tmp_path_factory.mktemp("s3")
    large = ("shards/train/part-00001.parquet", "checkpoints/step-1.npz", "model/classifier.keras",
             "predictions/part-00000.parquet", "predictions/quarantine/part-00000.parquet")  # fmt: skip
    begin(client, *(f"runs/mnist/{name}" for name in large))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings(port).items():
            patch.setenv(name, value)
        data = put(write_npz(folder / "small.npz", train=64, test=21), "small.npz")
        command = ("run", "--data", data, "--storage", f"{ROOT}/runs", "--num-workers", "1", "--num-shards", "2",
                   "--epochs", "1", "--batch-size", "16")  # fmt: skip
        done = mnist_ray(*command, env=environment(folder))
        assert done.returncode == 0, done.stderr
        return Location.parse(f"{ROOT}/runs/mnist"), done.stdout + done.stderr


def all_files(folder: Location) -> list[str]:
    selected = folder.filesystem.get_file_info(pa.fs.FileSelector(folder.path, recursive=True))
    return sorted(info.path.removeprefix(f"{folder.path}/") for info in selected if info.is_file)


def test_a_run_lies_whole_in_the_store(finished: tuple[Location, str], client: Any) -> None:
    run, said = finished
    verified = verify(run)
    assert (verified.images, verified.scored, verified.quarantined) == (21, 21, 0)
    status = CliRunner().invoke(cli, ["status", str(run)])
    assert status.exit_code == 0
    assert status.output.startswith(f"{run}: finished. accuracy ")
    files = all_files(run)
    assert {"config.json", "metrics.json", "report.html", "model/classifier.keras", "shards/dataset.json"} <= {*files}
    assert not [file for file in files if file.rsplit("/", 1)[-1].startswith(".") and not file.startswith("ray/")]
    for file in files:
        assert b"secret-of-a-test" not in (run / file).read_bytes(), file
    assert "secret-of-a-test" not in said
    assert begun(client, "runs/") == set()


def test_what_is_done_is_found_again_and_damage_is_not_taken_for_it(finished: tuple[Location, str]) -> None:
    run, _ = finished
    output = run / "predictions"
    plan = Plan.load(output)
    assert plan is not None
    assert [each.unit for each in parts.resume(output, plan)] == list(range(len(plan.units)))
    part = output / "part-00000.parquet"
    whole = part.read_bytes()
    try:
        part.write_bytes(whole[:-1])
        with pytest.raises(RetryableError, match=r"part-00000\.parquet has another sha256"):
            verify(run)
        assert [each.unit for each in parts.resume(output, plan)] == list(range(1, len(plan.units)))
    finally:
        part.write_bytes(whole)
    assert verify(run).scored == 21


# A store that fails.


@pytest.mark.parametrize(
    ("kinds", "objects"), [(FAULTS, 6), *[pytest.param((kind,), 20, marks=pytest.mark.drill) for kind in FAULTS]]
)
def test_requests_fail_and_nothing_shows_it(
    kinds: tuple[str, ...], objects: int, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No object is lost, torn or doubled: each, and the list of them, is as without faults."""
    with Faults(port, seed=len(kinds[0]), rate=0.25, kinds=kinds, slow=0.05) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        folder = Location.parse(f"{ROOT}/faults/{objects}/{kinds[0].replace(' ', '-')}")
        parts = {f"part-{unit:05d}": images(30 + unit, seed=unit).tobytes() for unit in range(objects)}
        for name, data in parts.items():
            (folder / name).write_bytes(data)
        assert {file.name: file.read_bytes() for file in folder.list()} == parts
        assert proxy.done.total() - proxy.done["well"] >= 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    assert {file.name: file.read_bytes() for file in Location.parse(str(folder)).list()} == parts


@pytest.mark.drill
@pytest.mark.parametrize("kind", ["503", "cut request"])
def test_an_upload_that_never_succeeds_leaves_the_old_object(
    kind: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{ROOT}/never/{kind.replace(' ', '-')}"
    Location.parse(name).write_bytes(b"old")
    with Faults(port, seed=0, rate=1, kinds=(kind,)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        began = time.monotonic()
        with pytest.raises(RetryableError, match=f"^cannot write {name}: ") as caught:
            Location.parse(name).write_bytes(b"new" * 1000)
        assert time.monotonic() - began < 30
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    assert Location.parse(name).read_bytes() == b"old"


@pytest.mark.drill
@pytest.mark.parametrize("size", [25_000_000])
def test_an_upload_of_several_parts_is_seen_whole_or_not_at_all(
    size: int, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails, after however many retries."""
    data = np.random.default_rng(0).bytes(size)
    ended = {"well": 0, "failed": 0}
    for seed in range(12):
        name = f"{ROOT}/large/{seed}"
        with Faults(port, seed=seed, rate=0.6) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
            try:
                Location.parse(name).write_bytes(data)
                ended["well"] += 1
            except RetryableError:
                ended["failed"] += 1
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        there = Location.parse(name)
        if there.exists():
            assert hashlib.sha256(there.read_bytes()).digest() == hashlib.sha256(data).digest()
    print(f"\n  {ended}")
    assert ended["failed"] >= 1


@pytest.mark.drill
def test_a_silent_store_is_given_up_within_three_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        taken: list[Any] = []
        threading.Thread(target=lambda: [taken.append(silent.accept()) for _ in range(64)], daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(RetryableError, match="cannot write"):
            Location.parse(f"{ROOT}/silent").write_bytes(b"x")
        print(f"\n  given up after {time.monotonic() - began:.0f} s")
        assert time.monotonic() - began < 160  # five tries of 28 s, and 15 s between them at the most


def test_a_command_with_a_dead_store_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    done = mnist_ray("verify", f"{ROOT}/runs/mnist", env=environment(tmp_path), timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mnist-ray: cannot look at {ROOT}/runs/mnist/predictions: "), line
    assert "of-a-test" not in json.dumps(line)


def test_inputs_of_every_kind_are_read_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Globs, a list, an archive, and a listing that lies in the store itself."""
    monkeypatch.setattr(listing, "BATCH_ROWS", 3)
    monkeypatch.setattr(listing, "LONG", 4)
    write_folders(tmp_path / "in", 7, 5)
    write_parquet(tmp_path / "a.parquet", 3)
    np.save(tmp_path / "b.npy", images(3))
    write_tar(tmp_path / "c.tar", webdataset(4))
    (tmp_path / "d.txt").write_text(f"in/test/class-0/000.png\n{ROOT}/inputs/in/test/class-1/001.png\n")
    root = put(tmp_path, "inputs")
    names = [f"test/class-{row % 3}/{row:03d}.png" for row in (0, 3, 1, 4, 2)]

    def ids(spec: str, reading: Reading = Reading(lenient=True)) -> list[Any]:  # noqa: B008
        source, split = open_inputs([f"{root}/{spec}"], "test", reading)
        ids: list[Any] = source.read(split, 0, source.splits[split]).ids.tolist()
        return ids

    kept = Reading(lenient=True, list_file=Location.parse(f"{ROOT}/listed/_files.arrow"))
    assert ids("in", kept) == ids("in", replace(kept, reuse_listing=True)) == names
    assert ids("in/test/**/*.png") == [name.removeprefix("test/") for name in names]
    assert ids("*.tar") == ids("c.tar") == [f"c.tar/{row:04d}.png" for row in range(4)]
    assert ids("*.parquet") == ids("b.npy") == [0, 1, 2]
    assert ids("d.txt") == ["in/test/class-0/000.png", "inputs/in/test/class-1/001.png"]
