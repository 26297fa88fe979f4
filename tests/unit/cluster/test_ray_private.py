"""After an upgrade of Ray: what `cluster/ray_private.py` reaches for must still be there, or is named here."""

from __future__ import annotations

import importlib
import inspect

import pytest

ROOM = "mnist_ray/cluster/ray_private.py"

REACHED = [
    ("ray._private.auto_init_hook", "enable_auto_connect"),
    ("ray._private.authentication.authentication_token_setup", "maybe_enable_token_auth_if_token_available"),
    ("ray._private.grpc_utils", "init_grpc_channel"),
    ("ray._private.services", "find_gcs_addresses"),
    ("ray.core.generated.gcs_service_pb2", "GetClusterIdRequest"),
    ("ray.core.generated.gcs_service_pb2_grpc", "NodeInfoGcsServiceStub"),
    ("ray.train.v2._internal.callbacks", "DatasetsCallback"),
    ("ray.train.v2._internal.callbacks.placement_group_callback", "PlacementGroupCleanerCallback"),
    ("ray.train.v2.api.data_parallel_trainer", "DataParallelTrainer"),
]


@pytest.mark.parametrize(("module", "name"), REACHED)
def test_what_we_reach_for_is_there(module: str, name: str) -> None:
    import ray

    try:
        found = hasattr(importlib.import_module(module), name)
    except ImportError:
        found = False
    assert found, f"ray {ray.__version__} has no {module}.{name}: mend {ROOM}"


def test_the_trainer_makes_its_callbacks_where_we_leave_some_out() -> None:
    import ray
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    assert hasattr(DataParallelTrainer, "_create_default_callbacks"), (
        f"ray {ray.__version__} has no DataParallelTrainer._create_default_callbacks: mend {ROOM}"
    )
    source = inspect.getsource(DataParallelTrainer._create_default_callbacks)
    assert "DatasetsCallback(" in source
    assert "PlacementGroupCleanerCallback(" in source


def test_a_workers_exception_is_taken_out_of_its_wrapping() -> None:
    import ray
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    from mnist_ray.cluster.ray_private import worker_exceptions

    raised = ValueError("of rank 1")
    wrapped = UserExceptionWithTraceback(raised, traceback_str="")
    assert worker_exceptions(WorkerGroupError("", {1: wrapped})) == [raised], (
        f"ray {ray.__version__} wraps a worker's exception another way: mend {ROOM}"
    )
    assert worker_exceptions(RuntimeError()) == []
