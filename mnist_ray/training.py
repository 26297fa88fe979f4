"""The training: what the driver asks of Ray Train, and what each worker does.

A worker reads its own shards once, as uint8, and runs plain Keras `fit` over its rows of the global batches
(`order.py`), with the gradients added up over the ring (`collective.py`). `journal.py` knows where it stands.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnist_ray import collective
from mnist_ray.config import Training
from mnist_ray.errors import DivergedError, InputError, RetryableError, UserError
from mnist_ray.journal import SETUP_SECONDS, Journal
from mnist_ray.model import Recipe, build, feed, import_keras, pixels_of, save
from mnist_ray.order import Order, order, split_off
from mnist_ray.ring import Ring
from mnist_ray.sharding import Manifest, read_shard
from mnist_ray.storage import Location


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker is told."""

    config: Training
    recipe: Recipe
    manifest: Manifest
    shards: Location
    run: Location
    owner: dict[str, Any]
    is_local: bool = True
    """Whether the Ray is this job's own: then no node of it is ever taken away."""


def recipe(config: Training, manifest: Manifest) -> Recipe:
    """The classifier that a configuration trains on a dataset."""
    return Recipe(
        architecture=config.architecture,
        image_shape=manifest.image_shape,
        num_classes=len(manifest.classes),
        dropout=config.dropout,
        seed=config.seed,
        precision=config.precision,
    )


# The driver's side.


def train(job: Job) -> dict[str, Any]:
    """Train by Ray Train until the model is in the run's folder; what `train` of metrics.json says comes back.

    Raises the worker's own UserError, or RetryableError when workers (or Ray Train's controller) died more often than
    `max_failures`.
    """
    model = job.run / "model" / "model.json"
    from ray.exceptions import RayError
    from ray.train.v2.api.exceptions import TrainingFailedError

    _tune_ray_train(job.is_local)
    lost_controllers = 0
    while not model.exists():  # what is there is never trained again
        try:
            failure = _trainer(job).fit().return_value
        except TrainingFailedError as error:
            raise _reason(error) from error
        except RayError as error:
            # Ray Train restarts workers, but nobody restarts its controller. Its workers have died with it.
            lost_controllers += 1
            if 0 <= job.config.max_failures < lost_controllers:
                raise RetryableError(
                    f"Ray Train's controller was lost {lost_controllers} times; the same command goes on from the last"
                    " checkpoint",
                    see="runs.md#failures",
                ) from error
            _release_workers()
            continue
        if failure is not None:
            raise failure
    trained: dict[str, Any] = model.read_json()["trained"]
    return trained


def _release_workers() -> None:
    """Give back what a lost controller had reserved, or its successor waits for it for ever.

    Ray itself does so when the whole job ends, Ray Train where a dashboard runs.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    for name, group in placement_group_table().items():
        # An id ends in that of the job. Nothing else of this job has placement groups.
        if name.endswith(ray.get_runtime_context().get_job_id()) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))


def _trainer(job: Job) -> Any:
    from ray.train import FailureConfig, RunConfig
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.api.config import ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class Trainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            """All but those that start a process each for what there is not: Ray Data's datasets, as a worker reads its
            own shards; and for a Ray that ends with the job, placement groups that outlive it."""
            idle = (DatasetsCallback, PlacementGroupCleanerCallback) if job.is_local else DatasetsCallback
            return [each for each in super()._create_default_callbacks() if not isinstance(each, idle)]

    fewest, most = job.config.worker_range()
    # Ray Train's own folder is new each time and never read back: a snapshot that lay there would be loaded silently.
    attempt = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{time.monotonic_ns() % 10**6:06d}"
    return Trainer(
        _worker,
        train_loop_config={"job": job},
        backend_config=collective.RingConfig(timeout=SETUP_SECONDS),
        scaling_config=ScalingConfig(
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
    # The controller polls this often; the end of the loop is noticed that late.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # A hung worker counts as dead after this, not after ten minutes. The ring's own deadline is usually first.
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "45")
    # A group sized for a node that has just gone does not fit. After this it is sized anew, as often as needed.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    if is_local:
        # A process each, to watch what one machine has no use for.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")


def _reason(error: Any) -> UserError:
    """What a worker raised, out of Ray's wrapping."""
    failures = [getattr(each, "_base_exc", each) for each in getattr(error, "worker_failures", {}).values()]
    for failure in failures:  # the others say only that the ring is broken
        if isinstance(failure, UserError):
            return failure
    last = (str(failures[0]) if failures else str(error)).strip().split("\n")[-1]
    return RetryableError(
        f"training failed: {last}; the same command goes on from the last checkpoint", see="runs.md#failures"
    )


# A worker's side.


def _worker(config: dict[str, Any]) -> UserError | None:
    """Runs in every worker's process. A restart would not help against what is returned, from all ranks alike."""
    ring = collective.ring()
    try:
        fit(config["job"], ring)
    except DivergedError as error:
        return error
    except BaseException:
        ring.close()  # this process lives on until Ray Train has noticed; the others must not wait for it
        raise
    return None


def fit(job: Job, ring: Ring) -> None:
    """Train this rank's share, together with the others of the ring, until rank 0 has saved the model.

    Raises DivergedError on all ranks where the loss is no longer finite, and whatever befell the ring.
    """
    config = job.config
    keras = import_keras(config.precision, threads=max(1, int(config.cpus_per_worker)))
    sizes = [shard.rows for shard in job.manifest.shards["train"]]
    held_out, kept = split_off(sizes, config.validation_fraction)
    plan = order(kept, config.batch_size, config.seed)
    mine, validation = _read_own_shards(job, plan, held_out, ring.rank, ring.size)

    model = build(job.recipe)
    rows = plan.batch_rows(ring.rank, ring.size)
    block = block_steps(model, int(rows.max(initial=1)), plan.steps)
    model.compile(
        optimizer=collective.data_parallel(
            _optimizer(keras, config),
            ring,
            rows=rows,
            global_rows=np.minimum(plan.batch_size, plan.rows - plan.batch_size * np.arange(plan.steps)),
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],  # which leaves out the rows at weight 0
        steps_per_execution=block,
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)
    # Keras would build the metrics in the first step: too late for the tallies of an epoch that is resumed.
    model._compile_metrics.build(keras.KerasTensor((None,), "int64"), keras.KerasTensor((None, job.recipe.num_classes)))

    journal = Journal(job, plan, ring, model, validation, rows)
    epoch = journal.restore()
    batches = Batches(*mine, plan, ring, pixels_of(model), lambda: journal.epoch)
    del mine
    callbacks = [
        collective.synchronize(ring, blank_steps=journal.blank_steps),
        journal.callback(),
        *_own(config, "callbacks", list)(),
    ]
    try:
        if journal.first_step:  # the rest of an epoch that a checkpoint has begun
            rest, end = batches.from_step(journal.first_step), epoch + 1
            model.fit(rest, initial_epoch=epoch, epochs=end, verbose=0, shuffle=False, callbacks=callbacks)
            epoch = end
        if epoch < config.epochs and not model.stop_training:
            whole, end = batches.from_step(0), config.epochs
            model.fit(whole, initial_epoch=epoch, epochs=end, verbose=0, shuffle=False, callbacks=callbacks)
    except UserError:
        raise
    except Exception as error:
        raise ring.error or error from None  # TensorFlow hides what its Python function raised
    ring.timeout = SETUP_SECONDS
    journal.choose_best()
    _assert_same_weights(ring, model)
    journal.close()
    if ring.rank == 0:
        save(model, job.run / "model", job.recipe, job.manifest.classes, journal.trained())
    ring.barrier()  # nobody leaves, and so ends the run, before the model is there


def _own(config: Training, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
    """What the user's module gives beside the model: `optimizer(learning_rate)` or `callbacks()`."""
    module, _, function = config.architecture.partition(":")
    return getattr(importlib.import_module(module), name, default) if function else default


def _optimizer(keras: Any, config: Training) -> Any:
    made = _own(config, "optimizer", keras.optimizers.Adam)(config.learning_rate)
    if not isinstance(made, keras.optimizers.Optimizer):
        raise InputError(f"optimizer() of {config.architecture} must give a Keras optimizer, not {type(made).__name__}")
    return made


def block_steps(model: Any, rows: int, steps: int) -> int:
    """How many steps run compiled, without a look at anything else: about 0.3 s of one core, a second on a slow one.

    Estimated from the weights and the places where each is used, not timed: random state is derived at each block's
    start, so the blocks must be the same on every machine.
    """
    multiplications = 0
    for layer in model._flatten_layers(include_self=False, recursive=True):
        weights = max((int(np.prod(weight.shape)) for weight in layer.trainable_weights), default=0)
        try:
            places = int(np.prod(layer.output.shape[1:-1]))
        except (AttributeError, TypeError, ValueError):  # a layer that is called twice, or not yet, or of unknown size
            places = 1
        multiplications += weights * places
    seconds = 6 * multiplications * rows / 30e9  # forward and backward, 2 operations each, on a core of 30 GFLOP/s
    return min(64, steps, 1 << max(0, int(0.3 / max(seconds, 1e-9)).bit_length() - 1))


def _read_own_shards(
    job: Job, plan: Order, held_out: list[int], rank: int, world: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(images (n, …) uint8, labels (n,) int64) of this rank's shards, to train on and held out; each read once."""
    owned = plan.owned(rank, world)
    shards = job.manifest.shards["train"]

    def room(rows: int) -> tuple[np.ndarray, np.ndarray]:
        return np.empty((rows, *job.manifest.image_shape), np.uint8), np.empty(rows, np.int64)

    kept, apart = room(sum(plan.sizes[index] for index in owned)), room(sum(held_out[index] for index in owned))
    start = apart_start = 0
    for index in owned:
        _, images, labels = read_shard(job.shards, shards[index], job.manifest.image_shape)
        chosen = np.random.default_rng([job.config.seed, index]).permutation(len(labels))[: held_out[index]]
        is_apart = np.zeros(len(labels), bool)
        is_apart[chosen] = True
        end, apart_end = start + plan.sizes[index], apart_start + len(chosen)
        kept[0][start:end], kept[1][start:end] = images[~is_apart], labels[~is_apart]
        apart[0][apart_start:apart_end], apart[1][apart_start:apart_end] = images[is_apart], labels[is_apart]
        start, apart_start = end, apart_end
    return kept, apart


class Batches:
    """This rank's rows of the global batches, as a tf.data.Dataset of one epoch.

    A batch in which the rank has no rows is one row at weight 0: an empty one aborts oneDNN's kernels.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, plan: Order, ring: Ring, pixels: str, epoch: Callable[[], int]
    ) -> None:
        """epoch() is asked each time the dataset is begun, for the order of the epoch that is then due."""
        import tensorflow as tf

        rank, world = ring.rank, ring.size
        self._pixels = pixels
        self._ends = np.cumsum(plan.batch_rows(rank, world))
        self._starts = np.concatenate([[0], self._ends[:-1]])
        self._has_blanks = bool((self._starts == self._ends).any())
        if self._has_blanks:  # so that a rank without rows, too, has one to be blank with
            images, labels = (
                np.concatenate([images, np.zeros_like(images, shape=(1, *images.shape[1:]))]),
                np.append(labels, 0),
            )
        self._images, self._labels = tf.constant(images), tf.constant(labels)
        self._order: Callable[[], np.ndarray] = lambda: np.append(plan.indices(epoch(), rank, world), len(labels) - 1)

    def from_step(self, first: int) -> Any:
        """The epoch's batches from this step on: (images, labels), or where some are blank (…, weights)."""
        import tensorflow as tf

        bounds = tf.data.Dataset.from_tensor_slices((self._starts[first:], self._ends[first:]))

        def one_epoch(_: Any) -> Any:
            rows = tf.ensure_shape(tf.numpy_function(self._order, [], tf.int64), (None,))
            return bounds.map(lambda start, end: self._batch(rows, start, end))

        options = tf.data.Options()
        options.autotune.enabled = False
        options.threading.private_threadpool_size = 1
        options.threading.max_intra_op_parallelism = 1
        whole = tf.data.Dataset.from_tensors(0).flat_map(one_epoch)
        return whole.apply(tf.data.experimental.assert_cardinality(len(self._starts) - first)).with_options(options)

    def _batch(self, rows: Any, start: Any, end: Any) -> tuple[Any, ...]:
        import tensorflow as tf

        index = rows[start : tf.maximum(end, start + 1)] if self._has_blanks else rows[start:end]
        images, labels = feed(tf.gather(self._images, index), self._pixels), tf.gather(self._labels, index)
        if not self._has_blanks:
            return images, labels
        return images, labels, tf.fill(tf.shape(index), tf.cast(end > start, tf.keras.backend.floatx()))


def _assert_same_weights(ring: Ring, model: Any) -> None:
    """Every worker ends with the same bits, or the reported model is only one worker's opinion."""
    weights = np.concatenate([np.asarray(v, np.float64).ravel() for v in model.trainable_variables])
    theirs = ring.broadcast(weights.copy())
    differing = ring.all_reduce(np.array([np.count_nonzero(theirs.view(np.int64) != weights.view(np.int64))]))
    assert differing[0] == 0, f"{differing[0]} weights differ between workers after training"
