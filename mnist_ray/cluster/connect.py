"""Connecting to a Ray cluster, or starting a local Ray that ends with the job."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from mnist_ray.cluster import ray_private
from mnist_ray.cluster.capacity import too_few, wait_for_room
from mnist_ray.cluster.machine import check_temporary_folder, num_cpus, temporary_folder
from mnist_ray.cluster.nodes import alive, require_shared
from mnist_ray.cluster.signals import interruptible
from mnist_ray.cluster.tokens import refused
from mnist_ray.config import Cluster
from mnist_ray.errors import RetryableError, SetupError, counted, first_line
from mnist_ray.storage.location import Location

PROBE_SECONDS = 3.0
"""Time limit for a port to answer. `ray.init` alone would wait for more than a minute."""

LOCAL_OBJECT_STORE_BYTES = 256 * 2**20
"""Small: images travel through storage, not through the object store. Ray's default is a third of the memory."""


@dataclass(frozen=True)
class Connection:
    """The Ray cluster that a job uses."""

    is_local: bool
    """Whether it was started by this job and ends with it."""
    address: str
    """As users write it; `local` for a local Ray."""
    cpus: float
    """All CPUs of the cluster."""
    nodes: int = 1

    @property
    def label(self) -> str:
        return f"{'local Ray' if self.is_local else f'Ray at {self.address}'}, {counted(self.cpus, 'CPU')}"


@contextmanager
def connect(config: Cluster, *, workers: int = 1, cpus_per_worker: float = 1.0) -> Iterator[Connection]:
    """Connect to Ray for the time of the block, with our own handling of Ctrl-C and SIGTERM. Call `preflight` before.

    A Ray to which this process is connected already is used as it is, and stays.

    Raises SetupError if the head rejects our token or has other versions, RetryableError if the cluster cannot be
    joined or stays too small.
    """
    with _environment_as_before(), interruptible() as handle_signals:
        # Otherwise every process of Ray 2.60 warns about a future change to its handling of GPUs.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Where two tasks fail at the same moment, Ray logs the traceback of the one whose result nobody asks for any
        # more.
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        # Where memory is full, Ray would start a task again for ever.
        os.environ.setdefault("RAY_task_oom_retries", "3")
        with nullcontext(_callers(config)) if is_connected() else _of_our_own(config, handle_signals) as connection:
            if not connection.is_local:
                wait_for_room(workers, cpus_per_worker, config.wait_for_resources, held=_held_cpus())
                if there := config.written_to():
                    require_shared(Location.parse(there[1]))
            yield connection


@contextmanager
def _environment_as_before() -> Iterator[None]:
    """What the block, and Ray in it, set of Ray's variables ends with the block: the process may go on with others."""

    def rays() -> dict[str, str]:
        return {name: os.environ[name] for name in os.environ if name.startswith("RAY_") or name == "PYTHONBREAKPOINT"}

    before = rays()
    try:
        yield
    finally:
        for name in rays().keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
        if not is_connected():
            ray_private.forget_token()


def is_connected() -> bool:
    """Whether this process uses a Ray already: `ray.init` was called, or it is one of Ray's workers."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _callers(config: Cluster) -> Connection:
    """The Ray that this process is connected to. Raises SetupError where `config` names another one."""
    import ray

    address = str(ray.get_runtime_context().gcs_address)
    if config.address not in (None, "auto") and target_of(str(config.address)) != address:
        raise SetupError(
            f"--address is {config.address}, but this process is connected to the Ray at {address}; leave --address"
            " out, or call ray.shutdown() before",
            see="python.md#a-ray-of-your-own",
        )
    cpus = float(ray.cluster_resources().get("CPU", 0)) - _held_cpus()
    return Connection(False, address, cpus, len(alive()))


def is_in_a_task() -> bool:
    """Whether this code runs in a task or an actor of Ray's."""
    if not is_connected():
        return False
    import ray

    mode: int | None = getattr(getattr(ray.get_runtime_context(), "worker", None), "mode", None)
    return mode == ray.WORKER_MODE


def _held_cpus() -> float:
    """The CPUs that the task or actor reserves in which this code runs; 0 in a driver."""
    import ray

    return float(ray.get_runtime_context().get_assigned_resources().get("CPU", 0)) if is_in_a_task() else 0.0


@contextmanager
def _of_our_own(config: Cluster, handle_signals: Callable[[], None]) -> Iterator[Connection]:
    """A connection, or a local Ray, that ends with the block."""
    import ray

    address = _address(config)
    with ray_private.without_auto_connect(), ray_private.without_tracebacks():
        try:
            try:
                connection = _join(address) if address else _start_local(num_cpus())
            except SystemExit as error:  # from the SIGTERM handler that ray.init installs in place of ours
                raise KeyboardInterrupt from error
            finally:
                handle_signals()
            yield connection
        finally:
            ray.shutdown()


def preflight(config: Cluster, *, workers: int = 1, cpus_per_worker: float = 1.0) -> None:
    """Check within seconds what can be checked before anything is started or written.

    Raises SetupError if the workers do not fit on this machine or the address is malformed, RetryableError if nothing
    answers there. Of a Ray that this process is connected to, `connect` knows the rest.
    """
    if config.address is None and is_connected():
        return
    if address := _address(config):
        probe(address)
        return
    check_temporary_folder()
    if workers * cpus_per_worker > (cpus := num_cpus()):
        raise SetupError(too_few(workers, cpus_per_worker, cpus, "this machine has"), see="runs.md#workers-and-cpus")


def _address(config: Cluster) -> str | None:
    """The address of the cluster to join; None for a local Ray. Raises SetupError where RAY_ADDRESS is not one."""
    given = os.environ.get("RAY_ADDRESS", "")
    if config.address is None and _is_url(given):
        raise SetupError(
            f"RAY_ADDRESS is {given}, a dashboard's URL, which `mnist-ray submit` takes; unset it, or give --address"
            " auto, HOST:PORT or ray://HOST:PORT",
            see="clusters.md#ways-to-start",
        )
    address = config.address or given or "local"
    return None if address == "local" else address


def _is_url(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _start_local(cpus: int) -> Connection:
    import ray

    # Ray turns on token authentication for a new cluster and would store the token in the user's HOME. A secret of this
    # run's own leaves nothing behind, and works with a read-only HOME.
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    ray_private.forget_token()
    try:
        with ray_private.starting_quickly():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            )
    except Exception as error:  # of no kind of its own; mostly that a process was not up within 30 s
        raise RetryableError(
            f"Ray has not started on this machine: {first_line(error)}; if the machine is busy, try again",
            see="clusters.md#ways-to-start",
        ) from error
    return Connection(True, "local", float(cpus))


def _join(address: str) -> Connection:
    import ray

    ray_private.use_token_if_available()
    _greet(address)
    if _is_url(os.environ.get("RAY_ADDRESS", "")):
        del os.environ["RAY_ADDRESS"]  # Ray would take it in place of `auto`
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError or one of gRPC, all for the same reason
        _refuse_other_versions(address, error)
        raise RetryableError(
            f"cannot join the Ray cluster at {address}: {first_line(error)}", see="clusters.md#ways-to-start"
        ) from error
    return Connection(False, address, float(ray.cluster_resources().get("CPU", 0)), len(alive()))


def _refuse_other_versions(address: str, error: Exception) -> None:
    """Raise SetupError where Ray refused us because the cluster has another Ray or Python."""
    found = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
    if len(found) != 2:
        return
    (their_ray, their_python), (our_ray, our_python) = found
    raise SetupError(
        f"the cluster at {address} has Ray {their_ray} and Python {their_python}, but this command Ray {our_ray} and"
        f" Python {our_python}, which must be equal; install the cluster's versions here, or use `mnist-ray submit`,"
        " which runs the command there",
        see="clusters.md#versions",
    ) from error


def target_of(address: str) -> str | None:
    """HOST:PORT of an address; None for `auto` where only Ray itself can find the cluster, from its processes."""
    if address != "auto":
        return address.removeprefix("ray://")
    try:
        return (temporary_folder()[0] / "ray_current_cluster").read_text().strip()  # of `ray start`
    except OSError:
        heads = ray_private.running_heads()  # one that has its files elsewhere, by `ray start --temp-dir`
        return heads[0] if len(heads) == 1 else None


def probe(address: str) -> None:
    """Raise RetryableError unless something listens at the address."""
    target = target_of(address)
    if target is None:
        return
    host, _, port = target.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        hint = ", a dashboard's URL, which `mnist-ray submit` takes" if _is_url(address) else ""
        raise SetupError(
            f"--address must be auto, HOST:PORT or ray://HOST:PORT, not {address!r}{hint}",
            see="clusters.md#ways-to-start",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise RetryableError(
            f"nothing listens at {target} ({error}); is the cluster up (`ray start --head`) and the --address right?",
            see="clusters.md#ways-to-start",
        ) from error


def _greet(address: str) -> None:
    """Raise SetupError if the head rejects our token, RetryableError if what listens there is not a Ray head.

    `ray.init` would try for two minutes.
    """
    target = target_of(address)
    if target is None or address.startswith("ray://"):
        return
    import grpc  # type: ignore[import-untyped]

    try:
        ray_private.ask_head_for_cluster_id(target, PROBE_SECONDS)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise refused(f"the cluster at {address}") from error
        raise RetryableError(
            f"what listens at {target} is not a Ray head ({error.code().name}); a head listens on port 6379 unless"
            " `ray start --port` says otherwise",
            see="clusters.md#ways-to-start",
        ) from error
