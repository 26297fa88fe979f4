"""Where a training stands: its epochs, its checkpoints, its progress record, and when it must stop."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from mnist_ray import collective
from mnist_ray.cluster.ray_private import publish
from mnist_ray.errors import DivergedError
from mnist_ray.runs.progress import ProgressRecord
from mnist_ray.storage.records import read_record
from mnist_ray.training.checkpoints import StartsRecord
from mnist_ray.training.job import Job
from mnist_ray.training.metrics import continue_sums, sums_over_workers, validate
from mnist_ray.training.order import Order
from mnist_ray.training.random_state import derive_random_state
from mnist_ray.training.saved_state import SavedState

SETUP_SECONDS = 600.0
"""How long a worker may take to read its shards and to compile before the others call it missing …"""

HANG_SECONDS = 30.0
"""… and how long it may go without a step afterwards."""

LOOK_SECONDS = 2.0
"""Between two looks at whether a node is about to be taken away; in Ray Train each is a barrier of 25 ms."""


class Journal:
    """Kept alike by every rank; rank 0 alone writes. What all must agree on goes over the ring at a block's end.

    A block is the steps that Keras runs without a callback (`steps_per_execution`).

    Attributes:
        epoch, first_step: where training goes on; both count from 0.
        restarts: how often this training had been started before.
    """

    def __init__(
        self, job: Job, order: Order, ring: collective.Ring, model: Any, validation: tuple[np.ndarray, np.ndarray]
    ) -> None:
        """validation: this rank's held-out (images, labels)."""
        self.job, self.order, self.ring, self.model = job, order, ring, model
        self.epoch = self.first_step = self.restarts = 0
        self._epochs: list[dict[str, Any]] = []
        self._resumed_from_epoch: int | None = None
        self._validation = validation
        self._batch_rows = order.batch_rows(ring.rank, ring.size)
        self._sums_before: np.ndarray | None = None  # the metrics of the part of an epoch that a checkpoint holds
        self._seconds_before = 0.0  # that this part took
        self._is_writer = ring.rank == 0
        self._state = SavedState(job.run / "checkpoints", job.config.keep, ring, model)
        self._record: ProgressRecord | None = None
        if self._is_writer:
            self._record = ProgressRecord(job.run / "progress.json", job.owner)
        self._looked_at = time.monotonic()
        self._is_leaving = False

    def restore(self) -> None:
        """Go on from the newest undamaged checkpoint, if there is one."""
        if self._is_writer:
            self.restarts = self._count_start()
        warnings: list[str] = []
        step, meta = self._state.restore(warnings.append)
        if step is not None:
            self.epoch, self.first_step = divmod(step, self.order.steps)
            self._resumed_from_epoch = self.epoch
        if meta:
            self._epochs = meta["epochs"]
            self._sums_before = np.array(meta["tallies"])
            self._seconds_before = meta["seconds"]
        self._show(
            phase="train", done=self.first_step * self.order.batch_size, total=self.order.rows, epoch=self.epoch,
            epochs=self._epochs, restarts=self.restarts, resumed_from_epoch=self._resumed_from_epoch,
            warnings=warnings,
        )  # fmt: skip

    def _show(self, **fields: Any) -> None:
        """Rank 0: replace fields of the progress record, in storage before long and for the driver now."""
        if self._record is not None:
            publish(self.job.channel, self._record.update(**fields))

    def _count_start(self) -> int:
        """How often this training has been started before."""
        file = self.job.run / "checkpoints" / "starts.json"
        remedy = "remove it and start the same command again"
        starts = read_record(file, StartsRecord, remedy).starts + 1 if file.exists() else 0
        file.write_json({"starts": starts})
        return starts

    # During `fit`.

    def callback(self) -> Any:
        """For `fit`, behind `collective.synchronize`, which makes the logs those of all workers."""
        import keras

        journal = self

        class Follow(keras.callbacks.Callback):  # type: ignore[misc]
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                journal._begin_epoch(epoch)

            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                journal._begin_block(journal.first_step + batch)

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                journal._end_block(journal.first_step + batch + 1, logs or {})

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                assert logs is not None
                logs.update(journal._validate())
                journal._end_epoch(epoch, logs)

        return Follow()

    def blank_steps(self, end: int | None = None) -> int:
        """The number of this epoch's steps before `end` that this process made without a row of its own."""
        return int((self._batch_rows[self.first_step : end] == 0).sum())

    def _begin_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.first_step, self._seconds_before = epoch, 0, 0.0
        elif self.first_step and self._sums_before is not None:  # `fit` has just set the metrics to zero
            continue_sums(self.model, self._sums_before)
        self._sums_before = None
        self._began = time.perf_counter()

    def _begin_block(self, step: int) -> None:
        step += self.epoch * self.order.steps
        derive_random_state(self.model, seed=self.job.config.seed, rank=self.ring.rank, step=step)

    def _end_block(self, step: int, logs: dict[str, Any]) -> None:
        is_finite, is_look_due = self._agree(math.isfinite(logs["loss"]))
        self.ring.timeout = HANG_SECONDS
        if not is_finite:
            raise DivergedError(
                f"the loss is no longer finite in epoch {self.epoch + 1} by step {step}, at learning rate"
                f" {self._learning_rate():g}; the checkpoint before is kept; start with a smaller --learning-rate",
                see="runs.md#failures",
            )
        every = self.job.config.checkpoint_every
        is_due = every is not None and step // every > (step - self.model.steps_per_execution) // every
        if is_look_due:
            self._looked_at = time.monotonic()
            is_due |= self._is_going_away()
        if is_due and step < self.order.steps:
            sums = sums_over_workers(self.ring, self.model, self.blank_steps(step))
            self._save(self.epoch * self.order.steps + step, sums, self._seconds())
        self._record_block(step, logs)

    def _agree(self, is_finite: bool) -> tuple[bool, bool]:
        """(whether every rank's loss is finite, whether rank 0 wants to look at the nodes): one small all-reduce."""
        is_look_due = self._is_writer and not self.job.is_local and time.monotonic() - self._looked_at > LOOK_SECONDS
        flags = self.ring.all_reduce(np.array([not is_finite, is_look_due], np.int64))
        return not flags[0], bool(flags[1])

    def _learning_rate(self) -> float:
        return float(np.asarray(self.model.optimizer.learning_rate))

    def _is_going_away(self) -> bool:
        """Whether a node of ours is being drained: from then on each block ends in a checkpoint until it is gone."""
        from ray.train import get_preemption_info

        self._is_leaving = get_preemption_info() is not None
        return self._is_leaving

    def _validate(self) -> dict[str, float]:
        if not self.job.config.validation_fraction:
            return {}
        return validate(self.ring, self.model, *self._validation)

    def _end_epoch(self, epoch: int, logs: dict[str, Any]) -> None:
        seconds = self._seconds()
        record = {"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}}
        record |= {"seconds": round(seconds, 4), "images_per_second": round(self.order.rows / seconds, 1)}
        self._epochs = [*self._epochs, record]
        self._save((epoch + 1) * self.order.steps, np.zeros(0), 0.0)
        self._show(epoch=epoch + 1, epochs=self._epochs, done=self.order.rows, total=self.order.rows)

    def _seconds(self) -> float:
        """Seconds of this epoch so far, including those in earlier processes."""
        return self._seconds_before + time.perf_counter() - self._began

    def _save(self, step: int, sums: np.ndarray, seconds: float) -> None:
        meta = {"epochs": self._epochs, "tallies": sums.tolist(), "seconds": seconds}
        self._state.save(step, meta, also_keep=self._best_step())
        if self._is_leaving:
            self._state.wait()

    def _record_block(self, step: int, logs: dict[str, Any]) -> None:
        done = min(step * self.order.batch_size, self.order.rows)
        self._show(
            phase="train", done=done, total=self.order.rows, per_second=round(done / self._seconds()), epoch=self.epoch,
            loss=float(logs["loss"]), accuracy=float(logs["accuracy"]), epochs=self._epochs,
        )  # fmt: skip

    # At the end.

    def restore_best(self) -> None:
        """With --keep-best, go back to the weights of the epoch with the best validation accuracy."""
        if self.job.config.keep_best:
            self._state.go_back_to(self._best_step())

    def _best_step(self) -> int | None:
        """The global step at the end of the best epoch; None without --keep-best, or without an epoch."""
        if not self.job.config.keep_best or not self._epochs:
            return None
        best = max(self._epochs, key=lambda record: (record["val_accuracy"], -record["val_loss"]))
        return int(best["epoch"]) * self.order.steps

    def summary(self) -> dict[str, Any]:
        """`train` of metrics.json. On rank 0 alone it covers the epochs of earlier processes."""
        seconds = [record["seconds"] for record in self._epochs]
        best = min(seconds[1:] or seconds)  # the first epoch traces and warms up
        step = self._best_step()
        return {
            "num_workers": self.ring.size,
            "batch_size": self.order.batch_size,
            "epochs": self._epochs,
            "seconds": round(sum(seconds), 4),
            "milliseconds_per_step": round(1000 * best / self.order.steps, 4),
            "restarts": self.restarts,
            "resumed_from_epoch": self._resumed_from_epoch,
            **({"best_epoch": step // self.order.steps} if step else {}),
        }

    def close(self) -> None:
        """Wait until the last checkpoint and the progress record are in storage."""
        self._state.wait()
        if self._record is not None:
            self._record.close()
