"""After an upgrade of Ray: what `ray_private.py` and `ray_train_private.py` reach for is there, or is named here."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import os
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RpcError

from mnist_ray.cluster import ray_private, ray_train_private

ROOM = "mnist_ray/cluster/ray_private.py"
TRAIN_ROOM = "mnist_ray/cluster/ray_train_private.py"

REACHED = [
    ("ray._private.auto_init_hook", "enable_auto_connect"),
    ("ray._private.authentication.authentication_token_setup", "maybe_enable_token_auth_if_token_available"),
    ("ray._private.authentication.authentication_token_setup", "logger"),
    ("ray._private.authentication.http_token_authentication", "get_auth_headers_if_auth_enabled"),
    ("ray._private.authentication.http_token_authentication", "logger"),
    ("ray._private.grpc_utils", "init_grpc_channel"),
    ("ray._private.ray_constants", "RAY_RUNTIME_ENV_IGNORE_GITIGNORE"),
    ("ray._private.ray_constants", "get_runtime_env_default_excludes"),
    ("ray._private.node", "Node.start_api_server"),
    ("ray._private.node", "Node.start_log_monitor"),
    ("ray._private.node", "Node.start_monitor"),
    ("ray._private.runtime_env.packaging", "GCS_STORAGE_MAX_SIZE"),
    ("ray._private.runtime_env.packaging", "_dir_travel"),
    ("ray._private.runtime_env.packaging", "_get_excludes"),
    ("ray._private.state", "state"),
    ("ray._private.utils", "get_dashboard_dependency_error"),
    ("ray._private.worker", "_global_node"),
    ("ray._private.worker", "print_to_stdstream"),
    ("ray._private.services", "find_gcs_addresses"),
    ("ray._private.services", "get_node"),
    ("ray._raylet", "AuthenticationTokenLoader.reset_cache"),
    ("ray._raylet", "Config.initialize"),
    ("ray._raylet", "InnerGcsClient.get_all_node_info"),
    ("ray.core.generated.gcs_service_pb2", "GetClusterIdRequest"),
    ("ray.core.generated.gcs_service_pb2_grpc", "NodeInfoGcsServiceStub"),
    ("ray.train.v2._internal.callbacks", "DatasetsCallback"),
    ("ray.train.v2._internal.callbacks.placement_group_callback", "PlacementGroupCleanerCallback"),
    ("ray.train.v2._internal.exceptions", "WorkerGroupStartupFailedError"),
    ("ray.train.v2._internal.execution.callback", "ControllerCallback.after_controller_start"),
    ("ray.train.v2._internal.execution.callback", "WorkerGroupCallback"),
    ("ray.train.v2._internal.execution.failure_handling.default", "DefaultFailurePolicy"),
    ("ray.train.v2._internal.execution.scaling_policy", "FixedScalingPolicy._maybe_send_resource_request"),
    ("ray.train.v2._internal.execution.scaling_policy", "FixedScalingPolicy.after_controller_start"),
    ("ray.train.v2.api.data_parallel_trainer", "DataParallelTrainer"),
    ("ray.train.v2.api.exceptions", "ControllerError"),
]


@pytest.mark.parametrize(("module", "name"), REACHED)
def test_what_we_reach_for_is_there(module: str, name: str) -> None:
    import ray

    try:
        attrgetter(name)(importlib.import_module(module))
        found = True
    except (ImportError, AttributeError):
        found = False
    assert found, f"ray {ray.__version__} has no {module}.{name}: mend {TRAIN_ROOM if '.train.' in module else ROOM}"


@pytest.mark.parametrize("answer", [{}, RpcError("gone", 14)])
def test_a_node_that_does_not_come_up_is_not_waited_for_longer_than_ray_does(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never by a call without a time limit, as the head may have died."""
    import ray._raylet

    asked: list[dict[str, Any]] = []

    class Head:
        def __init__(self, *, address: str) -> None:
            assert address == "h:1"

        def get_all_node_info(self, **options: Any) -> Any:
            asked.append(options)
            if isinstance(answer, Exception):
                raise answer
            return answer

    seconds = itertools.count()
    monkeypatch.setattr(ray._raylet, "GcsClient", Head)
    monkeypatch.setattr(ray_private, "time", SimpleNamespace(monotonic=lambda: next(seconds), sleep=lambda _: None))
    with pytest.raises(RuntimeError, match=r"^the node ab has not registered at h:1$"):
        ray_private._wait_for_node("h:1", "ab")
    assert asked == [{"timeout": 1}] * 29


def test_ray_prints_no_tracebacks_but_other_news(capsys: pytest.CaptureFixture[str]) -> None:
    from ray._private import worker

    from mnist_ray.cluster.ray_private import without_tracebacks

    before = worker.print_to_stdstream
    lines = (
        "2 worker(s) were killed\nOOM kill reason: M\nTop 10",
        "Failed. Traceback (most recent call last):\n  File",
    )
    with without_tracebacks():
        for line in lines:
            worker.print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert worker.print_to_stdstream is before
    assert capsys.readouterr().out.endswith(" 2 worker(s) were killed\n")
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)


def test_where_the_driver_of_a_job_finds_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
    from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY

    from mnist_ray.cluster.ray_private import tell_job_id

    monkeypatch.setenv("MNIST_RAY_JOB", "the one before")
    for given in ("", "[]", "{}", json.dumps({"metadata": None})):
        monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, given)
        tell_job_id()
        assert os.environ["MNIST_RAY_JOB"] == "the one before"
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, json.dumps({"metadata": {JOB_ID_METADATA_KEY: "raysubmit_x"}}))
    tell_job_id()
    assert os.environ["MNIST_RAY_JOB"] == "raysubmit_x"


def test_the_trainer_makes_its_callbacks_where_we_leave_some_out() -> None:
    import ray
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    assert hasattr(DataParallelTrainer, "_create_default_callbacks"), (
        f"ray {ray.__version__} has no DataParallelTrainer._create_default_callbacks: mend {ROOM}"
    )
    source = inspect.getsource(DataParallelTrainer._create_default_callbacks)
    assert "DatasetsCallback(" in source
    assert "PlacementGroupCleanerCallback(" in source


def test_the_trainer_takes_our_failure_policy_and_releases_failed_starts() -> None:
    """tests/unit/training/test_starts.py tries it; this names what has changed."""
    import ray
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback
    from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState
    from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    told = f"ray {ray.__version__} starts workers another way: mend {TRAIN_ROOM}"
    assert "failure_policy=" in inspect.getsource(DataParallelTrainer.fit), told
    assert hasattr(DataParallelTrainer, "_initialize_and_run_controller"), told
    start = inspect.getsource(WorkerGroup._start_impl)
    assert start.index("before_worker_group_start") < start.index("_create_placement_group"), told
    assert hasattr(WorkerGroup, "get_worker_group_state"), told
    assert hasattr(WorkerGroupState, "shutdown"), told
    for hook in ("after_worker_group_start", "after_worker_group_shutdown", "after_worker_group_abort"):
        assert hasattr(WorkerGroupCallback, hook), told


@pytest.mark.parametrize("kind", ["worker", "memory", "start", "ring"])
def test_a_worker_that_is_lost_while_it_starts_counts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.train import FailureConfig
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError

    from mnist_ray.cluster.ray_train_private import _count_failed_starts
    from mnist_ray.collective import RingError

    failures = {
        "worker": RayActorError(),
        "memory": OutOfMemoryError("full"),
        "start": WorkerGroupStartupFailedError("x"),
        "ring": RingError("x", 1),
    }
    told: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(ray_train_private, "publish", lambda channel, value: told.append((channel, value)))
    policy = _count_failed_starts(FailureConfig(max_failures=2), "c")

    def decided(error: Exception) -> str:
        return str(policy.make_decision(ControllerError(error)).value)

    # Waiting for nodes is no failure.
    assert [decided(WorkerGroupStartupTimeoutError(2)) for _ in range(5)] == ["RETRY"] * 5
    assert [decided(failures[kind]) for _ in range(3)] == ["RETRY", "RETRY", "RAISE"]
    assert decided(ValueError("of ours")) == "RAISE"
    assert [channel for channel, _ in told] == ["c/loss"] * 2
    assert type(failures[kind]).__name__ in told[0][1]["why"]


def test_the_cause_of_a_loss_is_that_of_the_worker_that_failed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train import FailureConfig, WorkerGroupError

    from mnist_ray.cluster.ray_train_private import _count_failed_starts, last_loss
    from mnist_ray.collective import RingError

    told: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(ray_train_private, "publish", told.__setitem__)
    monkeypatch.setattr(ray_train_private, "published", lambda channel: told.get(channel, {}))
    assert last_loss("c") is None
    policy = _count_failed_starts(FailureConfig(max_failures=2), "c")
    policy.make_decision(WorkerGroupError("", {0: RingError("rank 1 is gone", 1), 1: ValueError("a bad row")}))
    loss = last_loss("c")
    assert loss is not None
    assert loss[1] == "ValueError: a bad row"


def test_a_workers_exception_is_taken_out_of_its_wrapping() -> None:
    import ray
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    from mnist_ray.cluster.ray_train_private import worker_exceptions

    raised = ValueError("of rank 1")
    wrapped = UserExceptionWithTraceback(raised, traceback_str="")
    assert worker_exceptions(WorkerGroupError("", {1: wrapped})) == [raised], (
        f"ray {ray.__version__} wraps a worker's exception another way: mend {TRAIN_ROOM}"
    )
    assert worker_exceptions(RuntimeError()) == []
