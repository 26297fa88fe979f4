"""S3 as a `pyarrow.fs` filesystem whose waits end, and what pyarrow has no call for: ending unfinished uploads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any

from pyarrow import fs

_CONNECT_SECONDS, _REQUEST_SECONDS, _ATTEMPTS = 5.0, 20.0, 5


class S3(fs.S3FileSystem):  # type: ignore[misc]
    """Waits that end, also where it is unpickled: pyarrow forgets the way to retry.

    Storage that refuses is given up after about 10 s, one that is silent after two minutes, or two and a half where it
    is written to (28 s a try). It may be slow as long as it sends a byte within 20 s (which pyarrow says it ignores,
    but the SDK takes as its low-speed time). An object up to 10 MB is one request that happens or does not: pyarrow
    calls that a delayed open.
    """

    def __init__(self, **options: Any) -> None:
        bounded = {"connect_timeout": _CONNECT_SECONDS, "request_timeout": _REQUEST_SECONDS, "allow_delayed_open": True}
        super().__init__(**options | bounded, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS))

    def __reduce__(self) -> tuple[Any, ...]:
        return made, super().__reduce__()[1]

    def abort_uploads(self, folder: str, is_ours: Callable[[str], bool]) -> None:
        """End the unfinished uploads of objects right in a folder, and free their parts, which nobody sees but pays.

        Where the store refuses (not every store knows these calls, not every role has s3:ListBucketMultipartUploads
        and s3:AbortMultipartUpload) or fails, they are left, and nothing is said: no result depends on it.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, inside = folder.rstrip("/").partition("/")
        prefix = f"{inside}/" if inside else ""
        with suppress(BotoCoreError, ClientError):
            client = self._client
            uploads = client.get_paginator("list_multipart_uploads")
            for page in uploads.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
                for upload in page.get("Uploads", ()):
                    above, _, name = upload["Key"].rpartition("/")
                    if above == inside and is_ours(name):  # some stores pay no heed to the delimiter
                        with suppress(client.exceptions.NoSuchUpload):  # completed meanwhile
                            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    @cached_property
    def _client(self) -> Any:
        """Of boto3, for the same store, by the same way, with the same credentials and waits."""
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        options = super().__reduce__()[1][0]
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
                proxies={},  # as pyarrow, which takes none from the environment
            ),
        )


def made(options: dict[str, Any]) -> S3:
    return S3(**options)
