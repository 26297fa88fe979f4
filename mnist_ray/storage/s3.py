"""S3 as a `pyarrow.fs` filesystem with bounded waits, and the one S3 call that pyarrow lacks: aborting uploads.

This module alone relies on private parts of pyarrow; `tests/unit/storage/test_arrow_private.py` names those that an
upgrade has removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

import pyarrow as pa
from pyarrow import fs

from mnist_ray.storage.disk import ChangedMeanwhileError

_CONNECT_SECONDS, _REQUEST_SECONDS, _ATTEMPTS = 5.0, 20.0, 5
REQUESTS_AT_ONCE = 64
"""Requests that a process has under way at once: each is a round trip, of 20 to 100 ms."""

_MOST_AT_ONCE = 10 << 20  # bytes of a request, as pyarrow has it
_MOST_PARTS = 10_000  # of an object: S3's limit


class S3(fs.S3FileSystem):  # type: ignore[misc]
    """S3 with bounded waits, in every process that unpickles it.

    A store that refuses connections is given up after about 10 s. A silent one is given up after two minutes, or two
    and a half when writing (28 s an attempt). A slow one is not, as long as it sends a byte every 20 s: pyarrow's
    documentation says that `request_timeout` is ignored, but the SDK takes it as its low-speed limit. With
    `allow_delayed_open`, an object of up to 10 MB is one request, which succeeds or fails as a whole.

    A filesystem has as many connections as pyarrow has threads for I/O when it is made, or 25.
    """

    def __init__(self, **options: Any) -> None:
        bounded = {"connect_timeout": _CONNECT_SECONDS, "request_timeout": _REQUEST_SECONDS, "allow_delayed_open": True}
        pa.set_io_thread_count(max(pa.io_thread_count(), REQUESTS_AT_ONCE))
        super().__init__(**options | bounded, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS))

    def __reduce__(self) -> tuple[Any, ...]:
        """pyarrow's own pickle loses the retry strategy: https://github.com/apache/arrow/issues/47348."""
        return _from_options, (_pickled_options(super().__reduce__()),)

    def abort_uploads(self, folder: str, is_ours: Callable[[str], bool]) -> None:
        """Abort the unfinished uploads of objects directly in a folder. Their parts are invisible, but are paid for.

        Uploads are left alone where the store fails or refuses: some stores lack these calls, and some roles lack
        s3:ListBucketMultipartUploads or s3:AbortMultipartUpload. No result depends on it, so nothing is reported.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, inside = folder.rstrip("/").partition("/")
        prefix = f"{inside}/" if inside else ""
        with suppress(BotoCoreError, ClientError):
            client = self._client
            uploads = client.get_paginator("list_multipart_uploads")
            for page in uploads.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
                for upload in page.get("Uploads", ()):
                    parent, _, name = upload["Key"].rpartition("/")
                    if parent == inside and is_ours(name):  # some stores ignore the delimiter
                        with suppress(client.exceptions.NoSuchUpload):  # it was completed meanwhile
                            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def read_with_etag(self, path: str) -> tuple[bytes, str | None]:
        """An object's bytes and its version; (b"", None) where it does not exist. Raises OSError."""
        with _client_errors():
            try:
                answer = self._client.get_object(**_address(path))
                return answer["Body"].read(), answer["ETag"]
            except self._client.exceptions.NoSuchKey:
                return b"", None

    def write_if_unchanged(self, path: str, data: bytes | memoryview, etag: str | None) -> str:
        """Replace the version `etag` of an object, or create it where that is None. Returns the new version.

        Raises ChangedMeanwhileError where the object is another version by now, else OSError.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with _client_errors():
            if len(data) <= _MOST_AT_ONCE:
                return str(self._client.put_object(**_address(path), Body=bytes(data), **condition)["ETag"])
            return self._write_in_parts(_address(path), memoryview(data), condition)

    def _write_in_parts(self, address: dict[str, str], data: memoryview, condition: dict[str, str]) -> str:
        """The condition is that of the last step, which makes the object of its parts."""
        client, size = self._client, max(_MOST_AT_ONCE, -(-len(data) // _MOST_PARTS))
        upload = {**address, "UploadId": client.create_multipart_upload(**address)["UploadId"]}
        try:
            parts = []
            for number, start in enumerate(range(0, len(data), size), start=1):
                body = bytes(data[start : start + size])
                parts.append({"PartNumber": number, "ETag": client.upload_part(
                    **upload, PartNumber=number, Body=body)["ETag"]})  # fmt: skip
            done = client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **condition)
            return str(done["ETag"])
        except BaseException:
            with suppress(Exception):  # else `abort_uploads` does it
                client.abort_multipart_upload(**upload)
            raise

    def age(self, path: str) -> float | None:
        """Seconds since an object was written, by the store's own clock; None where it does not exist."""
        with _client_errors():
            try:
                answer = self._client.head_object(**_address(path))
            except self._client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return float((now - answer["LastModified"]).total_seconds())

    @cached_property
    def _client(self) -> Any:
        """A boto3 client for the same store, with the same credentials and waits."""
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        options = _pickled_options(super().__reduce__())
        endpoint = options["endpoint_override"]
        if endpoint and "://" not in endpoint:
            endpoint = f"{options['scheme']}://{endpoint}"
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint or None,
            region_name=options["region"] or None,
            use_ssl=options["scheme"] != "http",
            config=Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_REQUEST_SECONDS,
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                signature_version=UNSIGNED if options["anonymous"] else None,
                proxies={},  # pyarrow takes no proxy from the environment either
            ),
        )


_SAME_IN_PYARROW = {
    "AccessDenied": "ACCESS_DENIED", "NoSuchBucket": "NO_SUCH_BUCKET", "InvalidAccessKeyId": "INVALID_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "SIGNATURE_DOES_NOT_MATCH",
}  # fmt: skip


@contextmanager
def _client_errors() -> Iterator[None]:
    """Turn boto3's errors into OSErrors that name the reason as pyarrow's do."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status in (409, 412):  # 409: another conditional write of the same object is going on
            raise ChangedMeanwhileError from error
        raise OSError(f"AWS Error {_SAME_IN_PYARROW.get(code, code)}: {error}") from error
    except BotoCoreError as error:
        raise OSError(f"AWS Error: {error}") from error


def _address(path: str) -> dict[str, str]:
    bucket, _, key = path.partition("/")
    return {"Bucket": bucket, "Key": key}


def with_bounded_waits(filesystem: fs.S3FileSystem, *, anonymous: bool) -> S3:
    """The same store as `filesystem`, which pyarrow has made from a URI, with our waits."""
    return S3(**_pickled_options(filesystem.__reduce__()) | {"anonymous": anonymous})


def _pickled_options(reduced: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments of `S3FileSystem` in what its `__reduce__` returns: (reconstructor, (arguments,)).

    There is no public way to learn them: of all that pyarrow reads from a URI, a filesystem shows `region` alone. See
    `S3FileSystem.__reduce__` in https://github.com/apache/arrow/blob/main/python/pyarrow/_s3fs.pyx.
    """
    options: dict[str, Any] = reduced[1][0]
    return options


def _from_options(options: dict[str, Any]) -> S3:
    return S3(**options)
