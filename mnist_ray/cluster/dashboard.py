"""Ray's dashboard, the HTTP server that takes jobs: which one is meant, whether it answers, and as what."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from typing import Any

from mnist_ray.cluster import ray_private
from mnist_ray.cluster.connect import PROBE_SECONDS
from mnist_ray.cluster.tokens import refused
from mnist_ray.errors import RetryableError, first_line

SEE = "clusters.md#ways-to-start"


@dataclass(frozen=True)
class Dashboard:
    """A dashboard that has answered, with our token if it requires one."""

    url: str
    ray_version: str
    requires_token: bool
    client: Any
    """A ray.job_submission.JobSubmissionClient."""


def is_url(address: str | None) -> bool:
    """Whether an address is that of a dashboard, not of a head."""
    return (address or "").startswith(("http://", "https://"))


def url_of(address: str | None) -> str:
    """The dashboard to ask: as given, else from the environment, where Ray looks as well, else this machine's."""
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    head = os.environ.get("RAY_ADDRESS", "")
    url = named or (head if is_url(head) else "http://127.0.0.1:8265")
    return (url if "://" in url else f"http://{url}").rstrip("/")


def reach(address: str | None) -> Dashboard:
    """The dashboard at an address. Raises RetryableError if it does not answer, SetupError if it rejects our token."""
    url = url_of(address)
    _get(f"{url}/api/healthz")  # before `import ray`, which takes a second
    ray_private.use_token_if_available()
    version = _json(_get(f"{url}/api/version", ray_private.auth_headers())).get("ray_version")
    if not isinstance(version, str):
        raise RetryableError(f"what answers at {url} is not a Ray dashboard{_hint(url)}", see=SEE)
    mode = _json(_get(f"{url}/api/authentication_mode")).get("authentication_mode")
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(url)
    except Exception as error:  # of several kinds, all for the same reason
        raise RetryableError(f"cannot reach Ray's dashboard at {url}: {first_line(error)}", see=SEE) from error
    logging.getLogger("ray").setLevel(
        logging.ERROR
    )  # it tells of closed connections, and of folders that it leaves out
    return Dashboard(url, version, mode == "token", client)


def _get(url: str, headers: dict[str, str] | None = None) -> bytes:
    """What an HTTP server answers; b"" where that is an error. Ray's client would wait for a silent one for ever."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    base = url.partition("/api/")[0]
    try:
        with urlopen(Request(url, headers=headers or {}), timeout=PROBE_SECONDS) as answer:  # noqa: S310 - the user's
            content: bytes = answer.read(65536)
            return content
    except HTTPError as error:
        if error.code in (401, 403):
            raise refused(base) from error
        return b""
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)  # of an URLError
        text = first_line(reason) if isinstance(reason, BaseException) else str(reason)
        raise RetryableError(f"no Ray dashboard answers at {base} ({text}){_hint(base)}", see=SEE) from error


def _hint(url: str) -> str:
    if url.endswith((":6379", ":10001")):
        return (
            "; that is the port of the head: the dashboard's is 8265 unless `ray start --dashboard-port` says otherwise"
        )
    return "; is the cluster up and the --address right?"


def _json(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
