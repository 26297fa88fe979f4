"""What the driver asks of Ray Train: start the workers, restart them, and return the result of the training."""

from __future__ import annotations

import os
import time
from threading import Event
from typing import Any

from mnist_ray.cluster.failures import loss, why_lost
from mnist_ray.cluster.ray_train_private import data_parallel_trainer, worker_exceptions
from mnist_ray.collective import RingConfig
from mnist_ray.errors import RetryableError, UnexpectedError, UserError, last_line
from mnist_ray.runs.records import TrainedModelRecord
from mnist_ray.storage.records import read_checked
from mnist_ray.training.job import Job
from mnist_ray.training.journal import SETUP_SECONDS
from mnist_ray.training.worker import run_worker


def train(job: Job, ended: Event) -> dict[str, Any]:
    """Train with Ray Train until the model is in the run's folder. Returns `train` of metrics.json.

    ended: set once nobody wants the result any more; a controller that is then lost is not replaced.

    Raises a worker's own UserError, or RetryableError when workers (or Ray Train's controller) died more often than
    `max_failures`.
    """
    model = job.run / "model" / "model.json"
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    _tune_ray_train(job.is_local)
    lost_controllers, others = 0, _placement_groups()
    while not model.exists():  # a model that exists is never trained again
        try:
            failure = _trainer(job).fit().return_value
        except TrainingFailedError as error:
            raise failure_of(error) from error
        except RayError as error:
            # Ray Train restarts workers, but nothing restarts its controller. Its workers have died with it.
            lost_controllers += 1
            if ended.is_set():
                _release_workers(others)
                raise
            if 0 <= job.config.max_failures < lost_controllers:
                what = loss(f"Ray Train's controller was lost {lost_controllers} times", error)
                raise RetryableError(
                    f"{what}; the same command continues from the last checkpoint",
                    see="runs.md#failures",
                ) from error
            _release_workers(others)
            continue
        if failure is not None:
            raise failure
    trained: dict[str, Any] = read_checked(model, TrainedModelRecord, "restore it or train again")["trained"]
    return trained


def _placement_groups() -> set[str]:
    """Those of this job of Ray's that are not removed. A name ends in the job's id."""
    import ray
    from ray.util.placement_group import placement_group_table

    job = ray.get_runtime_context().get_job_id()
    return {
        name for name, group in placement_group_table().items() if name.endswith(job) and group["state"] != "REMOVED"
    }


def _release_workers(others: set[str]) -> None:
    """Release the placement groups of a lost controller, or the next one waits for their CPUs for ever. others: those
    that there were before.

    Ray itself does so when the whole job ends.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for name in _placement_groups() - others:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))


def _trainer(job: Job) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    scaling_config: Any = ScalingConfig  # mypy takes it for that of Train V1
    fewest, most = job.config.worker_range()
    # Ray Train's own folder is new each time and never read back: a snapshot in it would be loaded silently.
    attempt = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{time.monotonic_ns() % 10**6:06d}"
    return data_parallel_trainer(job.channel, is_local=job.is_local)(
        run_worker,
        train_loop_config={"job": job},
        backend_config=RingConfig(timeout=SETUP_SECONDS),
        scaling_config=scaling_config(
            num_workers=most if fewest == most else (fewest, most),
            resources_per_worker={"CPU": job.config.cpus_per_worker},
            use_gpu=job.config.use_gpu,
            elastic_resize_monitor_interval_s=10.0,
        ),
        run_config=RunConfig(
            name=attempt,
            storage_path=(job.run / "ray").path,
            storage_filesystem=job.run.filesystem,
            failure_config=FailureConfig(max_failures=job.config.max_failures),
        ),
    )


def _tune_ray_train(is_local: bool) -> None:
    """Settings of Ray Train that only the environment takes."""
    # The controller polls this often, so it notices the end of the loop that late.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # A hung worker counts as dead after this, not after ten minutes. The ring's own deadline is usually first.
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "45")
    # A worker group sized for a node that has just gone does not fit. After this it is resized, as often as needed.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    # Else a callback's relative path, such as "log.csv", would lie in a folder of Ray's.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Else what a worker prints is in its log twice: Ray Train logs it as well.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    if is_local:
        # Each would start a process that is of no use on a Ray of one job.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")


def failure_of(error: Exception) -> UserError:
    """The UserError that a worker raised; else an UnexpectedError with the reason."""
    failures = worker_exceptions(error)
    for failure in failures:  # the other workers' errors only say that the ring is broken
        if isinstance(failure, UserError):
            return failure
    if reason := why_lost(*failures):
        return UnexpectedError(f"training failed: train workers were lost too often: {reason}")
    return UnexpectedError(f"training failed: {last_line(failures[0] if failures else error)}")
