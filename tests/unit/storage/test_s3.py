"""Object storage, by a real S3 server in a process of its own: the whole job, every reader, and requests that fail."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import botocore
import numpy as np
import pytest

from mnist_ray import sharding
from mnist_ray.errors import InputError, LeaseLostError, RetryableError, SetupError
from mnist_ray.storage import fence, location
from mnist_ray.storage.location import Location
from mnist_ray.storage.parallel import in_parallel
from mnist_ray.storage.s3 import REQUESTS_AT_ONCE
from tests.support.data_makers import images
from tests.support.s3_server import FAULTS, ROOT, Faults, begin, begun

pytestmark = pytest.mark.usefixtures("here")


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
    with pytest.raises(SetupError, match=r"ACCESS_DENIED .* correct the path or its permissions"):
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
    with pytest.raises(SetupError, match=r"cannot write s3://nobodys-bucket/x/.* does not exist .*choose another"):
        Location.parse("s3://nobodys-bucket/x").check_writable()


def test_uploads_are_ended_by_whoever_writes_the_folder_again(client: Any) -> None:
    folder = Location.parse(f"{ROOT}/again")
    begin(
        client, "again/train/part-00000.parquet", "again/train/mine.txt", "again/step-1.npz", "again/train/step-1.npz"
    )
    sharding._clear(folder, set())
    assert begun(client, "again/") == {"train/mine.txt", "step-1.npz", "train/step-1.npz"}
    folder.sweep()
    assert begun(client, "again/") == {"train/mine.txt", "train/step-1.npz"}


def test_a_driver_that_has_lost_the_folder_ends_nobodys_uploads(client: Any) -> None:
    """They are those of the driver that has it now."""
    begin(client, "lost/part-00000.parquet")

    def refuse() -> None:
        raise LeaseLostError("another mnist-ray has taken over")

    with fence.checked_by(refuse), pytest.raises(LeaseLostError):
        Location.parse(f"{ROOT}/lost").sweep()
    assert begun(client, "lost/") == {"part-00000.parquet"}


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


def test_many_requests_are_under_way_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the connections that pyarrow has by itself: none is answered before all have come."""
    together = threading.Barrier(REQUESTS_AT_ONCE)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            together.wait(timeout=60)
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = REQUESTS_AT_ONCE

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            folder = Location.parse(f"{ROOT}/folder")
            files = [folder / str(number) for number in range(REQUESTS_AT_ONCE)]
            assert list(in_parallel(Location.size, files, at_once=folder.reads_at_once)) == [7] * REQUESTS_AT_ONCE
        finally:
            server.shutdown()


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
