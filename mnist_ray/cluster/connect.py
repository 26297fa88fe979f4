"""Connecting to a Ray cluster, or starting a local Ray that ends with the job."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mnist_ray.cluster.signals import interruptible
from mnist_ray.config import Cluster
from mnist_ray.errors import InputError, RetryableError

PROBE_SECONDS = 3.0
"""A port that answers at all answers in this time; `ray.init` alone would wait for more than a minute."""

LOCAL_OBJECT_STORE_BYTES = 256 * 2**20
"""Enough: images travel by storage, not by the object store. Ray's default is a third of the memory."""


UNAUTHENTICATED = "{} wants a token; export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"


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
    preflight(config, workers=workers, cpus_per_worker=cpus_per_worker)
    address = _address(config)
    with interruptible() as handle_signals:
        import ray
        from ray._private import auto_init_hook

        # Else a thread that still trains while the job is interrupted would start a Ray of its own.
        auto_init_hook.enable_auto_connect = False
        try:
            try:
                connection = _join(address) if address else _start_local(_local_cpus())
            except SystemExit as error:  # of the SIGTERM handler that ray.init puts in place of ours
                raise KeyboardInterrupt from error
            finally:
                handle_signals()
            if address:
                _wait_for_cpus(workers, cpus_per_worker, config.wait_for_resources)
            yield connection
        finally:
            ray.shutdown()


def preflight(config: Cluster, *, workers: int = 1, cpus_per_worker: float = 1.0) -> None:
    """What can be said within seconds, before anything is started or written.

    Raises InputError where the workers do not fit on this machine or the address is none, RetryableError where nobody
    listens.
    """
    if address := _address(config):
        probe(address)
    elif workers * cpus_per_worker > (cpus := _local_cpus()):
        raise InputError(too_few(workers, cpus_per_worker, cpus, "this machine has"), see="Workers and CPUs")


def _address(config: Cluster) -> str | None:
    """Of the cluster to join, or None for a local Ray."""
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    return None if address == "local" else address


def _local_cpus() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

    use_token()
    _greet(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and gRPC's own for one thing
        raise RetryableError(
            f"cannot join the Ray cluster at {address}: {first_line(error)}", see="Ways to start"
        ) from error
    return Connection(False, address, float(ray.cluster_resources().get("CPU", 0)))


def use_token() -> None:
    """Show the token that there is (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token), unless RAY_AUTH_MODE says
    otherwise. Ray itself does so only for a cluster that it found by itself, not for an address that is named."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _target(address: str) -> str | None:
    """HOST:PORT of an address; None for an `auto` that only Ray can tell, from the processes that run."""
    if address != "auto":
        return address.removeprefix("ray://")
    current = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # noqa: S108 - of `ray start`
    try:
        return current.read_text().strip()
    except OSError:
        return None


def probe(address: str) -> None:
    """Raise RetryableError unless somebody listens at HOST:PORT, or at what `auto` stands for."""
    target = _target(address)
    if target is None:
        return
    host, _, port = target.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"--address must be auto, HOST:PORT or ray://HOST:PORT, not {address!r}", see="Ways to start")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise RetryableError(
            f"nobody listens at {target} ({error}); is the cluster up (`ray start --head`) and the --address right?",
            see="Ways to start",
        ) from error


def _greet(address: str) -> None:
    """Ask the head who it is. `ray.init` would try a port of some other program, or a wrong token, for two minutes.

    Raises InputError where it wants another token, RetryableError where it does not answer as Ray does.
    """
    target = _target(address)
    if target is None or address.startswith("ray://"):
        return
    import grpc  # type: ignore[import-untyped]
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    with init_grpc_channel(target) as channel:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            head.GetClusterId(gcs_service_pb2.GetClusterIdRequest(), timeout=PROBE_SECONDS)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise InputError(UNAUTHENTICATED.format(address), see="Ways to start") from error
            raise RetryableError(
                f"what listens at {target} does not answer as a Ray head does ({error.code().name}); its port is 6379"
                " unless `ray start --port` says otherwise",
                see="Ways to start",
            ) from error


def _wait_for_cpus(workers: int, cpus_per_worker: float, seconds: float) -> None:
    """Until the cluster has the CPUs. Raises RetryableError with the numbers where it stays too small."""
    import ray

    deadline = time.monotonic() + seconds
    while (cpus := float(ray.cluster_resources().get("CPU", 0))) < workers * cpus_per_worker:
        if seconds and time.monotonic() < deadline:
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=[{"CPU": cpus_per_worker}] * workers)
            time.sleep(1)
            continue
        waited = f" after {seconds:g} s" if seconds else ""
        raise RetryableError(
            too_few(workers, cpus_per_worker, cpus, f"the cluster has{waited}")
            + "; an autoscaling cluster is given time to grow by --wait-for-resources SECONDS",
            see="Workers and CPUs",
        )


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
