"""Ray jobs: submit one, follow its log, ask for its state."""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

from mnist_ray.cluster.connect import PROBE_SECONDS, UNAUTHENTICATED
from mnist_ray.cluster.ray_private import use_token_if_available
from mnist_ray.cluster.signals import interruptible
from mnist_ray.errors import Interrupted, RetryableError, SetupError, first_line


def submit(
    arguments: Sequence[str],
    *,
    address: str | None,
    working_dir: str | None,
    wait: bool,
    print_line: Callable[[str], object],
) -> int:
    """Run `mnist-ray ARGUMENTS` as a Ray job and print its log as it comes. Returns the exit code of the job.

    Raises RetryableError if the dashboard does not answer, SetupError if it rejects our token.
    """
    url = dashboard(address)
    client = job_client(url)
    try:
        job = client.submit_job(
            entrypoint=shlex.join(["python", "-m", "mnist_ray", *arguments]),
            runtime_env={"working_dir": working_dir} if working_dir else {},
        )
    except Exception as error:
        raise RetryableError(f"cannot submit to {url}: {first_line(error)}", see="clusters.md#ways-to-start") from error
    print_line(f"submitted {job} to {url}")
    if not wait:
        return 0
    try:
        with interruptible():
            return follow(client, job, print_line)
    except Interrupted as error:
        raise Interrupted(f"interrupted; the job continues, and `ray job stop {job}` ends it") from error
    except (OSError, RuntimeError) as error:  # errors of requests, and what the client raises for an HTTP status
        raise RetryableError(
            f"lost the connection to {url}: {first_line(error)}; the job may still run:"
            f" mnist-ray status {job} --address {url}",
            see="clusters.md#ways-to-start",
        ) from error


def dashboard(address: str | None) -> str:
    """The dashboard to ask: as given, else from the environment, where Ray looks as well, else this machine's."""
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    head = os.environ.get("RAY_ADDRESS", "")
    return named or (head if head.startswith(("http://", "https://")) else "http://127.0.0.1:8265")


def job_client(url: str) -> Any:
    """A client of a Ray dashboard. Raises RetryableError if it does not answer, SetupError if it rejects our token."""
    from ray.job_submission import JobSubmissionClient

    use_token_if_available()
    if "://" not in url and url != "auto":
        url = f"http://{url}"
    if url.startswith("http"):
        _probe_dashboard(url.rstrip("/"))
    try:
        return JobSubmissionClient(url)
    except Exception as error:
        text = first_line(error)
        if "401" in text or "uthenticat" in text or "nauthorized" in text:
            raise SetupError(UNAUTHENTICATED.format(url), see="clusters.md#ways-to-start") from error
        raise RetryableError(
            f"cannot reach Ray's dashboard at {url}: {text}", see="clusters.md#ways-to-start"
        ) from error


def _probe_dashboard(url: str) -> None:
    """Raise RetryableError unless an HTTP server answers. Ray's client would wait for a silent one for ever."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    try:
        urlopen(f"{url}/api/version", timeout=PROBE_SECONDS).close()  # noqa: S310 - the user's own URL
    except HTTPError:
        pass  # it answers; Ray's client explains the status better
    except (OSError, HTTPException, ValueError) as error:
        raise RetryableError(
            f"no Ray dashboard answers at {url} ({first_line(error)}); is the cluster up and the --address right?",
            see="clusters.md#ways-to-start",
        ) from error


def follow(client: Any, job: str, print_line: Callable[[str], object]) -> int:
    """Print a job's log as it grows, until the job ends. Returns its exit code: 1 where it failed without one."""
    printed = 0
    while True:
        printed = asyncio.run(_print_log(client, job, printed, print_line))
        status = client.get_job_status(job)
        if status.is_terminal():
            break
        time.sleep(1)  # a proxy closed the connection, or the job has not started yet
    info = client.get_job_info(job)
    print_line(f"job {job}: {status.value}")
    if status.value == "SUCCEEDED":
        return 0
    code = info.driver_exit_code or 1
    return code if 0 < code < 256 else 1


async def _print_log(client: Any, job: str, printed: int, print_line: Callable[[str], object]) -> int:
    """Print the log after its first `printed` characters, each part once it is written. Returns the length so far."""
    length = 0
    async for text in client.tail_job_logs(job):  # from the beginning at each connection
        length += len(text)
        if new := text[max(len(text) - (length - printed), 0) :].rstrip("\n"):
            print_line(new)
        printed = max(printed, length)
    return printed
