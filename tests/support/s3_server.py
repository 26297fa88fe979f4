"""An S3 server in a process of its own, and a proxy in front of it that does what networks and busy stores do."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mnist_ray.storage.location import Location
from tests.support.command import free_port

BUCKET = "bucket"

ROOT = f"s3://{BUCKET}"

FAULTS = ("500", "503", "slow", "cut request", "lost answer", "half answer")
"""500, 503: refused. slow: answered late. cut request: the connection ends in the middle of what is sent. lost answer,
half answer: the store has done it, and the client hears nothing, or the beginning of it."""


def settings(port: int) -> dict[str, str]:
    """The environment in which s3:// means a server here."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "key-id-of-a-test",
        "AWS_SECRET_ACCESS_KEY": "secret-of-a-test", "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """Its port. It has an empty bucket, and forgets all when it ends."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    env = {**os.environ, "S3_UPLOAD_PART_MIN_SIZE": "256"}  # else 5 MB, as on S3
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    try:
        deadline = time.monotonic() + 60
        while not _made_bucket(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


def _made_bucket(port: int) -> bool:
    with contextlib.suppress(OSError):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
        return bool(urllib.request.urlopen(request).status == 200)
    return False


def put(file: Path, name: str) -> str:
    """The URI under which a local file, or a folder's, now lies in the store."""
    for each in [file] if file.is_file() else sorted(path for path in file.rglob("*") if path.is_file()):
        within = "" if each == file else f"/{each.relative_to(file)}"
        Location.parse(f"{ROOT}/{name}{within}").write_bytes(each.read_bytes())
    return f"{ROOT}/{name}"


def begin(client: Any, *keys: str) -> None:
    for key in keys:
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"x")


def begun(client: Any, under: str) -> set[str]:
    """The keys of the uploads of several parts that nobody completed."""
    listed = client.list_multipart_uploads(Bucket=BUCKET, Prefix=under).get("Uploads", [])
    return {upload["Key"].removeprefix(under) for upload in listed}


class Faults(ThreadingHTTPServer):
    """A proxy in front of an S3 server; of each request's fate a seed decides. `with` starts and ends it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behind: int, *, seed: int, rate: float, kinds: tuple[str, ...] = FAULTS, slow: float = 0.5):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.rate, self.kinds, self.slow = behind, rate, kinds, slow
        self.port = self.server_address[1]
        self.done: Counter[str] = Counter()
        """How many requests of each fate there were."""
        self._random, self._lock = random.Random(seed), threading.Lock()

    def fate(self) -> str:
        with self._lock:
            fate = self._random.choice(self.kinds) if self._random.random() < self.rate else "well"
            self.done[fate] += 1
            return fate

    def __enter__(self) -> Faults:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faults

    def pass_on(self) -> None:
        fate = self.server.fate()
        if fate == "cut request":
            if self.command in ("PUT", "POST"):
                self.rfile.readline()
            self.close_connection = True
            return
        body = self.body()
        if fate.isdigit():
            self.answer(int(fate), [("Content-Length", "0")], b"")
            return
        if fate == "slow":
            time.sleep(self.server.slow)
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in _OURS}
        behind.request(self.command, self.path, body, {**kept, "Content-Length": str(len(body))})
        answer = behind.getresponse()
        content = answer.read()
        behind.close()
        if fate == "lost answer":
            self.close_connection = True
            return
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OURS]
        told = answer.getheader("Content-Length")  # of a HEAD: the object's
        headers.append(("Content-Length", told or str(len(content))))
        if fate == "half answer":
            self.close_connection = True
            content = content[: len(content) // 2]
        self.answer(answer.status, headers, content)

    def body(self) -> bytes:
        """The SDK sends what it uploads in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on  # noqa: N815 - http.server's names

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


_OURS = ("connection", "transfer-encoding", "keep-alive", "expect", "content-length")
