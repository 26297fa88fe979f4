"""Where a training stands: its epochs, its checkpoints, what progress.json says, and when it must stop."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from mnist_ray import collective
from mnist_ray.errors import DivergedError
from mnist_ray.models.anatomy import feed, pixels_of
from mnist_ray.runs.progress import ProgressRecord
from mnist_ray.training import checkpoints
from mnist_ray.training.checkpoints import Checkpoint
from mnist_ray.training.job import Job
from mnist_ray.training.order import Order

SETUP_SECONDS = 600.0
"""A worker may take so long to read its shards and to compile before the others call it missing …"""

HANG_SECONDS = 30.0
"""… and so long without a step afterwards."""

LOOK_SECONDS = 2.0
"""Between two looks at whether a node is about to be taken away; Ray Train makes each a barrier of 25 ms."""

VALIDATION_ROWS = 1024


class Journal:
    """Kept alike by every rank; rank 0 alone writes. What all must agree on goes over the ring at a block's end."""

    def __init__(
        self,
        job: Job,
        plan: Order,
        ring: collective.Ring,
        model: Any,
        validation: tuple[np.ndarray, np.ndarray],
        batch_rows: np.ndarray,
    ) -> None:
        self.job, self.plan, self.ring, self.model = job, plan, ring, model
        self.epoch = self.first_step = 0  # where training goes on
        self.epochs: list[dict[str, Any]] = []
        self.resumed_from_epoch: int | None = None
        self.restarts = 0
        self._warnings: list[str] = []
        self._validation, self._batch_rows = validation, batch_rows
        self._tallies: np.ndarray | None = None  # of the part of an epoch that a checkpoint has
        self._seconds_before = 0.0  # that this part took
        self._leads = ring.rank == 0
        self._folder = job.run / "checkpoints"
        self._writer = checkpoints.Writer(self._folder, job.config.keep)
        self._record = ProgressRecord(job.run / "progress.json", job.owner, interval=0.25) if self._leads else None
        self._looked = self._saved_at = time.monotonic()
        self._is_leaving = False

    # Going on from a checkpoint.

    def restore(self) -> int:
        """Go on from the newest whole checkpoint; the epoch to begin with. Rank 0 looks, all follow."""
        found = None
        if self._leads:
            self._folder.sweep()  # what the rank 0 of an attempt before left; one that lives yet is no use any more
            found = checkpoints.newest(self._folder, warn=self._warnings.append)
            self.restarts = self._count_start()
        step = int(self.ring.broadcast(np.array([found.step if found else -1], np.int64))[0])
        if step < 0:
            self._tell_start()
            return 0
        if found is not None:
            for variable, array in zip(self._variables(), found.arrays, strict=True):
                variable.assign(array)
            self.epochs = found.meta["epochs"]
            self._tallies = np.array(found.meta["tallies"])
            self._seconds_before = found.meta["seconds"]
        self.epoch, self.first_step = divmod(step, self.plan.steps)
        self.resumed_from_epoch = self.epoch
        collective.broadcast_variables(self.ring, self._variables())
        self._tell_start()
        return self.epoch

    def _tell_start(self) -> None:
        if self._record is not None:
            self._record.update(
                phase="train", done=self.first_step * self.plan.batch_size, total=self.plan.rows, epoch=self.epoch,
                epochs=self.epochs, restarts=self.restarts, resumed_from_epoch=self.resumed_from_epoch,
                warnings=self._warnings,
            )  # fmt: skip

    def _count_start(self) -> int:
        """How often this training has been started before."""
        file = self._folder / "starts.json"
        starts = file.read_json()["starts"] + 1 if file.exists() else 0
        file.write_json({"starts": starts})
        return int(starts)

    def _variables(self) -> list[Any]:
        """All that a checkpoint holds. Random state is derived, not saved."""
        kept = [v for v in self.model.variables if not _is_seed(v)]
        return [*kept, *self.model.optimizer.variables]

    def _metric_variables(self) -> list[Any]:
        return [variable for metric in self.model.metrics for variable in metric.variables]

    # Beside `fit`.

    def callback(self) -> Any:
        """For `fit`, behind `collective.synchronize`, which makes the logs those of all workers."""
        import keras

        journal = self

        class Follow(keras.callbacks.Callback):  # type: ignore[misc]
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                journal._begin_epoch(epoch)

            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                journal._derive_random_state(journal.first_step + batch)

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                journal._end_block(journal.first_step + batch + 1, logs or {})

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                assert logs is not None
                logs.update(journal._validate())
                journal._end_epoch(epoch, logs)

        return Follow()

    def blank_steps(self, end: int | None = None) -> int:
        """Steps of this epoch up to `end` that this process made without a row of its own."""
        return int((self._batch_rows[self.first_step : end] == 0).sum())

    def _begin_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.first_step, self._seconds_before = epoch, 0, 0.0
        elif self.first_step and self._tallies is not None:  # `fit` has just set the metrics to zero
            start = 0
            for variable in self._metric_variables():
                size = int(np.prod(variable.shape))
                variable.assign(self._tallies[start : start + size].reshape(variable.shape))
                start += size
        self._tallies = None
        self._began = time.perf_counter()

    def _derive_random_state(self, step: int) -> None:
        """From where the training stands, so that a resumed one draws what it would have drawn."""
        at = self.epoch * self.plan.steps + step
        for index, seed in enumerate(v for v in self.model.variables if _is_seed(v)):
            drawn = np.random.SeedSequence([self.job.config.seed, self.ring.rank, at, index]).generate_state(2)
            seed.assign(drawn.astype(seed.dtype))

    def _seconds(self) -> float:
        """Of this epoch until now, also in the processes before."""
        return self._seconds_before + time.perf_counter() - self._began

    def _end_block(self, step: int, logs: dict[str, Any]) -> None:
        now = time.monotonic()
        # One small all-reduce lets all ranks see the same: a loss that is no number, or rank 0's wish to look around.
        wants_look = self._leads and not self.job.is_local and now - self._looked > LOOK_SECONDS
        flags = self.ring.all_reduce(np.array([not math.isfinite(logs["loss"]), wants_look], np.int64))
        self.ring.timeout = HANG_SECONDS
        if flags[0]:
            raise DivergedError(
                f"the loss is no longer finite in epoch {self.epoch + 1} by step {step}, at learning rate"
                f" {self._learning_rate():g}; the checkpoint before is kept; start with a smaller --learning-rate",
                see="runs.md#failures",
            )
        every = self.job.config.checkpoint_every
        is_due = every is not None and step // every > (step - self.model.steps_per_execution) // every
        if flags[1]:
            self._looked = now
            is_due |= self._is_going_away()
        if is_due and step < self.plan.steps:
            self._save(self.epoch * self.plan.steps + step, self._all_tallies(step), self._seconds())
        self._tell(step, logs)

    def _learning_rate(self) -> float:
        return float(np.asarray(self.model.optimizer.learning_rate))

    def _is_going_away(self) -> bool:
        """Whether a node of ours is being drained: from then on each block ends in a checkpoint until it is gone."""
        from ray.train import get_preemption_info

        self._is_leaving = get_preemption_info() is not None
        return self._is_leaving

    def _all_tallies(self, step: int) -> np.ndarray:
        """The metrics' sums over all workers up to a step, in the order of their variables, blank rows not counted."""
        blank = {id(self.model._loss_tracker.count): self.blank_steps(step)}
        counts = [np.array(v, np.float64).ravel() - blank.get(id(v), 0) for v in self._metric_variables()]
        return self.ring.all_reduce(np.concatenate(counts))

    def _validate(self) -> dict[str, float]:
        """Loss and accuracy over all workers' held-out rows, by counts."""
        if not self.job.config.validation_fraction:
            return {}
        import tensorflow as tf

        images, labels = self._validation
        self.model.reset_metrics()
        if len(labels):
            pixels = pixels_of(self.model)
            dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(VALIDATION_ROWS)
            self.model.evaluate(dataset.map(lambda x, y: (feed(x, pixels), y)), verbose=0)
        collective.all_reduce_variables(self.ring, self._metric_variables())
        return {f"val_{name}": float(value) for name, value in self.model.get_metrics_result().items()}

    def _end_epoch(self, epoch: int, logs: dict[str, Any]) -> None:
        seconds = self._seconds()
        record = {"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}}
        record |= {"seconds": round(seconds, 4), "images_per_second": round(self.plan.rows / seconds, 1)}
        self.epochs = [*self.epochs, record]
        self._save((epoch + 1) * self.plan.steps, np.zeros(0), 0.0)
        if self._record is not None:
            self._record.update(epoch=epoch + 1, epochs=self.epochs, done=self.plan.rows, total=self.plan.rows)

    def _save(self, step: int, tallies: np.ndarray, seconds: float) -> None:
        if not self._leads:
            return
        arrays = [np.array(variable) for variable in self._variables()]
        meta = {"epochs": self.epochs, "tallies": tallies.tolist(), "seconds": seconds}
        self._writer.write(Checkpoint(step, arrays, meta), also_keep=self._best_step())
        if self._is_leaving:
            self._writer.wait()

    def _tell(self, step: int, logs: dict[str, Any]) -> None:
        if self._record is None:
            return
        done = min(step * self.plan.batch_size, self.plan.rows)
        self._record.update(
            phase="train", done=done, total=self.plan.rows, per_second=round(done / self._seconds()), epoch=self.epoch,
            loss=float(logs["loss"]), accuracy=float(logs["accuracy"]), epochs=self.epochs,
        )  # fmt: skip

    # At the end.

    def _best_step(self) -> int | None:
        if not self.job.config.keep_best or not self.epochs:
            return None
        best = max(self.epochs, key=lambda record: (record["val_accuracy"], -record["val_loss"]))
        return int(best["epoch"]) * self.plan.steps

    def choose_best(self) -> None:
        """With --keep-best, go back to the weights of the epoch with the best validation accuracy."""
        if not self.job.config.keep_best:
            return
        if self._leads:
            self._writer.wait()
            step = self._best_step()
            assert step is not None
            best = checkpoints.at(self._folder, step)
            for variable, array in zip(self._variables(), best.arrays, strict=True):
                variable.assign(array)
        collective.broadcast_variables(self.ring, self._variables())

    def trained(self) -> dict[str, Any]:
        """What metrics.json says of the training."""
        seconds = [record["seconds"] for record in self.epochs]
        best = min(seconds[1:] or seconds)  # the first epoch traces and warms up
        step = self._best_step()
        return {
            "num_workers": self.ring.size,
            "batch_size": self.plan.batch_size,
            "epochs": self.epochs,
            "seconds": round(sum(seconds), 4),
            "milliseconds_per_step": round(1000 * best / self.plan.steps, 4),
            "restarts": self.restarts,
            "resumed_from_epoch": self.resumed_from_epoch,
            **({"best_epoch": step // self.plan.steps} if step else {}),
        }

    def close(self) -> None:
        """Until the last checkpoint and the last word of progress are in storage."""
        self._writer.wait()
        if self._record is not None:
            self._record.close()


def _is_seed(variable: Any) -> bool:
    return "seed_generator" in variable.path
