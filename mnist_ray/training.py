"""The training: what each worker does, and what the driver asks Ray Train for.

A worker reads its own shards once, as uint8, and runs plain Keras `fit` over its rows of the global batches
(`order.py`), with the gradients added up over the ring (`collective.py`). Rank 0 writes checkpoints and progress.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnist_ray import checkpoints, collective
from mnist_ray.checkpoints import Checkpoint
from mnist_ray.config import Training
from mnist_ray.errors import RetryableError, UserError
from mnist_ray.model import Recipe, build, import_keras, save
from mnist_ray.order import Order, order
from mnist_ray.progress import ProgressRecord
from mnist_ray.ring import Ring
from mnist_ray.sharding import Manifest, read_shard
from mnist_ray.storage import Location

BLOCK_STEPS = 64
"""Steps that run compiled, without a look at anything else: short enough to stay under a second."""

KEPT_CHECKPOINTS = 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker is told."""

    config: Training
    recipe: Recipe
    manifest: Manifest
    shards: Location
    run: Location
    owner: dict[str, Any]


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


def train(job: Job, *, is_local: bool) -> dict[str, Any]:
    """Train by Ray Train until the model is in the run's folder; what `train` of metrics.json says comes back.

    Raises the worker's own UserError, or RetryableError when workers died more often than `max_failures`.
    """
    model = job.run / "model" / "model.json"
    if model.exists():
        return _trained(model)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    class Trainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            """All but the one that starts a process for Ray Data's datasets: a worker reads its own shards."""
            return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    _tune_ray_train(is_local)
    attempt = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"  # never read back: a snapshot there would be loaded
    fewest, most = job.config.worker_range()
    trainer = Trainer(
        _worker,
        train_loop_config={"job": job},
        backend_config=collective.RingConfig(),
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),  # type: ignore[arg-type] # V1's signature
            resources_per_worker={"CPU": job.config.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=attempt,
            storage_path=(job.run / "ray").path,
            storage_filesystem=job.run.filesystem,
            failure_config=FailureConfig(max_failures=job.config.max_failures),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _reason(error) from error
    return _trained(model)


def _trained(model: Location) -> dict[str, Any]:
    trained: dict[str, Any] = model.read_json()["trained"]
    return trained


def _tune_ray_train(is_local: bool) -> None:
    """Settings of Ray Train that only the environment takes."""
    # The controller polls this often; the end of the loop is noticed that late.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # A hung worker counts as dead after this, not after ten minutes. The ring's own deadline is usually first.
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "45")
    if is_local:
        # A process each, to watch what one machine has no use for.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")


def _reason(error: Any) -> UserError:
    """What a worker raised, out of Ray's wrapping."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, UserError):
            return cause
    last = (str(failures[0]) if failures else str(error)).strip().split("\n")[-1]
    return RetryableError(f"training failed: {last}; the same command goes on from the last checkpoint", see="failures")


# A worker's side.


def _worker(config: dict[str, Any]) -> None:
    """Runs in every worker's process."""
    fit(config["job"], collective.ring())


def fit(job: Job, ring: Ring) -> None:
    """Train this rank's share, together with the others of the ring, until rank 0 has saved the model."""
    rank, world = ring.rank, ring.size
    threads = max(1, int(job.config.cpus_per_worker))
    keras = import_keras(job.recipe.precision, threads=threads)

    plan = order([shard.rows for shard in job.manifest.shards["train"]], job.config.batch_size, job.config.seed)
    images, labels = _read_own_shards(job, plan, rank, world)
    classifier = build(job.recipe)
    model = classifier
    batch_rows = plan.batch_rows(rank, world)
    model.compile(
        optimizer=collective.data_parallel(
            keras.optimizers.Adam(job.config.learning_rate),
            ring,
            rows=batch_rows,
            global_rows=np.minimum(plan.batch_size, plan.rows - plan.batch_size * np.arange(plan.steps)),
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=min(BLOCK_STEPS, plan.steps),
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)

    history = History(job, plan, ring, model)
    first_epoch = history.restore()
    dataset = _batches(images, labels, plan, rank, world, lambda: history.epoch)
    del images, labels
    callbacks = [
        collective.synchronize(ring, blank_steps=lambda: int((batch_rows == 0).sum())),
        history.callback(),
    ]
    if first_epoch < job.config.epochs:
        try:
            model.fit(
                dataset, epochs=job.config.epochs, initial_epoch=first_epoch, verbose=0, shuffle=False,
                callbacks=callbacks,
            )  # fmt: skip
        except Exception:
            if ring.error is not None:  # TensorFlow hides what its Python function raised
                raise ring.error from None
            raise
    _assert_same_weights(ring, model)
    history.close()
    if rank == 0:
        save(classifier, job.run / "model", job.recipe, job.manifest.classes, history.trained())
    ring.barrier()  # nobody leaves, and so ends the run, before the model is there


def _read_own_shards(job: Job, plan: Order, rank: int, world: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, …) uint8 and labels (n,) int64 of the shards that this rank owns, each read once."""
    owned = [job.manifest.shards["train"][index] for index in plan.owned(rank, world)]
    images = np.empty((sum(shard.rows for shard in owned), *job.manifest.image_shape), np.uint8)
    labels = np.empty(len(images), np.int64)
    start = 0
    for shard in owned:
        _, part, part_labels = read_shard(job.shards, shard, job.manifest.image_shape)
        images[start : start + shard.rows], labels[start : start + shard.rows] = part, part_labels
        start += shard.rows
    return images, labels


def _batches(
    images: np.ndarray, labels: np.ndarray, plan: Order, rank: int, world: int, epoch: Callable[[], int]
) -> Any:
    """A tf.data.Dataset of one epoch of this rank's batches; each time it is begun, that of the epoch now due.

    A batch in which the rank has no rows is one row at weight 0: an empty one aborts oneDNN's kernels.
    """
    import tensorflow as tf

    x, y = tf.constant(images), tf.constant(labels)
    ends = np.cumsum(plan.batch_rows(rank, world))
    starts = np.concatenate([[0], ends[:-1]])
    has_blanks = bool((starts == ends).any())

    def one_epoch(_: Any) -> Any:
        rows = tf.numpy_function(lambda: plan.indices(epoch(), rank, world), [], tf.int64)
        rows = tf.concat([rows, [0]], 0)  # so that a rank without rows has one to be blank with

        def batch(start: Any, end: Any) -> Any:
            index = rows[start : tf.maximum(end, start + 1)] if has_blanks else rows[start:end]
            features = tf.ensure_shape(tf.gather(x, index), (None, *images.shape[1:]))
            targets = tf.ensure_shape(tf.gather(y, index), (None,))
            if not has_blanks:
                return features, targets
            weight = tf.cast(end > start, tf.keras.backend.floatx())
            return features, targets, tf.fill(tf.shape(index), weight)

        return tf.data.Dataset.from_tensor_slices((starts, ends)).map(batch)

    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return tf.data.Dataset.from_tensors(0).flat_map(one_epoch).with_options(options)


class History:
    """Where a training stands: its epochs' records, its checkpoints, and what `progress.json` says of it."""

    def __init__(self, job: Job, plan: Order, ring: Any, model: Any) -> None:
        self.job, self.plan, self.ring, self.model = job, plan, ring, model
        self.epoch = 0
        self.epochs: list[dict[str, Any]] = []
        self.restarts = 0
        self.resumed_from_epoch: int | None = None
        self.leads = ring.rank == 0
        self._folder = job.run / "checkpoints"
        self._writer = checkpoints.Writer(self._folder, KEPT_CHECKPOINTS)
        self._record = ProgressRecord(job.run / "progress.json", job.owner, interval=0.25) if self.leads else None

    def restore(self) -> int:
        """Go on from the newest whole checkpoint; finished epochs in it. Rank 0 looks, all follow."""
        found = checkpoints.newest(self._folder, warn=print) if self.leads else None
        step = np.array([found.step if found else -1], np.int64)
        self.ring.broadcast(step)
        if step[0] < 0:
            return 0
        if found is not None:
            for variable, array in zip(self._variables(), found.arrays, strict=True):
                variable.assign(array)
            self.epochs = found.meta["epochs"]
        self.epoch = int(step[0]) // self.plan.steps
        self.resumed_from_epoch = self.epoch
        # Rank 0's weights reach the others when `fit` begins.
        collective.broadcast_variables(self.ring, self._variables())
        return self.epoch

    def _variables(self) -> list[Any]:
        """All that a checkpoint holds. Random state is derived, not saved."""
        kept = [v for v in self.model.variables if "seed_generator" not in v.path]
        return [*kept, *self.model.optimizer.variables]

    def callback(self) -> Any:
        import keras

        history, plan, ring = self, self.plan, self.ring
        seeds = [v for v in self.model.variables if "seed_generator" in v.path]

        class Follow(keras.callbacks.Callback):  # type: ignore[misc]
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                history.epoch = epoch
                self.began = time.perf_counter()

            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                # Derived from where the training stands, so that a resumed one draws what it would have drawn.
                step = history.epoch * plan.steps + batch
                for index, seed in enumerate(seeds):
                    draw = np.random.SeedSequence([history.job.config.seed, ring.rank, step, index])
                    seed.assign(draw.generate_state(2).astype(seed.dtype))

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                history._tell(batch + 1, time.perf_counter() - self.began, logs or {})

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                history._finish_epoch(epoch, time.perf_counter() - self.began, logs or {})

        return Follow()

    def _tell(self, step: int, seconds: float, logs: dict[str, Any]) -> None:
        if self._record is None:
            return
        done = min(step * self.plan.batch_size, self.plan.rows)
        self._record.update(
            phase="train", done=done, total=self.plan.rows, per_second=round(done / seconds), epoch=self.epoch,
            loss=_finite(logs.get("loss")), accuracy=_finite(logs.get("accuracy")), epochs=self.epochs,
        )  # fmt: skip

    def _finish_epoch(self, epoch: int, seconds: float, logs: dict[str, Any]) -> None:
        step = (epoch + 1) * self.plan.steps
        if not math.isfinite(logs["loss"]):
            raise RetryableError(
                f"the loss became {logs['loss']} in epoch {epoch + 1} (step {step}, learning rate"
                f" {self.job.config.learning_rate}); the checkpoint before is kept; try a smaller --learning-rate"
            )
        record = {
            "epoch": epoch + 1,
            "loss": logs["loss"],
            "accuracy": logs["accuracy"],
            "seconds": round(seconds, 4),
            "images_per_second": round(self.plan.rows / seconds, 1),
        }
        self.epochs = [*self.epochs, record]
        self.epoch = epoch + 1
        if self._record is not None:
            self._record.update(epoch=epoch + 1, epochs=self.epochs, done=self.plan.rows, total=self.plan.rows)
            arrays = [np.asarray(variable) for variable in self._variables()]
            self._writer.write(Checkpoint(step, arrays, {"epochs": self.epochs}))

    def trained(self) -> dict[str, Any]:
        """What metrics.json says of the training."""
        seconds = [record["seconds"] for record in self.epochs]
        best = min(seconds[1:] or seconds)  # the first epoch traces and warms up
        return {
            "num_workers": self.ring.size,
            "batch_size": self.plan.batch_size,
            "epochs": self.epochs,
            "seconds": round(sum(seconds), 4),
            "milliseconds_per_step": round(1000 * best / self.plan.steps, 4),
            "restarts": self.restarts,
            "resumed_from_epoch": self.resumed_from_epoch,
        }

    def close(self) -> None:
        """Until the last checkpoint and the last word of progress are in storage."""
        self._writer.wait()
        if self._record is not None:
            self._record.close()


def _finite(value: Any) -> float | None:
    """JSON has no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None


def _assert_same_weights(ring: Any, model: Any) -> None:
    """Every worker ends with the same bits, or the reported model is only one worker's opinion."""
    weights = np.concatenate([np.asarray(v, np.float64).ravel() for v in model.trainable_variables])
    mine = weights.copy()
    differs = np.array([int((ring.broadcast(mine).view(np.int64) != weights.view(np.int64)).sum())])
    total = int(ring.all_reduce(differs)[0])
    assert total == 0, f"{total} weights differ between workers after training"


__all__ = ["Job", "recipe", "train"]
