"""Ray jobs: submit one, follow its log to its end, ask for its state, stop it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

from mnist_ray.cluster.dashboard import SEE, Dashboard
from mnist_ray.errors import InputError, RetryableError, SetupError, UserError, first_line
from mnist_ray.options import refuse_password

STOPPING_SECONDS = 30.0
"""How long a job is given to stop. Ray itself kills its driver after 3 s, unless RAY_JOB_STOP_WAIT_TIME_S says more."""

_PACKAGE_MISSING = re.compile(r"No module named '?mnist_ray'?\b")


def submit(dashboard: Dashboard, arguments: Sequence[str], *, working_dir: str | None, metadata: dict[str, str]) -> str:
    """Run `mnist-ray ARGUMENTS` as a Ray job, with the options of the command that our environment has.

    Returns the id of the job. Raises InputError for a password, which Ray's dashboard would show, RetryableError where
    Ray does not take the job.
    """
    prefix = f"MNIST_RAY_{arguments[0]}_".upper()
    env_vars = {name: value for name, value in os.environ.items() if name.startswith(prefix)}
    for name, value in [*(("a command", argument) for argument in arguments), *env_vars.items()]:
        refuse_password(name, value)
    runtime_env: dict[str, Any] = {"env_vars": env_vars}
    if working_dir:
        runtime_env["working_dir"] = working_dir
    try:
        job: str = dashboard.client.submit_job(
            entrypoint=shlex.join(["python", "-m", "mnist_ray", *arguments]),
            runtime_env=runtime_env,
            metadata=metadata,
        )
    except Exception as error:
        raise RetryableError(f"cannot submit to {dashboard.url}: {_reason(error)}", see=SEE) from error
    return job


class Follower:
    """Prints a job's log as it grows, each part once, however often the connection or the following is interrupted."""

    def __init__(self, dashboard: Dashboard, job: str, print_line: Callable[[str], object]) -> None:
        self._dashboard, self._job, self._print_line = dashboard, job, print_line
        self._printed, self._last = 0, ""

    def follow(self) -> int:
        """Return the job's exit code once it has ended: 1 where it ended without one.

        Raises RetryableError where the connection is lost or there is no such job, SetupError where the cluster has no
        mnist_ray.
        """
        ask(self._dashboard, self._job)
        try:
            while True:
                asyncio.run(self._print_log())
                info = self._dashboard.client.get_job_info(self._job)
                if info.status.is_terminal():
                    return _end(self._job, info, self._last, self._print_line)
                time.sleep(1)  # a proxy closed the connection, or the job has not started yet
        except (OSError, RuntimeError) as error:  # errors of requests, and what the client raises for an HTTP status
            if isinstance(error, UserError):
                raise
            raise RetryableError(
                f"lost the connection to {self._dashboard.url}: {first_line(error)}; the job may still run:"
                f" mnist-ray status {self._job} --address {self._dashboard.url}",
                see=SEE,
            ) from error

    async def _print_log(self) -> None:
        """Print what is new of the log, each part once it is written."""
        length = 0
        async for text in self._dashboard.client.tail_job_logs(self._job):  # from the beginning at each connection
            length += len(text)
            if new := text[max(len(text) - (length - self._printed), 0) :].rstrip("\n"):
                self._last = new[-1000:]
                self._print_line(new)
            self._printed = max(self._printed, length)


def _end(job: str, info: Any, log: str, print_line: Callable[[str], object]) -> int:
    """Say how a job has ended. Returns its exit code; one that was stopped has not succeeded."""
    code, status = info.driver_exit_code, info.status.value
    if status == "FAILED" and code == 1 and _PACKAGE_MISSING.search(log):
        raise SetupError(
            f"job {job}: the cluster's Python has no mnist_ray; give the nodes an image that has it, or send a"
            " checkout: mnist-ray submit --working-dir DIR -- …",
            see="clusters.md#submit-a-job",
        )
    has_started = status != "FAILED" or code is not None
    print_line(f"job {job}: {status}" + ("" if has_started else f": {first_sentence(info.message)}"))
    if status == "SUCCEEDED":
        return 0
    return code if code and 0 < code < 256 else 1


def ask(dashboard: Dashboard, job: str) -> Any:
    """Ray's JobInfo (status, message, start_time, metadata …). Raises RetryableError where there is no such job."""
    try:
        return dashboard.client.get_job_info(job)
    except (OSError, RuntimeError) as error:
        raise _unknown(dashboard, job, error) from error


def log_of(dashboard: Dashboard, job: str) -> str:
    """All that a job has printed so far. Raises RetryableError where there is no such job, or its node is lost."""
    try:
        return str(dashboard.client.get_job_logs(job))
    except (OSError, RuntimeError) as error:
        raise _unknown(dashboard, job, error) from error


def stop(dashboard: Dashboard, job: str) -> str:
    """Stop a job and wait for its end. Returns its state then. Raises RetryableError where it goes on."""
    if not ask(dashboard, job).status.is_terminal():
        try:
            dashboard.client.stop_job(job)
        except (OSError, RuntimeError) as error:
            raise _unknown(dashboard, job, error) from error
    deadline = time.monotonic() + STOPPING_SECONDS
    while not (status := ask(dashboard, job).status).is_terminal():
        if time.monotonic() > deadline:
            raise RetryableError(f"job {job} has not stopped within {STOPPING_SECONDS:g} s; try again", see=SEE)
        time.sleep(0.2)
    return str(status.value)


def _unknown(dashboard: Dashboard, job: str, error: Exception) -> RetryableError:
    text = _reason(error)
    if "404" in text or "does not exist" in text:
        return RetryableError(
            f"the cluster at {dashboard.url} knows no job {job}; a new cluster does not know the jobs of the one"
            " before: give the run's folder instead",
            see="clusters.md#look-at-a-job",
        )
    return RetryableError(f"cannot ask {dashboard.url} for the job {job}: {text}", see=SEE)


def _reason(error: Exception) -> str:
    """What the dashboard says of a request that failed: of a traceback, its last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    if any("Traceback (most recent call last)" in line for line in lines):
        return lines[-1][:300]
    return first_line(error)[:300]


def first_sentence(message: str | None) -> str:
    """The first line of what Ray says of a job, without the log that it repeats there."""
    text = next(iter((message or "").strip().splitlines()), "")
    return text.partition(", last available logs")[0][:300]


def require_absolute(option: str, path: str) -> None:
    """Raise InputError for a path that means another folder in a job than here."""
    if "://" not in path and not path.startswith(("/", "~")):
        raise InputError(
            f"{option} {path} is a relative path, which lies in a folder of the job's own on one node; give a path from"
            " / that all nodes share, or a URI such as s3://BUCKET/FOLDER",
            see="clusters.md#submit-a-job",
        )


def metadata_of(command: str, version: str, folder: str | None, options: dict[str, Any] | None) -> dict[str, str]:
    """What Ray's dashboard and `ray job list` show of a job of ours.

    options: those that change the result; the fingerprint of a run has that of the data as well, which the job reads.
    """
    from hashlib import sha256

    metadata = {"mnist_ray": version, "command": command}
    if folder:
        metadata["run"] = folder
    if options:
        metadata["options_sha256"] = sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
    return metadata
