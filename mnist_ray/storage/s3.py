"""S3 as a `pyarrow.fs` filesystem with bounded waits, and the one S3 call that pyarrow lacks: aborting uploads.

This module alone relies on private parts of pyarrow; `tests/unit/storage/test_arrow_private.py` names those that an
upgrade has removed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any

from pyarrow import fs

_CONNECT_SECONDS, _REQUEST_SECONDS, _ATTEMPTS = 5.0, 20.0, 5


class S3(fs.S3FileSystem):  # type: ignore[misc]
    """S3 with bounded waits, in every process that unpickles it.

    A store that refuses connections is given up after about 10 s. A silent one is given up after two minutes, or two
    and a half when writing (28 s an attempt). A slow one is not, as long as it sends a byte every 20 s: pyarrow's
    documentation says that `request_timeout` is ignored, but the SDK takes it as its low-speed limit. With
    `allow_delayed_open`, an object of up to 10 MB is one request, which succeeds or fails as a whole.
    """

    def __init__(self, **options: Any) -> None:
        bounded = {"connect_timeout": _CONNECT_SECONDS, "request_timeout": _REQUEST_SECONDS, "allow_delayed_open": True}
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
