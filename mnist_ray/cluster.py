"""Clusters: connecting to one (or starting a local Ray that ends with the job), submitting, asking after a job."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_ray.config import Cluster
from mnist_ray.errors import InputError, Interrupted, RetryableError

PROBE_SECONDS = 3.0
"""A port that answers at all answers in this time; `ray.init` alone would wait for more than a minute."""

LOCAL_OBJECT_STORE_BYTES = 256 * 2**20
"""Enough: images travel by storage, not by the object store. Ray's default is a third of the memory."""


@dataclass(frozen=True)
class Connection:
    """A Ray that is ours for the job.

    Attributes:
        is_local: started by and for this job.
        address: as users would write it.
        cpus: all CPUs there are.
    """

    is_local: bool
    address: str
    cpus: float

    @property
    def label(self) -> str:
        return f"{'local Ray' if self.is_local else f'Ray at {self.address}'}, {self.cpus:g} CPUs"


@contextmanager
def connect(config: Cluster, *, workers: int = 1, cpus_per_worker: float = 1.0) -> Iterator[Connection]:
    """Ray for the time of the block, with our own handling of Ctrl-C and SIGTERM.

    Raises InputError at once where a local Ray cannot hold the workers, RetryableError where nobody listens or the
    cluster stays too small.
    """
    # Ray 2.60 would warn of what it means to do about GPUs one day, in every process.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = config.address or os.environ.get("RAY_ADDRESS")
    wanted = workers * cpus_per_worker
    if address in (None, "local"):
        cpus = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        if wanted > cpus:
            raise InputError(too_few(workers, cpus_per_worker, cpus, "this machine has"), see="workers and cpus")
    else:
        _probe(address)
    with interruptible():
        connection = _start_local(int(cpus)) if address in (None, "local") else _join(address)
        import ray

        # ray.init puts its own SIGTERM handler in place of ours.
        with interruptible():
            try:
                if not connection.is_local:
                    _wait_for_cpus(wanted, workers, cpus_per_worker, config.wait_for_resources)
                yield connection
            finally:
                ray.shutdown()


def too_few(workers: int, cpus_per_worker: float, cpus: float, where: str) -> str:
    """What to say of a request that is too large."""
    return (
        f"{workers} train workers x {cpus_per_worker:g} CPU = {workers * cpus_per_worker:g} CPUs asked, but {where}"
        f" {cpus:g}; use fewer --num-workers, or --cpus-per-worker 0.5, which lets two share a core"
    )


def _start_local(cpus: int) -> Connection:
    import ray

    # Ray turns token authentication on for a new cluster and would keep the token in the user's HOME: a secret of
    # this run's own leaves nothing behind and works on a read-only HOME.
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=LOCAL_OBJECT_STORE_BYTES,
    )
    return Connection(True, "local", float(cpus))


def _join(address: str) -> Connection:
    import ray

    _use_token()
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and gRPC's own for one thing
        raise RetryableError(
            f"cannot join the Ray cluster at {address}: {_first_line(error)}", see="ways to start"
        ) from error
    return Connection(False, address, float(ray.cluster_resources().get("CPU", 0)))


def _use_token() -> None:
    """Show the token that there is (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token), unless RAY_AUTH_MODE says
    otherwise. Ray itself does so only for a cluster that it found by itself, not for an address that is named."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _probe(address: str) -> None:
    """Raise RetryableError unless somebody listens at HOST:PORT, or at what `auto` stands for."""
    target = address.split("://")[-1]
    if target == "auto":
        # Where `ray start` leaves the address. Without the file Ray looks for processes, and says so if there are none.
        current = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # noqa: S108
        with suppress(OSError):
            target = current.read_text().strip()
    if target == "auto":
        return
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--address must be auto, HOST:PORT or ray://HOST:PORT, not {address!r}", see="ways to start")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise RetryableError(
            f"nobody listens at {target} ({error}); is the cluster up (`ray start --head`) and the --address right?",
            see="ways to start",
        ) from error


def _wait_for_cpus(wanted: float, workers: int, cpus_per_worker: float, seconds: float) -> None:
    """Until the cluster has the CPUs, or RetryableError with the numbers."""
    import ray

    deadline = time.monotonic() + seconds
    while (cpus := float(ray.cluster_resources().get("CPU", 0))) < wanted:
        if seconds and time.monotonic() < deadline:
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=[{"CPU": cpus_per_worker}] * workers)
            time.sleep(1)
            continue
        waited = f" after {seconds:g} s" if seconds else ""
        raise InputError(
            too_few(workers, cpus_per_worker, cpus, f"the cluster has{waited}")
            + "; an autoscaling cluster is given time to grow by --wait-for-resources SECONDS",
            see="workers and cpus",
        )


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and Ctrl-C raise Interrupted in the main thread, so that everything is closed on the way out."""

    def interrupt(signum: int, _: Any) -> None:
        name = signal.Signals(signum).name
        raise Interrupted(f"interrupted by {name}; the same command goes on from what is committed")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.signal(kind, interrupt) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def submit(arguments: Sequence[str], *, address: str | None, working_dir: str | None, wait: bool, say: Any) -> int:
    """Run `mnist-ray ARGUMENTS` as a Ray job; its logs are said as they come. The exit code is the job's result.

    Raises RetryableError where the dashboard does not answer, InputError where it does not let us in.
    """
    url = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    client = job_client(url)
    try:
        job = client.submit_job(
            entrypoint=shlex.join(["python", "-m", "mnist_ray.cli", *arguments]),
            runtime_env={"working_dir": working_dir} if working_dir else {},
        )
    except Exception as error:
        raise RetryableError(f"cannot submit to {url}: {_first_line(error)}", see="ways to start") from error
    say(f"submitted {job} to {url}")
    return follow(client, job, say) if wait else 0


def job_client(url: str) -> Any:
    """Of a Ray dashboard. Raises RetryableError where it does not answer, InputError where it does not let us in."""
    from ray.job_submission import JobSubmissionClient

    _use_token()
    _probe(url.rstrip("/"))
    try:
        return JobSubmissionClient(url)
    except Exception as error:
        text = _first_line(error)
        if "401" in text or "uthenticat" in text or "nauthorized" in text:
            raise InputError(
                f"{url} wants a token; export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN", see="ways to start"
            ) from error
        raise RetryableError(f"cannot reach Ray's dashboard at {url}: {text}", see="ways to start") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def follow(client: Any, job: str, say: Any) -> int:
    """Say a job's logs until it ends; 0 where it succeeded, its own exit code where it is known, else 1."""
    seen = 0
    while True:
        status = client.get_job_status(job)
        logs = client.get_job_logs(job)
        if len(logs) > seen:
            say(logs[seen:].rstrip("\n"))
            seen = len(logs)
        if status.is_terminal():
            break
        time.sleep(1)
    info = client.get_job_info(job)
    say(f"job {job}: {status.value}")
    if status.value == "SUCCEEDED":
        return 0
    return int(info.driver_exit_code or 1)
