"""Whatever we need of Ray Train that is not in its public API. See `ray_private.py`, which has that of Ray itself."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from mnist_ray.cluster.failures import why_lost
from mnist_ray.cluster.ray_private import CHANNELS, publish, published
from mnist_ray.errors import last_line


def data_parallel_trainer(channel: str = "", *, is_local: bool = False) -> type[Any]:
    """Ray Train V2's DataParallelTrainer, which counts workers that are lost while they start as failures, too.

    channel: by which `end_training` ends it, and on which it tells what a worker was lost by. is_local: whether Ray was
    started for this one training. It has no autoscaler then, and a number of workers that is fixed is not asked for.

    It also lacks two callbacks that start a process: one for Ray Data's datasets, as each worker reads its own shards,
    and one that releases the workers of a lost controller, which the driver does itself, and which fails where Ray has
    no dashboard. `ray.train.data_parallel_trainer` is still the class of Train V1, which refuses V2's configs, and V2
    has no option to leave a callback out (ray/train/v2/api/data_parallel_trainer.py).
    """
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    unneeded = (DatasetsCallback, PlacementGroupCleanerCallback)

    class Trainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = [each for each in super()._create_default_callbacks() if not isinstance(each, unneeded)]
            return [_release_failed_starts(), _announce_controller(channel), *callbacks]

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            settings["failure_policy"] = _count_failed_starts(self.run_config.failure_config, channel)
            if is_local and isinstance(self.scaling_config.num_workers, int):
                settings["scaling_policy"] = _ask_nobody(self.scaling_config)
            return super()._initialize_and_run_controller(**settings)

    return Trainer


def _ask_nobody(scaling_config: Any) -> Any:
    """A policy for a fixed number of workers that does not ask Ray Data's autoscaling coordinator for their room: that
    is a process, which takes two seconds to start (ray/train/v2/_internal/execution/scaling_policy)."""
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class Policy(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    return Policy(scaling_config)


def _count_failed_starts(failure_config: Any, channel: str = "") -> Any:
    """A failure policy to which a worker that is lost while the group starts is a worker that is lost.

    Ray's own ends the training at once, or tries again for ever, depending on the moment
    (ray/train/v2/_internal/execution/failure_handling/default.py). This one also publishes each failure after which the
    training starts again, as `last_loss` has it: Ray tells it to its own log alone.
    """
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
    from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    from mnist_ray.collective import RingError

    class Policy(DefaultFailurePolicy):
        def make_decision(self, training_failed_error: Any) -> Any:
            failure = getattr(training_failed_error, "controller_failure", None)
            if isinstance(training_failed_error, ControllerError) and isinstance(
                failure, RayActorError | OutOfMemoryError | WorkerGroupStartupFailedError | RingError
            ):
                training_failed_error = WorkerGroupError(str(failure), {0: failure})
            decision = super().make_decision(training_failed_error)
            failures = worker_exceptions(training_failed_error)
            if decision.value == "RETRY" and failures:
                # The other workers' errors only say that the ring is broken.
                causes = [each for each in failures if not isinstance(each, RingError)] or failures
                why = why_lost(*causes) or last_line(causes[0])
                publish(_loss(channel), {"at": time.time(), "why": why})
            return decision

    return Policy(failure_config)


def _loss(channel: str) -> str:
    return f"{channel}/loss"


def last_loss(channel: str) -> tuple[float, str] | None:
    """When a training's workers were last lost, or raised something, after which all start again; and by what."""
    found = published(_loss(channel))
    return (found["at"], found["why"]) if found else None


def _release_failed_starts() -> Any:
    """A callback that ends the workers of a start that failed, and releases their CPUs, before the next start.

    Where a backend raises, Ray does neither, and the next start waits for these CPUs for ever
    (ray/train/v2/_internal/execution/worker_group/worker_group.py).
    """
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class Release(WorkerGroupCallback):
        state: Any = None

        def before_worker_group_start(self, worker_group_context: Any) -> None:
            state, self.state = self.state, None
            if state is not None:
                state.shutdown()

        def after_worker_group_start(self, worker_group: Any) -> None:
            self.state = worker_group.get_worker_group_state()

        def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
            self.state = None

        def after_worker_group_abort(self, worker_group_context: Any) -> None:
            self.state = None

    return Release()


def _announce_controller(channel: str) -> Any:
    """A callback by which Ray Train's controller, which only its trainer knows, lets `end_training` know it."""
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Announce(ControllerCallback):
        def after_controller_start(self, train_run_context: Any) -> None:
            import ray
            from ray import cloudpickle
            from ray.experimental import internal_kv

            controller = cloudpickle.dumps(ray.get_runtime_context().current_actor)
            internal_kv._internal_kv_put(f"{channel}/controller", controller, namespace=CHANNELS)

    return Announce()


def end_training(channel: str) -> None:
    """Kill a training's controller, if there is one yet, and with it its workers.

    `fit` ends with its thread, and Ray Train has no way to stop it from another one
    (ray/train/v2/api/data_parallel_trainer.py).
    """
    import ray
    from ray import cloudpickle
    from ray.experimental import internal_kv

    with suppress(Exception):  # Ray may be gone
        if found := internal_kv._internal_kv_get(f"{channel}/controller", namespace=CHANNELS):
            ray.kill(cloudpickle.loads(found))


def worker_exceptions(error: Exception) -> list[Exception]:
    """What the workers' training functions raised, by rank, out of Ray Train's wrapping; empty where the controller
    failed. The wrapped exception has no public name (ray/train/v2/_internal/exceptions.py)."""
    return [getattr(each, "_base_exc", each) for each in getattr(error, "worker_failures", {}).values()]
