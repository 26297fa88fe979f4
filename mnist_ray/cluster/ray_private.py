"""Whatever we need of Ray that is not in its public API: all of it is here, and that of Ray Train in
`ray_train_private.py`, and nowhere else.

Each function says why there is no public way, and where Ray's own code is. After an upgrade of Ray,
tests/unit/cluster/test_ray_private.py names what is missing. Nothing here imports Ray before it is called.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def without_auto_connect() -> Iterator[None]:
    """In the block, and after an error out of it, Ray calls start no cluster of their own.

    A thread that still trains while the job is being interrupted would otherwise start one. `ray.init` has no option
    for it (ray/_private/auto_init_hook.py).
    """
    from ray._private import auto_init_hook

    before, auto_init_hook.enable_auto_connect = auto_init_hook.enable_auto_connect, False
    yield
    auto_init_hook.enable_auto_connect = before


@contextmanager
def starting_quickly() -> Iterator[None]:
    """In the block, `ray.init` starts a Ray for one command: no more of it than that needs, and no longer than needed.

    Nobody looks at its dashboard, and `include_dashboard=False` still starts the autoscaler, the log monitor and an
    agent with the pages of each node: 1.7 s of CPU and 340 MB, and a second when they end (`start_head_processes` in
    ray/_private/node.py, `start_raylet` in ray/_private/services.py). Ray looks once a second whether its node is up,
    in C++ (`get_node` in src/ray/gcs_rpc_client/global_state_accessor.cc): here it is asked when it is.
    """
    from ray._private import services, utils
    from ray._private.node import Node

    def get_node_when_up(gcs_address: str, node_id: str) -> Any:
        _wait_for_node(gcs_address, node_id)
        return get_node(gcs_address, node_id)

    get_node: Any = services.get_node
    replaced: list[tuple[Any, str, Any]] = [
        (services, "get_node", get_node_when_up),
        (utils, "get_dashboard_dependency_error", lambda: ImportError("not for one command")),
        *((Node, name, lambda *_, **__: None) for name in ("start_api_server", "start_monitor", "start_log_monitor")),
    ]
    with ExitStack() as stack:
        for place, name, ours in replaced:
            stack.enter_context(_replaced(place, name, ours))
        yield


@contextmanager
def _replaced(place: Any, name: str, ours: Any) -> Iterator[None]:
    """In the block, an attribute of a module or class of Ray's is ours."""
    theirs = getattr(place, name)
    setattr(place, name, ours)
    try:
        yield
    finally:
        setattr(place, name, theirs)


def _wait_for_node(gcs_address: str, node_id: str) -> None:
    """Until a node has registered at the head. Raises RuntimeError after 30 s, which is Ray's own limit."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import RpcError

    head, deadline = GcsClient(address=gcs_address), time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(RpcError):  # it does not answer
            if any(each.hex() == node_id for each in head.get_all_node_info(timeout=1)):
                return
        time.sleep(0.02)
    raise RuntimeError(f"the node {node_id} has not registered at {gcs_address}")


@contextmanager
def without_tracebacks() -> Iterator[None]:
    """In the block, Ray prints no traceback of an actor that cannot be imported; the error itself is raised here, too.
    Of a process that was ended for want of memory, the first line is enough: 40 follow, once a process.

    `log_to_driver` is about what workers print, not about this (listen_error_messages in ray/_private/worker.py).
    """
    from ray._private import worker

    show = worker.print_to_stdstream

    def print_to_stdstream(data: dict[str, Any], *args: Any, **settings: Any) -> None:
        if not any("Traceback (most recent call last)" in line for line in data["lines"]):
            lines = [line.partition("\nOOM kill reason")[0] for line in data["lines"]]
            show(data | {"lines": lines}, *args, **settings)

    with _replaced(worker, "print_to_stdstream", print_to_stdstream):
        yield


def use_token_if_available() -> None:
    """Authenticate with the token that there is (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token), unless
    RAY_AUTH_MODE says otherwise.

    Ray does so by itself only for a cluster that it has found, not for an address that is given
    (ray/_private/authentication/authentication_token_setup.py).
    """
    from ray._private.authentication import authentication_token_setup

    authentication_token_setup.logger.setLevel(logging.ERROR)  # it would advise on turning the token off
    authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def forget_token() -> None:
    """Let Ray read its token, and whether it uses one, from the environment again.

    It keeps what it has read for as long as the process lives (src/ray/rpc/authentication; ray/_raylet).
    """
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


def auth_headers() -> dict[str, str]:
    """The HTTP headers that carry our token; none where it is not used.

    Ray's client has no time limit, so we ask whether a dashboard answers by ourselves
    (ray/_private/authentication/http_token_authentication.py).
    """
    from ray._private.authentication import http_token_authentication

    http_token_authentication.logger.setLevel(logging.ERROR)  # it would warn that there is no token, as we do
    headers: dict[str, str] = http_token_authentication.get_auth_headers_if_auth_enabled({})
    return headers


def packaged_files(folder: Path) -> dict[str, int]:
    """The files that Ray sends of a working directory, by their path within it, and their sizes in bytes.

    Ray has no way to ask before it sends (ray/_private/runtime_env/packaging.py). Files that .gitignore or .rayignore
    names are left out, and .git and virtual environments.
    """
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    sizes: dict[str, int] = {}

    def count(path: Path) -> None:
        if path.is_file():
            sizes[str(path.relative_to(folder))] = path.stat().st_size

    excluded = packaging._get_excludes(folder, ray_constants.get_runtime_env_default_excludes())
    use_gitignore = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    silent = logging.getLogger(f"{__name__}.silent")
    silent.disabled = True
    packaging._dir_travel(folder, [excluded], count, include_gitignore=use_gitignore, logger=silent)
    return sizes


def upload_limit() -> int:
    """Bytes of a working directory from which Ray refuses it (ray/_private/runtime_env/packaging.py)."""
    from ray._private.runtime_env import packaging

    limit: int = packaging.GCS_STORAGE_MAX_SIZE
    return limit


def tell_job_id() -> None:
    """Set MNIST_RAY_JOB to the submission id of the Ray job that this process is the driver of, if it is one's.

    `ray.get_runtime_context()` knows only the id of the driver's connection
    (ray/dashboard/modules/job/job_supervisor.py).
    """
    with suppress(KeyError, TypeError, ValueError):
        given = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"]
        os.environ["MNIST_RAY_JOB"] = str(given)


def is_open(target: str, timeout: float) -> bool | None:
    """Whether a Ray head at HOST:PORT answers calls without a token; None where that cannot be told, as with TLS."""
    import grpc  # type: ignore[import-untyped]
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    try:
        with grpc.insecure_channel(target) as channel:
            head: Any = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            head.GetClusterId(gcs_service_pb2.GetClusterIdRequest(), timeout=timeout)  # type: ignore[attr-defined]
    except grpc.RpcError as error:
        return False if error.code() == grpc.StatusCode.UNAUTHENTICATED else None
    return True


def most_resources() -> dict[str, int] | None:
    """What the cluster may grow to, if its autoscaler has told Ray; there is no public way to ask.

    None is usual: KubeRay's and `ray start`'s do not tell (ray/_private/state.py).
    """
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config()


def running_heads() -> list[str]:
    """HOST:PORT of the Ray heads whose processes run on this machine.

    That is how Ray itself looks for `auto`; it has no public function for it (ray/_private/services.py).
    """
    from ray._private import services

    return sorted(services.find_gcs_addresses())


def ask_head_for_cluster_id(target: str, timeout: float) -> None:
    """Make the cheapest call that a Ray head at HOST:PORT answers, with the token in use.

    Raises grpc.RpcError. `ray.init` has no time limit of its own, and tries a port of another program, or with a wrong
    token, for two minutes (ray/_private/grpc_utils.py; src/ray/protobuf/gcs_service.proto).
    """
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    with init_grpc_channel(target) as channel:
        head: Any = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        head.GetClusterId(gcs_service_pb2.GetClusterIdRequest(), timeout=timeout)  # type: ignore[attr-defined]


def session_folder() -> str:
    """The folder of Ray's session on this node. A worker's working directory is the user's
    (ray/_private/workers/default_worker.py)."""
    from ray._private import worker

    folder: str = worker._global_node.get_session_dir_path()  # type: ignore[attr-defined]
    return folder


CHANNELS = b"mnist_ray"
"""The namespace of what is published."""


def publish(channel: str, progress: dict[str, Any]) -> None:
    """Let the driver see a train worker's progress, by Ray's head: it takes a millisecond and no storage.

    `ray.train.report` would be public, but blocks until the controller's next poll and is a barrier of all ranks; a
    named actor would be a process (ray/experimental/internal_kv.py). What cannot be published is left out.
    """
    from ray.experimental import internal_kv

    with suppress(Exception):  # Ray's, of many kinds; nothing depends on it but the console
        internal_kv._internal_kv_put(channel, json.dumps(progress), namespace=CHANNELS)


def published(channel: str) -> dict[str, Any]:
    """The last progress that was published; {} before the first."""
    from ray.experimental import internal_kv

    try:
        found = internal_kv._internal_kv_get(channel, namespace=CHANNELS)
    except Exception:  # as above
        return {}
    progress: dict[str, Any] = json.loads(found) if found else {}
    return progress
